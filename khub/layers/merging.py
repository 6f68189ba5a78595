"""Layers that make one tensor of several."""

from khub import ops
from khub.layers.layer import Layer


class _Merge(Layer):
    supports_masking = True

    def build(self, input_shape):
        if not isinstance(input_shape, (list, tuple)) or not isinstance(
            input_shape[0], (list, tuple)
        ):
            raise ValueError(
                f"{type(self).__name__} takes a list of tensors, got shape {input_shape}."
            )

    def call(self, inputs):
        rank = max(len(x.shape) for x in inputs)
        if any(len(x.shape) != rank for x in inputs):  # lower ranks broadcast after the batch axis
            inputs = [
                ops.reshape(x, (ops.shape(x)[0], *[1] * (rank - len(x.shape)), *ops.shape(x)[1:]))
                for x in inputs
            ]
        return self.merge(inputs)

    def compute_mask(self, inputs, previous_mask):
        masks = [m for m in previous_mask or () if m is not None]
        result = masks[0] if masks else None
        for mask in masks[1:]:
            result = ops.logical_and(result, mask)
        return result


def _fold(function):
    def merge(self, inputs):
        result = inputs[0]
        for x in inputs[1:]:
            result = function(result, x)
        return result

    return merge


class Add(_Merge):
    """The sum of its inputs."""

    merge = _fold(ops.add)


class Multiply(_Merge):
    """The product of its inputs."""

    merge = _fold(ops.multiply)


class Maximum(_Merge):
    """The largest of its inputs, elementwise."""

    merge = _fold(ops.maximum)


class Minimum(_Merge):
    """The smallest of its inputs, elementwise."""

    merge = _fold(ops.minimum)


class Average(_Merge):
    """The mean of its inputs."""

    def merge(self, inputs):
        return Add.merge(self, inputs) / len(inputs)


class Subtract(_Merge):
    """The first input less the second."""

    def merge(self, inputs):
        if len(inputs) != 2:
            raise ValueError(f"Subtract takes two inputs, got {len(inputs)}.")
        return inputs[0] - inputs[1]


class Concatenate(_Merge):
    """Its inputs joined along `axis`."""

    axis: int = -1

    def call(self, inputs):
        return ops.concatenate(inputs, axis=self.axis)

    def compute_mask(self, inputs, previous_mask):
        if not any(m is not None for m in previous_mask or ()):
            return None
        masks = []
        for x, mask in zip(inputs, previous_mask, strict=True):
            mask = ops.ones_like(x, "bool") if mask is None else mask
            while len(mask.shape) < len(x.shape):
                mask = ops.expand_dims(mask, -1)
            masks.append(ops.broadcast_to(mask, ops.shape(x)))
        return ops.any(ops.concatenate(masks, axis=self.axis), axis=-1)


def _functional(cls):
    def merge(inputs, **kwargs):
        return cls(**kwargs)(inputs)

    merge.__name__ = cls.__name__.lower()
    merge.__doc__ = cls.__doc__
    return merge


add, multiply, maximum, minimum = map(_functional, (Add, Multiply, Maximum, Minimum))
average, subtract = map(_functional, (Average, Subtract))


def concatenate(inputs, axis=-1, **kwargs):
    """The inputs joined along `axis`."""
    return Concatenate(axis, **kwargs)(inputs)


__all__ = [
    "Add",
    "Average",
    "Concatenate",
    "Maximum",
    "Minimum",
    "Multiply",
    "Subtract",
    "add",
    "average",
    "concatenate",
    "maximum",
    "minimum",
    "multiply",
    "subtract",
]
