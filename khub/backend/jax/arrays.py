"""Conversion, arrays and mathematics on JAX arrays."""

from operator import getitem

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import erf, rsqrt, stop_gradient
from jax.lax import erf_inv as erfinv

from khub import config, dtypes, tree

# ruff: noqa: A001, A002, F401  (imported names are this backend's functions)

SAME = """
absolute add arccos arccosh arcsin arcsinh arctan arctan2 arctanh bitwise_and bitwise_or bitwise_xor
broadcast_to cbrt ceil concatenate copy cos cosh deg2rad diag diagonal divide equal exp exp2
expand_dims expm1 flip floor floor_divide fmax fmin fmod gcd greater greater_equal hypot isfinite
isinf isnan lcm less less_equal log log10 log1p log2 logaddexp logaddexp2 logical_and logical_not
logical_or logical_xor matmul maximum minimum mod multiply negative nextafter not_equal power
rad2deg reshape roll sign signbit sin sinc sinh sort split sqrt square squeeze stack subtract take
take_along_axis tan tanh tensordot tile transpose tril triu
"""  # functions of one meaning in jnp, called with all arguments in the op's order
globals().update({name: getattr(jnp, name) for name in SAME.split()})

TENSORS = set()  # arrays and tracers join as they are met: making one would start the devices
BOOL = np.dtype(bool)
WEAK_NUMBERS = True  # native functions take a Python number at the other operand's dtype
FLOATS = frozenset(map(dtypes.numpy_dtype, (*dtypes.FLOATS, *dtypes.COMPLEX)))
WIDE = frozenset(map(dtypes.numpy_dtype, dtypes.ALL)) - frozenset(
    map(np.dtype, ("bool", "int8", "int16", "uint8", "uint16"))
)
NATIVE = {name: dtypes.numpy_dtype(name) for name in dtypes.ALL}


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
        return x if dtype is None else cast(x, dtype)
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
    native = NATIVE[dtype]
    return native if native.itemsize < 8 else jax.dtypes.canonicalize_dtype(native)


def convert_to_numpy(x):
    return np.asarray(x)


def cast(x, dtype):
    return x if x.dtype is NATIVE[dtype] else lax.convert_element_type(x, _native(dtype))


def shape(x):
    return x.shape


def nonzero(x):
    return tuple(index.astype("int32") for index in jnp.nonzero(x))


# --- arrays --------------------------------------------------------------------------------------
def arange(start, stop=None, step=None, dtype=None):
    numbers = [n for n in (start, stop, step) if n is not None]
    dtype = dtype or dtypes.result_type(*(getattr(n, "dtype", type(n)) for n in numbers))
    native = _native(dtypes.standardize(dtype))
    return jnp.arange(start, stop, step, None if native == BOOL else native).astype(native)


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


def repeat(x, repeats, axis=None):
    return jnp.repeat(x, repeats if isinstance(repeats, int) else np.asarray(repeats), axis)


def pad(x, pad_width, mode="constant", constant_values=None):
    extra = {} if constant_values is None else {"constant_values": constant_values}
    return jnp.pad(x, pad_width, mode, **extra)


def argsort(x, axis=-1):
    return jnp.argsort(x, axis).astype("int32")


def top_k(x, k, sorted=True):
    return tuple(lax.top_k(x, k))


def slice(inputs, start_indices, shape):
    return lax.dynamic_slice(inputs, _starts(start_indices), shape)


def slice_update(inputs, start_indices, updates):
    return lax.dynamic_update_slice(inputs, updates, _starts(start_indices))


def _starts(indices):
    return [indices[i] for i in range(len(indices))]


def scatter(indices, values, shape):
    return scatter_update(jnp.zeros(shape, values.dtype), indices, values, "add")


def scatter_update(inputs, indices, updates, reduction=None):
    place = inputs.at[tuple(jnp.moveaxis(indices, -1, 0))]
    names = {None: "set", "add": "add", "max": "max", "min": "min", "mul": "multiply"}
    if inputs.dtype == bool:  # JAX neither adds nor multiplies them
        names |= {"add": "max", "mul": "min"}
    return getattr(place, names[reduction])(updates)


bitwise_not, bitwise_left_shift, bitwise_right_shift = jnp.invert, jnp.left_shift, jnp.right_shift
_select = jnp.where


def _complex(x1, x2):
    return lax.complex(*jnp.broadcast_arrays(x1, x2))


# --- math ----------------------------------------------------------------------------------------
def clip(x, x_min, x_max):
    return jnp.clip(x, x_min, x_max).astype(x.dtype)


def round(x, decimals=0):
    return jnp.round(x, decimals) if decimals < 0 or x.dtype in FLOATS else x


def _reduction(function):
    return lambda x, axis=None, keepdims=False: function(x, axis, keepdims=keepdims)


sum, mean, var, any, all = map(_reduction, (jnp.sum, jnp.mean, jnp.var, jnp.any, jnp.all))
logsumexp = _reduction(jax.nn.logsumexp)


def prod(x, axis=None, keepdims=False, dtype=None):
    return jnp.prod(x, axis, _like(dtype), keepdims=keepdims)


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


def _einsum(subscripts, operands):
    return jnp.einsum(subscripts, *operands)


def view(x, dtype=None):
    return x.view(_native(dtypes.standardize(dtype)))


def searchsorted(sorted_sequence, values, side="left"):
    return jnp.searchsorted(sorted_sequence, values, side).astype("int32")


def bincount(x, weights=None, minlength=0, sparse=False):
    if not isinstance(x, jax.core.Tracer):
        return NotImplemented
    if not minlength or x.ndim > 1:
        raise ValueError(
            f"bincount under jit needs a vector and its minlength, got {x.shape}, {minlength}."
        )
    return jnp.bincount(x, weights, length=minlength)


def unique(x, sorted, return_index, return_inverse, return_counts, axis, size, fill_value):
    asked = (return_index, return_inverse, return_counts)
    return jnp.unique(x, *asked, axis, size=size, fill_value=fill_value or 0)


def i0(x):
    return lax.bessel_i0e(x) * jnp.exp(jnp.abs(x))


def _complex_part(x, part):
    return getattr(jnp, part)(x)


# Functions that leave some arguments to the op's reference body.
PARTIAL = {"bincount", "dot_product_attention"}
