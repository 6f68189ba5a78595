"""Pooling over 1, 2 or 3 space axes, in windows or as a whole."""

from khub import ops
from khub.backend import windows
from khub.fields import Choice, DataFormat
from khub.layers.layer import InputSpec, Layer


class _Pool(Layer):
    """(batch, *space, n)  ->  (batch, *space', n); channels_first: (batch, n, *space)"""

    _space = 2

    pool_size: object
    strides: object = None
    padding: Choice("valid", "same") = "valid"
    data_format: DataFormat = None

    def setup(self):
        self.pool_size = windows.per_axis(self.pool_size, self._space, "pool_size", 1)
        strides = self.pool_size if self.strides is None else self.strides
        self.strides = windows.per_axis(strides, self._space, "strides", 1)
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


class _AdaptivePool(Layer):
    """Pools windows that divide each space axis into `output_size` parts.

    (batch, *space, n)  ->  (batch, *output_size, n); channels_first: (batch, n, *space)
    """

    _space = 2

    output_size: object
    data_format: DataFormat = None

    def setup(self):
        self.output_size = windows.per_axis(self.output_size, self._space, "output_size", 1)
        self.input_spec = InputSpec(ndim=self._space + 2)

    def call(self, inputs):
        return self._pool(inputs, self.output_size, self.data_format)


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
        count = ops.sum(weights, axis=axis, keepdims=self.keepdims)
        return total / ops.maximum(count, 1)  # 0 where everything is hidden

    def compute_mask(self, inputs, mask=None):
        return None


__all__ = ["GlobalAveragePooling1D", "GlobalAvgPool1D"]
GlobalAvgPool1D = GlobalAveragePooling1D


def _make(base, name, alias, space, **members):
    members |= {"_space": space, "__doc__": base.__doc__}
    globals()[name] = globals()[alias] = type(name, (base,), members)
    __all__.extend(dict.fromkeys([name, alias]))


for _space in (1, 2, 3):
    for _kind, _short, _pool, _adaptive, _reduce in (
        ("Max", "Max", ops.max_pool, ops.adaptive_max_pool, ops.max),
        ("Average", "Avg", ops.average_pool, ops.adaptive_average_pool, ops.mean),
    ):
        _name = f"{_kind}Pooling{_space}D"
        _own = {"_pool": staticmethod(_pool)}
        if _kind == "Max":  # an average needs its size said
            _own["pool_size"] = 2 if _space == 1 else (2,) * _space
        _make(_Pool, _name, f"{_short}Pool{_space}D", _space, **_own)
        _own = {"_pool": staticmethod(_adaptive)}
        _make(_AdaptivePool, f"Adaptive{_name}", f"Adaptive{_name}", _space, **_own)
        if (_kind, _space) != ("Average", 1):
            _own = {"_reduce": staticmethod(_reduce)}
            _make(_GlobalPool, f"Global{_name}", f"Global{_short}Pool{_space}D", _space, **_own)
