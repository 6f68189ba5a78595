"""Where weights are moved after each optimizer step: w of any shape -> same."""

from typing import ClassVar

from khub import config, ops
from khub.fields import Configurable
from khub.saving import registry


class Constraint(Configurable):
    """Base of constraints: a function of a weight that gives the allowed weight."""

    _kind: ClassVar = "constraints"

    def __call__(self, w):
        return w


def _norms(w, axis):
    return ops.sqrt(ops.sum(ops.square(w), axis=axis, keepdims=True))


class NonNeg(Constraint):
    """max(w, 0)"""

    def __call__(self, w):
        return ops.maximum(w, 0)


class MaxNorm(Constraint):
    """Vectors along `axis` longer than `max_value` are shortened to it."""

    max_value: float = 2
    axis: int | tuple = 0

    def __call__(self, w):
        w = ops.convert_to_tensor(w)
        norms = _norms(w, self.axis)
        return w * (ops.clip(norms, 0, self.max_value) / (config.epsilon() + norms))


class UnitNorm(Constraint):
    """Vectors along `axis` have the length 1."""

    axis: int | tuple = 0

    def __call__(self, w):
        w = ops.convert_to_tensor(w)
        return w / (config.epsilon() + _norms(w, self.axis))


class MinMaxNorm(Constraint):
    """Vectors along `axis` get a length in [min_value, max_value], gradually if `rate` < 1."""

    min_value: float = 0.0
    max_value: float = 1.0
    rate: float = 1.0
    axis: int | tuple = 0

    def __call__(self, w):
        w = ops.convert_to_tensor(w)
        norms = _norms(w, self.axis)
        inside = ops.clip(norms, self.min_value, self.max_value)
        wanted = self.rate * inside + (1 - self.rate) * norms
        return w * (wanted / (config.epsilon() + norms))


max_norm, non_neg, unit_norm, min_max_norm = MaxNorm, NonNeg, UnitNorm, MinMaxNorm


def get(identifier):
    """Return the constraint that a name, config, class or function stands for."""
    return registry.get("constraints", identifier)


def serialize(constraint):
    """Return the constraint as plain data."""
    return registry.serialize(constraint)


def deserialize(config, custom_objects=None):
    """Return the constraint that `serialize` described."""
    return registry.deserialize(config, custom_objects, "constraints")
