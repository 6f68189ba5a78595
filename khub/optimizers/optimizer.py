"""The optimizer's frame: slots, clipping, decay, averaging, accumulation; a rule says the rest.

A rule is written once, for one tensor; a backend may run it fused over all (`active.fused`).
"""

import warnings
from contextlib import nullcontext
from functools import partial

import numpy as np

from khub import fields, ops
from khub.backend import active, device
from khub.backend.scope import Scope, local
from khub.backend.variable import Variable, _given, name_scope, unique_name
from khub.ops.op import has_sparse, native_sparse
from khub.optimizers.schedules import LearningRateSchedule
from khub.saving import registry


def demand(holds, name, expected, value):
    """Raise ValueError, with what was expected of an argument, unless it holds."""
    if not holds:
        raise ValueError(f"{name} must be {expected}, got {value!r}.")


class Known(fields.Configurable):
    """Refuses arguments that are no fields; what is serialized among them is built."""

    _kind = "optimizers"

    def __init__(self, **kwargs):
        if kwargs:
            known = ", ".join(name for name, *_ in self._fields)
            raise ValueError(
                f"{type(self).__name__} has no argument {', '.join(map(repr, kwargs))}; it takes "
                f"{known}."
            )

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Build an object from `get_config()`'s result."""
        return cls(**registry.revive(config, custom_objects))


class Optimizer(Known, getattr(active, "OptimizerBase", object)):
    """Updates Variables by gradients; a subclass defines `rule`, or `build` and `update_step`.

    learning_rate: number, schedule or function without arguments
    weight_decay: share of each weight taken off a step, times the learning rate
    clipnorm, clipvalue, global_clipnorm: limits of one gradient's norm, of its elements, of the
    norm of all
    use_ema: keep an average of the weights (momentum `ema_momentum`), written over them every
    `ema_overwrite_frequency` steps
    loss_scale_factor: the loss is multiplied by it
    gradient_accumulation_steps: apply the mean gradient of so many steps
    """

    slots = ()  # names of the tensors a rule keeps for each Variable
    by_rows = False  # whether the rule leaves rows alone whose gradient is zero
    takes_rows = False  # whether a gradient may stay sparse; `setup` says
    apart = ()  # those among them that come after the others of all Variables in `variables`

    learning_rate: object
    weight_decay: float = None
    clipnorm: float = None
    clipvalue: float = None
    global_clipnorm: float = None
    use_ema: bool = False
    ema_momentum: float = 0.99
    ema_overwrite_frequency: int = None
    loss_scale_factor: float = None
    gradient_accumulation_steps: int = None
    name: str = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if not isinstance(cls.__dict__.get("learning_rate", _learning_rate), property):
            del cls.learning_rate  # a default in the class would hide the property

    def setup(self):
        if sum(x is not None for x in (self.clipnorm, self.clipvalue, self.global_clipnorm)) > 1:
            raise ValueError("Only one of clipnorm, clipvalue and global_clipnorm may be set.")
        for limit in ("clipnorm", "clipvalue", "global_clipnorm"):
            value = getattr(self, limit)
            demand(value is None or value > 0, limit, "positive", value)
        if self.use_ema:
            momentum, every = self.ema_momentum, self.ema_overwrite_frequency
            demand(0 <= momentum <= 1, "ema_momentum", "between 0 and 1", momentum)
            valid = every is None or isinstance(every, int) and every > 0
            demand(valid, "ema_overwrite_frequency", "a positive integer", every)
        steps = self.gradient_accumulation_steps
        valid = steps is None or isinstance(steps, int) and steps > 1
        demand(valid, "gradient_accumulation_steps", "an integer of at least 2", steps)
        self._begin()
        rate = self._given_rate
        if isinstance(rate, dict):
            rate = registry.get("schedules", rate)
        valid = callable(rate) or hasattr(rate, "__float__")
        demand(valid, "learning_rate", "a number, a schedule or a function", rate)
        self._schedule, self._rate = (rate, None) if callable(rate) else (None, float(rate))
        if self._schedule is None:
            self._rate = self._on_host(self._rate, "float32", "learning_rate")
        built_in = type(self).__module__.startswith("khub.")
        self._fused = active.fused.get(type(self).__name__) if built_in else None
        whole = (self.weight_decay, self.clipnorm, self.clipvalue, self.global_clipnorm)
        whole += (self.loss_scale_factor, self.gradient_accumulation_steps)
        # whether a gradient may stay sparse; all else needs dense ones, to give the same numbers
        self.takes_rows = built_in and self.by_rows and not any(whole)
        self._follows_rule = hasattr(type(self).update_step, "by_rule")

    def _begin(self):
        """Find a name and make the state that every optimizer has."""
        self.name = self.name or unique_name(registry.snake_case(type(self).__name__))
        self.built, self._state, self._trainable = False, [], []
        self._slots, self._averages, self._accumulators = {}, {}, []
        self._index = {}
        self._direct = frozenset()  # whose "gradients" are their new values: scales of float8
        self._exempt = (frozenset(), ())
        self._iterations = self._on_host(0, "int32", "iteration")

    def _on_host(self, value, dtype, name):
        """Make a scalar that each step reads: on torch, a GPU would have to be waited for."""
        with device("cpu") if active.EAGER else nullcontext():
            return self.add_variable((), value, dtype, name=name)

    def _constructor_values(self):
        rate = self._schedule or float(self._rate.numpy())
        return super()._constructor_values() | {"learning_rate": rate}

    # --- state -----------------------------------------------------------------------------------
    @property
    def variables(self):
        """The state: iteration, learning rate, averages and accumulators, then the slots."""
        return list(self._state)

    @property
    def iterations(self):
        """The number of updates made; a tensor where gradients are accumulated, else a Variable."""
        return self.updates() if self.gradient_accumulation_steps else self._iterations

    def updates(self):
        """Return the number of updates made as a tensor."""
        count, steps = self._iterations.value, self.gradient_accumulation_steps
        return count if steps is None else count // steps

    def step(self, like):
        """Return the number of this update, from 1: in the dtype of a tensor, or as a plain number.

        A rule computes with the latter before it comes to a tensor, which saves calls.
        """
        if active.EAGER and local.scope is None:
            return float(int(self.updates()) + 1)
        return ops.cast(self.updates() + 1, ops.dtype(like))

    def add_variable(
        self, shape, initializer="zeros", dtype=None, aggregation="none", layout=None, name=None
    ):
        """Make a Variable that belongs to the state."""
        if not callable(initializer) and not isinstance(initializer, (str, dict)):
            initializer = partial(_given, np.asarray(initializer))
        with name_scope(self.name):
            variable = Variable(
                initializer, tuple(shape), dtype, False, aggregation=aggregation, name=name
            )
        self._state.append(variable)
        return variable

    def add_variable_from_reference(self, reference_variable, name=None, initializer="zeros"):
        """Make a Variable of another one's shape and dtype that belongs to the state."""
        made = self.add_variable(
            reference_variable.shape,
            initializer,
            reference_variable.dtype,
            name=f"{reference_variable.path.replace('/', '_')}_{name or 'slot'}",
        )
        made.like = reference_variable  # khub.distribution lays it out as that one
        return made

    def add_optimizer_variables(self, trainable_variables, name, initializer="zeros"):
        """Make a Variable like each of these; several names or initializers give tuples."""
        make = self.add_variable_from_reference
        if isinstance(name, str):
            return [make(v, name, initializer) for v in trainable_variables]
        each = [initializer] * len(name) if isinstance(initializer, str) else initializer
        rows = [
            [make(v, n, i) for n, i in zip(name, each, strict=True)] for v in trainable_variables
        ]
        return list(zip(*rows, strict=True))

    def build(self, variables=None, **named):
        """Make the state for these Variables, which some call `var_list`."""
        variables = named.pop("var_list", variables)
        if named or variables is None:
            raise TypeError(f"{self.name}.build() takes a list of Variables, got {named or None}.")
        if not self.built:
            self._trainable = list(variables)
            self._index = {v: i for i, v in enumerate(self._trainable)}
            direct = (v for v in self._trainable if getattr(v, "overwrite_with_gradient", False))
            self._direct = frozenset(direct)
            self.make_state(self._trainable)
            self.built = True

    def make_state(self, variables):
        """Make what is kept for these Variables."""
        updated = [v for v in variables if v not in self._direct]
        if self.use_ema:
            averages = self.add_optimizer_variables(updated, "average")
            self._averages = dict(zip(updated, averages, strict=True))
        if self.gradient_accumulation_steps:
            self._accumulators = self.add_optimizer_variables(variables, "gradient_accumulator")
        self._slots = {v: [] for v in updated}
        for group in ([n for n in self.slots if n not in self.apart], *([n] for n in self.apart)):
            for variable in updated:
                slots = (self.add_slot(variable, name) for name in group)
                self._slots[variable] += [slot for slot in slots if slot is not None]

    def add_slot(self, variable, name):
        """Make a rule's tensor for a Variable, None where it needs none."""
        return self.add_variable_from_reference(variable, name)

    def set_weights(self, weights):
        """Set the state from arrays in the order of `variables`."""
        weights = list(weights)
        if len(weights) != len(self._all_state()):
            raise ValueError(
                f"{self.name} has {len(self._all_state())} variables, got {len(weights)} arrays; "
                "build it for the model's variables first."
            )
        for variable, value in zip(self._all_state(), weights, strict=True):
            variable.assign(value)

    def _all_state(self):
        return self.variables

    def save_own_variables(self, store):
        """Write the state into a mapping, under "0", "1", ..."""
        for i, variable in enumerate(self._all_state()):
            store[str(i)] = variable.numpy()

    def load_own_variables(self, store):
        """Read the state from a mapping that `save_own_variables` wrote."""
        self.set_weights([store[str(i)] for i in range(len(store))])

    def assign(self, variable, value):
        """Set a Variable."""
        variable.assign(value)

    def assign_add(self, variable, value):
        """Add to a Variable."""
        variable.assign_add(value)

    def assign_sub(self, variable, value):
        """Subtract from a Variable."""
        variable.assign_sub(value)

    # --- the step --------------------------------------------------------------------------------
    def current_learning_rate(self):
        """Return the learning rate of this step as a scalar tensor."""
        if self._schedule is None:
            return self._rate.value
        if isinstance(self._schedule, LearningRateSchedule):
            return ops.cast(self._schedule(self._iterations), "float32")
        return ops.convert_to_tensor(self._schedule(), "float32")

    def scale_loss(self, loss):
        """Return the loss as it is differentiated."""
        return loss if self.loss_scale_factor is None else loss * self.loss_scale_factor

    def apply_gradients(self, grads_and_vars):
        """Apply (gradient, Variable) pairs and return the iteration."""
        gradients, variables = zip(*grads_and_vars, strict=True)
        self.apply(gradients, variables)
        return self._iterations

    def apply(self, grads, trainable_variables=None):
        """Update the Variables by their gradients.

        Raises ValueError for Variables it was not built for.
        """
        pairs = self._pairs(grads, trainable_variables)
        if self.loss_scale_factor is not None:
            pairs = self._unscaled(pairs, self.loss_scale_factor)
        if self.gradient_accumulation_steps:
            self._accumulate(pairs)
        else:
            self._update(pairs)
        self._iterations.assign_add(1)

    def _pairs(self, grads, variables):
        """Return the (gradient, Variable) pairs that have a gradient; build where needed."""
        variables = list(variables) if variables is not None else self._trainable
        grads = list(grads)
        if len(grads) != len(variables):
            raise ValueError(f"Got {len(grads)} gradients for {len(variables)} variables.")
        if not self.built:
            self.build(variables)
        if not self.takes_rows or local.scope is not None:
            grads = [g if g is None else ops.convert_to_tensor(g, sparse=False) for g in grads]
        pairs = [(g, v) for g, v in zip(grads, variables, strict=True) if g is not None]
        if not pairs:
            raise ValueError("No variable has a gradient; does the loss depend on them?")
        if len(pairs) < len(grads):
            without = [v.path for g, v in zip(grads, variables, strict=True) if g is None]
            warnings.warn(f"{without} have no gradient and stay as they are.", stacklevel=3)
        unknown = [v.path for _, v in pairs if v not in self._index]
        if unknown:
            raise ValueError(
                f"The optimizer was built for other variables; it does not know {unknown}."
            )
        return pairs

    def _unscaled(self, pairs, scale):
        return [
            (g if v in self._direct else g / ops.cast(scale, ops.dtype(g)), v) for g, v in pairs
        ]

    def _accumulate(self, pairs):
        """Keep the gradients, and apply their mean every `gradient_accumulation_steps` steps."""
        steps = self.gradient_accumulation_steps
        sums = [self._accumulators[self._index[v]] for _, v in pairs]
        totals = [
            (ops.maximum(s.value, g) if v in self._direct else s.value + g, v)
            for s, (g, v) in zip(sums, pairs, strict=True)
        ]

        def apply():
            self._update(self._unscaled(totals, steps))
            for s in self._accumulators:
                s.assign(ops.zeros_like(s.value))

        def keep():
            for s, (total, _) in zip(sums, totals, strict=True):
                s.assign(total)

        ops.cond(ops.equal((self._iterations.value + 1) % steps, 0), apply, keep)

    def _update(self, pairs):
        if self._direct:
            for value, variable in pairs:
                if variable in self._direct:
                    variable.assign(value)
            pairs = [(g, v) for g, v in pairs if v not in self._direct]
        everything = [v for _, v in pairs]
        rate = self.current_learning_rate()
        for g, variable in pairs:
            if has_sparse((g,)):
                self._follow_rows(g, variable, rate)
        pairs = [(g, v) for g, v in pairs if not has_sparse((g,))]
        gradients = self._clip([g for g, _ in pairs])
        variables = [v for _, v in pairs]
        done = not pairs
        if pairs and self._fused is not None and local.scope is None:
            slots = [self._slots[v] for v in variables]
            done = self._fused(self, gradients, variables, slots, rate)
        if not done:
            for g, variable in zip(gradients, variables, strict=True):
                if self._follows_rule:
                    self._follow_rule(g, variable, rate, self.decay_of(variable))
                    continue
                if decay := self.decay_of(variable):
                    variable.assign_sub(variable.value * (rate * decay))
                self.update_step(g, variable, rate)
        if self.use_ema:
            self._average()
        for variable in everything:
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable.value))

    def update_step(self, gradient, variable, learning_rate):
        """Update one Variable by the rule; a subclass may update it in its own way instead."""
        self._follow_rule(gradient, variable, learning_rate, None)

    update_step.by_rule = True

    def _follow_rows(self, gradient, variable, rate):
        """Update the rows of a Variable and of its slots that a sparse gradient holds."""
        rows, gradient = native_sparse.sparse_rows(gradient)
        kept = [variable, *self._slots[variable]]
        dtype = "float32" if variable.dtype in ("float16", "bfloat16") else variable.dtype
        with active.no_gradient():
            now = [ops.cast(ops.take(x.value, rows, axis=0), dtype) for x in kept]
            gradient, rate = ops.cast(gradient, dtype), ops.cast(rate, dtype)
            new = self.rule(gradient, now[0], rate, *now[1:])
            for x, values in zip(kept, new, strict=True):
                native_sparse.write_rows(x.materialize(), rows, ops.cast(values, x.dtype))

    def _follow_rule(self, gradient, variable, rate, decay):
        slots = self._slots[variable]
        value, states = variable.value, [s.value for s in slots]
        dtype = variable.dtype
        if dtype in ("float16", "bfloat16"):  # there 0.999 is 1, and 1 - beta_2 nothing
            dtype = "float32"
            value, *states = (ops.cast(x, dtype) for x in (value, *states))
        rate = ops.cast(rate, dtype)
        gradient = ops.cast(gradient, dtype)
        if decay:
            value = value - value * (rate * decay)
        value, *new = self.rule(gradient, value, rate, *states)
        variable.assign(value)
        for slot, state in zip(slots, new, strict=True):
            slot.assign(state)

    def rule(self, gradient, value, rate, *slots):
        """Return the new value and the new slots."""
        raise NotImplementedError(
            f"{type(self).__name__} defines neither rule() nor update_step()."
        )

    # --- decay, clipping, averages ---------------------------------------------------------------
    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Keep Variables from decay: given ones, and those whose path contains one of the names."""
        if self.built:
            raise ValueError("exclude_from_weight_decay() has to come before build().")
        self._exempt = frozenset(var_list or ()), tuple(var_names or ())

    def decays(self, variable):
        """Say whether weight decay applies to a Variable."""
        given, names = self._exempt
        return variable not in given and not any(name in variable.path for name in names)

    def decay_of(self, variable):
        """Return the weight decay of a Variable, None where it has none."""
        return self.weight_decay if self.weight_decay and self.decays(variable) else None

    def _clip(self, gradients):
        if self.clipvalue is not None:
            return [ops.clip(g, -self.clipvalue, self.clipvalue) for g in gradients]
        if self.clipnorm is not None:
            return [g * _shrink(_norm([g]), self.clipnorm, g) for g in gradients]
        if self.global_clipnorm is not None:
            norm = _norm(gradients)
            return [g * _shrink(norm, self.global_clipnorm, g) for g in gradients]
        return gradients

    def _average(self):
        """Move the averages towards the Variables; the first step sets them."""
        done, every = self.updates(), self.ema_overwrite_frequency
        rest = ops.where(ops.equal(done, 0), 1.0, 1 - self.ema_momentum)
        for variable in self._trainable:
            average = self._averages.get(variable)
            if average is None:
                continue
            share = ops.cast(rest, variable.dtype)
            average.assign_add((variable.value - average.value) * share)
            if every:
                due = ops.equal((done + 1) % every, 0)
                variable.assign(ops.where(due, average.value, variable.value))

    def finalize_variable_values(self, var_list):
        """Write the averages over the Variables at the end of training, where they are kept."""
        if self.use_ema and self.built and int(self._iterations) > 0:
            for variable in var_list:
                if variable not in self._direct:
                    variable.assign(self._averages[variable].value)

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        """Return (new trainable values, new optimizer values) without changing any Variable."""
        own = [*self._trainable, *self.variables]
        values = [*trainable_variables, *optimizer_variables]
        if len(own) != len(values):
            raise ValueError(
                f"Expected {len(own)} values (build the optimizer first), got {len(values)}."
            )
        with Scope(zip(own, [ops.convert_to_tensor(v) for v in values], strict=True)) as scope:
            self.apply(grads)
        new = [scope.values[v] for v in own]
        return new[: len(self._trainable)], new[len(self._trainable) :]


def _get_rate(self):
    """The learning rate: its Variable, or what a schedule gives for this step."""
    return self._rate if self._schedule is None else self.current_learning_rate()


def _set_rate(self, value):
    if "_schedule" not in self.__dict__:  # the constructor: `setup` makes the Variable
        self._given_rate = value
    elif callable(value) and not hasattr(value, "_storage"):
        self._state = [v for v in self._state if v is not self._rate]
        self._schedule, self._rate = value, None
    elif self._schedule is None:
        self._rate.assign(value)
    else:
        raise TypeError(
            f"{self.name} follows a schedule, its learning rate cannot be set to {value!r}; make "
            "the optimizer with a number, or set another schedule."
        )


_learning_rate = property(_get_rate, _set_rate)
Optimizer.learning_rate = _learning_rate  # after the class, whose field of this name has no default


def _norm(gradients):
    return ops.sqrt(sum(ops.sum(ops.square(ops.cast(g, "float32"))) for g in gradients))


def _shrink(norm, limit, gradient):
    return ops.cast(limit / ops.maximum(norm, limit), ops.dtype(gradient))
