"""Neural-network functions on TensorFlow: kernels that equal the reference in khub/ops/nn.py.

These kernels do not and are left out: Elu and Selu (inexact near 0), and the cross entropy of dense
labels, whose gradient takes the labels to sum to one.
"""

import math
from functools import cache

import tensorflow as tf

from khub import config, dtypes
from khub.backend import windows
from khub.backend.tensorflow.arrays import matmul, sum, take_along_axis, transpose
from khub.backend.tensorflow.convert import *  # noqa: F403

# ruff: noqa: A001, A002, F405  (the names are Keras', others those of convert)


def _given(x, dtype):
    """A parameter as it came from the caller: a tensor, a Variable, an array or a number."""
    x = x if type(x) in TENSORS else convert_to_tensor(x)
    return x if x.dtype is dtype else raw.Cast(x, dtype)


def _axes(axis):
    return constant((axis,) if isinstance(axis, int) else tuple(axis))


# --- activations ---------------------------------------------------------------------------------
relu, relu6, sigmoid = raw.Relu, raw.Relu6, raw.Sigmoid
softplus, softsign = raw.Softplus, raw.Softsign


def leaky_relu(x, negative_slope=0.2):
    if x.dtype is tf.float64:  # the kernel's slope is a float32
        return tf.where(x > 0, x, x * negative_slope)
    return raw.LeakyRelu(x, negative_slope)


def gelu(x, approximate=True):
    if approximate:  # (1 + tanh(z)) / 2 = sigmoid(2 z)
        slope = 2 * math.sqrt(2 / math.pi)
        curve = raw.AddV2(raw.Mul(raw.Square(x), slope * 0.044715), slope)
        return raw.Mul(x, raw.Sigmoid(raw.Mul(x, curve)))
    return raw.Mul(raw.Mul(x, 0.5), raw.AddV2(raw.Erf(raw.Mul(x, math.sqrt(0.5))), 1.0))


def hard_sigmoid(x):
    return raw.ClipByValue(raw.AddV2(raw.RealDiv(x, 6.0), 0.5), 0.0, 1.0)


def hard_tanh(x):
    return raw.ClipByValue(x, -1.0, 1.0)


def _is_last(x, axis):
    return axis == -1 or axis == len(x.shape) - 1


def softmax(x, axis=-1):
    if _is_last(x, axis):
        return raw.Softmax(x)
    axes = _axes(axis)
    e = raw.Exp(raw.Sub(x, raw.StopGradient(raw.Max(x, axes, True))))
    return raw.RealDiv(e, sum(e, axis, True))


def log_softmax(x, axis=-1):
    if _is_last(x, axis):
        return raw.LogSoftmax(x)
    axes = _axes(axis)
    x = raw.Sub(x, raw.StopGradient(raw.Max(x, axes, True)))
    return raw.Sub(x, raw.Log(sum(raw.Exp(x), axis, True)))


# --- labels and losses ---------------------------------------------------------------------------
def one_hot(x, num_classes, axis=-1, dtype=None, sparse=False):
    dtype = dtypes.standardize(dtype)
    x = x if x.dtype in (tf.int32, tf.int64) else raw.Cast(x, tf.int32)
    rank = len(x.shape)
    axis %= rank + 1
    axis = -1 if axis == rank else axis
    return raw.OneHot(x, num_classes, number(1, dtype), number(0, dtype), axis)


# --- normalization -------------------------------------------------------------------------------
def batch_normalization(x, mean, variance, axis, offset=None, scale=None, epsilon=1e-3):
    wide = tf.float64 if x.dtype is tf.float64 else tf.float32
    factor = raw.Rsqrt(raw.AddV2(_given(variance, wide), epsilon))
    factor = factor if scale is None else raw.Mul(factor, _given(scale, wide))
    shift = raw.Neg(raw.Mul(_given(mean, wide), factor))
    shift = shift if offset is None else raw.AddV2(shift, _given(offset, wide))
    if not _is_last(x, axis):
        sizes = [1] * len(x.shape)
        sizes[axis] = -1
        factor, shift = raw.Reshape(factor, vector(sizes)), raw.Reshape(shift, vector(sizes))
    return raw.AddV2(raw.Mul(x, _given(factor, x.dtype)), _given(shift, x.dtype))


def layer_normalization(x, gamma=None, beta=None, axis=-1, epsilon=None, **kwargs):
    dtype, epsilon = x.dtype, config.epsilon() if epsilon is None else epsilon
    wide = raw.Cast(x, tf.float32) if dtype in HALVES else x
    parts = gamma is not None and beta is not None and len(x.shape) > 1 and _is_last(x, axis)
    if parts and not tf.executing_eagerly():
        y = _norm_of_last(epsilon)(wide, _given(gamma, wide.dtype), _given(beta, wide.dtype))
        return _given(y, dtype)
    y = _given(_normalized(wide, _axes(axis), epsilon)[0], dtype)
    y = y if gamma is None else raw.Mul(y, _given(gamma, dtype))
    return y if beta is None else raw.AddV2(y, _given(beta, dtype))


def _normalized(x, axes, epsilon):
    centred = raw.Sub(x, raw.Mean(x, axes, True))
    factor = raw.Rsqrt(raw.AddV2(raw.Mean(raw.Square(centred), axes, True), epsilon))
    return raw.Mul(centred, factor), factor


@cache
def _norm_of_last(epsilon):
    """Layer normalization over the last axis, with a gradient in fewer passes than its parts'."""

    @tf.custom_gradient
    def run(x, gamma, beta):
        last, rows = _axes(-1), _axes(range(len(x.shape) - 1))
        y, factor = _normalized(x, last, epsilon)

        def gradients(upstream):
            wanted = raw.Mul(upstream, gamma)
            along = raw.Mul(y, raw.Mean(raw.Mul(wanted, y), last, True))
            wanted = raw.Sub(wanted, raw.AddV2(along, raw.Mean(wanted, last, True)))
            of_gamma = raw.Sum(raw.Mul(upstream, y), rows)
            return raw.Mul(factor, wanted), of_gamma, raw.Sum(upstream, rows)

        return raw.AddV2(raw.Mul(y, gamma), beta), gradients

    return run


# --- dense layers and attention ------------------------------------------------------------------
def linear(x, kernel, bias=None):
    if x.dtype is not kernel.dtype or (bias is not None and bias.dtype is not x.dtype):
        given = [x, kernel] if bias is None else [x, kernel, bias]
        name = dtypes.result_type(*(t.dtype.name for t in given))
        return linear(*(cast(t, name) for t in given))
    rank = len(x.shape)
    if rank < 2 or x.dtype not in FLOATS:
        y = matmul(x, kernel)
        return y if bias is None else raw.AddV2(y, bias)
    rows = x if rank == 2 else raw.Reshape(x, vector((-1, kernel.shape[0])))
    y = raw.MatMul(rows, kernel)
    y = y if bias is None else raw.BiasAdd(y, bias)
    return y if rank == 2 else raw.Reshape(y, vector((*sizes_of(x)[:-1], kernel.shape[1])))


def dot_product_attention(
    query, key, value, bias, mask, scale, is_causal, flash_attention, attn_logits_soft_cap
):
    if flash_attention:
        return NotImplemented
    dtype = query.dtype
    batch, time, heads, width = shape(query)
    source, groups = shape(key)[1], key.shape[2]
    grouped = groups != heads
    scale = 1 / math.sqrt(width) if scale is None else scale
    if grouped:  # query heads that share a key head are rows of one product
        query = raw.Reshape(query, vector((batch, time, groups, heads // groups, width)))
        scores = raw.Einsum([query, key], "btgrw,bsgw->bgrts")
        scores = raw.Reshape(scores, vector((batch, heads, time, source)))
    else:
        query, key = transpose(query, (0, 2, 1, 3)), transpose(key, (0, 2, 1, 3))
        scores = raw.BatchMatMulV2(query, key, False, True)
    scores = raw.Mul(raw.Cast(scores, tf.float32) if dtype in HALVES else scores, scale)
    if attn_logits_soft_cap is not None:
        capped = raw.Tanh(raw.RealDiv(scores, attn_logits_soft_cap))
        scores = raw.Mul(capped, attn_logits_soft_cap)
    if bias is not None:
        scores = raw.AddV2(scores, _given(bias, scores.dtype))
    allowed = None if mask is None else _given(mask, tf.bool)
    if is_causal:
        causal = raw.MatrixBandPart(raw.Fill(vector((time, source)), True), -1, 0)
        allowed = causal if allowed is None else raw.LogicalAnd(allowed, causal)
    if allowed is not None:  # finite: a row of them is uniform, not NaN
        scores = raw.SelectV2(allowed, scores, number(-0.7 * 3.4028235e38, scores.dtype.name))
    weights = _given(raw.Softmax(scores), dtype)
    if grouped:
        weights = raw.Reshape(weights, vector((batch, groups, heads // groups, time, source)))
        result = raw.Einsum([weights, value], "bgrts,bsgw->btgrw")
        return raw.Reshape(result, vector((batch, time, heads, value.shape[-1])))
    result = raw.BatchMatMulV2(weights, transpose(value, (0, 2, 1, 3)))
    return transpose(result, (0, 2, 1, 3))


# --- convolution and pooling: kernels are for images, channels last ------------------------------
_channels_last = windows.channels_last(transpose)


@_channels_last
def _conv(x, kernel, strides, padding, dilations):
    if not isinstance(padding, str):
        x, padding = raw.Pad(x, constant(((0, 0), *padding, (0, 0)))), "valid"
    padding = padding.upper()
    if (x.shape[-1] or 0) % kernel.shape[-2]:  # TensorFlow would end the process
        raise ValueError(f"{x.shape[-1]} channels do not divide into groups of {kernel.shape[-2]}.")
    if len(strides) == 1:  # an image one pixel high
        x, kernel = raw.ExpandDims(x, 1), raw.ExpandDims(kernel, 0)
        return raw.Squeeze(_conv2d(x, kernel, strides * 2, padding, (1, *dilations)), [1])
    if len(strides) == 2:
        return _conv2d(x, kernel, strides, padding, dilations)
    groups = x.shape[-1] // kernel.shape[-2]
    strides, dilations = [1, *strides, 1], [1, *dilations, 1]
    if groups == 1:
        return raw.Conv3D(x, kernel, strides, padding, dilations=dilations)
    parts = zip(raw.Split(-1, x, groups), raw.Split(-1, kernel, groups), strict=True)
    return raw.ConcatV2(
        [raw.Conv3D(x, k, strides, padding, dilations=dilations) for x, k in parts], -1
    )


def _conv2d(x, kernel, strides, padding, dilations):
    *window, depth, filters = kernel.shape
    channels = x.shape[-1]
    # the depthwise kernel's gradient is wrong where it is dilated (TensorFlow 2.21, CPU)
    if depth == 1 < channels and strides[0] == strides[1] and dilations == (1, 1):
        kernel = raw.Reshape(kernel, vector((*window, channels, filters // channels)))
        return raw.DepthwiseConv2dNative(x, kernel, [1, *strides, 1], padding)
    if dilations == (1, 1) and depth == channels:
        return raw.Conv2D(x, kernel, [1, *strides, 1], padding)
    return _unusual_conv2d(tuple(strides), padding, tuple(dilations))(x, kernel)


@cache
def _unusual_conv2d(strides, padding, dilations):
    """A convolution in groups or dilated, whose gradient only XLA has on every processor."""

    def conv(x, kernel):
        return raw.Conv2D(x, kernel, [1, *strides, 1], padding, dilations=[1, *dilations, 1])

    @tf.function(jit_compile=True, autograph=False)
    def gradients(x, kernel, upstream):
        with tf.GradientTape() as tape:
            tape.watch((x, kernel))
            y = conv(x, kernel)
        return tape.gradient(y, (x, kernel), upstream)

    @tf.custom_gradient
    def run(x, kernel):
        return conv(x, kernel), lambda upstream: gradients(x, kernel, upstream)

    return run


@_channels_last
def _conv_transpose(x, kernel, strides, padding, dilations, extra):
    if len(strides) == 1:
        x, kernel = raw.ExpandDims(x, 1), raw.ExpandDims(kernel, 0)
        extra = (None if extra[0] is None else 0, *extra)
        result = _image_transpose(x, kernel, (1, *strides), padding, (1, *dilations), extra)
        return raw.Squeeze(result, [1])
    return _image_transpose(x, kernel, strides, padding, dilations, extra)


def _image_transpose(x, kernel, strides, padding, dilations, extra):
    batch, *sizes, _ = shape(x)
    filters = kernel.shape[-2]
    full = kernel if max(dilations) == 1 else _spread(kernel, dilations)
    borders = windows.transposed(padding, sizes, kernel.shape[:-2], strides, dilations, extra)
    outs = [out for *_, out in borders]
    reaches = full.shape[:-2]
    cuts = [reach - 1 - before for reach, (before, *_) in zip(reaches, borders)]
    direct = extra[0] is None or not any(cuts)  # else the whole is made, and its borders cut
    lengths = outs
    if not direct:
        lengths = [
            (size - 1) * stride + reach + max(more - cut, 0)
            for size, stride, reach, more, cut in zip(sizes, strides, reaches, extra, cuts)
        ]
        padding = "valid"
    run = raw.Conv2DBackpropInput if len(sizes) == 2 else raw.Conv3DBackpropInputV2
    result = run(vector((batch, *lengths, filters)), full, x, [1, *strides, 1], padding.upper())
    if direct:
        return result
    return raw.Slice(result, vector((0, *cuts, 0)), vector((batch, *outs, filters)))


conv = windows.convolution(_conv)
conv_transpose = windows.transposed_convolution(_conv_transpose)


def _spread(kernel, dilations):
    """Put dilation - 1 zeros between a kernel's elements: TensorFlow's CPUs dilate no gradient."""
    for axis, dilation in enumerate(dilations):
        shape, borders = list(kernel.shape), [[0, 0]] * (len(kernel.shape) + 1)
        borders[axis + 1] = [0, dilation - 1]
        reach, shape[axis] = (shape[axis] - 1) * dilation + 1, shape[axis] * dilation
        kernel = tf.reshape(tf.pad(raw.ExpandDims(kernel, axis + 1), borders), shape)
        kernel = tf.gather(kernel, range(reach), axis=axis)
    return kernel


@windows.pooling
@_channels_last
def _pool(x, sizes, strides, padding, kernel):
    def image(x, sizes, strides):
        return kernel(x, [1, *sizes, 1], [1, *strides, 1], padding.upper())

    if len(sizes) == 2:
        return image(x, sizes, strides)
    if len(sizes) == 1:
        return raw.Squeeze(image(raw.ExpandDims(x, 1), (1, *sizes), (1, *strides)), [1])
    # kernels for volumes lack dtypes: planes first, then the depth of all their pixels
    batch, depth, height, width, channels = shape(x)
    x = raw.Reshape(x, vector((-1, height, width, channels)))
    x = image(x, sizes[1:], strides[1:])
    _, height, width, _ = shape(x)
    x = raw.Reshape(x, vector((batch, depth, height * width, channels)))
    x = image(x, (sizes[0], 1), (strides[0], 1))
    return raw.Reshape(x, vector((batch, shape(x)[1], height, width, channels)))


@through(tf.int64, UNSIGNED)
def max_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    return _pool(inputs, pool_size, strides, padding, data_format, raw.MaxPool)


@through(tf.float32, HALVES)
def average_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    return _pool(inputs, pool_size, strides, padding, data_format, raw.AvgPool)


# functions that leave some arguments to the op's body
PARTIAL = {"dot_product_attention", "project_images", "resize_pixels"}
