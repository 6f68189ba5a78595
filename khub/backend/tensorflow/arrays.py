"""Arrays on TensorFlow: making, joining, arithmetic (khub/ops says what each function means)."""

import builtins
import math

import numpy as np
import tensorflow as tf

from khub import dtypes
from khub.backend.tensorflow.convert import *  # noqa: F403
from khub.backend.tensorflow.indexing import *  # noqa: F403
from khub.backend.tensorflow.indexing import _select, getitem

# ruff: noqa: A001, A002, F401, F405  (names of NumPy; what is imported is the backend's, too)

_BOOL_AS_INT = through(tf.int8, frozenset({tf.bool}))
_BOOLS_AS_INT = through(tf.int8, frozenset({tf.bool}), 2)
_HALF_AS_FLOAT = through(tf.float32, HALVES)
stop_gradient = raw.StopGradient
copy = raw.Identity


# --- making --------------------------------------------------------------------------------------
def arange(start, stop=None, step=None, dtype=None):
    numbers = [n for n in (start, stop, step) if n is not None]
    natural = dtypes.result_type(*(getattr(n, "dtype", type(n)) for n in numbers))
    name = dtypes.standardize(dtype or natural)
    start, stop = (0, start) if stop is None else (start, stop)
    wide = name if name in ("int32", "int64", "float32", "float64") else "float32"
    wide = "int64" if dtypes.is_integer(name) and wide != name else wide
    limits = [convert_to_tensor(n, wide) for n in (start, stop, 1 if step is None else step)]
    return cast(raw.Range(*limits), name)


def linspace(start, stop, num=50, endpoint=True, retstep=False, dtype=None, axis=0):
    name = dtypes.standardize(dtype)
    if not (is_tensor(start) or is_tensor(stop)):
        result, step = np.linspace(start, stop, num, endpoint, True, None, axis)
        result = convert_to_tensor(result, name)
        return (result, step) if retstep else result
    wide = name if name == "float64" else "float32"
    start, stop = convert_to_tensor(start, wide), convert_to_tensor(stop, wide)
    step = raw.RealDiv(raw.Sub(stop, start), builtins.max(num - 1 if endpoint else num, 1))
    result = tf.linspace(start, stop if endpoint else raw.Sub(stop, step), num, axis=axis)
    return (cast(result, name), cast(step, name)) if retstep else cast(result, name)


def full(shape, fill_value, dtype=None):
    return raw.BroadcastTo(convert_to_tensor(fill_value, dtypes.standardize(dtype)), vector(shape))


def zeros(shape, dtype=None):
    return raw.Fill(vector(shape), number(0, dtypes.standardize(dtype)))


def ones(shape, dtype=None):
    return raw.Fill(vector(shape), number(1, dtypes.standardize(dtype)))


def eye(N, M=None, k=0, dtype=None):
    rows = raw.ExpandDims(raw.Range(k, N + k, 1), 1)
    return cast(raw.Equal(rows, raw.Range(0, N if M is None else M, 1)), dtypes.standardize(dtype))


def zeros_like(x, dtype=None):
    return raw.ZerosLike(_as(x, dtype))


def ones_like(x, dtype=None):
    return raw.OnesLike(_as(x, dtype))


def full_like(x, fill_value, dtype=None):
    return full(shape(x), fill_value, dtype or x.dtype.name)


# --- reshaping and joining -----------------------------------------------------------------------
def reshape(x, newshape):
    return raw.Reshape(x, vector(newshape))


def view(x, dtype=None):
    native, lead = NATIVE[dtypes.standardize(dtype)], shape(x)[:-1]
    if native.size > x.dtype.size:
        x = raw.Reshape(x, vector((*lead, -1, native.size // x.dtype.size)))
    y = raw.Bitcast(x, native)
    return y if native.size >= x.dtype.size else raw.Reshape(y, vector((*lead, -1)))


def _flat(x):
    return raw.Reshape(x, constant((-1,)))


def transpose(x, axes=None):
    rank = len(x.shape)
    return raw.Transpose(x, constant(tuple(a % rank for a in axes or range(rank - 1, -1, -1))))


def expand_dims(x, axis):
    if isinstance(axis, int):
        return raw.ExpandDims(x, axis)
    rank = len(x.shape) + len(axis)
    for place in sorted(a % rank for a in axis):
        x = raw.ExpandDims(x, place)
    return x


def squeeze(x, axis=None):
    if axis is None:
        return raw.Squeeze(x)
    axes = [axis] if isinstance(axis, int) else list(axis)
    return raw.Squeeze(x, axes) if axes else x


def broadcast_to(x, shape):
    return raw.BroadcastTo(x, vector(shape))


def flip(x, axis=None):
    return raw.ReverseV2(x, _axes(x, axis))


@through(tf.int32, frozenset({tf.uint16}))
def tile(x, repeats):
    repeats = (repeats,) if isinstance(repeats, int) else tuple(repeats)
    missing = len(repeats) - len(x.shape)
    if missing > 0:
        x = reshape(x, (*(1,) * missing, *sizes_of(x)))
    return raw.Tile(x, vector((*(1,) * -missing, *repeats)))


def repeat(x, repeats, axis=None):
    if axis is None:
        x, axis = _flat(x), 0
    axis %= len(x.shape)
    if not isinstance(repeats, int):
        return tf.repeat(x, repeats, axis)
    before, after = shape(x)[: axis + 1], shape(x)[axis + 1 :]
    wide = raw.BroadcastTo(raw.ExpandDims(x, axis + 1), vector((*before, repeats, *after)))
    return raw.Reshape(wide, vector((*before[:-1], before[-1] * repeats, *after)))


def roll(x, shift, axis=None):
    if axis is None:
        return raw.Reshape(raw.Roll(_flat(x), shift, 0), vector(shape(x)))
    if isinstance(shift, int) and not isinstance(axis, int):
        shift = [shift] * len(axis)
    return raw.Roll(x, vector(shift), vector(axis))


_PAD_MODES = ("constant", "reflect", "symmetric", "edge", "wrap")


def pad(x, pad_width, mode="constant", constant_values=None):
    if mode not in _PAD_MODES:
        raise ValueError(f"pad: mode must be one of {', '.join(_PAD_MODES)}; got {mode!r}.")
    widths = np.broadcast_to(pad_width, (len(x.shape), 2)).tolist()
    if mode == "constant":
        fill = convert_to_tensor(constant_values or 0, x.dtype.name)
        return raw.PadV2(x, constant(tuple(map(tuple, widths))), fill)
    for axis, width in enumerate(widths):
        if width != [0, 0]:  # NumPy says where each element comes from
            source = np.pad(np.arange(x.shape[axis], dtype="int32"), width, mode)
            x = raw.GatherV2(x, tf.constant(source), axis)
    return x


def concatenate(xs, axis=0):
    return raw.ConcatV2(xs, axis) if len(xs) > 1 else xs[0]


def stack(x, axis=0):
    return raw.Pack(x, axis)


def split(x, indices_or_sections, axis=0):
    size = x.shape[axis]
    if isinstance(indices_or_sections, int):
        if size is not None and size % indices_or_sections:
            raise ValueError(
                f"split: axis {axis} of length {size} does not divide into {indices_or_sections} "
                "parts; give the indices to cut at."
            )
        return list(raw.Split(axis, x, indices_or_sections))
    cuts = [int(i) for i in indices_or_sections]
    if size is None:
        before = (builtins.slice(None),) * (axis % len(x.shape))
        ends = zip([None, *cuts], [*cuts, None], strict=True)
        return [getitem(x, (*before, builtins.slice(*part))) for part in ends]
    bounds = [0, *(builtins.min(i + size if i < 0 else i, size) for i in cuts), size]
    lengths = tuple(b - a for a, b in zip(bounds, bounds[1:], strict=False))
    return list(raw.SplitV(x, constant(lengths), axis, len(lengths)))


def unstack(x, num=None, axis=0):
    return list(raw.Unpack(x, x.shape[axis] if num is None else num, axis))


def tril(x, k=0):
    if k >= 0:
        return raw.MatrixBandPart(x, -1, k)
    return raw.SelectV2(_below(x, k), x, raw.ZerosLike(x))


def triu(x, k=0):
    if k <= 0:
        return raw.MatrixBandPart(x, -k, -1)
    return raw.SelectV2(_below(x, k - 1), raw.ZerosLike(x), x)


def _below(x, k):
    rows, columns = shape(x)[-2:]
    rows = raw.Range(k, raw.AddV2(rows, k), 1)
    return raw.GreaterEqual(raw.ExpandDims(rows, 1), raw.Range(0, columns, 1))


@_BOOL_AS_INT
def sort(x, axis=-1):
    return tf.sort(_flat(x)) if axis is None else tf.sort(x, axis)


@_BOOL_AS_INT
def argsort(x, axis=-1):
    return tf.argsort(_flat(x), stable=True) if axis is None else tf.argsort(x, axis, stable=True)


def searchsorted(sorted_sequence, values, side="left"):
    if sorted_sequence.dtype in NARROW or sorted_sequence.dtype in UNSIGNED:
        sorted_sequence, values = raw.Cast(sorted_sequence, tf.int64), raw.Cast(values, tf.int64)
    kernels = {"left": raw.LowerBound, "right": raw.UpperBound}
    if side not in kernels:
        raise ValueError(f'searchsorted: side must be "left" or "right", got {side!r}.')
    row = raw.Reshape(values, constant((1, -1)))
    places = kernels[side](raw.ExpandDims(sorted_sequence, 0), row)
    return raw.Reshape(places, vector(shape(values)))


def top_k(x, k, sorted=True):
    if x.dtype is BOOL:
        values, indices = raw.TopKV2(raw.Cast(x, tf.int8), k, sorted)
        return raw.Cast(values, BOOL), indices
    return tuple(raw.TopKV2(x, k, sorted))


# --- arithmetic ----------------------------------------------------------------------------------
def _with_bool(kernel, of_bool):
    return lambda *xs: (kernel if xs[0].dtype is not BOOL else of_bool)(*xs)


def _of_parts(kernel, join):
    def run(x):
        if x.dtype.is_complex:
            return join(kernel(tf.math.real(x)), kernel(tf.math.imag(x)))
        return kernel(x)

    return run


SAME = """
equal not_equal logical_and logical_or logical_not floor ceil exp expm1 log log1p sqrt rsqrt sin
cos tan sinh cosh tanh erf
"""  # kernels of the same name, in TensorFlow's spelling: LogicalAnd
for _name in SAME.split():
    globals()[_name] = getattr(raw, "".join(map(str.capitalize, _name.split("_"))))

subtract, divide, logical_xor = raw.Sub, raw.RealDiv, raw.NotEqual
floor_divide, mod = map(_BOOLS_AS_INT, (raw.FloorDiv, raw.FloorMod))
power = through(tf.int64, UNSIGNED | {tf.bool}, 2)(raw.Pow)
squared_difference = through(tf.int32, NARROW | UNSIGNED, 2)(raw.SquaredDifference)
greater, greater_equal = map(_BOOLS_AS_INT, (raw.Greater, raw.GreaterEqual))
less, less_equal = map(_BOOLS_AS_INT, (raw.Less, raw.LessEqual))
negative = through(tf.int64, UNSIGNED)(raw.Neg)
sign = through(tf.float64, UNSIGNED | {tf.bool})(raw.Sign)
square = _BOOL_AS_INT(raw.Square)
arcsin, arccos, arctan, arctan2 = raw.Asin, raw.Acos, raw.Atan, raw.Atan2
arcsinh, arccosh, arctanh = map(_HALF_AS_FLOAT, (raw.Asinh, raw.Acosh, raw.Atanh))
erfinv, i0 = map(_HALF_AS_FLOAT, (raw.Erfinv, raw.BesselI0))
isnan, isinf = _of_parts(raw.IsNan, raw.LogicalOr), _of_parts(raw.IsInf, raw.LogicalOr)
isfinite = _of_parts(raw.IsFinite, raw.LogicalAnd)
add, multiply = _with_bool(raw.AddV2, raw.LogicalOr), _with_bool(raw.Mul, raw.LogicalAnd)
maximum, minimum = _with_bool(raw.Maximum, raw.LogicalOr), _with_bool(raw.Minimum, raw.LogicalAnd)
bitwise_not = _with_bool(raw.Invert, raw.LogicalNot)
bitwise_and = _with_bool(raw.BitwiseAnd, raw.LogicalAnd)
bitwise_or = _with_bool(raw.BitwiseOr, raw.LogicalOr)
bitwise_xor = _with_bool(raw.BitwiseXor, raw.NotEqual)
bitwise_left_shift, bitwise_right_shift = raw.LeftShift, raw.RightShift
_complex = tf.complex


def _complex_part(x, part):
    return getattr(tf.math, part)(x)


def _logarithm(base):
    return lambda x: raw.RealDiv(raw.Log(x), math.log(base))


log2, log10 = map(_logarithm, (2, 10))


def absolute(x):
    if x.dtype in UNSIGNED or x.dtype is BOOL:
        return x
    return raw.ComplexAbs(x, x.dtype.real_dtype) if x.dtype.is_complex else raw.Abs(x)


def round(x, decimals=0):
    if decimals == 0 or (decimals > 0 and x.dtype not in FLOATS):
        return raw.Round(x) if x.dtype in FLOATS else x
    if x.dtype not in FLOATS:
        return raw.Cast(round(raw.Cast(x, tf.float64), decimals), x.dtype)
    factor = 10.0 ** abs(decimals)
    there, back = (raw.Mul, raw.RealDiv) if decimals > 0 else (raw.RealDiv, raw.Mul)
    return back(raw.Round(there(x, factor)), factor)


def clip(x, x_min, x_max):
    name = x.dtype.name
    low, high = (None if v is None else _limit(v, name) for v in (x_min, x_max))
    x = x if low is None else maximum(x, low)
    return x if high is None else minimum(x, high)


def _limit(value, name):
    """A limit in the dtype of what it limits; one beyond an integer dtype's range is its end."""
    if isinstance(value, (int, float)) and dtypes.is_integer(name):
        value = int(builtins.min(builtins.max(value, NATIVE[name].min), NATIVE[name].max))
    return convert_to_tensor(value, name)


# --- reductions ----------------------------------------------------------------------------------
def _axes(x, axis):
    if axis is None:
        return constant(tuple(range(len(x.shape))))
    return constant((axis,) if isinstance(axis, int) else tuple(axis))


def _reduction(kernel):
    return lambda x, axis=None, keepdims=False: kernel(x, _axes(x, axis), keepdims)


sum, mean = (_HALF_AS_FLOAT(_reduction(kernel)) for kernel in (raw.Sum, raw.Mean))
any, all = map(_reduction, (raw.Any, raw.All))


def prod(x, axis=None, keepdims=False, dtype=None):
    return raw.Prod(_as(x, dtype), _axes(x, axis), keepdims)


def _as(x, dtype):
    return x if dtype is None else cast(x, dtypes.standardize(dtype))


@_HALF_AS_FLOAT
def var(x, axis=None, keepdims=False):
    axes = _axes(x, axis)
    result = raw.Mean(raw.SquaredDifference(x, raw.Mean(x, axes, True)), axes, keepdims)
    return tf.math.real(result) if x.dtype.is_complex else result


def _extreme(reduce, of_two):
    @_BOOL_AS_INT
    def run(x, axis=None, keepdims=False, initial=None):
        result = reduce(x, _axes(x, axis), keepdims)
        if initial is None:
            return result
        return of_two(result, convert_to_tensor(initial, x.dtype.name))

    return run


max, min = _extreme(raw.Max, raw.Maximum), _extreme(raw.Min, raw.Minimum)


def _first(kernel):
    def run(x, axis=None, keepdims=False):
        if axis is None:
            result = kernel(_flat(x), 0, tf.int32)
            return raw.Reshape(result, constant((1,) * len(x.shape))) if keepdims else result
        result = kernel(x, axis, tf.int32)
        return raw.ExpandDims(result, axis) if keepdims else result

    return run


argmax, argmin = _first(raw.ArgMax), _first(raw.ArgMin)


def _running(kernel):
    def run(x, axis=None, dtype=None):
        x = _as(x, dtype)
        return kernel(_flat(x), 0) if axis is None else kernel(x, axis)

    return run


cumsum, cumprod = _running(raw.Cumsum), _running(raw.Cumprod)


# --- matrix products -----------------------------------------------------------------------------
_AS_INT64 = through(tf.int64, NARROW | UNSIGNED, 2)


@_AS_INT64
def matmul(x1, x2):
    rank1, rank2 = len(x1.shape), len(x2.shape)
    if rank2 == 2:
        if rank1 == 2:
            return raw.MatMul(x1, x2)
        if rank1 > 2:  # one product, not one for each matrix
            depth = shape(x1)[-1] if x2.shape[0] is None else x2.shape[0]
            rows = raw.Reshape(x1, vector((-1, depth)))
            return raw.Reshape(raw.MatMul(rows, x2), vector((*sizes_of(x1)[:-1], shape(x2)[1])))
    if rank1 > 1 and rank2 > 1:
        return raw.BatchMatMulV2(x1, x2)
    x1 = raw.ExpandDims(x1, 0) if rank1 == 1 else x1
    x2 = raw.ExpandDims(x2, 1) if rank2 == 1 else x2
    product = matmul(x1, x2)
    return raw.Squeeze(product, [-2] * (rank1 == 1) + [-1] * (rank2 == 1))


@_AS_INT64
def tensordot(x1, x2, axes=2):
    if not isinstance(axes, int):  # tf.tensordot reads negative axes wrongly
        one, two = ([a] if isinstance(a, int) else a for a in axes)
        axes = [[a % x1.shape.rank for a in one], [a % x2.shape.rank for a in two]]
    return tf.tensordot(x1, x2, axes)


def _einsum(subscripts, operands):
    if operands[0].dtype in NARROW or operands[0].dtype in UNSIGNED:
        wide = _einsum(subscripts, [raw.Cast(x, tf.int64) for x in operands])
        return raw.Cast(wide, operands[0].dtype)
    if "->" in subscripts and len(operands) <= 2:
        return raw.Einsum(operands, subscripts.replace(" ", ""))
    return tf.einsum(subscripts, *operands)
