"""Layers that move elements and change no values."""

from khub import ops
from khub.backend import windows
from khub.fields import DataFormat, PositiveInt
from khub.layers.layer import InputSpec, Layer


class Flatten(Layer):
    """(batch, ...) -> (batch, n)"""

    data_format: DataFormat = None
    supports_masking = False

    def call(self, inputs):
        shape = ops.shape(inputs)
        if windows.channels_first(self.data_format) and len(shape) > 2:
            inputs = ops.moveaxis(inputs, 1, -1)
        size = 1
        for n in shape[1:]:
            size = size * n if isinstance(n, int) and isinstance(size, int) else -1
        return ops.reshape(inputs, (shape[0] if size == -1 else -1, size))


class Reshape(Layer):
    """(batch, ...) -> (batch, *target_shape); one size may be -1"""

    target_shape: tuple

    def setup(self):
        self.target_shape = tuple(self.target_shape)

    def call(self, inputs):
        return ops.reshape(inputs, (ops.shape(inputs)[0], *self.target_shape))


class Permute(Layer):
    """Permutes the axes after the batch; `dims` counts from 1."""

    dims: tuple

    def setup(self):
        self.dims = tuple(self.dims)
        if sorted(self.dims) != list(range(1, len(self.dims) + 1)):
            raise ValueError(f"Permute: dims must be a permutation of 1..n, got {self.dims}.")
        self.input_spec = InputSpec(ndim=len(self.dims) + 1)

    def call(self, inputs):
        return ops.transpose(inputs, (0, *self.dims))


class RepeatVector(Layer):
    """(batch, width) -> (batch, n, width)"""

    n: PositiveInt

    def setup(self):
        self.input_spec = InputSpec(ndim=2)

    def call(self, inputs):
        return ops.repeat(ops.expand_dims(inputs, 1), self.n, axis=1)
