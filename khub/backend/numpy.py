"""The NumPy backend: the reference for testing the others. It does everything but gradients."""

import math
from contextlib import nullcontext
from functools import partial, wraps
from operator import itemgetter
from statistics import NormalDist

import numpy as np
from numpy import (  # noqa: F401  # noqa: F401
    absolute,
    add,
    arccos,
    arcsin,
    arctan,
    arctan2,
    ceil,
    copy,
    cos,
    cosh,
    divide,
    equal,
    exp,
    expm1,
    floor,
    floor_divide,
    greater,
    greater_equal,
    isfinite,
    isinf,
    isnan,
    less,
    less_equal,
    log,
    log1p,
    log2,
    log10,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    maximum,
    minimum,
    mod,
    multiply,
    negative,
    not_equal,
    power,
    roll,
    sign,
    sin,
    sinh,
    sqrt,
    square,
    subtract,
    tan,
    tanh,
    tril,
    triu,
)

from khub import config, dtypes, tree
from khub.backend import windows

# ruff: noqa: A001, A002, F401  (imported names are this backend's functions)

TENSORS = {np.ndarray, *(np.dtype(n).type for n in dtypes.ALL if n[0] not in "bf"), np.bool_}
TENSORS |= {dtypes.numpy_dtype(n).type for n in dtypes.ALL}
FLOATS = frozenset(map(dtypes.numpy_dtype, (*dtypes.FLOATS, *dtypes.COMPLEX)))
BOOL = np.dtype(bool)
WEAK_NUMBERS = False  # ml_dtypes: bfloat16 and a Python float are float32
NATIVE = {name: dtypes.numpy_dtype(name) for name in dtypes.ALL}
WIDE = frozenset(map(dtypes.numpy_dtype, dtypes.ALL)) - frozenset(
    map(np.dtype, ("bool", "int8", "int16", "uint8", "uint16"))
)
EAGER = True  # whether jit leaves functions as they are
fused = {}  # optimizer class name -> its update of all Variables in one go
Base = object  # what a Layer inherits from


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


def zeros(shape, dtype=None):
    return np.zeros(shape, dtypes.numpy_dtype(dtypes.standardize(dtype)))


def ones(shape, dtype=None):
    return np.ones(shape, dtypes.numpy_dtype(dtypes.standardize(dtype)))


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


def reshape(x, newshape):
    return np.reshape(x, newshape)


def transpose(x, axes=None):
    return np.transpose(x, axes)


def expand_dims(x, axis):
    return np.expand_dims(x, tuple(axis) if isinstance(axis, list) else axis)


def squeeze(x, axis=None):
    return np.squeeze(x, tuple(axis) if isinstance(axis, list) else axis)


def broadcast_to(x, shape):
    return np.broadcast_to(x, shape)


def flip(x, axis=None):
    return np.flip(x, axis)


def tile(x, repeats):
    return np.tile(x, repeats)


def repeat(x, repeats, axis=None):
    return np.repeat(x, repeats, axis)


def pad(x, pad_width, mode="constant", constant_values=None):
    extra = {} if constant_values is None else {"constant_values": constant_values}
    return np.pad(x, pad_width, mode, **extra)


def concatenate(xs, axis=0):
    return np.concatenate(xs, axis)


def stack(x, axis=0):
    return np.stack(x, axis)


def split(x, indices_or_sections, axis=0):
    return np.split(x, indices_or_sections, axis)


def take(x, indices, axis=None):
    return np.take(x, indices, axis)


def take_along_axis(x, indices, axis=None):
    return np.take_along_axis(x, indices, axis)


def _select(condition, x1, x2):
    return np.where(condition, x1, x2)


def sort(x, axis=-1):
    return np.sort(x, axis)


def argsort(x, axis=-1):
    return np.argsort(x, axis, kind="stable").astype("int32")


def top_k(x, k, sorted=True):
    index = np.argsort(-x if x.dtype.kind != "u" else ~x, axis=-1, kind="stable")[..., :k]
    return np.take_along_axis(x, index, -1), index.astype("int32")


def getitem(x, key):
    return x[key]


def slice(inputs, start_indices, shape):
    return inputs[_window(start_indices, shape)]


def slice_update(inputs, start_indices, updates):
    result = inputs.copy()
    result[_window(start_indices, updates.shape)] = updates
    return result


def _window(start, sizes):
    import builtins

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


# --- math ----------------------------------------------------------------------------------------
def rsqrt(x):
    return 1 / np.sqrt(x)


def erf(x):
    return np.frompyfunc(math.erf, 1, 1)(x).astype(x.dtype)


def erfinv(x):
    inverse = NormalDist().inv_cdf
    edges = {-1.0: -math.inf, 1.0: math.inf}

    def scalar(y):
        return edges[y] if y in edges else inverse((y + 1) / 2) / math.sqrt(2)

    return np.frompyfunc(lambda y: scalar(float(y)), 1, 1)(x).astype(x.dtype)


def round(x, decimals=0):
    return np.round(x, decimals)


def clip(x, x_min, x_max):
    return np.clip(x, x_min, x_max).astype(x.dtype, copy=False)


def _axis(axis):
    return tuple(axis) if isinstance(axis, list) else axis


def sum(x, axis=None, keepdims=False):
    return np.sum(x, _axis(axis), x.dtype, keepdims=keepdims)


def prod(x, axis=None, keepdims=False, dtype=None):
    return np.prod(x, _axis(axis), _like(x, dtype), keepdims=keepdims)


def mean(x, axis=None, keepdims=False):
    return np.mean(x, _axis(axis), keepdims=keepdims).astype(x.dtype, copy=False)


def var(x, axis=None, keepdims=False):
    return np.var(x, _axis(axis), keepdims=keepdims).astype(x.dtype, copy=False)


def max(x, axis=None, keepdims=False, initial=None):
    extra = {} if initial is None else {"initial": initial}
    return np.max(x, _axis(axis), keepdims=keepdims, **extra)


def min(x, axis=None, keepdims=False, initial=None):
    extra = {} if initial is None else {"initial": initial}
    return np.min(x, _axis(axis), keepdims=keepdims, **extra)


def any(x, axis=None, keepdims=False):
    return np.any(x, _axis(axis), keepdims=keepdims)


def all(x, axis=None, keepdims=False):
    return np.all(x, _axis(axis), keepdims=keepdims)


def argmax(x, axis=None, keepdims=False):
    return np.argmax(x, axis, keepdims=keepdims).astype("int32")


def argmin(x, axis=None, keepdims=False):
    return np.argmin(x, axis, keepdims=keepdims).astype("int32")


def cumsum(x, axis=None, dtype=None):
    return np.cumsum(x, axis, _like(x, dtype))


def cumprod(x, axis=None, dtype=None):
    return np.cumprod(x, axis, _like(x, dtype))


def _product(function, *operands):
    """Matrix products of ml_dtypes' floats go through float32: NumPy has no kernels for them."""
    dtype = operands[0].dtype
    if dtype.kind == "V" or dtype.name in ("bfloat16", *dtypes.FLOAT8):
        return function(*(x.astype("float32") for x in operands)).astype(dtype)
    return function(*operands)


def matmul(x1, x2):
    return _product(np.matmul, x1, x2)


def tensordot(x1, x2, axes=2):
    return _product(lambda a, b: np.tensordot(a, b, axes), x1, x2)


def _einsum(subscripts, operands):
    return _product(lambda *xs: np.einsum(subscripts, *xs, optimize=True), *operands)


# --- neural network ------------------------------------------------------------------------------
def _channels_last(function):
    """Run a function of (batch, *space, channels) on either layout."""

    def run(inputs, *args):
        *args, data_format = args
        if windows.channels_first(data_format):
            return np.moveaxis(function(np.moveaxis(inputs, 1, -1), *args), -1, 1)
        return function(inputs, *args)

    return run


def _windows(inputs, sizes, strides, dilations):
    """(batch, *space, n) -> (batch, *space', n, *window)"""
    import builtins

    axes = tuple(range(1, 1 + len(sizes)))
    reach = [(k - 1) * d + 1 for k, d in zip(sizes, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(inputs, reach, axes)
    steps = [builtins.slice(None, None, s) for s in strides]
    inner = [builtins.slice(None, None, d) for d in dilations]
    return view[(builtins.slice(None), *steps, builtins.slice(None), *inner)]


def conv(inputs, kernel, strides=1, padding="valid", data_format=None, dilation_rate=1):
    count = kernel.ndim - 2
    strides = windows.per_axis(strides, count, "strides")
    dilations = windows.per_axis(dilation_rate, count, "dilation_rate")

    def run(x):
        pads = windows.paddings(padding, x.shape[1:-1], kernel.shape[:count], strides, dilations)
        return _conv(np.pad(x, [(0, 0), *pads, (0, 0)]), kernel, strides, dilations)

    return _channels_last(run)(inputs, data_format)


def _conv(x, kernel, strides, dilations):
    count = kernel.ndim - 2
    parts = _windows(x, kernel.shape[:count], strides, dilations)
    groups = x.shape[-1] // kernel.shape[-2]
    axes = ([count + 1, *range(count + 2, 2 * count + 2)], [count, *range(count)])
    parts = np.split(parts, groups, axis=count + 1)
    kernels = np.split(kernel, groups, axis=-1)
    products = [tensordot(p, k, axes) for p, k in zip(parts, kernels, strict=True)]
    return np.concatenate(products, -1)


def conv_transpose(
    inputs,
    kernel,
    strides=1,
    padding="valid",
    output_padding=None,
    data_format=None,
    dilation_rate=1,
):
    import builtins

    count = kernel.ndim - 2
    strides = windows.per_axis(strides, count, "strides")
    dilations = windows.per_axis(dilation_rate, count, "dilation_rate")
    extra = (
        None
        if output_padding is None
        else windows.per_axis(output_padding, count, "output_padding")
    )

    def run(x):
        sizes = x.shape[1:-1]
        spread = [(n - 1) * s + 1 for n, s in zip(sizes, strides, strict=True)]
        stuffed = np.zeros((x.shape[0], *spread, x.shape[-1]), x.dtype)
        stuffed[(builtins.slice(None), *(builtins.slice(None, None, s) for s in strides))] = x
        borders = [
            windows.transposed(padding, *axis, extra[i] if extra else None)
            for i, axis in enumerate(
                zip(sizes, kernel.shape[:count], strides, dilations, strict=True)
            )
        ]
        stuffed = np.pad(stuffed, [(0, 0), *((max_0(b), max_0(a)) for b, a, _ in borders), (0, 0)])
        flipped = np.swapaxes(np.flip(kernel, tuple(range(count))), -1, -2)
        result = _conv(stuffed, flipped, (1,) * count, dilations)
        return result[(builtins.slice(None), *(builtins.slice(out) for *_, out in borders))]

    def max_0(n):
        return n if n > 0 else 0

    return _channels_last(run)(inputs, data_format)


def _pool(inputs, pool_size, strides, padding, data_format, fill, reduce):
    count = inputs.ndim - 2
    sizes = windows.per_axis(pool_size, count, "pool_size")
    strides = sizes if strides is None else windows.per_axis(strides, count, "strides")
    ones = (1,) * count

    def run(x):
        pads = windows.paddings(padding, x.shape[1:-1], sizes, strides, ones)
        x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
        return reduce(_windows(x, sizes, strides, ones), tuple(range(-count, 0)))

    return _channels_last(run)(inputs, data_format)


def max_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    lowest = -np.inf if inputs.dtype in FLOATS else np.iinfo(inputs.dtype).min
    return _pool(inputs, pool_size, strides, padding, data_format, lowest, np.max)


def average_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    def average(x, axes):
        wide = x.astype(np.result_type(x, np.float32))  # NumPy finds no NaN in bfloat16
        return np.nanmean(wide, axes).astype(x.dtype)

    return _pool(inputs, pool_size, strides, padding, data_format, np.nan, average)


# --- random numbers: `seed` is a Generator -------------------------------------------------------
SEED_DTYPE = "int64"


def make_generator(seed):
    return np.random.Generator(np.random.Philox(seed))


def next_seed(seeds):
    if seeds.native is None:
        seeds.native = make_generator(seeds.seed)
    return seeds.native


def random_uniform(shape, minval, maxval, dtype, seed):
    return cast(minval + (maxval - minval) * seed.random(shape, np.float32), dtype)


def random_normal(shape, mean, stddev, dtype, seed):
    return cast(mean + stddev * seed.standard_normal(shape, np.float32), dtype)


def random_integers(shape, minval, maxval, dtype, seed):
    return cast(seed.integers(minval, maxval, shape), dtype)


# --- Variables, transforms, control flow ---------------------------------------------------------
def new_storage(value, trainable, name):
    return np.array(value)


def read(storage):
    return storage


def write(storage, value):
    return np.array(value)


def set_trainable(storage, trainable):
    pass  # a NumPy array has no such property


def is_traced(x):
    return False


def placeholder(shape, dtype):
    return np.broadcast_to(np.zeros((), dtypes.numpy_dtype(dtype)), shape)


def abstract_eval(function, specs):
    with np.errstate(all="ignore"):
        return function(*[np.zeros(shape, dtypes.numpy_dtype(dtype)) for shape, dtype in specs])


def no_gradient():
    return nullcontext()


def body(function):
    """A body that gives bfloat16 for bfloat16: beside Python numbers NumPy makes float32 of it."""
    narrow, wide = dtypes.numpy_dtype("bfloat16"), np.dtype("float32")

    @wraps(function)
    def run(x, *args, **kwargs):
        result = function(x, *args, **kwargs)
        if getattr(x, "dtype", None) != narrow:
            return result
        return tree.map_structure(
            lambda y: y.astype(narrow) if getattr(y, "dtype", None) == wide else y, result
        )

    return run


def jit(function):
    return function


def value_and_grad(function, variables, has_aux):
    raise NotImplementedError(
        "The numpy backend computes no gradients; set KHUB_BACKEND to jax, torch or tensorflow "
        "to train."
    )


def checkpoint(function):
    return function


def vmap(function, in_axes, out_axes):
    def mapped(*args):
        axes = (in_axes,) * len(args) if isinstance(in_axes, int) else in_axes
        length = next(
            tree.flatten(a)[0].shape[axis]
            for a, axis in zip(args, axes, strict=True)
            if axis is not None
        )
        results = [
            function(
                *(
                    a
                    if axis is None
                    else tree.map_structure(partial(np.take, indices=i, axis=axis), a)
                    for a, axis in zip(args, axes, strict=True)
                )
            )
            for i in range(length)
        ]
        return tree.map_structure(lambda *xs: np.stack(xs, out_axes), *results)

    return mapped


def cond(pred, true_fn, false_fn):
    return true_fn() if pred else false_fn()


def while_loop(cond, body, loop_vars, maximum_iterations):
    steps = 0
    while cond(*loop_vars) and (maximum_iterations is None or steps < maximum_iterations):
        loop_vars = body(*loop_vars)
        steps += 1
    return loop_vars


def scan(function, init, xs, length, reverse):
    carry, outputs = init, []
    for i in reversed(range(length)) if reverse else range(length):
        carry, y = function(carry, None if xs is None else tree.map_structure(itemgetter(i), xs))
        outputs.append(y)
    outputs = outputs[::-1] if reverse else outputs
    if not outputs or outputs[0] is None:
        return carry, None
    return carry, tree.map_structure(lambda *ys: np.stack(ys), *outputs)
