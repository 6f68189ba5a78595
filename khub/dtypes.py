"""Dtypes as strings, and the one lattice that says what two of them make.

The lattice is JAX's (https://docs.jax.dev/en/latest/jep/9407-type-promotion.html): Python scalars
are weak ("int", "float", "complex"), and the result is the least upper bound. It holds on every
backend.
"""

from functools import lru_cache

import ml_dtypes
import numpy as np

from khub import config

UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
SIGNED = ("int8", "int16", "int32", "int64")
FLOATS = ("float16", "bfloat16", "float32", "float64")
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
COMPLEX = ("complex64", "complex128")
ALL = ("bool", *UNSIGNED, *SIGNED, *FLOATS, *FLOAT8, *COMPLEX)

_ABOVE = {  # a dtype -> the dtypes directly above it
    "bool": ("int",),
    "int": ("uint8", "int8"),
    "uint8": ("uint16", "int16"),
    "uint16": ("uint32", "int32"),
    "uint32": ("uint64", "int64"),
    "uint64": ("float",),
    "int8": ("int16",),
    "int16": ("int32",),
    "int32": ("int64",),
    "int64": ("float",),
    "float": ("bfloat16", "float16", *FLOAT8, "complex"),
    "float8_e4m3fn": (),
    "float8_e5m2": (),
    "bfloat16": ("float32",),
    "float16": ("float32",),
    "float32": ("float64", "complex64"),
    "float64": ("complex128",),
    "complex": ("complex64",),
    "complex64": ("complex128",),
    "complex128": (),
}
_NUMPY = {name: np.dtype(getattr(ml_dtypes, name, None) or name) for name in ALL}
_NAMES = {dtype: name for name, dtype in _NUMPY.items()}


@lru_cache(None)
def _upper(name):
    return frozenset({name}).union(*map(_upper, _ABOVE[name]))


@lru_cache(None)
def _join(a, b):
    common = _upper(a) & _upper(b)
    for name in common:
        if all(other in _upper(name) for other in common):
            return name
    raise TypeError(f"{a} and {b} have no common dtype; cast one of them with ops.cast(x, dtype).")


@lru_cache(None)
def _result(names, floatx):
    result = names[0]
    for name in names[1:]:
        result = _join(result, name)
    return {"int": "int32", "float": floatx, "complex": "complex64"}.get(result, result)


def result_type(*dtypes):
    """Return the dtype of an operation on these dtypes; Python's int and float are weak."""
    names = tuple(_weak(dtype) or standardize(dtype) for dtype in dtypes) or ("float",)
    return _result(names, config.floatx())


# Python's numbers; the last two are sizes that a trace of torch or JAX leaves open
_WEAK = dict(int="int", float="float", complex="complex", SymInt="int", _DimExpr="int")


def _weak(dtype):
    name = dtype.__name__ if isinstance(dtype, type) else dtype
    return _WEAK.get(name) if isinstance(name, str) else None


def floating(name):
    """Return `name` of a float or complex dtype, else what the lattice makes with a weak float."""
    return _result((name, "float"), config.floatx()) if not is_float(name) else name


@lru_cache(None)
def is_float(name):
    """Say whether the dtype is a real or complex float."""
    return name.startswith(("float", "bfloat", "complex"))


def is_integer(name):
    """Say whether the dtype is a signed or unsigned integer."""
    return name.startswith(("int", "uint"))


def is_float_dtype(dtype):
    """Say whether a dtype, of any framework, is one of floats."""
    return standardize(dtype).startswith(("float", "bfloat"))


def is_int_dtype(dtype):
    """Say whether a dtype, of any framework, is one of integers."""
    return is_integer(standardize(dtype))


def standardize(dtype):
    """Return the dtype's name; None means `floatx()`, dtypes of any framework are accepted.

    Raises ValueError for what is no dtype.
    """
    if dtype is None:
        return config.floatx()
    if isinstance(dtype, str):
        name = {"int": "int32", "float": config.floatx()}.get(dtype, dtype)
    elif isinstance(dtype, np.dtype):
        name = _NAMES.get(dtype, str(dtype))
    elif isinstance(dtype, type) and dtype in (bool, int, float):
        name = {bool: "bool", int: "int32", float: config.floatx()}[dtype]
    else:  # torch.float32, tf.float32, jnp.float32, np.float32
        name = getattr(dtype, "name", None) or getattr(dtype, "__name__", str(dtype))
        name = str(name).rsplit(".", 1)[-1].rstrip("_")
    if name not in _NUMPY and name != "string":
        raise ValueError(f"{dtype!r} is not a dtype; expected one of {', '.join(ALL)}.")
    return name


def numpy_dtype(name):
    """Return the NumPy dtype of this name (ml_dtypes' for bfloat16 and float8)."""
    return _NUMPY[name]
