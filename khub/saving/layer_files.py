"""What a layer writes into files and reads from them, and names that Keras keeps on every layer."""

import functools
import inspect

import numpy as np

from khub import tree
from khub.backend.scope import Scope
from khub.saving import registry

_PARTS = ("optimizer", "loss", "loss_weights", "metrics", "weighted_metrics")  # of `compile`
_TREES = ("trainable", "non_trainable", "optimizer", "metrics")


class LayerFiles:
    """The part of a Layer that is about files."""

    def get_build_config(self):
        """Return what `build_from_config` needs to build the layer again."""
        shapes = self._build_shapes
        if not shapes:
            return None
        one = len(shapes) == 1
        return {"input_shape": next(iter(shapes.values()))} if one else {"shapes_dict": shapes}

    def build_from_config(self, config):
        """Build the layer as it was built when `get_build_config` was called."""
        config = tree.map_shape_structure(tuple, config)
        named, shape = config.get("shapes_dict", {}), [config.get("input_shape")]
        if type(self).build.__qualname__ == "Layer.build":  # the call builds what is inside
            self.compute_output_shape(*(named.values() or shape))
        else:
            self.build(**named) if named else self.build(*shape)

    def get_weights(self):
        """Return the weights as a list of NumPy arrays."""
        return [v.numpy() for v in self.weights]

    def set_weights(self, weights):
        """Assign arrays in the order of `weights`.  Raises ValueError when they do not fit."""
        self._assign_all(self.weights, weights)

    def _assign_all(self, own, values):
        if len(own) != len(values):
            raise ValueError(f"{self.name} has {len(own)} weights, got {len(values)} arrays.")
        for v, value in zip(own, values, strict=True):
            if np.shape(value) != v.shape:
                raise ValueError(
                    f"{v.path} has shape {v.shape}, got an array of {np.shape(value)}."
                )
        for variable, value in zip(own, values, strict=True):
            variable.assign(value)

    def _all_state(self):
        """The Variables a file holds: not those of random generators and of running states."""
        states = {id(v) for v in tree.flatten(self.__dict__.get("_state_variables"))}
        own = self._own_variables().values()
        return [v for v in own if "seed_generator" not in v.name and id(v) not in states]

    # --- what Keras has on every layer -----------------------------------------------------------
    @property
    def input_dtype(self):
        """The dtype that float inputs are cast to."""
        return self.compute_dtype

    @property
    def quantization_mode(self):
        """How the weights are held in fewer bits, None where they are not."""
        return self.dtype_policy.quantization_mode

    def add_variable(
        self,
        shape,
        initializer,
        dtype=None,
        trainable=True,
        autocast=True,
        regularizer=None,
        constraint=None,
        name=None,
    ):
        """Make a Variable of this layer as `add_weight` does."""
        rest = dict(regularizer=regularizer, constraint=constraint, name=name)
        return self.add_weight(shape, initializer, dtype, trainable, autocast=autocast, **rest)

    def add_metric(self, *args, **kwargs):
        """There is none: metrics are given to `compile`, or kept as attributes and updated."""
        raise NotImplementedError("Give metrics to compile(metrics=[...]), or update own ones.")

    def rematerialized_call(self, layer_call, *args, **kwargs):
        """Return a function like `layer_call` whose inner results are computed anew backwards."""
        from khub import ops

        return ops.checkpoint(layer_call)

    def quantize(self, mode=None, type_check=True, config=None):
        """Hold the weights in fewer bits; see `khub.models.quantization`."""
        from khub.models import quantization

        return quantization.quantize(self, mode, config)

    def quantized_build(self, input_shape, mode):
        """There is none: a built layer is quantized by `quantize(mode)`."""
        raise NotImplementedError(f"{self.name}: build it, then call quantize({mode!r}).")

    def quantized_call(self, *args, **kwargs):
        """There is none: the call of a quantized layer is its call."""
        raise NotImplementedError(f"{self.name}: call the layer itself, quantized or not.")

    # --- files -----------------------------------------------------------------------------------
    def save_own_variables(self, store):
        """Write the layer's own Variables into a mapping, under "0", "1", ..."""
        for i, variable in enumerate(self._all_state()):
            store[str(i)] = variable.numpy()

    def load_own_variables(self, store):
        """Read what `save_own_variables` wrote.  Raises ValueError when it does not fit."""
        self._assign_all(self._all_state(), [store[str(i)] for i in range(len(store))])


class ModelFiles:
    """The part of a Model that is about files and about its state as a whole."""

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        """Write the model into a .keras file; see `khub.saving.save_model`."""
        from khub.saving.archive import save_model

        save_model(self, filepath, overwrite, zipped, **kwargs)

    def save_weights(self, filepath, overwrite=True, max_shard_size=None):
        """Write the weights; see `khub.saving.save_weights`."""
        from khub.saving.weights import save_weights

        save_weights(self, filepath, overwrite, max_shard_size)

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """Read weights; see `khub.saving.load_weights`."""
        from khub.saving.weights import load_weights

        load_weights(self, filepath, skip_mismatch, **kwargs)

    @property
    def jit_compile(self):
        """Whether steps are compiled: True, False or "auto"."""
        return self._compiled.options["jit_compile"] if self.compiled else None

    def get_quantization_layer_structure(self, mode=None):
        """Return {"pre_block_layers", "sequential_blocks"} for calibration; None: all at once."""

    def stateless_compute_loss(
        self,
        trainable_variables,
        non_trainable_variables,
        metrics_variables,
        x=None,
        y=None,
        y_pred=None,
        sample_weight=None,
        training=True,
    ):
        """Return (loss, new values of the three lists of Variables) without changing any."""
        groups = self.trainable_variables, self.non_trainable_variables, self.metrics_variables
        values = trainable_variables, non_trainable_variables, metrics_variables
        pairs = [
            pair for group in zip(groups, values, strict=True) for pair in zip(*group, strict=True)
        ]
        with Scope(pairs) as scope:
            loss = self.compute_loss(x, y, y_pred, sample_weight, training)
        return loss, tuple([scope.values[v] for v in group] for group in groups)

    def get_compile_config(self):
        """Return what `compile` got as plain data, None before it was called."""
        if not self.compiled:
            return None
        found = self._compiled
        given = (found.optimizer, found.loss, found.loss_weights)
        given += (found.given_metrics, found.given_weighted)
        parts = {n: registry.serialize(part) for n, part in zip(_PARTS, given, strict=True)}
        return parts | found.options

    def compile_from_config(self, config):
        """Compile as `get_compile_config` says."""
        known = inspect.signature(self.compile).parameters
        given = {n: registry.revive(v) for n, v in config.items() if n in {*known} - {"optimizer"}}
        self.compile(registry.get("optimizers", config["optimizer"]), **given)
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def _state(self):
        """Return group -> path -> Variable."""
        optimizer = self.optimizer.variables if self.compiled else []
        trained, others = self.trainable_variables, self.non_trainable_variables
        groups = zip(_TREES, (trained, others, optimizer, self.metrics_variables), strict=True)
        return {f"{name}_variables": {v.path: v for v in group} for name, group in groups}

    def get_state_tree(self, value_format="backend_tensor"):
        """Return group -> values of its Variables, in dicts nested by their paths.

        value_format: "backend_tensor" or "numpy_array"
        """
        whole = {}
        for name, group in self._state().items():
            branch = whole.setdefault(name, {})
            for path, variable in group.items():
                *outer, last = path.split("/")
                inner = functools.reduce(lambda d, part: d.setdefault(part, {}), outer, branch)
                array = value_format == "numpy_array"
                inner[last] = variable.numpy() if array else variable.value
        return whole

    def set_state_tree(self, state_tree):
        """Assign what `get_state_tree` returned, or a part of it.

        Raises ValueError for the path of no Variable.
        """
        known = self._state()

        def assign(group, prefix, branch):
            for name, value in branch.items():
                path = f"{prefix}{name}"
                if isinstance(value, dict):
                    assign(group, f"{path}/", value)
                elif path in known.get(group, ()):
                    known[group][path].assign(value)
                else:
                    raise ValueError(f"{self.name} has no Variable {path!r} in {group!r}.")

        for group, branch in state_tree.items():
            assign(group, "", branch)
