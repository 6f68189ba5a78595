"""The JAX backend. Variables live outside jax; the transforms carry them in and out of a trace."""

import math
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import erf_inv as erfinv
from jax.lax import rsqrt, stop_gradient
from jax.nn import celu, elu, log_sigmoid, log_softmax, selu, sigmoid, silu, softplus
from jax.nn import soft_sign as softsign
from jax.numpy import (
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
    expand_dims,
    expm1,
    flip,
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
    matmul,
    maximum,
    minimum,
    mod,
    multiply,
    negative,
    not_equal,
    power,
    roll,
    round,
    sign,
    sin,
    sinh,
    sqrt,
    square,
    squeeze,
    subtract,
    tan,
    tanh,
    tril,
    triu,
)
from jax.scipy.special import erf

from khub import config, dtypes, tree
from khub.backend import windows
from khub.backend.scope import Scope, local

# ruff: noqa: A001, A002, F401  (imported names are this backend's functions)

TENSORS = set()  # arrays and tracers join as they are met: making one would start the devices
BOOL = np.dtype(bool)
WEAK_NUMBERS = True  # native functions take a Python number at the other operand's dtype
FLOATS = frozenset(map(dtypes.numpy_dtype, (*dtypes.FLOATS, *dtypes.COMPLEX)))
WIDE = frozenset(map(dtypes.numpy_dtype, dtypes.ALL)) - frozenset(
    map(np.dtype, ("bool", "int8", "int16", "uint8", "uint16"))
)
NATIVE = {name: dtypes.numpy_dtype(name) for name in dtypes.ALL}
EAGER = False  # whether jit leaves functions as they are
fused = {}  # optimizer class name -> its update of all Variables in one go
Base = object


# --- conversion ----------------------------------------------------------------------------------
def is_tensor(x):
    if isinstance(x, jax.Array):
        TENSORS.add(type(x))
        return True
    return False


def dtype_name(x):
    return x.dtype.name


def array_dtype(x):
    return dtypes.standardize(jnp.result_type(*tree.flatten(x)))


def convert_to_tensor(x, dtype=None):
    if is_tensor(x):
        return x if dtype is None or x.dtype.name == dtype else x.astype(_native(dtype))
    if dtype is None and not hasattr(x, "dtype"):
        kinds = {type(leaf) for leaf in tree.flatten(x)}
        if kinds and kinds <= {int, float, bool}:
            dtype = config.floatx() if float in kinds else "int32" if int in kinds else "bool"
    if isinstance(x, (list, tuple)):
        x = tree.map_structure(lambda leaf: getattr(leaf, "value", leaf), x)
    elif not hasattr(x, "__jax_array__") and hasattr(x, "__array__"):
        x = np.asarray(x)
    return jnp.asarray(x, None if dtype is None else _native(dtype))


def _native(dtype):
    return jax.dtypes.canonicalize_dtype(dtypes.numpy_dtype(dtype))


def convert_to_numpy(x):
    return np.asarray(x)


def cast(x, dtype):
    return x if x.dtype.name == dtype else x.astype(_native(dtype))


def shape(x):
    return x.shape


def nonzero(x):
    return tuple(index.astype("int32") for index in jnp.nonzero(x))


# --- arrays --------------------------------------------------------------------------------------
def arange(start, stop=None, step=None, dtype=None):
    numbers = [n for n in (start, stop, step) if n is not None]
    dtype = dtype or dtypes.result_type(*(getattr(n, "dtype", type(n)) for n in numbers))
    return jnp.arange(start, stop, step, _native(dtypes.standardize(dtype)))


def linspace(start, stop, num=50, endpoint=True, retstep=False, dtype=None, axis=0):
    dtype = _native(dtypes.standardize(dtype))
    return jnp.linspace(start, stop, num, endpoint, retstep, dtype, axis)


def zeros(shape, dtype=None):
    return jnp.zeros(shape, _native(dtypes.standardize(dtype)))


def ones(shape, dtype=None):
    return jnp.ones(shape, _native(dtypes.standardize(dtype)))


def full(shape, fill_value, dtype=None):
    return jnp.full(shape, fill_value, _native(dtypes.standardize(dtype)))


def eye(N, M=None, k=0, dtype=None):
    return jnp.eye(N, M, k, _native(dtypes.standardize(dtype)))


def _like(dtype):
    return None if dtype is None else _native(dtypes.standardize(dtype))


def zeros_like(x, dtype=None):
    return jnp.zeros_like(x, _like(dtype))


def ones_like(x, dtype=None):
    return jnp.ones_like(x, _like(dtype))


def full_like(x, fill_value, dtype=None):
    return jnp.full_like(x, fill_value, _like(dtype))


def reshape(x, newshape):
    return jnp.reshape(x, newshape)


def transpose(x, axes=None):
    return jnp.transpose(x, axes)


def broadcast_to(x, shape):
    return jnp.broadcast_to(x, shape)


def tile(x, repeats):
    return jnp.tile(x, repeats)


def repeat(x, repeats, axis=None):
    return jnp.repeat(x, repeats if isinstance(repeats, int) else np.asarray(repeats), axis)


def pad(x, pad_width, mode="constant", constant_values=None):
    extra = {} if constant_values is None else {"constant_values": constant_values}
    return jnp.pad(x, pad_width, mode, **extra)


def concatenate(xs, axis=0):
    return jnp.concatenate(xs, axis)


def stack(x, axis=0):
    return jnp.stack(x, axis)


def split(x, indices_or_sections, axis=0):
    return jnp.split(x, indices_or_sections, axis)


def take(x, indices, axis=None):
    return jnp.take(x, indices, axis)


def take_along_axis(x, indices, axis=None):
    return jnp.take_along_axis(x, indices, axis)


def _select(condition, x1, x2):
    return jnp.where(condition, x1, x2)


def sort(x, axis=-1):
    return jnp.sort(x, axis)


def argsort(x, axis=-1):
    return jnp.argsort(x, axis).astype("int32")


def top_k(x, k, sorted=True):
    return tuple(lax.top_k(x, k))


def getitem(x, key):
    return x[key]


def slice(inputs, start_indices, shape):
    return lax.dynamic_slice(inputs, _starts(start_indices), shape)


def slice_update(inputs, start_indices, updates):
    return lax.dynamic_update_slice(inputs, updates, _starts(start_indices))


def _starts(indices):
    return [indices[i] for i in range(len(indices))]


def scatter(indices, values, shape):
    return jnp.zeros(shape, values.dtype).at[tuple(jnp.moveaxis(indices, -1, 0))].add(values)


def scatter_update(inputs, indices, updates, reduction=None):
    place = inputs.at[tuple(jnp.moveaxis(indices, -1, 0))]
    name = {None: "set", "add": "add", "max": "max", "min": "min", "mul": "multiply"}[reduction]
    return getattr(place, name)(updates)


# --- math ----------------------------------------------------------------------------------------
def clip(x, x_min, x_max):
    return jnp.clip(x, x_min, x_max).astype(x.dtype)


def sum(x, axis=None, keepdims=False):
    return jnp.sum(x, axis, keepdims=keepdims)


def prod(x, axis=None, keepdims=False, dtype=None):
    return jnp.prod(x, axis, _like(dtype), keepdims=keepdims)


def mean(x, axis=None, keepdims=False):
    return jnp.mean(x, axis, keepdims=keepdims)


def var(x, axis=None, keepdims=False):
    return jnp.var(x, axis, keepdims=keepdims)


def any(x, axis=None, keepdims=False):
    return jnp.any(x, axis, keepdims=keepdims)


def all(x, axis=None, keepdims=False):
    return jnp.all(x, axis, keepdims=keepdims)


def logsumexp(x, axis=None, keepdims=False):
    return jax.nn.logsumexp(x, axis, keepdims=keepdims)


def max(x, axis=None, keepdims=False, initial=None):
    return jnp.max(x, axis, keepdims=keepdims, initial=initial)


def min(x, axis=None, keepdims=False, initial=None):
    return jnp.min(x, axis, keepdims=keepdims, initial=initial)


def argmax(x, axis=None, keepdims=False):
    return jnp.argmax(x, axis, keepdims=keepdims).astype("int32")


def argmin(x, axis=None, keepdims=False):
    return jnp.argmin(x, axis, keepdims=keepdims).astype("int32")


def cumsum(x, axis=None, dtype=None):
    return jnp.cumsum(x, axis, _like(dtype))


def cumprod(x, axis=None, dtype=None):
    return jnp.cumprod(x, axis, _like(dtype))


def tensordot(x1, x2, axes=2):
    return jnp.tensordot(x1, x2, axes)


def _einsum(subscripts, operands):
    return jnp.einsum(subscripts, *operands)


# --- neural network ------------------------------------------------------------------------------
def gelu(x, approximate=True):
    return jax.nn.gelu(x, approximate)


def softmax(x, axis=-1):
    return jax.nn.softmax(x, axis)


def conv(inputs, kernel, strides=1, padding="valid", data_format=None, dilation_rate=1):
    count = kernel.ndim - 2
    first = windows.channels_first(data_format)
    strides = windows.per_axis(strides, count, "strides")
    dilations = windows.per_axis(dilation_rate, count, "dilation_rate")
    sizes = inputs.shape[2:] if first else inputs.shape[1:-1]
    pads = windows.paddings(padding, sizes, kernel.shape[:count], strides, dilations)
    channels = inputs.shape[1 if first else -1]
    return lax.conv_general_dilated(
        inputs,
        kernel,
        strides,
        pads,
        rhs_dilation=dilations,
        dimension_numbers=_dimensions(count, first),
        feature_group_count=channels // kernel.shape[-2],
    )


def _dimensions(count, first):
    space = "DHW"[3 - count :]
    layout = f"NC{space}" if first else f"N{space}C"
    return layout, f"{space}IO", layout


def conv_transpose(
    inputs,
    kernel,
    strides=1,
    padding="valid",
    output_padding=None,
    data_format=None,
    dilation_rate=1,
):
    count = kernel.ndim - 2
    first = windows.channels_first(data_format)
    strides = windows.per_axis(strides, count, "strides")
    dilations = windows.per_axis(dilation_rate, count, "dilation_rate")
    extra = [None] * count
    if output_padding is not None:
        extra = windows.per_axis(output_padding, count, "output_padding")
    sizes = inputs.shape[2:] if first else inputs.shape[1:-1]
    axes = zip(sizes, kernel.shape[:count], strides, dilations, extra, strict=True)
    return lax.conv_general_dilated(
        inputs,
        jnp.swapaxes(jnp.flip(kernel, range(count)), -1, -2),
        (1,) * count,
        [windows.transposed(padding, *axis)[:2] for axis in axes],
        lhs_dilation=strides,
        rhs_dilation=dilations,
        dimension_numbers=_dimensions(count, first),
    )


def _pool(inputs, pool_size, strides, padding, data_format, start, function):
    count = inputs.ndim - 2
    first = windows.channels_first(data_format)
    sizes = windows.per_axis(pool_size, count, "pool_size")
    strides = sizes if strides is None else windows.per_axis(strides, count, "strides")

    def full(values, rest):
        return (rest, rest, *values) if first else (rest, *values, rest)

    space = inputs.shape[2:] if first else inputs.shape[1:-1]
    pads = windows.paddings(padding, space, sizes, strides, (1,) * count)
    return lax.reduce_window(
        inputs, start, function, full(sizes, 1), full(strides, 1), full(pads, (0, 0))
    )


def max_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    floating = jnp.issubdtype(inputs.dtype, jnp.floating)
    lowest = -jnp.inf if floating else jnp.iinfo(inputs.dtype).min
    return _pool(inputs, pool_size, strides, padding, data_format, lowest, lax.max)


def average_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    total = _pool(inputs, pool_size, strides, padding, data_format, 0.0, lax.add)
    if str(padding).lower() == "valid":
        count = inputs.ndim - 2
        return total / math.prod(windows.per_axis(pool_size, count, "pool_size"))
    return total / _pool(
        jnp.ones_like(inputs), pool_size, strides, padding, data_format, 0.0, lax.add
    )


# --- random numbers: `seed` is a key -------------------------------------------------------------
SEED_DTYPE = "uint32"


def make_generator(seed):
    return jnp.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], jnp.uint32)


def next_seed(seeds):
    state = seeds.state.value
    seeds.state.assign(state + _ONE)
    return state


_ONE = np.array([0, 1], np.uint32)


def random_uniform(shape, minval, maxval, dtype, seed):
    wide = dtype if dtype == "float64" else "float32"
    return cast(jax.random.uniform(seed, shape, _native(wide), minval, maxval), dtype)


def random_normal(shape, mean, stddev, dtype, seed):
    return cast(mean + stddev * jax.random.normal(seed, shape, jnp.float32), dtype)


def random_integers(shape, minval, maxval, dtype, seed):
    return jax.random.randint(seed, shape, minval, maxval, _native(dtype))


@jax.jit
def relu(x):  # jax.nn.relu, a custom_jvp, takes 0.2 ms for an eager call
    return jnp.where(x <= 0, jnp.zeros((), x.dtype), x)


# --- Variables -----------------------------------------------------------------------------------
def new_storage(value, trainable, name):
    with jax.ensure_compile_time_eval():
        return jnp.array(value).block_until_ready()  # a copy: jit donates the buffer


def read(storage):
    return storage


def write(storage, value):
    return jnp.array(value)  # a copy, for the same reason


def set_trainable(storage, trainable):
    pass  # gradients are asked for by Variable


def is_traced(x):
    return False  # inside a trace there is always a scope


def placeholder(shape, dtype):
    return jnp.zeros(shape, _native(dtype))


def abstract_eval(function, specs):
    return jax.eval_shape(function, *[jax.ShapeDtypeStruct(s, _native(d)) for s, d in specs])


def no_gradient():
    return nullcontext()


# --- transforms: a function that reads and assigns Variables becomes a pure one ------------------
def _pure(function, variables, written, seal=None):
    """Return `pure(values, *args) -> (result, new values)`; Variables not given are constants."""
    seal = seal or getattr(local.scope, "seal", None)

    def pure(values, *args, **kwargs):
        with Scope(zip(variables, values, strict=True), seal=seal) as scope:
            result = function(*args, **kwargs)
        for variable in scope.written:
            if variable not in written:
                written[variable] = None
        return _tensors(result), [
            scope.values[v] if v in scope.values else _value(v) for v in written
        ]

    return pure


def _value(variable):
    return variable.storage_value() if local.scope is None else local.scope.get(variable)


def _tensors(result):
    """Variables and numbers that a function returns, as arrays: a trace returns nothing else."""
    return tree.map_structure(lambda x: x.value if hasattr(x, "_storage") else x, result)


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        if local.scope is None:
            variable._storage = value
        else:
            local.scope.set(variable, value)


def _uses(function, *args, **kwargs):
    """Return (read, written) Variables of `function`, found by one trace without compilation."""
    with Scope() as scope:
        jax.eval_shape(lambda *a, **k: _only_arrays(function(*a, **k)), *args, **kwargs)
    return scope.read, scope.written


def _only_arrays(result):
    return [x for x in tree.flatten(_tensors(result)) if isinstance(x, (jax.Array, np.ndarray))]


class _Compiled:
    """A compiled form of a function: its Variables, the jitted pure function of their values."""

    def __init__(self, function, args):
        read, written = _uses(function, *args)
        self.written = list(written)
        self.read = [v for v in read if v not in written]
        # a Variable that is only assigned still gives its buffer away, if it has one
        self.given = [v for v in self.written if v in read or v.is_materialized]
        for variable in (*self.read, *self.given):
            variable.materialize()
        known = {*self.read, *self.given}

        def run(given, read, *leaves):
            with Scope(zip((*self.given, *self.read), (*given, *read), strict=True)) as scope:
                result = _tensors(function(*leaves))
            if not (scope.read.keys() <= known and scope.written.keys() <= written.keys()):
                raise _Stale
            # an array may not leave twice: the next call gives the Variables' buffers away
            taken = set(map(id, read))
            values = [_fresh(scope.get(v), taken) for v in self.written]
            return tree.map_structure(lambda x: _fresh(x, taken), result), values

        self.run = jax.jit(run, donate_argnums=0)

    def __call__(self, leaves):
        given, read = [v._storage for v in self.given], [v._storage for v in self.read]
        result, values = self.run(given, read, *leaves)
        for variable, value in zip(self.written, values, strict=True):
            variable._storage = value
        return result


def _fresh(x, taken):
    if not isinstance(x, jax.Array):
        return x
    if id(x) in taken:
        return jnp.copy(x)
    taken.add(id(x))
    return x


class _Stale(Exception):
    """A new trace reads or assigns other Variables than the first one did."""


_ARRAY = object()
_TRACED = (jax.Array, np.ndarray, np.generic, int, float)


def jit(function):
    compiled = {}

    def call(*args, **kwargs):
        if local.scope is not None:  # inside another trace: part of it
            return function(*args, **kwargs)
        leaves, structure = jax.tree_util.tree_flatten((args, kwargs))
        traced, key = [], [structure]
        for leaf in leaves:
            if type(leaf) is np.ndarray or (
                isinstance(leaf, _TRACED) and not isinstance(leaf, bool)
            ):  # the check against jax.Array takes half a microsecond
                traced.append(leaf)
                key.append(_ARRAY)
            elif hasattr(leaf, "__array__") and not hasattr(leaf, "_storage"):
                traced.append(np.asarray(leaf))
                key.append(_ARRAY)
            else:
                key.append(leaf)
        key = tuple(key)
        entry = compiled.get(key)
        if entry is None:

            def flat(*values):
                values = iter(values)
                filled = [next(values) if k is _ARRAY else k for k in key[1:]]
                args, kwargs = jax.tree_util.tree_unflatten(structure, filled)
                return function(*args, **kwargs)

            entry = compiled[key] = _Compiled(flat, traced)
        try:
            return entry(traced)
        except _Stale:
            del compiled[key]
            return call(*args, **kwargs)

    call.__wrapped__ = function
    return call


def value_and_grad(function, variables, has_aux):
    def call(*args, **kwargs):
        written = {}

        def loss_of(target, *rest):
            if variables is None:
                pure, inputs = _pure(function, (), written, stop_gradient), ((), target, *rest)
            else:
                pure, inputs = _pure(function, variables, written, stop_gradient), (target, *rest)
            result, values = pure(*inputs, **kwargs)
            loss, aux = result if has_aux else (result, None)
            return loss, (aux, values)

        if variables is None:
            target, rest = args[0], args[1:]
        else:
            target, rest = [_value(v) for v in variables], args
        (loss, (aux, values)), gradients = jax.value_and_grad(loss_of, has_aux=True)(target, *rest)
        _assign(written, values)
        return ((loss, aux) if has_aux else loss), gradients

    return call


def checkpoint(function):
    def call(*args, **kwargs):
        written = {}
        result, values = jax.checkpoint(_pure(function, (), written))((), *args, **kwargs)
        _assign(written, values)
        return result

    return call


def vmap(function, in_axes, out_axes):
    return jax.vmap(function, in_axes, out_axes)


def cond(pred, true_fn, false_fn):
    written = {}
    for branch in (true_fn, false_fn):
        written |= _uses(branch)[1]
    branches = [_pure(branch, (), written) for branch in (true_fn, false_fn)]
    result, values = lax.cond(jnp.asarray(pred, bool), *(lambda b=b: b(()) for b in branches))
    _assign(written, values)
    return result


def while_loop(cond, body, loop_vars, maximum_iterations):
    _, written = _uses(body, *loop_vars)
    written = list(written)
    limit = maximum_iterations

    def proceed(state):
        step, values, loop = state
        with Scope(zip(written, values, strict=True)):
            more = jnp.asarray(cond(*loop), bool)
        return more if limit is None else jnp.logical_and(more, step < limit)

    def advance(state):
        step, values, loop = state
        loop, values = _pure(body, written, dict.fromkeys(written))(values, *loop)
        return step + 1, values, tuple(loop)

    start = (jnp.int32(0), [_value(v) for v in written], loop_vars)
    _, values, loop_vars = lax.while_loop(proceed, advance, start)
    _assign(written, values)
    return loop_vars


def scan(function, init, xs, length, reverse):
    first = None if xs is None else tree.map_structure(lambda x: x[0], xs)
    _, written = _uses(function, init, first)
    written = list(written)

    def step(state, x):
        carry, values = state
        (carry, y), values = _pure(function, written, dict.fromkeys(written))(values, carry, x)
        return (carry, values), y

    start = (init, [_value(v) for v in written])
    (carry, values), ys = lax.scan(step, start, xs, length, reverse)
    _assign(written, values)
    return carry, ys
