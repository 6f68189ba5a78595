"""Arithmetic, comparisons, reductions and matrix products (NumPy's meaning, Keras' signatures)."""

import numpy as np

from khub import config, dtypes
from khub.ops.array import expand_dims, reshape, squeeze, take_along_axis
from khub.ops.core import cast, stop_gradient, where
from khub.ops.op import accumulate, boolean, op, primitive, promote, promote_float

# ruff: noqa: A001, A002  (the names are NumPy's)


def _unary(name, text, rule=promote_float):
    def function(x): ...

    function.__name__, function.__doc__, function.__qualname__ = name, text, name
    function.__module__ = __name__
    return primitive(dtype=rule)(function)


def _binary(name, text, rule=promote):
    def function(x1, x2): ...

    function.__name__, function.__doc__, function.__qualname__ = name, text, name
    function.__module__ = __name__
    return primitive(operands=2, dtype=rule)(function)


add = _binary("add", "x1 + x2")
subtract = _binary("subtract", "x1 - x2")
multiply = _binary("multiply", "x1 * x2")
divide = _binary("divide", "x1 / x2, a float", promote_float)
floor_divide = _binary("floor_divide", "x1 // x2, rounded down")
mod = _binary("mod", "x1 % x2, with the sign of x2")
power = _binary("power", "x1 ** x2")
maximum = _binary("maximum", "the larger of each pair; NaN if one is")
minimum = _binary("minimum", "the smaller of each pair; NaN if one is")
arctan2 = _binary("arctan2", "the angle of the point (x2, x1), radians", promote_float)
equal = _binary("equal", "x1 == x2")
not_equal = _binary("not_equal", "x1 != x2")
greater = _binary("greater", "x1 > x2")
greater_equal = _binary("greater_equal", "x1 >= x2")
less = _binary("less", "x1 < x2")
less_equal = _binary("less_equal", "x1 <= x2")
logical_and = _binary("logical_and", "both", boolean)
logical_or = _binary("logical_or", "either", boolean)
logical_xor = _binary("logical_xor", "exactly one", boolean)
logical_not = _unary("logical_not", "not x", boolean)

negative = _unary("negative", "-x", None)
absolute = _unary("absolute", "|x|", None)
sign = _unary("sign", "-1, 0 or 1", None)
square = _unary("square", "x * x", None)
floor = _unary("floor", "the largest integer not above x, as a float")
ceil = _unary("ceil", "the smallest integer not below x, as a float")
exp = _unary("exp", "e ** x")
expm1 = _unary("expm1", "e ** x - 1, exact near 0")
log = _unary("log", "the natural logarithm")
log1p = _unary("log1p", "log(1 + x), exact near 0")
log2 = _unary("log2", "the logarithm to base 2")
log10 = _unary("log10", "the logarithm to base 10")
sqrt = _unary("sqrt", "the square root")
rsqrt = _unary("rsqrt", "1 / sqrt(x)")
sin = _unary("sin", "the sine of x in radians")
cos = _unary("cos", "the cosine of x in radians")
tan = _unary("tan", "the tangent of x in radians")
sinh = _unary("sinh", "the hyperbolic sine")
cosh = _unary("cosh", "the hyperbolic cosine")
tanh = _unary("tanh", "the hyperbolic tangent")
arcsin = _unary("arcsin", "the angle of this sine, radians")
arccos = _unary("arccos", "the angle of this cosine, radians")
arctan = _unary("arctan", "the angle of this tangent, radians")
erf = _unary("erf", "the error function")
erfinv = _unary("erfinv", "the inverse of the error function")
isnan = _unary("isnan", "whether x is NaN")
isinf = _unary("isinf", "whether x is infinite")
isfinite = _unary("isfinite", "whether x is a number and finite")


@primitive()
def round(x, decimals=0):
    """`x` rounded to that many decimals, halves to even."""


@primitive()
def clip(x, x_min, x_max):
    """`x` with values limited to [x_min, x_max]; None sets no limit."""


@primitive(dtype=accumulate)
def sum(x, axis=None, keepdims=False):
    """The sum over `axis` (None: all)."""


@primitive(dtype=accumulate)
def prod(x, axis=None, keepdims=False, dtype=None):
    """The product over `axis`."""


@primitive(dtype=promote_float)
def mean(x, axis=None, keepdims=False):
    """The mean over `axis`."""


@primitive(dtype=promote_float)
def var(x, axis=None, keepdims=False):
    """The variance over `axis` (divided by n)."""


@primitive()
def max(x, axis=None, keepdims=False, initial=None):
    """The largest element over `axis`."""


@primitive()
def min(x, axis=None, keepdims=False, initial=None):
    """The smallest element over `axis`."""


@primitive(dtype=boolean)
def any(x, axis=None, keepdims=False):
    """Whether any element is true."""


@primitive(dtype=boolean)
def all(x, axis=None, keepdims=False):
    """Whether all elements are true."""


@primitive()
def argmax(x, axis=None, keepdims=False):
    """The int32 index of the first largest element."""


@primitive()
def argmin(x, axis=None, keepdims=False):
    """The int32 index of the first smallest element."""


@primitive(dtype=accumulate)
def cumsum(x, axis=None, dtype=None):
    """Running sums along `axis` (None: of the flat x)."""


@primitive(dtype=accumulate)
def cumprod(x, axis=None, dtype=None):
    """Running products along `axis`."""


@primitive(operands=2, dtype=promote)
def matmul(x1, x2):
    """The matrix product.  x1: (..., n, k), x2: (..., k, m)  ->  (..., n, m)"""


@primitive(operands=2, dtype=promote)
def tensordot(x1, x2, axes=2):
    """The sum of products over the given axes of both."""


@op(dtype=promote_float)
def std(x, axis=None, keepdims=False):
    """The standard deviation over `axis`."""
    return sqrt(var(x, axis=axis, keepdims=keepdims))


@op(dtype=promote_float)
def logsumexp(x, axis=None, keepdims=False):
    """log(sum(exp(x))) over `axis`, without overflow."""
    top = max(x, axis=axis, keepdims=True)
    top = stop_gradient(where(isfinite(top), top, 0.0))
    result = log(sum(exp(x - top), axis=axis, keepdims=True)) + top
    if keepdims:
        return result
    return reshape(result, ()) if axis is None else squeeze(result, axis)


@op(operands=2, dtype=promote)
def dot(x1, x2):
    """The product summed over the last axis of x1 and the last but one of x2 (NumPy's dot)."""
    if len(x1.shape) == 0 or len(x2.shape) == 0:
        return multiply(x1, x2)
    return tensordot(x1, x2, axes=[[-1], [-2 if len(x2.shape) > 1 else -1]])


@op(operands=2, dtype=promote)
def outer(x1, x2):
    """All products of the elements of two vectors."""
    return reshape(x1, (-1, 1)) * reshape(x2, (1, -1))


@op(operands=2, dtype=promote)
def squared_difference(x1, x2):
    """(x1 - x2) ** 2"""
    return square(x1 - x2)


@op()
def reciprocal(x):
    """1 / x"""
    return divide(1, x)


@op()
def nan_to_num(x, nan=0.0, posinf=None, neginf=None):
    """`x` with NaN and infinities replaced by numbers."""
    name = dtypes.standardize(x.dtype)
    if not dtypes.is_float(name):
        return x
    limits = np.finfo(np.float32 if name == "bfloat16" else dtypes.numpy_dtype(name))
    x = where(isnan(x), nan, x)
    x = where(equal(x, float("inf")), float(limits.max) if posinf is None else posinf, x)
    return where(equal(x, float("-inf")), float(limits.min) if neginf is None else neginf, x)


@op(dtype=promote_float)
def normalize(x, axis=-1, order=2, epsilon=None):
    """`x` divided by its norm of this order over `axis`."""
    epsilon = config.epsilon() if epsilon is None else epsilon
    if order == 2:  # the root of the clipped square keeps the gradient finite at 0
        return x * rsqrt(maximum(sum(square(x), axis=axis, keepdims=True), epsilon**2))
    norm = power(sum(power(absolute(x), order), axis=axis, keepdims=True), 1.0 / order)
    return x / maximum(norm, epsilon)


@op(operands=0)
def in_top_k(targets, predictions, k):
    """Whether targets are among the `k` largest predictions.  (n,), (n, classes) -> (n,) bool"""
    chosen = take_along_axis(predictions, expand_dims(cast(targets, "int32"), -1), axis=-1)
    return less(sum(cast(greater(predictions, chosen), "int32"), axis=-1), k)
