"""Convolution and pooling on NumPy arrays."""

import numpy as np

from khub.backend import windows
from khub.backend.numpy.arrays import FLOATS, product, tensordot
from khub.backend.scope import local

_channels_last = windows.channels_last(np.transpose)


def _windows(inputs, sizes, strides, dilations):
    """(batch, *space, n) -> (batch, *space', n, *window)"""
    axes = tuple(range(1, 1 + len(sizes)))
    reach = [(k - 1) * d + 1 for k, d in zip(sizes, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(inputs, reach, axes)
    return view[tuple(slice(None, None, n) for n in (1, *strides, 1, *dilations))]


@_channels_last
def _conv(x, kernel, strides, padding, dilations):
    pads = windows.paddings(padding, x.shape[1:-1], kernel.shape[:-2], strides, dilations)
    return _correlate(np.pad(x, [(0, 0), *pads, (0, 0)]), kernel, strides, dilations)


def _correlate(x, kernel, strides, dilations):
    count = kernel.ndim - 2
    parts = _windows(x, kernel.shape[:count], strides, dilations)
    groups = x.shape[-1] // kernel.shape[-2]
    if local.scope is not None and local.scope.is_abstract():  # only the shape counts
        return np.zeros((*parts.shape[: count + 1], kernel.shape[-1]), x.dtype)
    if groups == x.shape[-1]:
        return product(_depthwise, parts, kernel).reshape(*parts.shape[: count + 1], -1)
    axes = ([count + 1, *range(count + 2, 2 * count + 2)], [count, *range(count)])
    pairs = zip(np.split(parts, groups, count + 1), np.split(kernel, groups, -1), strict=True)
    return np.concatenate([tensordot(*pair, axes) for pair in pairs], -1)


def _depthwise(parts, kernel):
    kernel = kernel.reshape(*kernel.shape[:-2], parts.shape[parts.ndim // 2], -1)
    return sum(parts[(..., *p)][..., None] * kernel[p] for p in np.ndindex(*kernel.shape[:-2]))


@_channels_last
def _conv_transpose(x, kernel, strides, padding, dilations, extra):
    sizes = x.shape[1:-1]
    spread = [(n - 1) * s + 1 for n, s in zip(sizes, strides, strict=True)]
    stuffed = np.zeros((x.shape[0], *spread, x.shape[-1]), x.dtype)
    stuffed[(slice(None), *(slice(None, None, s) for s in strides))] = x
    borders = windows.transposed(padding, sizes, kernel.shape[:-2], strides, dilations, extra)
    pads = [(max(before, 0), max(after, 0)) for before, after, _ in borders]
    flipped = np.swapaxes(np.flip(kernel, tuple(range(len(sizes)))), -1, -2)
    stuffed = np.pad(stuffed, [(0, 0), *pads, (0, 0)])
    result = _correlate(stuffed, flipped, (1,) * len(sizes), dilations)
    return result[(slice(None), *(slice(out) for *_, out in borders))]


conv = windows.convolution(_conv)
conv_transpose = windows.transposed_convolution(_conv_transpose)


@windows.pooling
@_channels_last
def _pool(x, sizes, strides, padding, fill, reduce):
    ones = (1,) * len(sizes)
    pads = windows.paddings(padding, x.shape[1:-1], sizes, strides, ones)
    x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    return reduce(_windows(x, sizes, strides, ones), tuple(range(-len(sizes), 0)))


def max_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    lowest = -np.inf if inputs.dtype in FLOATS else np.iinfo(inputs.dtype).min
    return _pool(inputs, pool_size, strides, padding, data_format, lowest, np.max)


def average_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    def average(x, axes):
        return np.nanmean(x.astype(np.result_type(x, np.float32)), axes).astype(x.dtype)

    return _pool(inputs, pool_size, strides, padding, data_format, np.nan, average)
