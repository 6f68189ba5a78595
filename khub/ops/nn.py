"""Neural-network functions: activations, losses, normalization, attention, convolution, pooling.

Images and sequences are (batch, *space, channels) unless `data_format` says otherwise.
"""

import math as _math

from khub import config, dtypes
from khub.ops import math
from khub.ops.array import (
    arange,
    expand_dims,
    repeat,
    reshape,
    squeeze,
    take_along_axis,
    transpose,
)
from khub.ops.core import cast, stop_gradient, where
from khub.ops.op import op, primitive, promote, promote_float


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


# --- labels and losses ---------------------------------------------------------------------------
@op()
def one_hot(x, num_classes, axis=-1, dtype=None, sparse=False):
    """1 at the class of each integer, else 0; a class outside [0, num_classes) gives zeros."""
    count = len(x.shape) + 1
    axis = axis % count
    shape = [1] * count
    shape[axis] = num_classes
    classes = reshape(arange(num_classes, dtype="int32"), shape)
    return cast(math.equal(expand_dims(cast(x, "int32"), axis), classes), dtype)


@op()
def multi_hot(inputs, num_classes=None, axis=-1, dtype=None, sparse=False):
    """1 at every class named along `axis` of the inputs (batch, k), else 0."""
    hot = one_hot(inputs, num_classes, axis=-1, dtype=dtype)
    return hot if len(inputs.shape) == 0 else math.max(hot, axis=axis % len(inputs.shape))


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
@op()
def moments(x, axes, keepdims=False, synchronized=False):
    """Mean and variance over `axes`; float16 is computed in float32."""
    name = dtypes.standardize(x.dtype)
    y = cast(x, "float32") if name == "float16" else x
    average = math.mean(y, axis=axes, keepdims=True)
    variance = math.mean(math.square(y - average), axis=axes, keepdims=keepdims)
    if not keepdims:
        average = squeeze(average, axes)
    return cast(average, name), cast(variance, name)


@op(operands=("x", "mean", "variance", "offset", "scale"))
def batch_normalization(x, mean, variance, axis, offset=None, scale=None, epsilon=1e-3):
    """(x - mean) / sqrt(variance + epsilon) * scale + offset along `axis`.  arXiv:1502.03167"""
    shape = [1] * len(x.shape)
    shape[axis] = x.shape[axis]
    factor = math.rsqrt(reshape(variance, shape) + epsilon)
    if scale is not None:
        factor = factor * reshape(scale, shape)
    result = x * factor - reshape(mean, shape) * factor
    return result if offset is None else result + reshape(offset, shape)


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


@op(operands=("x", "scale"))
def rms_normalization(x, scale=1, axis=-1, epsilon=None):
    """x / sqrt(mean(x**2) + epsilon) * scale over `axis`.  arXiv:1910.07467"""
    epsilon = config.epsilon() if epsilon is None else epsilon
    name = dtypes.standardize(x.dtype)
    y = cast(x, "float32") if name in ("float16", "bfloat16") else x
    factor = math.rsqrt(math.mean(math.square(y), axis=axis, keepdims=True) + epsilon)
    return cast(y * factor, name) * cast(scale, name)


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
    """
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
        scores = where(
            allowed, scores, -0.7 * 3.4028235e38
        )  # finite: a row of them is uniform, not NaN
    weights = cast(softmax(scores, axis=-1), name)
    return transpose(math.matmul(weights, transpose(value, (0, 2, 1, 3))), (0, 2, 1, 3))


# --- convolution and pooling, 1 to 3 space axes --------------------------------------------------
@primitive(operands=2, dtype=promote)
def conv(inputs, kernel, strides=1, padding="valid", data_format=None, dilation_rate=1):
    """Convolution (correlation); channels that divide the inputs' make groups.

    inputs: (batch, *space, n), kernel: (*window, n / groups, filters) -> (batch, *space', filters)
    padding: "valid" or "same" (the odd pixel goes after, as TensorFlow has it)
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
