"""Neural-network functions: activations, losses, normalization, attention, convolution, pooling.

Images and sequences are (batch, *space, channels) unless `data_format` says otherwise.
"""

import math as _math

import numpy as np

from khub import config, dtypes
from khub.backend import active, windows
from khub.ops import math
from khub.ops.array import *  # noqa: F403
from khub.ops.core import cast, convert_to_tensor, shape, stop_gradient, where
from khub.ops.op import op, primitive, promote, promote_float

# ruff: noqa: F405  (names of array)


# --- activations: x of any shape -> same ---------------------------------------------------------
@op()
def relu(x):
    """max(x, 0)"""
    return math.maximum(x, 0)


@op()
def relu6(x):
    """min(max(x, 0), 6)"""
    return math.clip(x, 0, 6)


@op(dtype=promote_float)
def leaky_relu(x, negative_slope=0.2):
    """x where positive, else negative_slope * x"""
    return where(x > 0, x, x * negative_slope)


@op(dtype=promote_float)
def elu(x, alpha=1.0):
    """x where positive, else alpha (e**x - 1).  arXiv:1511.07289"""
    return where(x > 0, x, alpha * math.expm1(math.minimum(x, 0)))


@op(dtype=promote_float)
def selu(x):
    """The self-normalizing ELU.  arXiv:1706.02515"""
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    return scale * elu(x, alpha)


@op(dtype=promote_float)
def celu(x, alpha=1.0):
    """max(x, 0) + min(0, alpha (e**(x / alpha) - 1)).  arXiv:1704.07483"""
    return math.maximum(x, 0) + alpha * math.expm1(math.minimum(x, 0) / alpha)


@op(dtype=promote_float)
def gelu(x, approximate=True):
    """x times the normal distribution's Phi(x), or its tanh approximation.  arXiv:1606.08415"""
    if approximate:
        return 0.5 * x * (1 + math.tanh(_math.sqrt(2 / _math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + math.erf(x / _math.sqrt(2)))


@op(dtype=promote_float)
def sigmoid(x):
    """1 / (1 + e**-x)"""
    return 0.5 * math.tanh(0.5 * x) + 0.5


@op(dtype=promote_float)
def silu(x):
    """x * sigmoid(x), also called swish.  arXiv:1710.05941"""
    return x * sigmoid(x)


swish = silu


@op(dtype=promote_float)
def log_sigmoid(x):
    """log(sigmoid(x)), without overflow"""
    return -softplus(-x)


@op(dtype=promote_float)
def softplus(x):
    """log(1 + e**x), without overflow"""
    return math.maximum(x, 0) + math.log1p(math.exp(-math.absolute(x)))


@op(dtype=promote_float)
def softsign(x):
    """x / (1 + |x|)"""
    return x / (1 + math.absolute(x))


@op(dtype=promote_float)
def hard_sigmoid(x):
    """clip(x / 6 + 0.5, 0, 1)"""
    return math.clip(x / 6 + 0.5, 0, 1)


@op(dtype=promote_float)
def hard_silu(x):
    """x * hard_sigmoid(x), also called hard swish.  arXiv:1905.02244"""
    return x * hard_sigmoid(x)


hard_swish = hard_silu


@op(dtype=promote_float)
def hard_tanh(x):
    """clip(x, -1, 1)"""
    return math.clip(x, -1, 1)


@op(dtype=promote_float)
def mish(x):
    """x * tanh(softplus(x)).  arXiv:1908.08681"""
    return x * math.tanh(softplus(x))


@op(dtype=promote_float)
def softmax(x, axis=-1):
    """Scale `x` to positive values that sum to one over `axis` (an int or several)."""
    e = math.exp(x - math.max(x, axis=axis, keepdims=True))  # shifted by the maximum: no overflow
    return e / math.sum(e, axis=axis, keepdims=True)


@op(dtype=promote_float)
def log_softmax(x, axis=-1):
    """log(softmax(x)), without overflow"""
    shifted = x - stop_gradient(math.max(x, axis=axis, keepdims=True))
    return shifted - math.log(math.sum(math.exp(shifted), axis=axis, keepdims=True))


@op(dtype=promote_float)
def glu(x, axis=-1):
    """The first half of x along `axis` times the sigmoid of the second.  arXiv:1612.08083"""
    value, gate = split(x, 2, axis)
    return value * sigmoid(gate)


@op(dtype=promote_float)
def soft_shrink(x, threshold=0.5):
    """x moved towards 0 by `threshold`, 0 where it is nearer than that"""
    return relu(x - threshold) - relu(-x - threshold)


@op(dtype=promote_float)
def hard_shrink(x, threshold=0.5):
    """x, 0 where |x| <= threshold"""
    return where(math.absolute(x) > threshold, x, 0.0)


@op(dtype=promote_float)
def tanh_shrink(x):
    """x - tanh(x)"""
    return x - math.tanh(x)


@op()
def threshold(x, threshold, default_value):
    """x above `threshold`, else `default_value`"""
    return where(math.greater(x, threshold), x, default_value)


@op(dtype=promote_float)
def squareplus(x, b=4):
    """(x + sqrt(x**2 + b)) / 2.  arXiv:2112.11687"""
    return (x + math.sqrt(math.square(x) + b)) / 2


@op(dtype=promote_float)
def sparse_plus(x):
    """0 below -1, x above 1, (x + 1)**2 / 4 between"""
    return where(x >= 1, x, math.square(math.clip(x, -1.0, 1.0) + 1.0) / 4)


@op(dtype=promote_float)
def sparse_sigmoid(x):
    """clip((x + 1) / 2, 0, 1)"""
    return math.clip((x + 1.0) / 2, 0.0, 1.0)


@op(dtype=promote_float)
def sparsemax(x, axis=-1):
    """The point of the probability simplex nearest to x along `axis`.  arXiv:1602.02068"""
    x = moveaxis(x, axis, -1)
    largest = flip(sort(x, axis=-1), axis=-1)
    sums = math.cumsum(largest, axis=-1)
    rank = cast(arange(1, shape(x)[-1] + 1), dtypes.standardize(x.dtype))
    support = cast(1.0 + rank * largest > sums, dtypes.standardize(x.dtype))
    count = math.sum(support, axis=-1, keepdims=True)
    excess = (math.sum(support * largest, axis=-1, keepdims=True) - 1.0) / count
    return moveaxis(relu(x - excess), -1, axis)


@op(operands=2, dtype=promote_float)
def polar(abs_, angle):
    """The complex number of this size and angle in radians."""
    wide = promote_float(dtypes.standardize(abs_.dtype), "float32")
    abs_, angle = cast(abs_, wide), cast(angle, wide)
    return math._complex(abs_ * math.cos(angle), abs_ * math.sin(angle))


# --- labels and losses ---------------------------------------------------------------------------
@op()
def one_hot(x, num_classes, axis=-1, dtype=None, sparse=False):
    """1 at the class of each integer, else 0; a class outside [0, num_classes) gives zeros."""
    count = len(x.shape) + 1
    axis = axis % count
    sizes = [1] * count
    sizes[axis] = num_classes
    classes = reshape(arange(num_classes, dtype="int32"), sizes)
    return cast(math.equal(expand_dims(cast(x, "int32"), axis), classes), dtype)


@op()
def multi_hot(inputs, num_classes=None, axis=-1, dtype=None, sparse=False, **kwargs):
    """1 at every class of the inputs (batch, k) or (k,), else 0; the classes become `axis`."""
    if len(inputs.shape) == 0:
        return one_hot(inputs, num_classes, dtype=dtype)
    hot = one_hot(inputs, num_classes, axis=-1, dtype=dtype)
    return moveaxis(math.max(hot, axis=1 if len(inputs.shape) > 1 else 0), -1, axis)


@op(operands=2, dtype=promote_float)
def psnr(x1, x2, max_val):
    """The peak signal-to-noise ratio in decibels; `max_val`: the largest value possible."""
    noise = math.mean(math.square(x1 - x2))
    return 20 * _math.log10(max_val) - 10 * math.log10(noise)


@op(operands=2, dtype=promote_float)
def categorical_crossentropy(target, output, from_logits=False, axis=-1):
    """-sum(target * log(output)) over `axis`; outputs are normalized to sum to one."""
    if not from_logits:
        output = output / math.sum(output, axis=axis, keepdims=True)
        logarithm = math.log(math.clip(output, config.epsilon(), 1 - config.epsilon()))
    else:
        logarithm = log_softmax(output, axis=axis)
    return -math.sum(target * logarithm, axis=axis)


@op(operands=2)
def sparse_categorical_crossentropy(target, output, from_logits=False, axis=-1):
    """-log(output) at the class `target`.  target: int (...), output: (..., classes)  ->  (...)"""
    if len(target.shape) == len(output.shape) and target.shape[axis] == 1:
        target = squeeze(target, axis)
    if not from_logits:
        output = output / math.sum(output, axis=axis, keepdims=True)
        logarithm = math.log(math.clip(output, config.epsilon(), 1 - config.epsilon()))
    else:
        logarithm = log_softmax(output, axis=axis)
    index = expand_dims(cast(target, "int32"), axis)
    return -squeeze(take_along_axis(logarithm, index, axis=axis), axis)


@op(operands=2, dtype=promote_float)
def binary_crossentropy(target, output, from_logits=False):
    """-(target log(output) + (1 - target) log(1 - output)), elementwise"""
    if from_logits:  # stable for large |output|
        return (
            math.maximum(output, 0) - output * target + math.log1p(math.exp(-math.absolute(output)))
        )
    output = math.clip(output, config.epsilon(), 1 - config.epsilon())
    return -(target * math.log(output) + (1 - target) * math.log(1 - output))


# --- normalization -------------------------------------------------------------------------------
@op(dtype=promote_float)
def normalize(x, axis=-1, order=2, epsilon=None):
    """`x` divided by its norm of this order over `axis`."""
    epsilon = config.epsilon() if epsilon is None else epsilon
    if order == 2:  # the root of the clipped square keeps the gradient finite at 0
        return x * math.rsqrt(
            math.maximum(math.sum(math.square(x), axis=axis, keepdims=True), epsilon**2)
        )
    norm = math.power(
        math.sum(math.power(math.absolute(x), order), axis=axis, keepdims=True), 1.0 / order
    )
    return x / math.maximum(norm, epsilon)


@op()
def moments(x, axes, keepdims=False, synchronized=False):
    """Mean and variance over `axes`; half floats are computed in float32."""
    name = dtypes.standardize(x.dtype)
    y = cast(x, "float32") if name in ("float16", "bfloat16") else x
    average = math.mean(y, axis=axes, keepdims=True)
    variance = math.mean(math.square(math.subtract(y, average)), axis=axes, keepdims=keepdims)
    average = average if keepdims else squeeze(average, axes)
    return cast(average, name), cast(variance, name)


@op(operands=("x", "mean", "variance", "offset", "scale"))
def batch_normalization(x, mean, variance, axis, offset=None, scale=None, epsilon=1e-3):
    """(x - mean) / sqrt(variance + epsilon) * scale + offset along `axis`.  arXiv:1502.03167"""
    sizes = [1] * len(x.shape)
    sizes[axis] = x.shape[axis]
    factor = math.rsqrt(reshape(variance, sizes) + epsilon)
    if scale is not None:
        factor = factor * reshape(scale, sizes)
    result = x * factor - reshape(mean, sizes) * factor
    return result if offset is None else result + reshape(offset, sizes)


@op(operands=("x", "gamma", "beta"))
def layer_normalization(x, gamma=None, beta=None, axis=-1, epsilon=None, **kwargs):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta over `axis`.  arXiv:1607.06450"""
    epsilon = config.epsilon() if epsilon is None else epsilon
    name = dtypes.standardize(x.dtype)
    y = cast(x, "float32") if name in ("float16", "bfloat16") else x
    centred = y - math.mean(y, axis=axis, keepdims=True)
    variance = math.mean(math.square(centred), axis=axis, keepdims=True)
    y = cast(centred * math.rsqrt(variance + epsilon), name)
    y = y if gamma is None else y * cast(gamma, name)
    return y if beta is None else y + cast(beta, name)


@op(operands=("x", "gamma", "beta"))
def group_normalization(x, groups, gamma=None, beta=None, axis=-1, epsilon=1e-3):
    """`layer_normalization` of each group of channels, over `axis`, of an example. 1803.08494"""
    sizes, name, axis = list(shape(x)), dtypes.standardize(x.dtype), axis % len(x.shape)
    wider = "float32" if name in ("float16", "bfloat16") else name
    parts = [*sizes[:axis], groups, sizes[axis] // groups, *sizes[axis + 1 :]]
    y, over = reshape(cast(x, wider), parts), [a for a in range(1, len(parts)) if a != axis]
    mean, variance = moments(y, over, keepdims=True)
    wide = [*parts[axis : axis + 2], *[1] * (len(sizes) - axis - 1)]
    factor = math.rsqrt(variance + epsilon)
    factor = factor if gamma is None else factor * reshape(cast(gamma, wider), wide)
    shift = 0 if beta is None else reshape(cast(beta, wider), wide)
    return cast(reshape(y * factor + (shift - mean * factor), sizes), name)


@op(operands=("x", "scale"))
def rms_normalization(x, scale=None, axis=-1, epsilon=None):
    """x / sqrt(mean(x**2) + epsilon) * scale over `axis`.  arXiv:1910.07467"""
    epsilon = config.epsilon() if epsilon is None else epsilon
    name = dtypes.standardize(x.dtype)
    y = cast(x, "float32") if name in ("float16", "bfloat16") else x
    factor = math.rsqrt(math.mean(math.square(y), axis=axis, keepdims=True) + epsilon)
    y = cast(y * factor, name)
    return y if scale is None else y * cast(scale, name)


# --- dense layers and attention ------------------------------------------------------------------
@op(operands=3, dtype=promote)
def linear(x, kernel, bias=None):
    """x @ kernel + bias, one fused call where the backend has it.

    x: (..., n), kernel: (n, units), bias: (units,) or None  ->  (..., units)
    """
    y = math.matmul(x, kernel)
    return y if bias is None else y + bias


@op(operands=("query", "key", "value", "bias", "mask"))
def dot_product_attention(
    query,
    key,
    value,
    bias=None,
    mask=None,
    scale=None,
    is_causal=False,
    flash_attention=None,
    attn_logits_soft_cap=None,
):
    """softmax(query key^T * scale + bias) value for every head.  arXiv:1706.03762

    query: (batch, time, heads, width), key and value: (batch, source, key heads, width), heads a
    multiple of key heads.  mask: bool, true where attended, like (batch, heads, time, source).
    A query whose mask is false everywhere attends to every key equally.
    flash_attention: True demands the framework's flash kernel, False forbids it, None: either.
    """
    if flash_attention:
        raise ValueError(
            f"flash_attention=True: {active.__name__} has no flash kernel for these arguments "
            f"(attn_logits_soft_cap={attn_logits_soft_cap}); use None."
        )
    heads, key_heads = query.shape[2], key.shape[2]
    if heads != key_heads:
        key, value = (repeat(x, heads // key_heads, axis=2) for x in (key, value))
    scale = 1 / _math.sqrt(query.shape[-1]) if scale is None else scale
    name = dtypes.standardize(query.dtype)
    scores = math.matmul(transpose(query, (0, 2, 1, 3)), transpose(key, (0, 2, 3, 1)))
    scores = cast(scores, "float32" if name in ("float16", "bfloat16") else name) * scale
    if attn_logits_soft_cap is not None:
        scores = math.tanh(scores / attn_logits_soft_cap) * attn_logits_soft_cap
    if bias is not None:
        scores = scores + cast(bias, dtypes.standardize(scores.dtype))
    allowed = None if mask is None else cast(mask, "bool")
    if is_causal:
        time, source = query.shape[1], key.shape[1]
        causal = expand_dims(arange(time), -1) >= expand_dims(arange(source), 0)
        allowed = causal if allowed is None else math.logical_and(allowed, causal)
    if allowed is not None:
        # finite: a row of them is uniform, not NaN
        scores = where(allowed, scores, -0.7 * 3.4028235e38)
    weights = cast(softmax(scores, axis=-1), name)
    return transpose(math.matmul(weights, transpose(value, (0, 2, 1, 3))), (0, 2, 1, 3))


# --- convolution and pooling, 1 to 3 space axes --------------------------------------------------
@primitive(operands=2, dtype=promote)
def conv(inputs, kernel, strides=1, padding="valid", data_format=None, dilation_rate=1):
    """Convolution (correlation); channels that divide the inputs' make groups.

    inputs: (batch, *space, n), kernel: (*window, n / groups, filters) -> (batch, *space', filters)
    padding: "valid", "same" (the odd pixel goes after, as TensorFlow has it) or numbers of zeros:
    for each space axis (before, after) or one for both
    """


@primitive(operands=2, dtype=promote)
def conv_transpose(
    inputs,
    kernel,
    strides=1,
    padding="valid",
    output_padding=None,
    data_format=None,
    dilation_rate=1,
):
    """The gradient of `conv` as a layer.  kernel: (*window, filters, n)"""


@op(operands=2, dtype=promote)
def depthwise_conv(inputs, kernel, strides=1, padding="valid", data_format=None, dilation_rate=1):
    """Each channel convolved by itself.

    kernel: (*window, n, multiplier)  ->  (batch, *space', n * multiplier)
    """
    *window, channels, multiplier = kernel.shape
    kernel = reshape(kernel, (*window, 1, channels * multiplier))
    return conv(inputs, kernel, strides, padding, data_format, dilation_rate)


@op(operands=3, dtype=promote)
def separable_conv(
    inputs,
    depthwise_kernel,
    pointwise_kernel,
    strides=1,
    padding="valid",
    data_format=None,
    dilation_rate=1,
):
    """`depthwise_conv`, then a 1x1 `conv` that mixes the channels."""
    y = depthwise_conv(inputs, depthwise_kernel, strides, padding, data_format, dilation_rate)
    return conv(y, pointwise_kernel, 1, "valid", data_format, 1)


@primitive()
def max_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    """The largest value in each window.  (batch, *space, n)  ->  (batch, *space', n)"""


@primitive(dtype=promote_float)
def average_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    """The mean of each window; with "same" padding, of the part inside the image."""


def _adaptive(inputs, output_size, data_format, reduce):
    """Replace each space axis by `reduce(windows, axis, lengths)`; windows repeat their end."""
    axis = 2 if windows.channels_first(data_format) else 1
    count = len(inputs.shape) - 2
    for out in windows.per_axis(output_size, count, "output_size"):
        n = inputs.shape[axis]  # window i is [floor(i n / out), ceil((i + 1) n / out))
        starts, ends = np.arange(out) * n // out, -(-np.arange(1, out + 1) * n // out)
        places = np.minimum(starts[:, None] + np.arange((ends - starts).max()), ends[:, None] - 1)
        inputs = reduce(take(inputs, places.astype("int32"), axis), axis + 1, ends - starts)
        axis += 1
    return inputs


@op(dtype=promote_float)
def adaptive_average_pool(inputs, output_size, data_format=None):
    """The means of windows dividing each space axis into `output_size`.  -> (batch, *output, n)"""
    name = dtypes.standardize(inputs.dtype)

    def mean(x, axis, lengths):
        shares = (np.arange(x.shape[axis]) < lengths[:, None]) / lengths[:, None]
        shares = shares.reshape(*shares.shape, *[1] * (len(x.shape) - axis - 1))
        return math.sum(x * convert_to_tensor(shares, name), axis)

    return _adaptive(inputs, output_size, data_format, mean)


@op()
def adaptive_max_pool(inputs, output_size, data_format=None):
    """The largest values of windows that divide each space axis into `output_size` parts."""
    return _adaptive(inputs, output_size, data_format, lambda x, axis, _: math.max(x, axis))


def _blocks(x, block_size, first, there):
    """Move blocks of pixels into channels or back; channels outermost where they are first."""
    batch, *sizes = shape(x)
    height, width, depth = (*sizes[1:], sizes[0]) if first else sizes
    b = block_size
    if there:
        height, width = height // b, width // b
        split_ = (depth, height, b, width, b) if first else (height, b, width, b, depth)
        order = (0, 1, 3, 5, 2, 4) if first else (0, 1, 3, 2, 4, 5)
        depth = depth * b * b
    else:
        depth = depth // (b * b)
        split_ = (depth, b, b, height, width) if first else (height, width, b, b, depth)
        order = (0, 1, 4, 2, 5, 3) if first else (0, 1, 3, 2, 4, 5)
        height, width = height * b, width * b
    whole = (depth, height, width) if first else (height, width, depth)
    return reshape(transpose(reshape(x, (batch, *split_)), order), (batch, *whole))


@op()
def space_to_depth(x, block_size, data_format="channels_last"):
    """Blocks of pixels as channels.  (batch, h, w, n) -> (batch, h / b, w / b, n b b)"""
    return _blocks(x, block_size, windows.channels_first(data_format), True)


@op()
def depth_to_space(x, block_size, data_format="channels_last"):
    """Channels as blocks of pixels, `space_to_depth` undone."""
    return _blocks(x, block_size, windows.channels_first(data_format), False)


def _patches(sizes, kernel_size, dilation, padding, stride):
    """Return the borders, and for both axes the pixel (window, place) that a patch sees."""
    settings = [
        windows.per_axis(value, 2, name)
        for name, value in dict(
            kernel_size=kernel_size, dilation=dilation, padding=padding, stride=stride
        ).items()
    ]
    seen = []
    for size, window, step, border, jump in zip(sizes, *settings, strict=True):
        places = (size + 2 * border - (window - 1) * step - 1) // jump + 1
        seen.append((np.arange(window) * step)[:, None] + np.arange(places) * jump)
    return settings[2], seen


@op()
def unfold(x, kernel_size, dilation=1, padding=0, stride=1):
    """The patches of images.  (batch, n, height, width)  ->  (batch, n * window, patches)"""
    batch, channels, *sizes = shape(x)
    borders, (rows, columns) = _patches(sizes, kernel_size, dilation, padding, stride)
    x = pad(x, [(0, 0), (0, 0), *((b, b) for b in borders)])
    x = take(take(x, rows.astype("int32"), 2), columns.astype("int32"), 4)
    x = transpose(x, (0, 1, 2, 4, 3, 5))
    return reshape(x, (batch, channels * len(rows) * len(columns), -1))


@op()
def fold(x, output_size, kernel_size, dilation=1, padding=0, stride=1):
    """The sum of overlapping patches.  (batch, n * window, patches) -> (batch, n, *output_size)"""
    name, batch = dtypes.standardize(x.dtype), shape(x)[0]
    sizes = windows.per_axis(output_size, 2, "output_size")
    borders, (rows, columns) = _patches(sizes, kernel_size, dilation, padding, stride)
    x = reshape(x, (batch, -1, len(rows), len(columns), rows.shape[1], columns.shape[1]))
    for seen, size, border in zip((rows, columns), sizes, borders, strict=True):
        hits = convert_to_tensor(seen[..., None] == np.arange(border, border + size), name)
        x = math.tensordot(x, hits, [[2, 4 if seen is rows else 3], [0, 1]])
    return x
