"""Conversion, arrays and mathematics on NumPy arrays."""

import builtins
import math
from functools import partial
from operator import getitem
from statistics import NormalDist

import numpy as np

from khub import config, dtypes, tree
from khub.backend.scope import local

# ruff: noqa: A001, A002, F401  (imported names are this backend's functions)

SAME = """
absolute add arccos arccosh arcsin arcsinh arctan arctan2 arctanh bitwise_and bitwise_or bitwise_xor
broadcast_to cbrt ceil concatenate copy cos cosh deg2rad diag diagonal divide equal exp exp2
expand_dims expm1 flip floor floor_divide fmax fmin fmod gcd greater greater_equal hypot isfinite
isinf isnan lcm less less_equal log log10 log1p log2 logaddexp logaddexp2 logical_and logical_not
logical_or logical_xor maximum minimum mod multiply negative nextafter not_equal power rad2deg
repeat reshape roll sign signbit sin sinh sort split sqrt square stack subtract take
take_along_axis tan tanh tile transpose tril triu trunc
"""  # functions of one meaning in np, called with all arguments in the op's order
globals().update({name: getattr(np, name) for name in SAME.split()})

TENSORS = {np.ndarray, *(np.dtype(n).type for n in dtypes.ALL if n[0] not in "bf"), np.bool_}
TENSORS |= {dtypes.numpy_dtype(n).type for n in dtypes.ALL}
FLOATS = frozenset(map(dtypes.numpy_dtype, (*dtypes.FLOATS, *dtypes.COMPLEX)))
BOOL = np.dtype(bool)
WEAK_NUMBERS = False  # ml_dtypes: bfloat16 and a Python float are float32
NATIVE = {name: dtypes.numpy_dtype(name) for name in dtypes.ALL}
WIDE = frozenset(map(dtypes.numpy_dtype, dtypes.ALL)) - frozenset(
    map(np.dtype, ("bool", "int8", "int16", "uint8", "uint16"))
)


# --- conversion ----------------------------------------------------------------------------------
def is_tensor(x):
    return isinstance(x, (np.ndarray, np.generic))


def dtype_name(x):
    return dtypes.standardize(x.dtype)


def array_dtype(x):
    if isinstance(x, (list, tuple, bool, int, float)):
        leaves = {type(leaf) for leaf in tree.flatten(x)}
        if leaves and leaves <= {int, float, bool}:
            return "float" if float in leaves else "int" if int in leaves else "bool"
    return dtypes.standardize(np.asarray(x).dtype)


def convert_to_tensor(x, dtype=None):
    if type(x) not in TENSORS:
        if dtype is None and not hasattr(x, "dtype"):
            dtype = {"int": "int32", "float": config.floatx()}.get(array_dtype(x))
        x = np.asarray(tree.map_structure(np.asarray, x) if isinstance(x, (list, tuple)) else x)
    return x if dtype is None else cast(x, dtype)


def convert_to_numpy(x):
    return np.asarray(x)


def cast(x, dtype):
    return x.astype(dtypes.numpy_dtype(dtype), copy=False)


def shape(x):
    return x.shape


def nonzero(x):
    return tuple(index.astype("int32") for index in np.nonzero(x))


def stop_gradient(variable):
    return variable


# --- arrays --------------------------------------------------------------------------------------
def arange(start, stop=None, step=None, dtype=None):
    numbers = [n for n in (start, stop, step) if n is not None]
    dtype = dtype or dtypes.result_type(*(getattr(n, "dtype", type(n)) for n in numbers))
    return np.arange(*numbers).astype(dtypes.numpy_dtype(dtypes.standardize(dtype)))


def linspace(start, stop, num=50, endpoint=True, retstep=False, dtype=None, axis=0):
    dtype = dtypes.numpy_dtype(dtypes.standardize(dtype))
    result = np.linspace(start, stop, num, endpoint, retstep, None, axis)
    return (result[0].astype(dtype), result[1]) if retstep else result.astype(dtype)


def _of_one_number(make):
    return lambda shape, dtype=None: make(shape, dtypes.numpy_dtype(dtypes.standardize(dtype)))


zeros, ones = map(_of_one_number, (np.zeros, np.ones))


def full(shape, fill_value, dtype=None):
    return np.full(shape, fill_value, dtypes.numpy_dtype(dtypes.standardize(dtype)))


def eye(N, M=None, k=0, dtype=None):
    return np.eye(N, M, k, dtypes.numpy_dtype(dtypes.standardize(dtype)))


def _like(x, dtype):
    return x.dtype if dtype is None else dtypes.numpy_dtype(dtypes.standardize(dtype))


def zeros_like(x, dtype=None):
    return np.zeros(x.shape, _like(x, dtype))


def ones_like(x, dtype=None):
    return np.ones(x.shape, _like(x, dtype))


def full_like(x, fill_value, dtype=None):
    return np.full(x.shape, fill_value, _like(x, dtype))


def squeeze(x, axis=None):
    return np.squeeze(x, tuple(axis) if isinstance(axis, list) else axis)


def pad(x, pad_width, mode="constant", constant_values=None):
    extra = {} if constant_values is None else {"constant_values": constant_values}
    return np.pad(x, pad_width, mode, **extra)


def argsort(x, axis=-1):
    return np.argsort(x, axis, kind="stable").astype("int32")


def top_k(x, k, sorted=True):
    index = np.argsort(~x if x.dtype.kind in "bu" else -x, axis=-1, kind="stable")[..., :k]
    return np.take_along_axis(x, index, -1), index.astype("int32")


def slice(inputs, start_indices, shape):
    return inputs[_window(start_indices, shape)]


def slice_update(inputs, start_indices, updates):
    result = inputs.copy()
    result[_window(start_indices, updates.shape)] = updates
    return result


def _window(start, sizes):
    starts = [int(s) for s in np.asarray(start)]
    return tuple(builtins.slice(s, s + n) for s, n in zip(starts, sizes, strict=True))


def scatter(indices, values, shape):
    result = np.zeros(shape, values.dtype)
    np.add.at(result, tuple(np.moveaxis(indices, -1, 0)), values)
    return result


def scatter_update(inputs, indices, updates, reduction=None):
    result, index = inputs.copy(), tuple(np.moveaxis(indices, -1, 0))
    if reduction is None:
        result[index] = updates
    else:
        ufunc = {"add": np.add, "max": np.maximum, "min": np.minimum, "mul": np.multiply}[reduction]
        ufunc.at(result, index, updates)
    return result


_select = np.where
bitwise_not, bitwise_left_shift, bitwise_right_shift = np.invert, np.left_shift, np.right_shift


# --- math ----------------------------------------------------------------------------------------
def rsqrt(x):
    return 1 / np.sqrt(x)


def _each(function, x):
    """Call a function of numbers on each of an array's."""
    if local.scope is not None and local.scope.is_abstract():  # only the shape counts
        return np.zeros(x.shape, x.dtype)
    return np.asarray(np.frompyfunc(function, 1, 1)(x), x.dtype)


def _inverse_of_erf(y):
    edges = {-1.0: -math.inf, 1.0: math.inf}
    return edges[y] if y in edges else NormalDist().inv_cdf((float(y) + 1) / 2) / math.sqrt(2)


erf, erfc, erfinv = (partial(_each, f) for f in (math.erf, math.erfc, _inverse_of_erf))


def round(x, decimals=0):
    return np.round(x, decimals).astype(x.dtype, copy=False)


def clip(x, x_min, x_max):
    return np.clip(x, x_min, x_max).astype(x.dtype, copy=False)


def _axis(axis):
    return tuple(axis) if isinstance(axis, list) else axis


def _wide(x):
    """ml_dtypes' floats as float32: NumPy has no products of them and rounds partial sums."""
    return x.astype("float32") if x.dtype.name in ("bfloat16", *dtypes.FLOAT8) else x


def _reduction(function, dtype=None):
    """Make a reduction of NumPy's one that gives `dtype`, or that of its operand if it is real."""

    def run(x, axis=None, keepdims=False):
        result = function(_wide(x), _axis(axis), keepdims=keepdims)
        return result.astype(dtype or (result if x.dtype.kind == "c" else x).dtype, copy=False)

    return run


sum, mean, var, any, all = map(_reduction, (np.sum, np.mean, np.var, np.any, np.all))
argmax, argmin = _reduction(np.argmax, "int32"), _reduction(np.argmin, "int32")


def prod(x, axis=None, keepdims=False, dtype=None):
    return np.prod(x, _axis(axis), _like(x, dtype), keepdims=keepdims)


def _extreme(function, x, axis=None, keepdims=False, initial=None):
    extra = {} if initial is None else {"initial": initial}
    return function(x, _axis(axis), keepdims=keepdims, **extra)


max, min = (partial(_extreme, function) for function in (np.max, np.min))


def _running(function):
    return lambda x, axis=None, dtype=None: function(x, axis, _like(x, dtype))


cumsum, cumprod = map(_running, (np.cumsum, np.cumprod))


def product(function, *operands):
    """Call a sum of products on wider dtypes where the operands' would lose its small parts."""
    return function(*map(_wide, operands)).astype(operands[0].dtype, copy=False)


def matmul(x1, x2):
    return product(np.matmul, x1, x2)


def tensordot(x1, x2, axes=2):
    return product(lambda a, b: np.tensordot(a, b, axes), x1, x2)


def _einsum(subscripts, operands):
    return product(lambda *xs: np.einsum(subscripts, *xs, optimize=True), *operands)


def view(x, dtype=None):
    return x.view(NATIVE[dtypes.standardize(dtype)])


def searchsorted(sorted_sequence, values, side="left"):
    return np.asarray(np.searchsorted(sorted_sequence, values, side)).astype("int32")


def i0(x):
    return np.i0(x.astype("float64")).reshape(x.shape).astype(x.dtype)


def _complex_part(x, part):
    return getattr(np, part)(x)


def _complex(x1, x2):
    return x1 + 1j * x2
