"""Products, integration, counting, searching, and what NumPy makes of functions and windows."""

import re

import numpy as np

from khub import config, dtypes, tree
from khub.ops import math
from khub.ops.array import *  # noqa: F403
from khub.ops.core import cast, convert_to_tensor, is_tensor, ndim, shape, vmap, where
from khub.ops.nn import conv
from khub.ops.op import accumulate, full_precision, op, primitive, promote, promote_float
from khub.ops.symbolic import KerasTensor

# ruff: noqa: A002, F405  (the names are NumPy's, many of them array's)


# --- products ------------------------------------------------------------------------------------
@op(operands=2, dtype=promote)
def inner(x1, x2):
    """The sum of products over the last axis of both."""
    if len(x1.shape) == 0 or len(x2.shape) == 0:
        return math.multiply(x1, x2)
    return math.tensordot(x1, x2, [[-1], [-1]])


@op(operands=2, dtype=promote)
def vdot(x1, x2):
    """The sum of products of the flat tensors, x1 conjugated."""
    return math.tensordot(ravel(math.conj(x1)), ravel(x2), 1)


@op(operands=2, dtype=promote)
def kron(x1, x2):
    """Kronecker's product: every element of x1 times the whole of x2."""
    rank = max(len(x1.shape), len(x2.shape))
    one, two = ([1] * (rank - len(x.shape)) + [*shape(x)] for x in (x1, x2))
    x1 = reshape(x1, [n for size in one for n in (size, 1)])
    x2 = reshape(x2, [n for size in two for n in (1, size)])
    return reshape(math.multiply(x1, x2), [n * m for n, m in zip(one, two, strict=True)])


@op(operands=2, dtype=promote)
def cross(x1, x2, axisa=-1, axisb=-1, axisc=-1, axis=None):
    """The cross product of vectors of 2 or 3 numbers; of two with 2, its last component alone."""
    if axis is not None:
        axisa = axisb = axisc = axis
    a, b = unstack(x1, axis=axisa), unstack(x2, axis=axisb)
    if not {len(a), len(b)} <= {2, 3}:
        raise ValueError(f"cross: vectors have 2 or 3 numbers, got {len(a)} and {len(b)}.")

    def component(i, j):
        return math.subtract(math.multiply(a[i], b[j]), math.multiply(a[j], b[i]))

    if len(a) == len(b) == 2:
        return component(0, 1)
    a, b = (v if len(v) == 3 else [*v, zeros_like(v[0])] for v in (a, b))
    return stack([component(1, 2), component(2, 0), component(0, 1)], axisc)


@op(dtype=accumulate)
def trace(x, offset=0, axis1=0, axis2=1):
    """The sum of the diagonal in two axes."""
    return math.sum(diagonal(x, offset, axis1, axis2), -1)


@primitive(dtype=full_precision)
def slogdet(x):
    """The sign of the determinant of matrices, and the logarithm of its size."""


@op()
def vander(x, N=None, increasing=False):
    """The powers of a vector as columns, the highest first.  (n,)  ->  (n, N)"""
    count = shape(x)[0] if N is None else N
    base = expand_dims(x, -1)
    columns = [ones_like(base)] + [base] * (count - 1)
    powers = cast(math.cumprod(concatenate(columns[:count], 1), 1), dtypes.standardize(x.dtype))
    return powers if increasing else flip(powers, 1)


@op(operands=2, dtype=promote_float)
def correlate(x1, x2, mode="valid"):
    """The products of a vector with every shift of another.  mode: "valid", "same" or "full"."""
    if shape(x1)[0] < shape(x2)[0]:
        return flip(correlate(x2, x1, mode), 0)
    length = shape(x2)[0]
    borders = {
        "valid": (0, 0),
        "same": (length // 2, length - 1 - length // 2),
        "full": (length - 1, length - 1),
    }
    if mode not in borders:
        raise ValueError(f"correlate: mode must be one of {', '.join(borders)}, got {mode!r}.")
    rows = reshape(pad(x1, [borders[mode]]), (1, -1, 1))
    return ravel(conv(rows, reshape(x2, (-1, 1, 1)), data_format="channels_last"))


# --- differences and integrals -------------------------------------------------------------------
@op()
def diff(a, n=1, axis=-1):
    """The `n`-th differences of neighbours along `axis`."""
    a = moveaxis(a, axis, -1)
    subtract = math.not_equal if dtypes.standardize(a.dtype) == "bool" else math.subtract
    for _ in range(n):
        a = subtract(a[..., 1:], a[..., :-1])
    return moveaxis(a, -1, axis)


@op(operands=2, dtype=promote_float)
def trapezoid(y, x=None, dx=1.0, axis=-1):
    """The integral along `axis` by the trapezoidal rule, at places `x` or `dx` apart."""
    y = moveaxis(y, axis, -1)
    if x is not None:
        dx = diff(x if len(x.shape) == 1 else moveaxis(x, axis, -1))
    return math.sum((y[..., 1:] + y[..., :-1]) * dx / 2.0, -1)


def _spaced(stepped, start, stop, dtype, curve):
    """Numbers are computed by NumPy in float64, tensors by `curve`."""
    if not (is_tensor(start) or is_tensor(stop)):
        return convert_to_tensor(stepped(start, stop), dtypes.standardize(dtype))
    name = promote_float(*(dtypes.standardize(x.dtype) for x in (start, stop) if is_tensor(x)))
    return cast(curve(*(convert_to_tensor(x, name) for x in (start, stop)), name), dtype or name)


@op(operands="any")
def logspace(start, stop, num=50, endpoint=True, base=10, dtype=None, axis=0):
    """`num` numbers from base**start to base**stop whose logarithms are evenly spaced."""
    return _spaced(
        lambda a, b: np.logspace(a, b, num, endpoint, base, None, axis),
        start,
        stop,
        dtype,
        lambda a, b, name: math.power(
            float(base), linspace(a, b, num, endpoint, dtype=name, axis=axis)
        ),
    )


@op(operands="any")
def geomspace(start, stop, num=50, endpoint=True, dtype=None, axis=0):
    """`num` numbers from `start` to `stop`, each a constant multiple of the one before."""

    def curve(a, b, name):
        ends = (math.log(math.absolute(x)) for x in (a, b))
        grown = math.exp(linspace(*ends, num, endpoint, dtype=name, axis=axis))
        return grown * expand_dims(math.sign(a), axis)

    return _spaced(
        lambda a, b: np.geomspace(a, b, num, endpoint, None, axis), start, stop, dtype, curve
    )


# --- searching and counting ----------------------------------------------------------------------
@op()
def argpartition(x, kth, axis=-1):
    """The int32 indices that bring the `kth` smallest to its place, no larger ones before it."""
    return argsort(x, axis)


@op(operands=2, dtype=promote)
def searchsorted(sorted_sequence, values, side="left"):
    """The int32 places in a sorted vector where `values` keep it so, before or after equals."""
    if side not in ("left", "right"):
        raise ValueError(f'searchsorted: side must be "left" or "right", got {side!r}.')
    below = math.less if side == "left" else math.less_equal
    return math.sum(cast(below(sorted_sequence, expand_dims(values, -1)), "int32"), -1)


@op(operands=2, dtype=promote)
def digitize(x, bins):
    """The int32 number of the bin of each element, 0 below all.  bins: increasing edges"""
    return searchsorted(bins, x, "right")


@op(operands=2, dtype=promote)
def isin(x1, x2, assume_unique=False, invert=False):
    """Whether each element of `x1` is (with `invert`: is not) among those of `x2`."""
    found = math.any(math.equal(expand_dims(x1, -1), ravel(x2)), -1)
    return math.logical_not(found) if invert else found


@op()
def unravel_index(indices, shape):
    """The coordinates of flat indices in a tensor of this shape, one tensor an axis."""
    coordinates = []
    for size in reversed(tuple(shape)):
        coordinates.append(math.mod(indices, size))
        indices = math.floor_divide(indices, size)
    return tuple(reversed(coordinates))


def _count_spec(x, weights=None, minlength=0, sparse=False):
    return KerasTensor((*x.shape[:-1], None), "int32" if weights is None else weights.dtype)


@op(operands=("x", "weights"), spec=_count_spec)
def bincount(x, weights=None, minlength=0, sparse=False):
    """How often each of 0, 1, 2, ... is in `x`, or the sum of its weights.

    (n,) or (rows, n) -> (..., length)

    The length is the largest number plus one, at least `minlength`; `jit` on JAX takes the latter.
    """
    length = minlength
    if 0 not in x.shape:
        length = math.maximum(cast(math.max(x), "int32") + 1, minlength)
    rows = cast(x if len(x.shape) > 1 else expand_dims(x, 0), "int32")
    count = shape(rows)[0]
    places = reshape(rows + expand_dims(arange(count) * length, 1), (-1, 1))
    weights = ones(shape(x), "int32") if weights is None else weights
    total = scatter(places, ravel(weights), (count * length,))
    return reshape(total, (count, length)) if len(x.shape) > 1 else total


def _histogram_spec(x, bins=10, range=None):
    return KerasTensor((bins,), "int32"), KerasTensor((bins + 1,), promote_float(x.dtype))


@op(dtype=promote_float, spec=_histogram_spec)
def histogram(x, bins=10, range=None):
    """The int32 counts of a vector in `bins` equal parts of `range`, and their edges."""
    if len(x.shape) != 1 or isinstance(bins, bool) or not isinstance(bins, int):
        raise ValueError(f"histogram needs a vector and an int, got {tuple(x.shape)} and {bins!r}.")
    name = dtypes.standardize(x.dtype)
    low, high = (math.min(x), math.max(x)) if range is None else range
    low, high = convert_to_tensor(low, name), convert_to_tensor(high, name)
    half = cast(math.equal(low, high), name) * 0.5  # one number lies in the middle of a bin of 1
    low, high = low - half, high + half
    edges = linspace(low, high, bins + 1, dtype=name)
    place = math.minimum(searchsorted(edges, x, "right") - 1, bins - 1)
    inside = math.logical_and(math.greater_equal(x, low), math.less_equal(x, high))
    place = expand_dims(where(inside, place, bins), -1)
    return scatter(place, ones(shape(x), "int32"), (bins + 1,))[:bins], edges


def _unique_spec(x, sorted, index, inverse, counts, axis=None, size=None, fill_value=None):
    rest = () if axis is None else tuple(np.delete(np.array(x.shape, object), axis))
    place = 0 if axis is None else axis % len(x.shape)
    values = KerasTensor((*rest[:place], size, *rest[place:]), x.dtype)
    back = x.shape if axis is None else (x.shape[axis],)
    asked = [(index, (size,)), (inverse, back), (counts, (size,))]
    others = tuple(KerasTensor(each, "int32") for wanted, each in asked if wanted)
    return (values, *others) if others else values


@op(spec=_unique_spec)
def unique(
    x,
    sorted=True,
    return_index=False,
    return_inverse=False,
    return_counts=False,
    axis=None,
    size=None,
    fill_value=None,
):
    """The different elements (along `axis`: slices) of `x`, sorted; int32 indices and counts.

    size: the length of the result, cut or filled with `fill_value` (0); `jit` on JAX needs it.
    """
    name = dtypes.standardize(x.dtype)
    items = ravel(x) if axis is None else moveaxis(x, axis, 0)
    total = shape(items)[0]
    rows = reshape(items, (total, -1))
    if dtypes.is_float(name):  # NaN is the last, and one value
        missing = math.isnan(rows)
        rows = reshape(stack([cast(missing, name), where(missing, 0.0, rows)], -1), (total, -1))
    order = arange(total)
    for column in reversed(range(rows.shape[1])):  # stable: the last key is sorted by first
        order = take(order, argsort(take(rows[:, column], order)))
    rows = take(rows, order, 0)
    new = math.any(math.not_equal(rows[1:], rows[:-1]), -1)
    group = concatenate([zeros((1,), "int32"), math.cumsum(cast(new, "int32"))], 0)[:total]
    count = math.sum(cast(new, "int32")) + min(total, 1)
    numbers = arange(count if size is None else size)
    first, end = (searchsorted(group, numbers, side) for side in ("left", "right"))
    index = take(order, where(math.less(numbers, count), first, 0))
    values = take(items, index, 0)
    if size is not None:
        valid = reshape(math.less(numbers, count), (-1, *[1] * (ndim(items) - 1)))
        values = where(valid, values, convert_to_tensor(fill_value or 0, name))
    inverse = scatter_update(group, expand_dims(order, 1), group)
    asked = [
        (return_index, index),
        (return_inverse, reshape(inverse, shape(x)) if axis is None else inverse),
        (return_counts, end - first),
    ]
    values = values if axis is None else moveaxis(values, 0, axis)
    others = tuple(each for wanted, each in asked if wanted)
    return (values, *others) if others else values


# --- windows: the number of points -> (points,) --------------------------------------------------
def _window(name):
    def window(x):
        return convert_to_tensor(getattr(np, name)(int(x)), config.floatx())

    window.__name__ = window.__qualname__ = name
    window.__doc__ = f"The {name} window of `x` points."
    return op(operands=0)(window)


bartlett, blackman, hamming, hanning = map(_window, ("bartlett", "blackman", "hamming", "hanning"))


@op(operands=0)
def kaiser(x, beta):
    """The Kaiser window of `x` points."""
    return convert_to_tensor(np.kaiser(int(x), float(beta)), config.floatx())


# --- functions -----------------------------------------------------------------------------------
def vectorize(pyfunc, *, excluded=None, signature=None):
    """Return `pyfunc`, a function of scalars, applied to every element of broadcast arguments.

    excluded: positions of arguments passed as they are.
    signature: the axes that `pyfunc` itself takes and returns, "(n),(m)->()".
    """
    excluded = excluded or set()

    def call(*args):
        tensors = [convert_to_tensor(x) for i, x in enumerate(args) if i not in excluded]
        ranks = [0] * len(tensors)  # how many axes of each pyfunc itself takes
        if signature is not None:
            inputs = re.findall(r"\(([^)]*)\)", signature.split("->")[0])
            ranks = [len(re.findall(r"\w+", axes)) for axes in inputs]
        cores = [tuple(x.shape)[ndim(x) - n :] for x, n in zip(tensors, ranks, strict=True)]
        leads = [tuple(x.shape)[: ndim(x) - n] for x, n in zip(tensors, ranks, strict=True)]
        whole = np.broadcast_shapes(*leads)
        rows = [
            reshape(broadcast_to(x, (*whole, *core)), (-1, *core))
            for x, core in zip(tensors, cores, strict=True)
        ]

        def run(*slices):
            left = iter(slices)
            return pyfunc(*(x if i in excluded else next(left) for i, x in enumerate(args)))

        return tree.map_structure(lambda y: reshape(y, (*whole, *shape(y)[1:])), vmap(run)(*rows))

    return call
