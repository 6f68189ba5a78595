"""Several optimizers for one model: each takes the Variables whose path it is given for."""

import re

from khub import fields
from khub.optimizers.optimizer import Optimizer
from khub.saving import registry


class OptimizerMap(fields.Configurable):
    """Says which optimizer a Variable has: that of the pattern its path matches, else the default.

    A pattern must match all of a path, as in Keras: ".*kernel", not "kernel".

    default_optimizer: may be None, then every Variable needs a pattern; optimizer_map: regular
    expression -> optimizer
    """

    _kind = "optimizers"

    default_optimizer: Optimizer = None
    optimizer_map: dict = None

    def setup(self):
        self.optimizer_map = dict(self.optimizer_map or {})
        for pattern, optimizer in self.optimizer_map.items():
            self._check(pattern, optimizer)

    @staticmethod
    def _check(pattern, optimizer):
        if not isinstance(pattern, str) or not isinstance(optimizer, Optimizer):
            raise ValueError(
                f"Expected regular expression -> optimizer, got {pattern!r} -> {optimizer!r}."
            )

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Build a map from `get_config()`'s result."""
        return cls(**registry.revive(config, custom_objects))

    def __setitem__(self, pattern, optimizer):
        self._check(pattern, optimizer)
        self.optimizer_map[pattern] = optimizer

    def __getitem__(self, pattern):
        return self.optimizer_map[pattern]

    def __delitem__(self, pattern):
        del self.optimizer_map[pattern]

    def __len__(self):
        return len(self.optimizer_map)

    def __iter__(self):
        return iter(self.optimizer_map)

    def __call__(self, variable):
        """Return a Variable's optimizer.  Raises ValueError where none or several patterns fit."""
        found = [p for p in self.optimizer_map if re.fullmatch(p, variable.path)]
        if len(found) > 1:
            raise ValueError(f"{variable.path} fits several optimizers' patterns: {found}.")
        if not found and self.default_optimizer is None:
            raise ValueError(
                f"{variable.path} fits no optimizer's pattern; there are "
                f"{list(self.optimizer_map)}."
            )
        return self.optimizer_map[found[0]] if found else self.default_optimizer


class MultiOptimizer(Optimizer):
    """Hands each Variable to its own optimizer.

    optimizer_map: an `OptimizerMap`, or a function of a Variable that returns an optimizer
    """

    _fields = ()  # none of the base class
    optimizers = ()

    optimizer_map: OptimizerMap
    loss_scale_factor: float = None
    name: str = None

    def setup(self):
        if not callable(self.optimizer_map):
            raise TypeError(f"Expected an OptimizerMap or a function, got {self.optimizer_map!r}.")
        self._begin()
        self.add_variable((), 0.0, "float32", name="learning_rate")  # Keras' files have one
        self.optimizers, self._owner = [], {}

    @property
    def learning_rate(self):
        """There is none: each of the `optimizers` has its own."""
        raise AttributeError("A MultiOptimizer has a learning rate for each of its `optimizers`.")

    @property
    def variables(self):
        """The iteration, then each optimizer's state."""
        return [*self._state, *(v for o in self.optimizers for v in o.variables)]

    def make_state(self, variables):
        self._owner = {v: self.optimizer_map(v) for v in self._trainable}
        used = {id(o): o for o in self._owner.values()}
        given = self.optimizer_map
        if isinstance(given, OptimizerMap):  # Keras' order: the default comes last
            known = [*given.optimizer_map.values(), given.default_optimizer]
            used = {id(o): o for o in known if id(o) in used}
        self.optimizers = list(used.values())
        for optimizer in self.optimizers:
            if optimizer.loss_scale_factor is not None:
                raise ValueError("Give loss_scale_factor to the MultiOptimizer, not to its parts.")
            optimizer.build([v for v in self._trainable if self._owner[v] is optimizer])

    def apply(self, grads, trainable_variables=None):
        pairs = self._pairs(grads, trainable_variables)
        if self.loss_scale_factor is not None:
            pairs = [(g / self.loss_scale_factor, v) for g, v in pairs]
        for optimizer in self.optimizers:
            own = [(g, v) for g, v in pairs if self._owner[v] is optimizer]
            if own:
                optimizer.apply_gradients(own)
        self._iterations.assign_add(1)

    def finalize_variable_values(self, var_list):
        for optimizer in self.optimizers:
            optimizer.finalize_variable_values(
                [v for v in var_list if self._owner.get(v) is optimizer]
            )

    def get_config(self):
        return {name: registry.serialize(getattr(self, name)) for name, *_ in self._fields}
