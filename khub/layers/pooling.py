"""Pooling over 1, 2 or 3 space axes, in windows or as a whole."""

from khub import ops
from khub.backend import windows
from khub.fields import DataFormat
from khub.layers.layer import InputSpec, Layer


class _Pool(Layer):
    """(batch, *space, n)  ->  (batch, *space', n); channels_first: (batch, n, *space)"""

    _space = 2

    pool_size: object = 2
    strides: object = None
    padding: str = "valid"
    data_format: DataFormat = None

    def setup(self):
        self.pool_size = windows.per_axis(self.pool_size, self._space, "pool_size")
        strides = self.pool_size if self.strides is None else self.strides
        self.strides = windows.per_axis(strides, self._space, "strides")
        self.input_spec = InputSpec(ndim=self._space + 2)

    def call(self, inputs):
        return self._pool(inputs, self.pool_size, self.strides, self.padding, self.data_format)


class _GlobalPool(Layer):
    """(batch, *space, n)  ->  (batch, n), or (batch, 1, ..., n) with `keepdims`"""

    _space = 2

    data_format: DataFormat = None
    keepdims: bool = False

    def setup(self):
        first = windows.channels_first(self.data_format)
        self._axes = tuple(range(2, 2 + self._space) if first else range(1, 1 + self._space))
        self.input_spec = InputSpec(ndim=self._space + 2)

    def call(self, inputs):
        return self._reduce(inputs, axis=self._axes, keepdims=self.keepdims)


class GlobalAveragePooling1D(_GlobalPool):
    """The mean over time of the steps that no mask hides.  (batch, time, n) -> (batch, n)"""

    _space = 1
    supports_masking = True

    def call(self, inputs, mask=None):
        if mask is None:
            return ops.mean(inputs, axis=self._axes, keepdims=self.keepdims)
        axis = self._axes[0]
        weights = ops.expand_dims(ops.cast(mask, inputs.dtype), 2 if axis == 1 else 1)
        total = ops.sum(inputs * weights, axis=axis, keepdims=self.keepdims)
        return total / ops.sum(weights, axis=axis, keepdims=self.keepdims)

    def compute_mask(self, inputs, previous_mask):
        return None


def _make(base, name, space, **members):
    cls = type(
        name, (base,), {"_space": space, "__doc__": base.__doc__, "__module__": __name__, **members}
    )
    globals()[name] = cls
    return cls


__all__ = ["GlobalAveragePooling1D"]
for _space in (1, 2, 3):
    for _kind, _operation in (("Max", "max_pool"), ("Average", "average_pool")):
        _function = staticmethod(getattr(ops, _operation))
        _size = 2 if _space == 1 else (2,) * _space
        _make(_Pool, f"{_kind}Pooling{_space}D", _space, _pool=_function, pool_size=_size)
        __all__.append(f"{_kind}Pooling{_space}D")
    _make(_GlobalPool, f"GlobalMaxPooling{_space}D", _space, _reduce=staticmethod(ops.max))
    __all__.append(f"GlobalMaxPooling{_space}D")
    if _space > 1:
        _make(_GlobalPool, f"GlobalAveragePooling{_space}D", _space, _reduce=staticmethod(ops.mean))
        __all__.append(f"GlobalAveragePooling{_space}D")
