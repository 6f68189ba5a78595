"""Arithmetic, comparisons, reductions and matrix products (NumPy's meaning, Keras' signatures)."""

import ml_dtypes
import numpy as np

from khub import dtypes
from khub.ops.array import (
    expand_dims,
    ones_like,
    reshape,
    squeeze,
    take_along_axis,
    view,
    zeros_like,
)
from khub.ops.core import cast, stop_gradient, where, while_loop
from khub.ops.op import (
    accumulate,
    boolean,
    counted,
    full_precision,
    op,
    primitive,
    promote,
    promote_float,
)

# ruff: noqa: A001, A002  (the names are NumPy's)


_LOG_2 = float(np.log(2))


def _named(function, name, text):
    function.__name__ = function.__qualname__ = name
    function.__doc__, function.__module__ = text, __name__
    return function


def _unary(name, text, rule=promote_float):
    return primitive(dtype=rule)(_named(lambda x: ..., name, text))


def _binary(name, text, rule=promote):
    return primitive(operands=2, dtype=rule)(_named(lambda x1, x2: ..., name, text))


def _bits(name, text):
    return primitive(operands=2, dtype=promote)(_named(lambda x, y: ..., name, text))


def _derived(name, text, body, rule=promote_float):
    return op(body.__code__.co_argcount, rule)(_named(body, name, text))


add = _binary("add", "x1 + x2")
subtract = _binary("subtract", "x1 - x2")
multiply = _binary("multiply", "x1 * x2")
divide = _binary("divide", "x1 / x2, a float", promote_float)
floor_divide = _binary("floor_divide", "x1 // x2, rounded down", counted)
mod = _binary("mod", "x1 % x2, with the sign of x2", counted)
power = _binary("power", "x1 ** x2", counted)
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
square = _unary("square", "x * x", counted)
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
arcsinh = _unary("arcsinh", "the number of this hyperbolic sine")
arccosh = _unary("arccosh", "the number of this hyperbolic cosine")
arctanh = _unary("arctanh", "the number of this hyperbolic tangent")
i0 = _unary("i0", "the modified Bessel function of order 0")
erf = _unary("erf", "the error function")
erfinv = _unary("erfinv", "the inverse of the error function")
isnan = _unary("isnan", "whether x is NaN")
isinf = _unary("isinf", "whether x is infinite")
isfinite = _unary("isfinite", "whether x is a number and finite")

bitwise_not = _unary("bitwise_not", "every bit turned over", None)
bitwise_and = _bits("bitwise_and", "the bits set in both")
bitwise_or = _bits("bitwise_or", "the bits set in either")
bitwise_xor = _bits("bitwise_xor", "the bits set in exactly one")
bitwise_left_shift = _bits("bitwise_left_shift", "x * 2**y")
bitwise_right_shift = _bits("bitwise_right_shift", "x / 2**y, rounded down")
_complex = _binary("_complex", "x1 + i x2", full_precision)

exp2 = _derived("exp2", "2 ** x", lambda x: power(2.0, x))
cbrt = _derived("cbrt", "the cube root", lambda x: sign(x) * power(absolute(x), 1 / 3))
deg2rad = _derived("deg2rad", "degrees as radians", lambda x: x * (np.pi / 180))
rad2deg = _derived("rad2deg", "radians as degrees", lambda x: x * (180 / np.pi))
fabs = _derived("fabs", "|x|, a float", lambda x: absolute(x))
isposinf = _derived("isposinf", "whether x is +inf", lambda x: equal(x, float("inf")), None)
isneginf = _derived("isneginf", "whether x is -inf", lambda x: equal(x, -float("inf")), None)
real = _derived("real", "the real part", lambda x: _part(x, "real", x), None)
imag = _derived("imag", "the imaginary part", lambda x: _part(x, "imag", zeros_like(x)), None)
conj = _derived("conj", "the complex conjugate", lambda x: _part(x, "conj", x), None)
isreal = _derived("isreal", "whether the imaginary part is 0", lambda x: equal(imag(x), 0), None)
angle = _derived("angle", "the angle in radians", lambda x: arctan2(imag(x), real(x)))


def _part(x, part, of_real):
    return _complex_part(x, part) if "complex" in dtypes.standardize(x.dtype) else of_real


@primitive()
def _complex_part(x, part):
    """The "real" or "imag" part of complex numbers, or their "conj"."""


@primitive()
def round(x, decimals=0):
    """`x` rounded to that many decimals, halves to even."""


@primitive(dtype=counted)
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


@primitive(dtype=counted)
def cumsum(x, axis=None, dtype=None):
    """Running sums along `axis` (None: of the flat x)."""


@primitive(dtype=counted)
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
    return multiply(reshape(x1, (-1, 1)), reshape(x2, (1, -1)))


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
    if name.startswith("complex"):
        return _complex(*(nan_to_num(part(x), nan, posinf, neginf) for part in (real, imag)))
    limits = ml_dtypes.finfo(dtypes.numpy_dtype(name))
    x = where(isnan(x), nan, x)
    x = where(equal(x, float("inf")), float(limits.max) if posinf is None else posinf, x)
    return where(equal(x, float("-inf")), float(limits.min) if neginf is None else neginf, x)


@op(operands=0)
def in_top_k(targets, predictions, k):
    """Whether targets are among the `k` largest predictions.  (n,), (n, classes) -> (n,) bool"""
    chosen = take_along_axis(predictions, expand_dims(cast(targets, "int32"), -1), axis=-1)
    return less(sum(cast(greater(predictions, chosen), "int32"), axis=-1), k)


@op()
def trunc(x):
    """`x` without its fraction."""
    if not dtypes.is_float(dtypes.standardize(x.dtype)):
        return x
    return where(less(x, 0), ceil(x), floor(x))


@op()
def signbit(x):
    """Whether the sign is minus, that of -0.0 included."""
    if not dtypes.is_float(dtypes.standardize(x.dtype)):
        return less(x, 0)
    return less(where(equal(x, 0), divide(1, x), x), 0)


@op(dtype=promote_float)
def sinc(x):
    """sin(pi x) / (pi x), 1 at 0"""
    zero = equal(x, 0)
    angle = where(zero, 1.0, x * np.pi)
    return where(zero, 1.0, sin(angle) / angle)


@op(operands=2, dtype=promote)
def fmax(x1, x2):
    """The larger of each pair, the other one where one is NaN."""
    return where(isnan(x1), x2, where(isnan(x2), x1, maximum(x1, x2)))


@op(operands=2, dtype=promote)
def fmin(x1, x2):
    """The smaller of each pair, the other one where one is NaN."""
    return where(isnan(x1), x2, where(isnan(x2), x1, minimum(x1, x2)))


@op(operands=2, dtype=counted)
def fmod(x1, x2):
    """x1 - x2 * trunc(x1 / x2), with the sign of x1"""
    rest = mod(absolute(x1), absolute(x2))
    return where(less(x1, 0), negative(rest), rest)


@op(operands=2, dtype=promote_float)
def hypot(x1, x2):
    """sqrt(x1**2 + x2**2), without overflow"""
    x1, x2 = absolute(x1), absolute(x2)
    top = maximum(x1, x2)
    scale = where(logical_and(greater(top, 0), isfinite(top)), top, 1.0)
    return scale * sqrt(square(x1 / scale) + square(x2 / scale))


@op(operands=2, dtype=promote_float)
def heaviside(x1, x2):
    """0 where x1 < 0, 1 where x1 > 0, x2 where it is 0"""
    step = where(isnan(x1), x1, cast(greater(x1, 0), dtypes.standardize(x1.dtype)))
    return where(equal(x1, 0), x2, step)


@op(operands=2, dtype=promote_float)
def divide_no_nan(x1, x2):
    """x1 / x2, 0 where x2 is 0"""
    zero = equal(x2, 0)
    return where(zero, 0.0, x1 / where(zero, 1.0, x2))


@op(operands=2, dtype=promote_float)
def logaddexp(x1, x2):
    """log(e**x1 + e**x2), without overflow"""
    top = maximum(x1, x2)
    gap = where(equal(x1, x2), 0.0, x1 - x2)  # infinities of one sign
    return top + log1p(exp(negative(absolute(gap))))


@op(operands=2, dtype=promote_float)
def logaddexp2(x1, x2):
    """log2(2**x1 + 2**x2), without overflow"""
    return logaddexp(x1 * _LOG_2, x2 * _LOG_2) / _LOG_2


@op(operands=2)
def ldexp(x1, x2):
    """x1 * 2**x2 for integers x2.  Raises TypeError for others."""
    if dtypes.is_float(dtypes.standardize(x2.dtype)):
        raise TypeError(f"ldexp: x2 must be an integer, got {dtypes.standardize(x2.dtype)}.")
    name = promote_float(*(dtypes.standardize(x.dtype) for x in (x1, x2)))
    return cast(x1, name) * power(2.0, cast(x2, name))


@op(operands=2, dtype=promote_float)
def nextafter(x1, x2):
    """The float that follows x1 in the direction of x2."""
    name = dtypes.standardize(x1.dtype)
    integer = f"int{dtypes.numpy_dtype(name).itemsize * 8}"
    lowest = int(np.iinfo(integer).min)

    def ordered(bits):  # a sign and a size as one number that grows with the float, and back
        return where(less(bits, 0), subtract(lowest, bits), bits)

    here, end = ordered(view(x1, integer)), ordered(view(x2, integer))
    step = cast(greater(end, here), integer) - cast(less(end, here), integer)
    unordered = logical_or(isnan(x1), isnan(x2))
    return where(unordered, x1 + x2, view(ordered(add(here, step)), name))


@op(operands=2, dtype=promote)
def gcd(x1, x2):
    """The greatest common divisor of integers, by Euclid's algorithm."""

    def step(a, b):
        done = equal(b, 0)
        return where(done, a, b), where(done, b, mod(a, where(done, ones_like(b), b)))

    whole = zeros_like(x1 + x2)
    x1, x2 = absolute(x1) + whole, absolute(x2) + whole
    return while_loop(lambda a, b: any(not_equal(b, 0)), step, (x1, x2))[0]


@op(operands=2, dtype=promote)
def lcm(x1, x2):
    """The least common multiple of integers."""
    common = maximum(gcd(x1, x2), ones_like(x1))
    return absolute(floor_divide(x1, common) * x2)


@op(operands=2, dtype=promote_float)
def isclose(x1, x2, rtol=1e-5, atol=1e-8, equal_nan=False):
    """Whether |x1 - x2| <= atol + rtol * |x2|, or both are the same infinity."""
    near = less_equal(absolute(x1 - x2), atol + rtol * absolute(x2))
    result = logical_or(equal(x1, x2), logical_and(near, isfinite(x2)))
    return logical_or(result, logical_and(isnan(x1), isnan(x2))) if equal_nan else result


@op(operands=2, dtype=promote_float)
def allclose(x1, x2, rtol=1e-5, atol=1e-8, equal_nan=False):
    """Whether `isclose` holds for all elements."""
    return all(isclose(x1, x2, rtol, atol, equal_nan))


amax, amin, conjugate, bitwise_invert = max, min, conj, bitwise_not
left_shift, right_shift = bitwise_left_shift, bitwise_right_shift
