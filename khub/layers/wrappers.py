"""Layers that hold another layer."""

from khub import ops, tree
from khub.choices import choose
from khub.fields import PositiveInt
from khub.layers.layer import InputSpec, Layer
from khub.layers.recurrent import _as_states
from khub.saving import registry


class Wrapper(Layer):
    """Base of layers that hold one other layer, as `layer`."""

    layer: object

    def setup(self):
        self.layer = registry.get("layers", self.layer)
        if not isinstance(self.layer, Layer):
            raise ValueError(f"{type(self).__name__} wraps a layer, got {self.layer!r}.")

    def build(self, input_shape=None):
        if not self.layer.built:
            self.layer.build(input_shape)


class TimeDistributed(Wrapper):
    """Applies a layer to every step by itself.  (batch, time, ...) -> (batch, time, ...)"""

    supports_masking = True

    def build(self, input_shape):
        if len(input_shape) < 3:
            raise ValueError(
                f"TimeDistributed needs (batch, time, ...), got shape {tuple(input_shape)}."
            )
        super().build((input_shape[0], *input_shape[2:]))

    def call(self, inputs, training=None, mask=None):
        batch, time = ops.shape(inputs)[:2]
        spec, options = self.layer._call_spec, {}
        if spec.training:
            options["training"] = training
        if mask is not None and "mask" in spec.names:
            options["mask"] = ops.reshape(mask, (-1, *ops.shape(mask)[2:]))
        flat = ops.reshape(inputs, (-1, *ops.shape(inputs)[2:]))
        batch = batch if isinstance(batch, int) else -1

        def unfold(y):
            return ops.reshape(y, (batch, time, *ops.shape(y)[1:]))

        return tree.map_structure(unfold, self.layer(flat, **options))


class SpectralNormalization(Wrapper):
    """Divides the layer's kernel by its largest singular value in training.  arXiv:1802.05957

    power_iterations: steps of the power method a call.  Weights: vector_u (1, units)
    """

    power_iterations: PositiveInt = 1

    def build(self, input_shape):
        super().build(input_shape)
        self.input_spec = InputSpec(shape=[None, *input_shape[1:]])
        self.kernel = getattr(self.layer, "kernel", getattr(self.layer, "embeddings", None))
        if self.kernel is None:
            raise ValueError(f"{self.name}: {self.layer.name} has neither kernel nor embeddings.")
        self.vector_u = self.add_weight(
            (1, self.kernel.shape[-1]), "truncated_normal", trainable=False, name="vector_u"
        )

    def call(self, inputs, training=False):
        if training:
            kernel = self.kernel.value
            matrix, u = ops.reshape(kernel, (-1, kernel.shape[-1])), self.vector_u.value
            for _ in range(self.power_iterations):
                v = ops.normalize(ops.matmul(u, ops.transpose(matrix)), axis=None)
                u = ops.normalize(ops.matmul(v, matrix), axis=None)
            u, v = ops.stop_gradient(u), ops.stop_gradient(v)
            sigma = ops.matmul(ops.matmul(v, matrix), ops.transpose(u))
            self.vector_u.assign(u)
            self.kernel.assign(kernel / ops.reshape(sigma, ()))
        return self.layer(inputs)


class Bidirectional(Layer):
    """Runs a recurrent layer forwards and another backwards, and merges their outputs.

    layer: a recurrent layer; backward_layer: the other one, a copy that goes backwards if None
    merge_mode: "concat", "sum", "mul", "ave", or None for a list of both
    """

    supports_masking = True
    _modes = {
        "concat": lambda a, b: ops.concatenate([a, b], axis=-1),
        "sum": ops.add,
        "mul": ops.multiply,
        "ave": lambda a, b: (a + b) / 2,
    }

    def __init__(self, layer, merge_mode="concat", weights=None, backward_layer=None, **kwargs):
        super().__init__(**kwargs)
        layer, backward_layer = (registry.get("layers", each) for each in (layer, backward_layer))
        if not isinstance(layer, Layer) or not hasattr(layer, "go_backwards"):
            raise ValueError(f"Bidirectional takes a recurrent layer, got {layer!r}.")
        self.merge_mode = choose(
            f"Bidirectional {self.name!r}: merge_mode", merge_mode, [*self._modes, None]
        )

        def copy(other, direction, **changes):
            config = other.get_config() | {"name": f"{direction}_{layer.name}"} | changes
            return type(other).from_config(config)

        self.forward_layer = copy(layer, "forward")
        if backward_layer is None:
            self.backward_layer = copy(layer, "backward", go_backwards=not layer.go_backwards)
        else:
            self.backward_layer = copy(backward_layer, "backward")
        if layer.return_sequences:  # a hidden step would repeat one neighbour in each direction
            self.forward_layer.zero_output_for_mask = True
            self.backward_layer.zero_output_for_mask = True
        if self.backward_layer.go_backwards == self.forward_layer.go_backwards:
            raise ValueError("forward and backward layer must differ in go_backwards.")
        for name in ("return_sequences", "return_state", "stateful"):
            if getattr(self.forward_layer, name) != getattr(self.backward_layer, name):
                raise ValueError(f"forward and backward layer must agree in {name}.")
            setattr(self, name, getattr(layer, name))
        self._given_weights = weights

    @property
    def layer(self):
        """The layer that runs forwards."""
        return self.forward_layer

    def build(self, sequences_shape, initial_state_shape=None):
        for layer in (self.forward_layer, self.backward_layer):
            if not layer.built:
                layer.build(sequences_shape)
        if self._given_weights is not None:
            half = len(self._given_weights) // 2
            self.forward_layer.set_weights(self._given_weights[:half])
            self.backward_layer.set_weights(self._given_weights[half:])

    def call(self, sequences, initial_state=None, mask=None, training=None):
        states = [] if initial_state is None else _as_states(initial_state)
        options, half = {"mask": mask, "training": training}, len(states) // 2
        y = self.forward_layer(sequences, initial_state=states[:half] or None, **options)
        z = self.backward_layer(sequences, initial_state=states[half:] or None, **options)
        forward = backward = ()
        if self.return_state:
            (y, *forward), (z, *backward) = y, z
        if self.return_sequences:
            z = ops.flip(z, 1)
        merged = [y, z] if self.merge_mode is None else self._modes[self.merge_mode](y, z)
        if not self.return_state:
            return merged
        return (*(merged if self.merge_mode is None else [merged]), *forward, *backward)

    def reset_state(self):
        """Set the states that stateful layers keep to zero."""
        self.forward_layer.reset_state()
        self.backward_layer.reset_state()

    reset_states = reset_state

    def compute_mask(self, _, mask):
        found = self.forward_layer.compute_mask(None, mask)
        mask, *states = found if self.return_state else [found]
        outputs = [mask] * (2 if self.merge_mode is None else 1)
        return [*outputs, *states, *states] if len(outputs) > 1 or self.return_state else mask

    def get_config(self):
        config = super().get_config()
        del config["weights"]
        config["layer"] = registry.serialize(self.forward_layer)
        config["layer"]["config"]["name"] = self.forward_layer.name.removeprefix("forward_")
        if config["backward_layer"] is None:
            del config["backward_layer"]
        return config


__all__ = ["Bidirectional", "SpectralNormalization", "TimeDistributed", "Wrapper"]
