"""The optimizer's frame: slots, clipping, decay, averaging, accumulation; a rule says the rest.

A rule is written once, for one tensor; a backend may run it fused over all of them (`active.fused`).
"""

from khub import fields, ops
from khub.backend import active
from khub.backend.scope import Scope, local
from khub.backend.variable import Variable, unique_name
from khub.optimizers.schedules import LearningRateSchedule
from khub.saving import registry


class Optimizer(fields.Configurable):
    """Updates Variables by their gradients.

    weight_decay: share of each weight taken off a step, times the learning rate; clipnorm, clipvalue,
    global_clipnorm: limits of one gradient's norm, of its elements, of the norm of all; use_ema: keep an
    average of the weights (momentum `ema_momentum`), written over them every `ema_overwrite_frequency`
    steps; loss_scale_factor: the loss is multiplied by it; gradient_accumulation_steps: apply the mean
    gradient of so many steps.
    """

    _kind = "optimizers"
    slots = ()  # names of the tensors a rule keeps for each Variable

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

    def setup(self):
        if sum(x is not None for x in (self.clipnorm, self.clipvalue, self.global_clipnorm)) > 1:
            raise ValueError("Only one of clipnorm, clipvalue and global_clipnorm may be set.")
        if self.use_ema and not 0 <= self.ema_momentum <= 1:
            raise ValueError(f"ema_momentum must lie between 0 and 1, got {self.ema_momentum!r}.")
        steps = self.gradient_accumulation_steps
        if steps is not None and steps < 2:
            raise ValueError(f"gradient_accumulation_steps must be at least 2, got {steps!r}.")
        self.name = self.name or unique_name(registry.snake_case(type(self).__name__))
        self.built = False
        self.iterations = Variable(0, dtype="int32", trainable=False, name="iteration")
        rate = (
            registry.get("schedules", self.learning_rate)
            if isinstance(self.learning_rate, dict)
            else self.learning_rate
        )
        self._schedule = rate if isinstance(rate, LearningRateSchedule) or callable(rate) else None
        self._rate = None
        if self._schedule is None:
            self._rate = Variable(
                float(rate), dtype="float32", trainable=False, name="learning_rate"
            )
        self.__dict__["learning_rate"] = self._schedule or self._rate
        self._variables, self._slots, self._averages, self._accumulators = [], [], [], []
        self._fused = (
            active.fused.get(type(self).__name__)
            if type(self).__module__.startswith("khub.")
            else None
        )

    def __setattr__(self, name, value):
        if name == "learning_rate" and self.__dict__.get("_rate") is not None:
            if isinstance(value, LearningRateSchedule):
                self._rate, self._schedule = None, value
                self.__dict__["learning_rate"] = value
            else:
                self._rate.assign(value)
            return
        object.__setattr__(self, name, value)

    def get_config(self):
        config = super().get_config()
        config["learning_rate"] = (
            registry.serialize(self._schedule) if self._schedule else float(self._rate.numpy())
        )
        return config

    @property
    def variables(self):
        """The state: iteration, learning rate, accumulators and averages, then the slots by Variable."""
        rate = [] if self._rate is None else [self._rate]
        slots = [slot for of_one in self._slots for slot in of_one]
        return [self.iterations, *rate, *self._averages, *self._accumulators, *slots]

    def build(self, variables):
        """Make the state for these Variables."""
        self._variables = list(variables)
        self._index = {id(v): i for i, v in enumerate(self._variables)}

        def like(variable, name, initializer="zeros"):
            return Variable(
                initializer,
                shape=variable.shape,
                dtype=variable.dtype,
                trainable=False,
                name=f"{variable.path.replace('/', '_')}_{name}",
            )

        self._slots = [
            [like(v, name, self.slot_initializer(name)) for name in self.slots] for v in variables
        ]
        if self.use_ema:
            self._averages = [
                like(v, "average", lambda *_, v=v, **__: v.numpy()) for v in variables
            ]
        if self.gradient_accumulation_steps:
            self._accumulators = [like(v, "gradient_accumulator") for v in variables]
        self.built = True

    def slot_initializer(self, name):
        """Return the initializer of a slot."""
        return "zeros"

    def current_learning_rate(self):
        """Return the learning rate of this step as a scalar tensor."""
        if self._schedule is None:
            return self._rate.value
        if isinstance(self._schedule, LearningRateSchedule):
            return ops.cast(self._schedule(self.iterations), "float32")
        return ops.convert_to_tensor(self._schedule(), "float32")

    def scale_loss(self, loss):
        """Return the loss as it is differentiated."""
        return loss if self.loss_scale_factor is None else loss * self.loss_scale_factor

    def apply_gradients(self, grads_and_vars):
        """Apply (gradient, Variable) pairs and return the iteration."""
        gradients, variables = zip(*grads_and_vars, strict=True)
        self.apply(gradients, variables)
        return self.iterations

    def apply(self, grads, trainable_variables=None):
        """Update the Variables by their gradients.  Raises ValueError for Variables it was not built for."""
        variables = (
            list(trainable_variables) if trainable_variables is not None else self._variables
        )
        grads = list(grads)
        if len(grads) != len(variables):
            raise ValueError(f"Got {len(grads)} gradients for {len(variables)} variables.")
        if not self.built:
            self.build(variables)
        pairs = [(g, v) for g, v in zip(grads, variables, strict=True) if g is not None]
        if not pairs:
            raise ValueError("No variable has a gradient; does the loss depend on them?")
        unknown = [v.path for _, v in pairs if id(v) not in self._index]
        if unknown:
            raise ValueError(
                f"The optimizer was built for other variables; it does not know {unknown}."
            )
        if self.loss_scale_factor is not None:
            pairs = [(g / self.loss_scale_factor, v) for g, v in pairs]
        if self.gradient_accumulation_steps:
            self._accumulate(pairs)
        else:
            self._update(pairs)
            self.iterations.assign_add(1)

    def _accumulate(self, pairs):
        """Keep the gradients, and apply their mean every `gradient_accumulation_steps` steps."""
        steps = self.gradient_accumulation_steps
        sums = [self._accumulators[self._index[id(v)]] for _, v in pairs]

        def apply():
            self._update(
                [((s.value + g) / steps, v) for s, (g, v) in zip(sums, pairs, strict=True)]
            )
            for s in sums:
                s.assign(ops.zeros_like(s.value))

        def keep():
            for s, (g, _) in zip(sums, pairs, strict=True):
                s.assign_add(g)

        ops.cond(ops.equal((self.iterations.value + 1) % steps, 0), apply, keep)
        self.iterations.assign_add(1)

    def _update(self, pairs):
        gradients = self._clip([g for g, _ in pairs])
        variables = [v for _, v in pairs]
        slots = [self._slots[self._index[id(v)]] for v in variables]
        rate = self.current_learning_rate()
        if self._fused is not None and local.scope is None:
            done = self._fused(self, gradients, variables, slots, rate)
        else:
            done = False
        if not done:
            for g, variable, own in zip(gradients, variables, slots, strict=True):
                self._update_one(g, variable, own, rate)
        for variable in variables:
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable.value))
        if self.use_ema:
            self._average(variables)

    def _update_one(self, gradient, variable, slots, rate):
        value = variable.value
        rate = ops.cast(rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        if self.weight_decay and self.decays(variable):
            value = value - value * (rate * self.weight_decay)
        value, *new = self.rule(gradient, value, rate, *[s.value for s in slots])
        variable.assign(value)
        for slot, state in zip(slots, new, strict=True):
            slot.assign(state)

    def rule(self, gradient, value, rate, *slots):
        """Return the new value and the new slots."""
        raise NotImplementedError(f"{type(self).__name__} does not define rule().")

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Keep Variables from decay: given ones, and those whose path contains one of the names."""
        self._no_decay = {id(v) for v in var_list or ()}, tuple(var_names or ())

    def decays(self, variable):
        """Say whether weight decay applies to a Variable."""
        given, names = self.__dict__.get("_no_decay", ((), ()))
        return id(variable) not in given and not any(name in variable.path for name in names)

    def _clip(self, gradients):
        if self.clipvalue is not None:
            return [ops.clip(g, -self.clipvalue, self.clipvalue) for g in gradients]
        if self.clipnorm is not None:
            return [g * _shrink(_norm([g]), self.clipnorm, g) for g in gradients]
        if self.global_clipnorm is not None:
            norm = _norm(gradients)
            return [g * _shrink(norm, self.global_clipnorm, g) for g in gradients]
        return gradients

    def _average(self, variables):
        rest = 1 - self.ema_momentum
        for variable in variables:
            average = self._averages[self._index[id(variable)]]
            average.assign_add((variable.value - average.value) * rest)
            if self.ema_overwrite_frequency:
                due = ops.equal((self.iterations.value + 1) % self.ema_overwrite_frequency, 0)
                variable.assign(ops.where(due, average.value, variable.value))

    def finalize_variable_values(self, var_list):
        """Write the averages over the Variables at the end of training, where they are kept."""
        if self.use_ema and self.built:
            for variable in var_list:
                variable.assign(self._averages[self._index[id(variable)]].value)

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        """Return (new trainable values, new optimizer values) without changing any Variable."""
        own = [*self._variables, *self.variables]
        values = [*trainable_variables, *optimizer_variables]
        if len(own) != len(values):
            raise ValueError(
                f"Expected {len(own)} values (build the optimizer first), got {len(values)}."
            )
        with Scope(zip(own, [ops.convert_to_tensor(v) for v in values], strict=True)) as scope:
            self.apply(grads)
        new = [scope.values[v] for v in own]
        return new[: len(self._variables)], new[len(self._variables) :]


def _norm(gradients):
    return ops.sqrt(sum(ops.sum(ops.square(ops.cast(g, "float32"))) for g in gradients))


def _shrink(norm, limit, gradient):
    return ops.cast(limit / ops.maximum(norm, limit), ops.dtype(gradient))
