"""Learning rates that change with the step."""

import math

from khub import fields, ops
from khub.fields import Positive
from khub.saving import registry


class LearningRateSchedule(fields.Configurable):
    """Maps the step (a scalar tensor) to a learning rate."""

    _kind = "schedules"
    _module = "keras.optimizers.schedules"

    def __call__(self, step):
        raise NotImplementedError(f"{type(self).__name__} does not define __call__().")


class _Decay(LearningRateSchedule):
    initial_learning_rate: float
    decay_steps: Positive
    decay_rate: float
    staircase: bool = False
    name: str = None

    def passed(self, step):
        """Return step / decay_steps, whole numbers with `staircase`."""
        passed = ops.cast(step, "float32") / self.decay_steps
        return ops.floor(passed) if self.staircase else passed


class ExponentialDecay(_Decay):
    """initial * decay_rate ** (step / decay_steps)"""

    name = "ExponentialDecay"

    def __call__(self, step):
        return self.initial_learning_rate * ops.power(float(self.decay_rate), self.passed(step))


class InverseTimeDecay(_Decay):
    """initial / (1 + decay_rate * step / decay_steps)"""

    name = "InverseTimeDecay"

    def __call__(self, step):
        return self.initial_learning_rate / (1 + self.decay_rate * self.passed(step))


class PiecewiseConstantDecay(LearningRateSchedule):
    """values[i] up to and including boundaries[i], the last value after all of them."""

    boundaries: list
    values: list
    name: str = "PiecewiseConstant"

    def setup(self):
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"{len(self.boundaries)} boundaries need {len(self.boundaries) + 1} values, got "
                f"{len(self.values)}."
            )

    def __call__(self, step):
        rate = ops.convert_to_tensor(self.values[-1], "float32")
        step = ops.cast(step, "float32")
        for boundary, value in reversed(list(zip(self.boundaries, self.values, strict=False))):
            rate = ops.where(ops.less_equal(step, float(boundary)), float(value), rate)
        return rate


class PolynomialDecay(LearningRateSchedule):
    """(initial - end) * (1 - step / decay_steps) ** power + end"""

    initial_learning_rate: float
    decay_steps: Positive
    end_learning_rate: float = 0.0001
    power: float = 1.0
    cycle: bool = False
    name: str = "PolynomialDecay"

    def __call__(self, step):
        step = ops.cast(step, "float32")
        length = float(self.decay_steps)
        if self.cycle:
            length = length * ops.maximum(ops.ceil(step / length), 1.0)
        else:
            step = ops.minimum(step, length)
        rest = ops.power(1 - step / length, self.power)
        return (self.initial_learning_rate - self.end_learning_rate) * rest + self.end_learning_rate


class CosineDecay(LearningRateSchedule):
    """Half a cosine from the initial rate to alpha times it, after warming up.  arXiv:1608.03983

    With `warmup_target` the rate rises linearly to the target in `warmup_steps`, then decays.
    """

    initial_learning_rate: float
    decay_steps: Positive
    alpha: float = 0.0
    name: str = "CosineDecay"
    warmup_target: float = None
    warmup_steps: int = 0

    def __call__(self, step):
        step = ops.cast(step, "float32")
        top = self.initial_learning_rate if self.warmup_target is None else self.warmup_target
        passed = step if self.warmup_target is None else step - self.warmup_steps
        share = ops.minimum(ops.maximum(passed, 0.0), float(self.decay_steps)) / self.decay_steps
        wave = 0.5 * (1 + ops.cos(math.pi * share))
        decayed = top * ((1 - self.alpha) * wave + self.alpha)
        if self.warmup_target is None or not self.warmup_steps:
            return decayed
        start = self.initial_learning_rate
        rising = start + (top - start) * step / self.warmup_steps
        return ops.where(step < self.warmup_steps, rising, decayed)


class CosineDecayRestarts(LearningRateSchedule):
    """Cosine decay that starts again, `t_mul` times as long, `m_mul` as high.  arXiv:1608.03983"""

    initial_learning_rate: float
    first_decay_steps: Positive
    t_mul: float = 2.0
    m_mul: float = 1.0
    alpha: float = 0.0
    name: str = "SGDRDecay"

    def __call__(self, step):
        passed = ops.cast(step, "float32") / self.first_decay_steps
        if self.t_mul == 1.0:
            period = ops.floor(passed)
            share = passed - period
        else:
            period = ops.floor(ops.log(1 - passed * (1 - self.t_mul)) / math.log(self.t_mul))
            start = (1 - ops.power(float(self.t_mul), period)) / (1 - self.t_mul)
            share = (passed - start) / ops.power(float(self.t_mul), period)
        height = 0.5 * ops.power(float(self.m_mul), period) * (1 + ops.cos(math.pi * share))
        return self.initial_learning_rate * ((1 - self.alpha) * height + self.alpha)


def deserialize(config, custom_objects=None):
    """Build a schedule from its serialized form."""
    return registry.deserialize(config, custom_objects, "schedules")


def serialize(learning_rate_schedule):
    """Return a schedule in serialized form."""
    return registry.serialize(learning_rate_schedule)
