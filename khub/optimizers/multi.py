"""Several optimizers for one model: each takes the Variables whose path it is given for."""

import re

from khub.optimizers.optimizer import Known, Optimizer, demand


class OptimizerMap(Known):
    """Says which optimizer a Variable has: that of the pattern its path matches, else the default.

    A pattern must match all of a path, as in Keras: ".*kernel", not "kernel".

    default_optimizer: may be None, then every Variable needs a pattern; optimizer_map: regular
    expression -> optimizer
    """

    default_optimizer: Optimizer = None
    optimizer_map: dict = None

    def setup(self):
        self.optimizer_map = dict(self.optimizer_map or {})
        for pattern, optimizer in self.optimizer_map.items():
            self._check(pattern, optimizer)

    @staticmethod
    def _check(pattern, optimizer):
        valid = isinstance(pattern, str) and isinstance(optimizer, Optimizer)
        demand(valid, "optimizer_map", "regular expressions -> optimizers", {pattern: optimizer})

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


class Wrapper(Optimizer):
    """An optimizer made of others, the `optimizers`."""

    _fields = ()  # none of the base class
    optimizers = ()

    def _begin(self):
        super()._begin()
        self.add_variable((), 0.0, "float32", name="learning_rate")  # Keras' files have one

    @property
    def variables(self):
        """The state of its own, then that of each of the `optimizers`."""
        return [*self._state, *(v for o in self.optimizers for v in o.variables)]

    def finalize_variable_values(self, var_list):
        for optimizer in self.optimizers:
            optimizer.finalize_variable_values([v for v in var_list if v in optimizer._index])

    def _constructor_values(self):
        return {name: getattr(self, name) for name, *_ in self._fields}


class MultiOptimizer(Wrapper):
    """Hands each Variable to its own optimizer.

    optimizer_map: an `OptimizerMap`, or a function of a Variable that returns an optimizer
    """

    optimizer_map: OptimizerMap
    loss_scale_factor: float = None
    name: str = None

    def setup(self):
        if not callable(self.optimizer_map):
            raise TypeError(f"Expected an OptimizerMap or a function, got {self.optimizer_map!r}.")
        self._begin()

    @property
    def learning_rate(self):
        """There is none: each of the `optimizers` has its own."""
        raise AttributeError("A MultiOptimizer has a learning rate for each of its `optimizers`.")

    def make_state(self, variables):
        given = self.optimizer_map
        self._owner = {v: given(v) for v in variables}
        known = self._owner.values()
        if isinstance(given, OptimizerMap):  # Keras' files hold unused ones too, the default last
            known = [*given.optimizer_map.values(), given.default_optimizer]
        self.optimizers = list({id(o): o for o in known if o is not None}.values())
        for optimizer in self.optimizers:
            if optimizer.loss_scale_factor is not None:
                raise ValueError("Give loss_scale_factor to the MultiOptimizer, not to its parts.")
            optimizer.build([v for v in variables if self._owner[v] is optimizer])

    def apply(self, grads, trainable_variables=None):
        pairs = self._pairs(grads, trainable_variables)
        if self.loss_scale_factor is not None:
            pairs = self._unscaled(pairs, self.loss_scale_factor)
        for optimizer in self.optimizers:
            own = [(g, v) for g, v in pairs if self._owner[v] is optimizer]
            if own:
                optimizer.apply_gradients(own)
        self._iterations.assign_add(1)
