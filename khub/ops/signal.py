"""Fourier transforms, windows over time, and sums over segments."""

import numpy as np

from khub import dtypes
from khub.cosine_windows import cosine_window
from khub.ops import math
from khub.ops.array import *  # noqa: F403
from khub.ops.core import convert_to_tensor, where
from khub.ops.core import shape as shape_of
from khub.ops.math import _complex
from khub.ops.op import full_precision, op, primitive, promote_float
from khub.ops.symbolic import KerasTensor

# ruff: noqa: A002, F405


# --- Fourier transforms: a pair (real, imaginary) stands for complex numbers ---------------------
@primitive()
def _fft(x, axes, inverse):
    """The discrete Fourier transform of complex numbers over the last one or two axes."""


@primitive()
def _rfft(x, length):
    """The half of the transform of real numbers that says everything, cut or padded to `length`."""


@primitive()
def _irfft(x, length):
    """The inverse of `_rfft`, of that length."""


def _parts(x):
    return math.real(x), math.imag(x)


def _transform(x, axes, inverse=False):
    real, imaginary = x
    return _parts(_fft(_complex(real, imaginary), axes, inverse))


@op(operands="list", dtype=full_precision)
def fft(x):
    """The Fourier transform over the last axis.  x: (real, imaginary) -> the same"""
    return _transform(x, 1)


@op(operands="list", dtype=full_precision)
def fft2(x):
    """The Fourier transform over the last two axes.  x: (real, imaginary) -> the same"""
    return _transform(x, 2)


@op(operands="list", dtype=full_precision)
def ifft2(x):
    """The inverse of `fft2`.  x: (real, imaginary) -> the same"""
    return _transform(x, 2, True)


@op(dtype=full_precision)
def rfft(x, fft_length=None):
    """The Fourier transform of real numbers.  (..., n) -> two of (..., fft_length // 2 + 1)"""
    return _parts(_rfft(x, fft_length))


@op(operands="list", dtype=full_precision)
def irfft(x, fft_length=None):
    """The inverse of `rfft`.  (real, imaginary) -> (..., fft_length)"""
    real, imaginary = x
    return _irfft(_complex(real, imaginary), fft_length)


# --- short-time transforms -----------------------------------------------------------------------
@op()
def extract_sequences(x, sequence_length, sequence_stride):
    """Windows over the last axis.  (..., n) -> (..., windows, sequence_length)"""
    count = 1 + (shape_of(x)[-1] - sequence_length) // sequence_stride
    starts = expand_dims(arange(count) * sequence_stride, 1)
    return take(x, math.add(starts, arange(sequence_length)), -1)


def _window(window, sequence_length, fft_length, dtype):
    """Return the window's weights in the middle of `fft_length`."""
    if sequence_length > fft_length:
        raise ValueError(
            f"fft_length must be at least sequence_length {sequence_length}, got {fft_length}."
        )
    if window is None:
        weights = np.ones(sequence_length)
    elif isinstance(window, str):
        weights = cosine_window(window, sequence_length)
    else:
        weights = window
        if tuple(window.shape) != (sequence_length,):
            raise ValueError(
                f"window must have the shape ({sequence_length},), got {tuple(window.shape)}."
            )
    before = (fft_length - sequence_length) // 2
    borders = [[before, fft_length - sequence_length - before]]
    return pad(convert_to_tensor(weights, dtype), borders)


@op(dtype=full_precision)
def stft(x, sequence_length, sequence_stride, fft_length, window="hann", center=True):
    """The Fourier transforms of windows.  (..., n) -> two of (..., windows, fft_length // 2 + 1)

    window: "hann", "hamming", the weights or None; center: windows are centred on their place, the
    ends reflected
    """
    dtype = dtypes.standardize(x.dtype)
    weights = _window(window, sequence_length, fft_length, dtype)
    if center:
        borders = [[0, 0]] * (len(x.shape) - 1) + [[fft_length // 2] * 2]
        x = pad(x, borders, "reflect")
    return rfft(math.multiply(extract_sequences(x, fft_length, sequence_stride), weights))


@op(operands="list", dtype=full_precision)
def istft(x, sequence_length, sequence_stride, fft_length, length=None, window="hann", center=True):
    """The inverse of `stft`, by the least squares of overlapping windows.  -> (..., length)

    Griffin and Lim 1984
    """
    parts = irfft(x, fft_length)
    dtype = dtypes.standardize(parts.dtype)
    weights = _window(window, sequence_length, fft_length, dtype)
    count = shape_of(parts)[-2]
    total = fft_length + sequence_stride * (count - 1)
    sums = _overlap(math.multiply(parts, weights), sequence_stride, total)
    squares = broadcast_to(math.square(weights), (count, fft_length))
    squares = _overlap(squares, sequence_stride, total)
    seen = math.greater(squares, 1e-11)
    result = where(seen, math.divide(sums, where(seen, squares, ones_like(squares))), sums)
    start = fft_length // 2 if center else 0
    end = start + length if length is not None else total - (fft_length // 2 if center else 0)
    return result[..., start:end]


def _overlap(parts, stride, total):
    """Add up windows that lie `stride` apart.  (..., windows, length) -> (..., total)"""
    *batch, count, length = shape_of(parts)
    places = math.add(expand_dims(arange(count) * stride, 1), arange(length))
    flat = transpose(reshape(parts, (-1, count * length)))
    sums = scatter(reshape(places, (-1, 1)), flat, (total, shape_of(flat)[1]))
    return reshape(transpose(sums), (*batch, total))


# --- segments ------------------------------------------------------------------------------------
def _segments(data, ids, count, reduction, start):
    """Reduce the rows of each segment; rows of others (id below 0 or too large) go to an extra."""
    if count is None:
        count = int(math.max(ids)) + 1
    inside = math.logical_and(math.greater_equal(ids, 0), math.less(ids, count))
    ids = expand_dims(where(inside, ids, full_like(ids, count)), -1)
    rows = (count + 1, *shape_of(data)[1:])
    if reduction == "add":
        return scatter(ids, data, rows)[:count]
    start = full(rows, start, dtypes.standardize(data.dtype))
    return scatter_update(start, ids, data, reduction)[:count]


def _bound(data, sign):
    name = dtypes.standardize(data.dtype)
    if dtypes.is_float(name):
        return sign * np.inf
    information = np.iinfo(dtypes.numpy_dtype(name))
    return information.max if sign > 0 else information.min


def _segment_spec(data, segment_ids, num_segments=None, sorted=False):
    return KerasTensor((num_segments, *data.shape[1:]), data.dtype)


@op(operands=2, dtype=None, spec=_segment_spec)
def segment_sum(data, segment_ids, num_segments=None, sorted=False):
    """Sums of the rows of each segment.  (n, ...), (n,) int -> (num_segments, ...)

    num_segments: the largest id plus one if not given, which compiled code cannot know; rows whose
    id is none of 0, 1, ... are left out; sorted: whether the ids rise (without effect)
    """
    return _segments(data, segment_ids, num_segments, "add", 0)


@op(operands=2, dtype=None, spec=_segment_spec)
def segment_max(data, segment_ids, num_segments=None, sorted=False):
    """The largest of the rows of each segment, the least number where there is none."""
    return _segments(data, segment_ids, num_segments, "max", _bound(data, -1))


@op(operands=2, dtype=None, spec=_segment_spec)
def segment_min(data, segment_ids, num_segments=None, sorted=False):
    """The least of the rows of each segment, the largest number where there is none."""
    return _segments(data, segment_ids, num_segments, "min", _bound(data, 1))


@op(operands=2, dtype=None, spec=_segment_spec)
def segment_prod(data, segment_ids, num_segments=None, sorted=False):
    """Products of the rows of each segment, 1 where there is none."""
    return _segments(data, segment_ids, num_segments, "mul", 1)


# --- more ----------------------------------------------------------------------------------------
@primitive(dtype=promote_float)
def erfc(x):
    """1 - erf(x), exact for large x"""


@op(operands=2, dtype=promote_float)
def cdist(x, y):
    """Euclid's distances of all pairs of rows.  (..., n, d), (..., m, d) -> (..., n, m)"""
    difference = math.subtract(expand_dims(x, -2), expand_dims(y, -3))
    squares = math.sum(math.square(difference), -1)
    apart = math.greater(squares, 0)  # the root has no gradient at 0
    return where(apart, math.sqrt(where(apart, squares, ones_like(squares))), squares)


@op()
def view_as_complex(x):
    """Pairs as complex numbers.  (..., 2) -> (...)"""
    if x.shape[-1] != 2:
        raise ValueError(f"view_as_complex: the last axis must be 2, got {tuple(x.shape)}.")
    return _complex(x[..., 0], x[..., 1])


@op()
def view_as_real(x):
    """Complex numbers as pairs (real, imaginary).  (...) -> (..., 2)"""
    return stack(_parts(x), -1)


def _names(text):
    """Return the axes of one side of a pattern, parentheses as tuples."""
    found, group = [], None
    for word in text.replace("(", " ( ").replace(")", " ) ").split():
        if word == "(":
            group = []
        elif word == ")":
            found.append(tuple(group))
            group = None
        elif group is None:
            found.append(word)
        else:
            group.append(word)
    return found


@op(operands=0)
def rearrange(tensor, pattern, **axes_lengths):
    """Split, order and join axes as a pattern says: "b (h w) c -> b c h w", h=2.

    The pattern language of einops (Rogozhnikov 2022).  Raises ValueError where they do not fit.
    """
    before, after = map(_names, pattern.split("->"))
    if len(before) != len(tensor.shape):
        raise ValueError(
            f"rearrange: {pattern!r} has {len(before)} axes, the tensor has {len(tensor.shape)}."
        )
    sizes, split = {}, []
    for names, size in zip(before, shape_of(tensor), strict=True):
        names = names if isinstance(names, tuple) else (names,)
        known = [axes_lengths[n] for n in names if n in axes_lengths]
        if len(known) < len(names) - 1:
            raise ValueError(f"rearrange: give the lengths of all but one of {names}.")
        product = int(np.prod(known)) if known else 1
        whole = len(known) == len(names)
        if isinstance(size, int) and (size != product if whole else size % product):
            raise ValueError(f"rearrange: an axis of {size} is not {names} with {axes_lengths}.")
        for name in names:
            sizes[name] = axes_lengths.get(name, size if len(names) == 1 else size // product)
            split.append(name)
    flat = [n for names in after for n in (names if isinstance(names, tuple) else (names,))]
    if sorted(flat) != sorted(split):
        raise ValueError(f"rearrange: both sides of {pattern!r} need the same names.")
    x = transpose(reshape(tensor, [sizes[n] for n in split]), [split.index(n) for n in flat])
    joined = []
    for names in after:
        length = 1
        for name in names if isinstance(names, tuple) else (names,):
            length = length * sizes[name]
        joined.append(length)
    return reshape(x, joined)
