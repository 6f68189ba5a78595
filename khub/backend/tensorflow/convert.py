"""TensorFlow's dtypes, kernels and tensors, and how other values become tensors.

Two things make eager calls cheap. Kernels are called through `raw`, without the layers of Python
above them, and the small integer vectors that TensorFlow wants as tensors (shapes, axes) are made
once and kept: making one takes 40 us, a small kernel 8 us.
"""

from functools import lru_cache, wraps

import numpy as np
import tensorflow as tf

from khub import config, dtypes, tree


class _Raw:
    """`tf.raw_ops`, called by position and without their check for keywords (1 us of 8)."""

    def __getattr__(self, name):
        kernel = getattr(tf.raw_ops, name).__wrapped__
        setattr(self, name, kernel)
        return kernel


with tf.Graph().as_default():
    _Symbolic = type(tf.constant(0))
raw = _Raw()
NATIVE = {name: tf.as_dtype(name) for name in (*dtypes.ALL, "string")}
TENSORS = {type(tf.constant(0)), _Symbolic}
FLOATS = frozenset(NATIVE[name] for name in (*dtypes.FLOATS, *dtypes.COMPLEX))
BOOL = tf.bool
WEAK_NUMBERS = True  # native functions take a Python number at the other operand's dtype
HALVES = frozenset({tf.float16, tf.bfloat16})
UNSIGNED = frozenset(NATIVE[name] for name in dtypes.UNSIGNED)
NARROW = frozenset({tf.bool, tf.int8, tf.int16, tf.uint8, tf.uint16})
WIDE = frozenset(NATIVE[name] for name in dtypes.ALL) - NARROW


# --- conversion ----------------------------------------------------------------------------------
def is_tensor(x):
    if isinstance(x, tf.Tensor):
        TENSORS.add(type(x))
        return True
    return False


def dtype_name(x):
    return x.dtype.name


def array_dtype(x):
    kinds = {_kind(leaf) for leaf in tree.flatten(x)} or {"float"}
    if kinds <= {"bool", "int", "float", "complex"}:
        return next(kind for kind in ("complex", "float", "int", "bool") if kind in kinds)
    return dtypes.result_type(*kinds)


def _kind(leaf):
    if type(leaf) in (bool, int, float, complex):
        return type(leaf).__name__
    return dtypes.standardize(leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype)


def _strong(kind):
    return {"int": "int32", "float": config.floatx(), "complex": "complex64"}.get(kind, kind)


def convert_to_tensor(x, dtype=None):
    kind = type(x)
    if kind in TENSORS or is_tensor(x):
        return x if dtype is None else cast(x, dtype)
    if kind in (bool, int, float, complex):
        return number(x, dtype or _strong(kind.__name__))
    if isinstance(x, (list, tuple)):
        dtype = dtype or _strong(array_dtype(x))
        if any(is_tensor(v) or hasattr(v, "__tf_tensor__") for v in tree.flatten(x)):
            return raw.Pack([convert_to_tensor(v, dtype) for v in x], 0)
    elif hasattr(x, "__tf_tensor__"):
        x = x.__tf_tensor__()
        return x if dtype is None else cast(x, dtype)
    elif hasattr(x, "detach"):  # torch, whose bfloat16 NumPy cannot read
        x = x.detach().cpu()
        if dtypes.standardize(x.dtype) == "bfloat16":
            x, dtype = x.float(), dtype or "bfloat16"
    elif hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
        x = np.from_dlpack(x)
    x = np.asarray(x)
    return tf.constant(x if dtype is None else x.astype(dtypes.numpy_dtype(dtype), copy=False))


def _kept(make):
    """Tensors are made once for eager work; a graph has its own, which its optimizer can fold."""
    eager = lru_cache(4096)(make)
    # hash: a TypeError where a tensor is among the values, in a graph as well
    return lambda *values: (eager if hash(values) and tf.executing_eagerly() else make)(*values)


@_kept
def number(value, dtype):
    return tf.constant(np.asarray(value).astype(dtypes.numpy_dtype(dtype)))


@_kept
def constant(values):
    return tf.constant(values, tf.int32)


FLAT = constant((-1,))  # the shape of a vector as long as needed


def vector(values):
    """An int32 vector of an int, of ints and scalar tensors, or of a vector."""
    if type(values) in TENSORS:
        return values if values.dtype is tf.int32 else raw.Cast(values, tf.int32)
    if isinstance(values, int):
        return constant((values,))
    values = tuple(values)
    try:
        return constant(values)
    except TypeError:  # tensors have no hash
        return tf.stack([tf.cast(v, tf.int32) for v in values])


def convert_to_numpy(x):
    return np.asarray(x.numpy()) if type(x) in TENSORS and hasattr(x, "numpy") else np.asarray(x)


def cast(x, dtype):
    native = NATIVE[dtype]
    return x if x.dtype is native else raw.Cast(x, native)


def shape(x):
    sizes = tuple(x.shape)
    if None not in sizes:
        return sizes
    dynamic = raw.Shape(x, tf.int32)
    return tuple(dynamic[i] if n is None else n for i, n in enumerate(sizes))


def sizes_of(x):
    """The shape for a reshape: one unknown size is -1, which costs nothing."""
    sizes = tuple(x.shape)
    return tuple(-1 if n is None else n for n in sizes) if sizes.count(None) < 2 else shape(x)


def nonzero(x):
    x = x if x.dtype is tf.bool else raw.NotEqual(x, raw.ZerosLike(x))
    return tuple(raw.Unpack(raw.Cast(raw.Where(x), tf.int32), len(x.shape), 1))


def through(wide, lacking, operands=1):
    """Run a function in the dtype `wide` where its operands' own dtype has no (exact) kernel."""

    def decorate(run):
        @wraps(run)
        def call(*args):
            dtype = args[0].dtype
            if dtype not in lacking:
                return run(*args)
            operand = [raw.Cast(x, wide) for x in args[:operands]]
            result = run(*operand, *args[operands:])
            return raw.Cast(result, dtype) if result.dtype is wide else result

        return call

    return decorate
