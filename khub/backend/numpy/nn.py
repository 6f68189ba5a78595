"""Convolution and pooling on NumPy arrays."""

import numpy as np

from khub.backend import windows
from khub.backend.numpy.arrays import FLOATS, tensordot


def _channels_last(function):
    """Run a function of (batch, *space, channels) on either layout."""

    def run(inputs, *args):
        *args, data_format = args
        if windows.channels_first(data_format):
            return np.moveaxis(function(np.moveaxis(inputs, 1, -1), *args), -1, 1)
        return function(inputs, *args)

    return run


def _windows(inputs, sizes, strides, dilations):
    """(batch, *space, n) -> (batch, *space', n, *window)"""
    axes = tuple(range(1, 1 + len(sizes)))
    reach = [(k - 1) * d + 1 for k, d in zip(sizes, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(inputs, reach, axes)
    steps = [slice(None, None, s) for s in strides]
    inner = [slice(None, None, d) for d in dilations]
    return view[(slice(None), *steps, slice(None), *inner)]


def conv(inputs, kernel, strides=1, padding="valid", data_format=None, dilation_rate=1):
    count = kernel.ndim - 2
    strides = windows.per_axis(strides, count, "strides")
    dilations = windows.per_axis(dilation_rate, count, "dilation_rate")

    def run(x):
        pads = windows.paddings(padding, x.shape[1:-1], kernel.shape[:count], strides, dilations)
        return _conv(np.pad(x, [(0, 0), *pads, (0, 0)]), kernel, strides, dilations)

    return _channels_last(run)(inputs, data_format)


def _conv(x, kernel, strides, dilations):
    count = kernel.ndim - 2
    parts = _windows(x, kernel.shape[:count], strides, dilations)
    groups = x.shape[-1] // kernel.shape[-2]
    axes = ([count + 1, *range(count + 2, 2 * count + 2)], [count, *range(count)])
    parts = np.split(parts, groups, axis=count + 1)
    kernels = np.split(kernel, groups, axis=-1)
    products = [tensordot(p, k, axes) for p, k in zip(parts, kernels, strict=True)]
    return np.concatenate(products, -1)


def conv_transpose(
    inputs,
    kernel,
    strides=1,
    padding="valid",
    output_padding=None,
    data_format=None,
    dilation_rate=1,
):
    count = kernel.ndim - 2
    strides = windows.per_axis(strides, count, "strides")
    dilations = windows.per_axis(dilation_rate, count, "dilation_rate")
    extra = (
        None
        if output_padding is None
        else windows.per_axis(output_padding, count, "output_padding")
    )

    def run(x):
        sizes = x.shape[1:-1]
        spread = [(n - 1) * s + 1 for n, s in zip(sizes, strides, strict=True)]
        stuffed = np.zeros((x.shape[0], *spread, x.shape[-1]), x.dtype)
        stuffed[(slice(None), *(slice(None, None, s) for s in strides))] = x
        borders = [
            windows.transposed(padding, *axis, extra[i] if extra else None)
            for i, axis in enumerate(
                zip(sizes, kernel.shape[:count], strides, dilations, strict=True)
            )
        ]
        stuffed = np.pad(stuffed, [(0, 0), *((max_0(b), max_0(a)) for b, a, _ in borders), (0, 0)])
        flipped = np.swapaxes(np.flip(kernel, tuple(range(count))), -1, -2)
        result = _conv(stuffed, flipped, (1,) * count, dilations)
        return result[(slice(None), *(slice(out) for *_, out in borders))]

    def max_0(n):
        return n if n > 0 else 0

    return _channels_last(run)(inputs, data_format)


def _pool(inputs, pool_size, strides, padding, data_format, fill, reduce):
    count = inputs.ndim - 2
    sizes = windows.per_axis(pool_size, count, "pool_size")
    strides = sizes if strides is None else windows.per_axis(strides, count, "strides")
    ones = (1,) * count

    def run(x):
        pads = windows.paddings(padding, x.shape[1:-1], sizes, strides, ones)
        x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
        return reduce(_windows(x, sizes, strides, ones), tuple(range(-count, 0)))

    return _channels_last(run)(inputs, data_format)


def max_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    lowest = -np.inf if inputs.dtype in FLOATS else np.iinfo(inputs.dtype).min
    return _pool(inputs, pool_size, strides, padding, data_format, lowest, np.max)


def average_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    def average(x, axes):
        return np.nanmean(x.astype(np.result_type(x, np.float32)), axes).astype(x.dtype)

    return _pool(inputs, pool_size, strides, padding, data_format, np.nan, average)
