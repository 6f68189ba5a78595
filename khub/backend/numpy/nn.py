"""Convolution and pooling on NumPy arrays."""

import numpy as np

from khub.backend import windows
from khub.backend.numpy.arrays import FLOATS, tensordot

_channels_last = windows.channels_last(np.transpose)


def _windows(inputs, sizes, strides, dilations):
    """(batch, *space, n) -> (batch, *space', n, *window)"""
    axes = tuple(range(1, 1 + len(sizes)))
    reach = [(k - 1) * d + 1 for k, d in zip(sizes, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(inputs, reach, axes)
    steps = [slice(None, None, s) for s in strides]
    inner = [slice(None, None, d) for d in dilations]
    return view[(slice(None), *steps, slice(None), *inner)]


@_channels_last
def _conv(x, kernel, strides, padding, dilations):
    pads = windows.paddings(padding, x.shape[1:-1], kernel.shape[:-2], strides, dilations)
    return _correlate(np.pad(x, [(0, 0), *pads, (0, 0)]), kernel, strides, dilations)


def _correlate(x, kernel, strides, dilations):
    count = kernel.ndim - 2
    parts = _windows(x, kernel.shape[:count], strides, dilations)
    groups = x.shape[-1] // kernel.shape[-2]
    axes = ([count + 1, *range(count + 2, 2 * count + 2)], [count, *range(count)])
    parts = np.split(parts, groups, axis=count + 1)
    kernels = np.split(kernel, groups, axis=-1)
    products = [tensordot(p, k, axes) for p, k in zip(parts, kernels, strict=True)]
    return np.concatenate(products, -1)


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
