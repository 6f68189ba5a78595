"""Layers that move elements and change no values."""

from khub import dtypes, ops
from khub.backend import windows
from khub.fields import Choice, DataFormat, PositiveInt
from khub.layers.layer import InputSpec, Layer
from khub.ops.symbolic import KerasTensor, reshaped

__all__ = ["Cropping1D", "Cropping2D", "Cropping3D", "Flatten", "Permute", "RepeatVector"]
__all__ += ["Reshape", "UpSampling1D", "UpSampling2D", "UpSampling3D", "ZeroPadding1D"]
__all__ += ["ZeroPadding2D", "ZeroPadding3D"]


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

    def compute_output_spec(self, inputs):
        if None not in inputs.shape[1:]:
            return super().compute_output_spec(inputs)
        dtype = self.compute_dtype if dtypes.is_float(inputs.dtype) else inputs.dtype
        return reshaped(KerasTensor(inputs.shape, dtype), (inputs.shape[0], *self.target_shape))


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


def _pairs(value, count, what):
    """Return ((before, after), ...) an axis of one number, one number an axis, or the pairs."""
    if isinstance(value, int):
        value = (value,) * count
    elif count == 1 and len(value) == 2 and isinstance(value[0], int):
        value = (value,)
    pairs = tuple((v, v) if isinstance(v, int) else tuple(v) for v in value)
    if len(pairs) != count or any(len(p) != 2 or min(p) < 0 for p in pairs):
        raise ValueError(f"{what} needs {count} pairs of numbers from 0, got {value!r}.")
    return pairs


class _Border(Layer):
    """What cropping and padding share: a pair of widths for each space axis."""

    _space = 2
    _what = None

    def setup(self):
        self._widths = _pairs(getattr(self, self._what), self._space, self._what)
        setattr(self, self._what, self._widths if self._space > 1 else self._widths[0])
        self._first = self._space > 1 or self._what == "padding"
        self._first = self._first and windows.channels_first(self.data_format)
        self.input_spec = InputSpec(ndim=self._space + 2)

    def _around(self, widths, other):
        return [other, other, *widths] if self._first else [other, *widths, other]


class _Cropping(_Border):
    """Cuts rows and columns off: (before, after) for each space axis."""

    _what = "cropping"
    cropping: object

    def call(self, inputs):
        for (before, after), size in zip(
            self._around(self._widths, (0, 0)), inputs.shape, strict=True
        ):
            if size is not None and before + after >= size > 0 and before + after > 0:
                raise ValueError(
                    f"{self.name}: cropping {before} + {after} leaves nothing of {size} elements "
                    f"of an input of shape {tuple(inputs.shape)}."
                )
        cuts = [slice(before, -after or None) for before, after in self._widths]
        return inputs[tuple(self._around(cuts, slice(None)))]


class Cropping1D(_Cropping):
    """(batch, time, n) -> (batch, time - before - after, n); cropping: (before, after)"""

    _space = 1
    cropping: object = (1, 1)


class Cropping2D(_Cropping):
    __doc__ = _Cropping.__doc__
    cropping: object = ((0, 0), (0, 0))
    data_format: DataFormat = None


class Cropping3D(_Cropping):
    __doc__ = _Cropping.__doc__
    _space = 3
    cropping: object = ((1, 1), (1, 1), (1, 1))
    data_format: DataFormat = None


class _ZeroPadding(_Border):
    """Puts zeros around: (before, after) for each space axis."""

    _what = "padding"
    padding: object
    data_format: DataFormat = None

    def call(self, inputs):
        return ops.pad(inputs, self._around(self._widths, (0, 0)))


class ZeroPadding1D(_ZeroPadding):
    """(batch, time, n) -> (batch, before + time + after, n); padding: (before, after)"""

    _space = 1
    padding: object = 1


class ZeroPadding2D(_ZeroPadding):
    __doc__ = _ZeroPadding.__doc__
    padding: object = (1, 1)


class ZeroPadding3D(_ZeroPadding):
    __doc__ = _ZeroPadding.__doc__
    _space = 3
    padding: object = ((1, 1), (1, 1), (1, 1))


class _UpSampling(Layer):
    """Repeats each row and column `size` times."""

    _space = 2
    size: object = 2

    def setup(self):
        if self._space > 1:
            self.size = windows.per_axis(self.size, self._space, "size", 1)
        self._first = self._space > 1 and windows.channels_first(self.data_format)
        self.input_spec = InputSpec(ndim=self._space + 2)

    def call(self, inputs):
        sizes = (self.size,) if self._space == 1 else self.size
        for axis, size in enumerate(sizes, 2 if self._first else 1):
            inputs = ops.repeat(inputs, size, axis)
        return inputs


class UpSampling1D(_UpSampling):
    """(batch, time, n) -> (batch, time * size, n)"""

    _space = 1
    size: PositiveInt = 2


class UpSampling2D(_UpSampling):
    """(batch, height, width, n) -> (batch, height * size[0], width * size[1], n)

    interpolation: "nearest", "bilinear", "bicubic", "lanczos3" or "lanczos5"
    """

    size: object = (2, 2)
    data_format: DataFormat = None
    interpolation: Choice("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5") = "nearest"

    def call(self, inputs):
        if self.interpolation == "nearest":
            return super().call(inputs)
        shape = ops.shape(inputs)
        space = shape[2:] if self._first else shape[1:3]
        target = tuple(n * size for n, size in zip(space, self.size, strict=True))
        return ops.image.resize(
            inputs, target, interpolation=self.interpolation, data_format=self.data_format
        )


class UpSampling3D(_UpSampling):
    __doc__ = _UpSampling.__doc__
    _space = 3
    size: object = (2, 2, 2)
    data_format: DataFormat = None
