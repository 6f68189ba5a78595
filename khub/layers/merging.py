"""Layers that make one tensor of several."""

from functools import reduce

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

    def compute_mask(self, inputs, mask=None):
        masks = [m for m in mask or () if m is not None]
        return reduce(ops.logical_and, masks) if masks else None

    compute_mask.joins = True


def _fold(function):
    return lambda self, inputs: reduce(function, inputs)


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

    def compute_mask(self, inputs, mask=None):
        if not any(m is not None for m in mask or ()):
            return None
        masks = []
        for x, own in zip(inputs, mask, strict=True):
            own = ops.ones_like(x, "bool") if own is None else own
            while len(own.shape) < len(x.shape):
                own = ops.expand_dims(own, -1)
            masks.append(ops.broadcast_to(own, ops.shape(x)))
        return ops.any(ops.concatenate(masks, axis=self.axis), axis=-1)

    compute_mask.joins = True


class Dot(_Merge):
    """The inner products of two inputs over an axis of each.

    axes: an axis of both, or one of each; the batch axis stays outside.
    normalize: whether both are scaled to length 1 first (cosine similarity).
    """

    axes: object
    normalize: bool = False

    def call(self, inputs):
        if len(inputs) != 2:
            raise ValueError(f"Dot takes two inputs, got {len(inputs)}.")
        axes = (self.axes,) * 2 if isinstance(self.axes, int) else tuple(self.axes)
        axes = [a % len(x.shape) for a, x in zip(axes, inputs, strict=True)]
        if 0 in axes:
            raise ValueError(f"Dot: axes {self.axes} name the batch axis, which is not summed.")
        if self.normalize:
            inputs = [ops.normalize(x, a) for a, x in zip(axes, inputs, strict=True)]
        x, y = (ops.moveaxis(x, a, -1) for a, x in zip(axes, inputs, strict=True))
        left, right = "bcdef"[: len(x.shape) - 1], "bghij"[: len(y.shape) - 1]
        y = ops.einsum(f"{left}k,{right}k->{left}{right[1:]}", x, y)
        return ops.expand_dims(y, -1) if len(y.shape) == 1 else y

    def compute_mask(self, inputs, mask=None):
        return None


def _functional(cls):
    def merge(inputs, **kwargs):
        return cls(**kwargs)(inputs)

    merge.__name__ = cls.__name__.lower()
    merge.__doc__ = cls.__doc__
    return merge


def dot(inputs, axes=-1, **kwargs):
    """The inner products of two tensors over an axis of each."""
    return Dot(axes, **kwargs)(inputs)


def concatenate(inputs, axis=-1, **kwargs):
    """The inputs joined along `axis`."""
    return Concatenate(axis, **kwargs)(inputs)


__all__ = ["Concatenate", "Dot", "concatenate", "dot"]
for _layer in (Add, Average, Maximum, Minimum, Multiply, Subtract):  # layers.add is Add, ...
    _name = _layer.__name__.lower()
    globals()[_name] = _functional(_layer)
    __all__ += [_layer.__name__, _name]
