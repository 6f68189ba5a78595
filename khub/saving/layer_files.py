"""What a layer writes into files and reads from them, and names that Keras keeps on every layer."""

import functools
import inspect

from khub import tree
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
        config = tree.lists_to_tuples(config)
        if "shapes_dict" in config:
            self.build(**config["shapes_dict"])
        elif config.get("input_shape") is not None:
            self.build(config["input_shape"])

    def _all_state(self):
        """The Variables a file holds: not those of random generators and of running states."""
        states = {id(v) for v in tree.flatten(self.__dict__.get("_state_variables"))}
        own = self._own_variables().values()
        return [v for v in own if "seed_generator" not in v.name and id(v) not in states]

    def save_own_variables(self, store):
        """Write the layer's own Variables into a mapping, under "0", "1", ..."""
        for i, variable in enumerate(self._all_state()):
            store[str(i)] = variable.numpy()

    def load_own_variables(self, store):
        """Read what `save_own_variables` wrote.  Raises ValueError when it does not fit."""
        own = self._all_state()
        if len(store) != len(own):
            raise ValueError(f"{self.name} has {len(own)} Variables, got {len(store)} arrays.")
        for i, variable in enumerate(own):
            variable.assign(store[str(i)])


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
