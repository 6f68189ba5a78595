"""Window arithmetic of convolution and pooling that every backend shares (no framework here).

`convolution`, `transposed_convolution` and `pooling` make an op of a backend's own function, which
gets checked settings: tuples of one int a space axis, and `first`, whether channels precede space.
"""

from functools import lru_cache

from khub import config
from khub.choices import choose


def per_axis(value, count, what, least=0):
    """Return `value` as a tuple of one int an axis.  Raises ValueError for anything else."""
    values = (value,) * count if isinstance(value, int) else value
    whole = hasattr(values, "__len__") and all(hasattr(n, "__index__") for n in values)
    if not whole or len(values) != count or min(values) < least:
        raise ValueError(f"{what} needs 1 or {count} integers from {least}, got {value!r}.")
    return tuple(values)


def channels_first(data_format):
    """Whether images are (batch, channels, *space).  Raises ValueError for an unknown format."""
    data_format = data_format or config.image_data_format()
    choose("data_format", data_format, ("channels_last", "channels_first"))
    return data_format == "channels_first"


def checked(padding, count, names=("valid", "same")):
    """Return a padding: one of `names`, or (before, after) or one number of `count` axes.

    Raises ValueError for anything else.
    """
    if not isinstance(padding, list | tuple):
        return choose("padding", padding, names)
    if len(padding) != count:
        raise ValueError(f"padding needs {count} pairs (before, after), got {padding!r}.")
    return tuple(per_axis(zeros, 2, "padding of an axis") for zeros in padding)


def _check_fit(inputs, first, sizes, dilations, padding="valid"):
    """Raise ValueError where a window is larger than the input with its padding."""
    space = inputs.shape[2:] if first else inputs.shape[1:-1]
    around = paddings(padding, space, *[sizes] * 3)
    for size, window, dilation, zeros in zip(space, sizes, dilations, around):
        if size is not None and (window - 1) * dilation >= size + sum(zeros):
            raise ValueError(
                f"A window of {tuple(sizes)} with dilation_rate={tuple(dilations)} is larger than "
                f"the input of {tuple(space)}; give padding='same' or a larger input."
            )


def _settled(count, strides, dilations, padding, data_format):
    steps = per_axis(strides, count, "strides"), per_axis(dilations, count, "dilation_rate")
    return *steps, checked(padding, count), channels_first(data_format)


_known = lru_cache(4096, typed=True)(_settled)


def convolution(run):
    """Return `conv` of a backend's run(inputs, first, kernel, strides, padding, dilations)."""

    def conv(inputs, kernel, strides, padding, data_format, dilation_rate, *extra):
        sizes, data_format = kernel.shape[:-2], data_format or config.image_data_format()
        given = len(sizes), strides, dilation_rate, padding, data_format
        try:
            strides, dilations, padding, first = _known(*given)
        except TypeError:  # lists have no hash
            strides, dilations, padding, first = _settled(*given)
        if padding != "same" and not extra and max(sizes) > 1:
            _check_fit(inputs, first, sizes, dilations, padding)
        return run(inputs, first, kernel, strides, padding, dilations, *extra)

    return conv


def transposed_convolution(run):
    """Return `conv_transpose` of a function that takes the output padding, too: None or ints."""
    conv = convolution(run)

    def conv_transpose(inputs, kernel, strides, padding, extra, data_format, dilation_rate):
        count, padding = len(kernel.shape) - 2, choose("padding", padding, ("valid", "same"))
        extra = (None,) * count if extra is None else per_axis(extra, count, "output_padding")
        return conv(inputs, kernel, strides, padding, data_format, dilation_rate, extra)

    return conv_transpose


def pooling(run):
    """Return a pooling of a backend's run(inputs, first, sizes, strides, padding, *settings)."""

    def pool(inputs, pool_size, strides, padding, data_format, *settings):
        count = len(inputs.shape) - 2
        sizes = per_axis(pool_size, count, "pool_size")
        strides = sizes if strides is None else per_axis(strides, count, "strides")
        padding, first = choose("padding", padding, ("valid", "same")), channels_first(data_format)
        if padding == "valid":
            _check_fit(inputs, first, sizes, (1,) * count)
        return run(inputs, first, sizes, strides, padding, *settings)

    return pool


def channels_last(transpose):
    """Return a decorator by which functions of (batch, *space, channels) take either layout."""

    def decorate(function):
        def run(inputs, first, *settings):
            if not first:
                return function(inputs, *settings)
            rank = len(inputs.shape)
            result = function(transpose(inputs, (0, *range(2, rank), 1)), *settings)
            return transpose(result, (0, rank - 1, *range(1, rank - 1)))

        return run

    return decorate


def paddings(padding, sizes, windows, strides, dilations):
    """Return (before, after) an axis; of "same" padding the odd pixel goes after."""
    if padding != "same":
        return [(0, 0)] * len(sizes) if padding == "valid" else padding
    borders = []
    for size, window, stride, dilation in zip(sizes, windows, strides, dilations, strict=True):
        reach = (window - 1) * dilation + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        borders.append((total // 2, total - total // 2))
    return borders


def transposed(padding, *axes):
    """Return (before, after, out) an axis: the zero-stuffed input's borders, the output's length.

    axes: sizes, windows, strides, dilations, output paddings.
    A transposed convolution is a plain one over the input with stride - 1 zeros between elements.
    """
    return [_transposed(padding == "same", *axis) for axis in zip(*axes, strict=True)]


def _transposed(same, size, window, stride, dilation, output_padding):
    reach = (window - 1) * dilation + 1
    if output_padding is None:
        out = size * stride + (0 if same else max(reach - stride, 0))
        cut = max(reach - stride, 0) // 2 if same else 0
    else:
        cut = reach // 2 if same else 0
        out = (size - 1) * stride + reach - 2 * cut + output_padding
    before = reach - 1 - cut
    return before, out - ((size - 1) * stride + 1) + reach - 1 - before, out
