"""Sequential: layers one after the other."""

from contextlib import nullcontext

from khub import dtype_policies
from khub.backend.variable import name_scope
from khub.layers.core import Input, InputLayer
from khub.layers.layer import Layer
from khub.models.functional import Functional
from khub.models.model import Model
from khub.saving import registry


def _of_graph(name, text):
    return property(lambda self: getattr(self._built_graph(), name), doc=text)


class Sequential(Model):
    """A chain of layers; it is built by an `Input`, by `build(shape)` or by its first call.

    layers: list of layers, the first one may be an Input
    """

    _module = "keras"

    def __init__(self, layers=None, trainable=True, name=None):
        super().__init__(trainable=trainable, name=name)
        self._layers, self._input, self._graph = [], None, None
        for layer in layers or []:
            self._add(layer)
        self._rebuild()

    def add(self, layer, rebuild=True):
        """Append a layer."""
        self._add(layer)
        if rebuild:
            self._rebuild()

    def _add(self, layer):
        if hasattr(layer, "input_layer"):  # a symbolic tensor from Input()
            layer = layer.input_layer
        if not isinstance(layer, Layer):
            raise ValueError(f"Sequential takes layers, got {layer!r}.")
        if isinstance(layer, InputLayer):
            if self._layers or self._input is not None:
                raise ValueError(
                    f"{self.name} already begins with {(self._layers or ['an Input'])[0]}."
                )
            self._input = layer.output
            return
        if any(layer.name == other.name for other in self._layers):
            raise ValueError(
                f"{self.name} has a layer named {layer.name!r} already; names are unique."
            )
        if not self._layers and self._input is None and layer._input_shape_given is not None:
            self._input = Input(layer._input_shape_given)
        self._layers.append(layer)

    def pop(self, rebuild=True):
        """Remove and return the last layer."""
        layer = self._layers.pop()
        self.built, self._graph = False, None
        if rebuild:
            self._rebuild()
        return layer

    @property
    def layers(self):
        """The layers, without the input."""
        return list(self._layers)

    def _members(self):
        for i, layer in enumerate(self._layers):
            yield f"layers.{i}", layer

    def build(self, input_shape=None):
        """Build for inputs of this shape, the batch axis included."""
        if self._input is None and input_shape is not None:
            self._input = Input(batch_shape=(None, *input_shape[1:]))
        self._rebuild()

    def _rebuild(self):
        if self._input is None or not self._layers:
            return
        x = self._input
        with nullcontext() if self._building else name_scope(self.name):
            for layer in self._layers:
                x = layer(x)
        self._graph = Functional(self._input, x, name=self.name)
        self.built = True
        self._prepare()
        self._quick = self._graph._quick and not self._hooked

    def call(self, inputs, training=None, mask=None, **kwargs):
        """Run the layers in order; kwargs go to those whose `call` has an argument of the name."""
        if self._graph is not None and not kwargs:
            return self._graph.call(inputs)
        if unknown := kwargs.keys() - {n for layer in self._layers for n in layer._call_spec.names}:
            raise TypeError(f"No layer of {self.name} takes {', '.join(sorted(unknown))}.")
        for layer in self._layers:
            own = {k: v for k, v in kwargs.items() if k in layer._call_spec.names}
            inputs = layer(inputs, **own)
        return inputs

    def compute_output_spec(self, *args, **kwargs):
        x = args[0]
        for layer in self._layers:
            x = layer(x)
        return x

    inputs = _of_graph("inputs", "The symbolic inputs.")
    outputs = _of_graph("outputs", "The symbolic outputs.")
    input = _of_graph("input", "The symbolic input.")
    output = _of_graph("output", "The symbolic output.")
    input_shape = _of_graph("input_shape", "The input's shape.")
    output_shape = _of_graph("output_shape", "The output's shape.")

    def _built_graph(self):
        if self._graph is None:
            raise ValueError(
                f"{self.name} is not built yet: give it an Input, or call build(shape)."
            )
        return self._graph

    def get_build_config(self):
        return None if self._input is None else {"input_shape": self._input.shape}

    def get_config(self):
        if (
            type(self) is not Sequential
        ):  # a subclass is described by its own constructor's arguments
            return super().get_config()
        config = {"name": self.name, "trainable": self.trainable}
        config["dtype"] = dtype_policies.serialize(self.dtype_policy)
        first = [] if self._input is None else [self._input.input_layer]
        config["layers"] = [registry.serialize_built(layer) for layer in (*first, *self._layers)]
        if self._input is not None:
            config["build_input_shape"] = self._input.shape
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Build a model from `get_config()`'s result."""
        if not isinstance(config.get("layers"), list):
            return cls(**config)
        shape = config.get("build_input_shape")  # then it builds them
        with registry.CustomObjectScope(custom_objects):
            made = registry.deserialize if shape else registry.deserialize_built
            layers = [made(c, kind="layers") for c in config["layers"]]
        model = cls(layers, config.get("trainable", True), config.get("name"))
        if model._input is None and shape:
            model.build(shape)
        return model
