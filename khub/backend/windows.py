"""Window arithmetic of convolution and pooling that every backend shares (no framework here)."""

from khub import config


def per_axis(value, count, what):
    """Return `value` as a tuple of one int an axis.  Raises ValueError for another number."""
    values = (value,) * count if isinstance(value, int) else tuple(value)
    if len(values) != count:
        raise ValueError(f"{what} needs 1 or {count} numbers, got {value!r}.")
    return values


def channels_first(data_format):
    """Whether images are (batch, channels, *space).  Raises ValueError for an unknown format."""
    data_format = data_format or config.image_data_format()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            f"data_format must be channels_last or channels_first, got {data_format!r}."
        )
    return data_format == "channels_first"


def same_padding(size, window, stride, dilation=1):
    """Return (before, after) for "same" padding: the odd pixel goes after."""
    reach = (window - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def paddings(padding, sizes, windows, strides, dilations):
    """Return (before, after) an axis for "valid" or "same".  Raises ValueError for another name."""
    padding = str(padding).lower()
    if padding == "valid":
        return [(0, 0)] * len(sizes)
    if padding != "same":
        raise ValueError(f'padding must be "valid" or "same", got {padding!r}.')
    return [same_padding(*axis) for axis in zip(sizes, windows, strides, dilations, strict=True)]


def transposed(padding, size, window, stride, dilation=1, output_padding=None):
    """Return (before, after, out): the borders of the zero-stuffed input, and the output's length.

    A transposed convolution is a plain one over the input with stride - 1 zeros between elements.
    """
    reach = (window - 1) * dilation + 1
    same = str(padding).lower() == "same"
    if output_padding is None:
        out = size * stride + (0 if same else max(reach - stride, 0))
        cut = max(reach - stride, 0) // 2 if same else 0
    else:
        cut = reach // 2 if same else 0
        out = (size - 1) * stride + reach - 2 * cut + output_padding
    before = reach - 1 - cut
    return before, out - ((size - 1) * stride + 1) + reach - 1 - before, out
