"""Penalties on the values of Variables and outputs: x of any shape -> scalar."""

import math
from functools import partial
from typing import Annotated, ClassVar

from khub import ops
from khub.fields import Choice, Configurable
from khub.ops.op import value_of
from khub.saving import registry


def _strength(default, name, value):
    value = default if value is None else value
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a number that is not negative, got {value!r}.")
    return float(value)


Strength = Annotated[float, partial(_strength, 0.0)]
GivenStrength = Annotated[float, partial(_strength, 0.01)]


class Regularizer(Configurable):
    """Base of regularizers: a function of a tensor that gives a scalar."""

    _kind: ClassVar = "regularizers"

    def __call__(self, x):
        return 0.0


class L1L2(Regularizer):
    """l1 * sum(|x|) + l2 * sum(x**2)"""

    l1: Strength = 0.0
    l2: Strength = 0.0

    def __call__(self, x):
        x = value_of(x)
        parts = [ops.sum(ops.absolute(x)) * self.l1] if self.l1 else []
        parts += [ops.sum(ops.square(x)) * self.l2] if self.l2 else []
        return sum(parts[1:], parts[0]) if parts else ops.zeros((), dtype=x.dtype)


class L1(Regularizer):
    """l1 * sum(|x|)"""

    l1: GivenStrength = 0.01

    def __call__(self, x):
        return ops.sum(ops.absolute(x)) * self.l1


class L2(Regularizer):
    """l2 * sum(x**2)"""

    l2: GivenStrength = 0.01

    def __call__(self, x):
        return ops.sum(ops.square(x)) * self.l2


class OrthogonalRegularizer(Regularizer):
    """factor * the mean |cosine| between different rows (or columns) of a matrix."""

    factor: GivenStrength = 0.01
    mode: Choice("rows", "columns") = "rows"

    def __call__(self, inputs):
        x = ops.convert_to_tensor(inputs)
        if len(x.shape) != 2:
            raise ValueError(f"OrthogonalRegularizer needs a matrix, got {tuple(x.shape)}.")
        x = ops.normalize(x if self.mode == "rows" else ops.transpose(x), axis=1)
        count = x.shape[0]
        cosines = ops.absolute(ops.matmul(x, ops.transpose(x)))
        others = cosines * (1.0 - ops.eye(count, dtype=x.dtype))
        return ops.sum(others) * (self.factor * 0.5 / (count * (count - 1.0) / 2.0))


l1, l2, l1_l2, orthogonal_regularizer = L1, L2, L1L2, OrthogonalRegularizer
registry.register("regularizers", L1L2, "l1_l2")


def get(identifier):
    """Return the regularizer that a name, config, class or function stands for."""
    return registry.get("regularizers", identifier)


def serialize(regularizer):
    """Return the regularizer as plain data."""
    return registry.serialize(regularizer)


def deserialize(config, custom_objects=None):
    """Return the regularizer that `serialize` described."""
    return registry.deserialize(config, custom_objects, "regularizers")
