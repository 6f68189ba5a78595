"""Statistics: averages, quantiles, and reductions that leave out NaN."""

import math as numbers

from khub import dtypes
from khub.ops import math
from khub.ops.array import *  # noqa: F403
from khub.ops.core import cast, convert_to_tensor, shape, where
from khub.ops.op import accumulate, counted, op, promote_float

# ruff: noqa: F405  (names of array)

METHODS = ("linear", "lower", "higher", "midpoint", "nearest")


def _wide(x):
    """Half precision is computed in float32."""
    return cast(x, "float32") if dtypes.standardize(x.dtype) in ("float16", "bfloat16") else x


# --- averages ------------------------------------------------------------------------------------
@op(operands=("x", "weights"), dtype=promote_float)
def average(x, axis=None, weights=None):
    """The mean over `axis`, weighted.  weights: of x's shape, or a vector along `axis`."""
    if weights is None:
        return math.mean(x, axis)
    if len(weights.shape) != len(x.shape):
        if not isinstance(axis, int):
            raise ValueError(
                f"average: weights of shape {tuple(weights.shape)} need axis=int for x of shape "
                f"{tuple(x.shape)}, got axis={axis!r}."
            )
        place = axis % len(x.shape)
        weights = reshape(weights, [-1 if i == place else 1 for i in range(len(x.shape))])
    weights = weights + x * 0
    return math.sum(x * weights, axis) / math.sum(weights, axis)


@op()
def ptp(x, axis=None, keepdims=False):
    """The largest element less the smallest, over `axis`."""
    return math.subtract(math.max(x, axis, keepdims), math.min(x, axis, keepdims))


@op()
def count_nonzero(x, axis=None):
    """The number of elements that are not 0, over `axis`."""
    return math.sum(cast(math.not_equal(x, 0), "int32"), axis)


@op(dtype=promote_float)
def corrcoef(x):
    """Pearson's correlations of the rows.  (variables, observations)  ->  (variables, variables)"""
    rows = expand_dims(x, 0) if len(x.shape) == 1 else x
    centred = rows - math.mean(rows, -1, keepdims=True)
    products = math.matmul(centred, swapaxes(centred, 0, 1))
    size = math.sqrt(diagonal(products))
    result = math.clip(products / expand_dims(size, 0) / expand_dims(size, 1), -1.0, 1.0)
    return reshape(result, ()) if len(x.shape) == 1 else result


# --- quantiles -----------------------------------------------------------------------------------
def _quantile(x, q, axis, method, keepdims, without_nan=False):
    """The values below which the shares `q` of x lie; NaN where there is one, or only NaN."""
    if method not in METHODS:
        raise ValueError(f"quantile: method must be one of {', '.join(METHODS)}, got {method!r}.")
    rank, sizes = len(x.shape), shape(x)
    axes = range(rank) if axis is None else [axis] if isinstance(axis, int) else axis
    axes = sorted(a % rank for a in axes)
    kept = [a for a in range(rank) if a not in axes]
    known = all(isinstance(sizes[a], int) for a in axes)
    count = numbers.prod(sizes[a] for a in axes) if known else -1  # -1 is none of nothing
    y = reshape(transpose(_wide(x), (*kept, *axes)), (*(sizes[a] for a in kept), count))
    missing = math.isnan(y)
    y = sort(where(missing, float("inf"), y), -1)
    name = dtypes.standardize(y.dtype)
    lost = math.sum(cast(missing, name), -1, keepdims=True)
    last = cast(shape(y)[-1] - 1, name) - lost * float(without_nan)  # the largest one's place
    q = convert_to_tensor(q, name)
    place = math.maximum(reshape(q, (-1,)) * last, 0.0)  # (..., quantiles)
    if method == "nearest":
        place = math.round(place)
    low, high = math.floor(place), math.ceil(place)
    share = {"lower": 0.0, "midpoint": 0.5, "higher": 1.0}.get(method, place - low)
    low, high = (take_along_axis(y, cast(p, "int32"), -1) for p in (low, high))
    result = low + where(math.equal(low, high), 0.0, high - low) * share
    lacking = math.less(last, 0) if without_nan else math.greater(lost, 0)
    result = cast(where(lacking, float("nan"), result), dtypes.standardize(x.dtype))
    result = moveaxis(result, -1, 0)
    if keepdims:
        result = expand_dims(result, [a + 1 for a in axes])
    return result if len(q.shape) else squeeze(result, 0)


@op(dtype=promote_float)
def quantile(x, q, axis=None, method="linear", keepdims=False):
    """The values below which the shares `q` (0 to 1) of `x` lie.  -> (*q.shape, ...)"""
    return _quantile(x, q, axis, method, keepdims)


@op(dtype=promote_float)
def nanquantile(x, q, axis=None, method="linear", keepdims=False):
    """`quantile` of the elements that are not NaN."""
    return _quantile(x, q, axis, method, keepdims, without_nan=True)


@op(dtype=promote_float)
def percentile(x, q, axis=None, method="linear", keepdims=False):
    """The values below which `q` percent (0 to 100) of `x` lie, over `axis`."""
    return _quantile(
        x, convert_to_tensor(q, dtypes.standardize(_wide(x).dtype)) / 100, axis, method, keepdims
    )


@op(dtype=promote_float)
def nanpercentile(x, q, axis=None, method="linear", keepdims=False):
    """`percentile` of the elements that are not NaN."""
    return _quantile(
        x,
        convert_to_tensor(q, dtypes.standardize(_wide(x).dtype)) / 100,
        axis,
        method,
        keepdims,
        True,
    )


@op(dtype=promote_float)
def median(x, axis=None, keepdims=False):
    """The middle value over `axis`, the mean of the two middle ones."""
    return _quantile(x, 0.5, axis, "linear", keepdims)


@op(dtype=promote_float)
def nanmedian(x, axis=None, keepdims=False):
    """`median` of the elements that are not NaN."""
    return _quantile(x, 0.5, axis, "linear", keepdims, without_nan=True)


# --- reductions without NaN ----------------------------------------------------------------------
def _filled(x, fill):
    is_float = dtypes.is_float(dtypes.standardize(x.dtype))
    return where(math.isnan(x), fill, x) if is_float else x


def _without_nan(reduce, fill, rule, nothing=None):
    """Make the op that reduces with `fill` for NaN; `nothing` is the result where all are NaN."""

    def function(x, axis=None, keepdims=False):
        result = reduce(_filled(x, fill), axis, keepdims)
        if nothing is None or not dtypes.is_float(dtypes.standardize(x.dtype)):
            return result
        return where(math.all(math.isnan(x), axis, keepdims), nothing, result)

    return _named(function, reduce, rule)


def _running_without_nan(reduce, fill):
    def function(x, axis=None, dtype=None):
        return reduce(_filled(x, fill), axis, dtype)

    return _named(function, reduce, counted)


def _named(function, reduce, rule):
    function.__name__ = function.__qualname__ = f"nan{reduce.__name__}"
    function.__doc__ = f"`{reduce.__name__}` of the elements that are not NaN."
    return op(dtype=rule)(function)


nansum = _without_nan(math.sum, 0, accumulate)
nanprod = _without_nan(math.prod, 1, accumulate)
nanmax = _without_nan(math.max, -float("inf"), None, float("nan"))
nanmin = _without_nan(math.min, float("inf"), None, float("nan"))
nanargmax = _without_nan(math.argmax, -float("inf"), None, -1)
nanargmin = _without_nan(math.argmin, float("inf"), None, -1)
nancumsum = _running_without_nan(math.cumsum, 0)
nancumprod = _running_without_nan(math.cumprod, 1)


@op(dtype=promote_float)
def nanmean(x, axis=None, keepdims=False):
    """`mean` of the elements that are not NaN; NaN where there is none."""
    y = _wide(x)
    count = math.sum(math.logical_not(math.isnan(y)), axis, keepdims)
    return cast(math.divide(math.sum(_filled(y, 0.0), axis, keepdims), count), x.dtype)


@op(dtype=promote_float)
def nanvar(x, axis=None, keepdims=False):
    """`var` of the elements that are not NaN; NaN where there is none."""
    y = _wide(x)
    mean = nanmean(y, axis, keepdims=True)
    squares = math.square(_filled(y, mean) - mean)  # of numbers alone: NaN would reach the gradient
    return cast(nanmean(where(math.isnan(y), float("nan"), squares), axis, keepdims), x.dtype)


@op(dtype=promote_float)
def nanstd(x, axis=None, keepdims=False):
    """`std` of the elements that are not NaN; NaN where there is none."""
    return math.sqrt(nanvar(x, axis, keepdims))
