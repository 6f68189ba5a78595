"""Neural-network functions on torch tensors: fused calls, convolution, pooling.

Images are channels-last; their permuted view is what torch calls channels_last: nothing is copied.
"""

import math
from contextlib import nullcontext
from functools import partial

import torch
from torch import celu, selu, sigmoid
from torch.nn import functional
from torch.nn.functional import elu, glu, mish, silu, softsign

from khub import config, dtypes
from khub.backend import windows
from khub.backend.torch.arrays import FLOATS, NATIVE, _wide, dtype_name

# ruff: noqa: A002, F401  (imported names are this backend's functions)

_HALF = frozenset((torch.float16, torch.bfloat16))


# --- activations and losses ----------------------------------------------------------------------
relu, relu6 = _wide(torch.relu), _wide(functional.relu6)
hard_shrink, hard_sigmoid = functional.hardshrink, functional.hardsigmoid
hard_silu, log_sigmoid = functional.hardswish, functional.logsigmoid
soft_shrink, tanh_shrink = functional.softshrink, functional.tanhshrink
leaky_relu = functional.leaky_relu


def _overwriting(function, x):
    return function(x, inplace=not torch.is_grad_enabled())


# activation -> the same of a tensor that nobody else has
OVERWRITING = dict(relu=functional.relu, relu6=relu6, silu=silu, hard_silu=hard_silu)
OVERWRITING = {name: partial(_overwriting, run) for name, run in OVERWRITING.items()}


def added_in_place(x, y):
    """x + y, in the place of x where no gradient is wanted: a new array costs as much as a pass."""
    return x + y if torch.is_grad_enabled() else x.add_(y)


def softplus(x):
    return functional.softplus(x, threshold=40)  # from where on it is x, in float64 too


def gelu(x, approximate=True):
    return functional.gelu(x, approximate="tanh" if approximate else "none")


def softmax(x, axis=-1):
    if isinstance(axis, int):
        return torch.softmax(x, axis)
    return torch.exp(log_softmax(x, axis))


def log_softmax(x, axis=-1):
    if isinstance(axis, int):
        return torch.log_softmax(x, axis)
    return x - torch.logsumexp(x, axis, keepdim=True)


def sparse_categorical_crossentropy(target, output, from_logits=False, axis=-1):
    if target.dim() == output.dim() and target.shape[axis] == 1:
        target = target.squeeze(axis)
    if from_logits:
        logarithm = torch.log_softmax(output, axis)
    else:
        shares = output / torch.sum(output, axis, keepdim=True)
        logarithm = torch.log(torch.clamp(shares, config.epsilon(), 1 - config.epsilon()))
    target = target.long().unsqueeze(axis)
    return -torch.take_along_dim(logarithm, target, axis).squeeze(axis)


def binary_crossentropy(target, output, from_logits=False):
    if target.shape != output.shape:
        target, output = torch.broadcast_tensors(target, output)
    if from_logits:
        return functional.binary_cross_entropy_with_logits(output, target, reduction="none")
    output = torch.clamp(output, config.epsilon(), 1 - config.epsilon())
    return functional.binary_cross_entropy(output, target, reduction="none")


# --- normalization -------------------------------------------------------------------------------
def _as(x, dtype):
    """Return an operand that may be None in a native dtype."""
    return x if x is None or x.dtype is dtype else x.to(dtype)


def batch_normalization(x, mean, variance, axis, offset=None, scale=None, epsilon=1e-3):
    given = (mean, variance, offset, scale)
    if any(v is not None and v.dtype is not x.dtype for v in given):
        dtype = NATIVE[dtypes.result_type(*map(dtype_name, (x, mean, variance)))]
        x, mean, variance, offset, scale = (_as(v, dtype) for v in (x, *given))
    # one call, which is slower for many numbers and has no gradient of the mean
    if type(x.numel()) is int and x.numel() < 2**15 and not torch.is_grad_enabled():
        last = axis in (-1, x.dim() - 1)
        rows = x.reshape(-1, x.shape[-1]) if last else x.movedim(axis, 1)
        y = torch.batch_norm(rows, scale, offset, mean, variance, False, 0.0, epsilon, False)
        return y.view(x.shape) if last else y.movedim(1, axis)
    factor = torch.rsqrt(variance + epsilon)
    if scale is not None:
        factor = factor * scale
    shift = -mean * factor if offset is None else torch.addcmul(offset, mean, factor, value=-1)
    if axis % x.dim() != x.dim() - 1:
        shape = (-1, *[1] * (x.dim() - 1 - axis % x.dim()))
        factor, shift = factor.reshape(shape), shift.reshape(shape)
    return torch.addcmul(shift, x, factor)


def _last_axes(x, axis):
    """Return the sizes of `axis` if these are the last axes in order, else None."""
    axes = (axis,) if isinstance(axis, int) else axis
    first = x.dim() - len(axes)
    return x.shape[first:] if [a % x.dim() for a in axes] == [*range(first, x.dim())] else None


def layer_normalization(x, gamma=None, beta=None, axis=-1, epsilon=None, **kwargs):
    epsilon, sizes = config.epsilon() if epsilon is None else epsilon, _last_axes(x, axis)
    if sizes is None or any(w is not None and w.shape != sizes for w in (gamma, beta)):
        return NotImplemented
    return functional.layer_norm(x, sizes, _as(gamma, x.dtype), _as(beta, x.dtype), epsilon)


def group_normalization(x, groups, gamma=None, beta=None, axis=-1, epsilon=1e-3):
    # torch has no gradient of an offset alone, and crashes where these views need none themselves
    gamma = torch.ones_like(beta) if gamma is None and beta is not None else gamma
    gamma, beta, y = _as(gamma, x.dtype), _as(beta, x.dtype), x.movedim(axis, 1)
    y = y if x.requires_grad or not torch.is_grad_enabled() else y.contiguous()
    return functional.group_norm(y, groups, gamma, beta, epsilon).movedim(1, axis)


def rms_normalization(x, scale=None, axis=-1, epsilon=None):
    epsilon, sizes = config.epsilon() if epsilon is None else epsilon, _last_axes(x, axis)
    if sizes is None or scale is not None and scale.shape != sizes:
        return NotImplemented
    return functional.rms_norm(x, sizes, _as(scale, x.dtype), epsilon)


# --- dense layers and attention ------------------------------------------------------------------
def linear(x, kernel, bias=None):
    return functional.linear(x, kernel.t(), bias)


def dot_product_attention(
    query, key, value, bias, mask, scale, is_causal, flash_attention, attn_logits_soft_cap
):
    if attn_logits_soft_cap is not None:
        return NotImplemented
    dtype = query.dtype
    allowed = _as(mask, torch.bool)
    if is_causal and not (allowed is None and bias is None):
        size = query.shape[1], key.shape[1]
        causal = torch.ones(size, dtype=torch.bool, device=query.device).tril()
        allowed = causal if allowed is None else allowed & causal
        is_causal = False
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    if allowed is not None:  # a query that may attend nowhere attends everywhere, with equal scores
        nowhere = ~allowed.any(-1, keepdim=True)
        allowed = allowed | nowhere
        query = query.masked_fill(nowhere, 0.0)
        bias = None if bias is None else torch.where(nowhere, 0.0, bias)
    added = _as(bias, dtype)
    if allowed is not None:
        added = allowed if added is None else added.masked_fill(~allowed, -math.inf)
    options = dict(is_causal=is_causal, scale=scale, enable_gqa=grouped)
    with _kernels(flash_attention):
        result = functional.scaled_dot_product_attention(query, key, value, added, **options)
    return result.transpose(1, 2)


def _kernels(flash):
    """A context in which attention must (True) or must not (False) use the flash kernel."""
    if flash is None and config.is_flash_attention_enabled():
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    others = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION] if flash else others)


# --- convolution ---------------------------------------------------------------------------------
_CONV = {2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def _image(settings, lead=1):
    """Return settings of each space axis: sequences pass as images of height 1.

    torch has a channels-last layout for images and volumes only.
    """
    return (lead, *settings) if len(settings) == 1 else settings


def _channels_second(inputs, first):
    """Return the view (batch, n, *space) and the way back."""
    x = inputs if first else inputs.movedim(-1, 1)
    flat = inputs.dim() == 3
    x = x.unsqueeze(2) if flat else x

    def back(y):
        y = y.squeeze(2) if flat else y
        return y if first else y.movedim(1, -1)

    return x, back


def _padded(x, borders, fill=0.0):
    """Return (x, padding): borders equal on both sides are left to the kernel, others are made."""
    if all(type(before) is int and before == after for before, after in borders):
        return x, [before for before, _ in borders]
    flat = [size for border in reversed(borders) for size in border]
    return functional.pad(x, flat, value=fill), 0


def _weights(kernel):
    """(*window, n, filters) -> the view (filters, n, *window)"""
    count = kernel.dim() - 2
    kernel = kernel.permute(count + 1, count, *range(count))
    return kernel.unsqueeze(2) if count == 1 else kernel


def _conv(inputs, first, kernel, strides, padding, dilations):
    *window, depth, filters = kernel.shape
    pointwise = math.prod(window) == 1 and depth == inputs.shape[-1] and isinstance(padding, str)
    if pointwise and not first and inputs.is_cpu:  # torch's kernels pack the weights at each call
        if max(strides) > 1:
            steps = (slice(None), *(slice(None, None, stride) for stride in strides))
            inputs = inputs[steps].contiguous()  # else a product of each image
        return torch.matmul(inputs, kernel.reshape(depth, filters))
    x, back = _channels_second(inputs, first)
    weights, strides, dilations = _weights(kernel), _image(strides), _image(dilations)
    padding = _image(padding, (0, 0))
    borders = windows.paddings(padding, x.shape[2:], weights.shape[2:], strides, dilations)
    x, borders = _padded(x, borders)
    groups = x.shape[1] // weights.shape[1]
    return back(_CONV[x.dim() - 2](x, weights, None, strides, borders, dilations, groups))


def _conv_transpose(inputs, first, kernel, strides, padding, dilations, extra):
    x, back = _channels_second(inputs, first)
    weights, strides, dilations = _weights(kernel), _image(strides), _image(dilations)
    axes = x.shape[2:], weights.shape[2:], strides, dilations, _image(extra, None)
    borders = windows.transposed(padding, *axes)
    cuts, longer = [], []
    for (before, _, out), (size, window, stride, dilation, _) in zip(borders, zip(*axes)):
        reach = (window - 1) * dilation + 1
        cuts.append(reach - 1 - before)
        longer.append(max(out - ((size - 1) * stride + reach - 2 * cuts[-1]), 0))
    y = _CONV_TRANSPOSE[x.dim() - 2](x, weights, None, strides, cuts, longer, 1, dilations)
    for axis, (*_, out) in enumerate(borders, 2):
        y = y.narrow(axis, 0, out)
    return back(y)


conv = windows.convolution(_conv)
conv_transpose = windows.transposed_convolution(_conv_transpose)


# --- pooling -------------------------------------------------------------------------------------
@windows.pooling
def _pool(inputs, first, sizes, strides, padding, fill):
    """Return (x, back, sizes, strides, padding) of a pooling."""
    sizes, strides = _image(sizes), _image(strides)
    x, back = _channels_second(inputs, first)
    borders = windows.paddings(padding, x.shape[2:], sizes, strides, (1,) * len(sizes))
    x, borders = _padded(x, borders, fill)
    return x, back, sizes, strides, borders


@_wide
def max_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    lowest = -math.inf if inputs.dtype in FLOATS else torch.iinfo(inputs.dtype).min
    x, back, *settings = _pool(inputs, pool_size, strides, padding, data_format, lowest)
    run = functional.max_pool2d if x.dim() == 4 else functional.max_pool3d
    return back(run(x, *settings))


def _average_pool3d(x, *args, **kwargs):
    wide = x.float() if x.dtype in _HALF else x  # torch lacks it on the CPU
    return functional.avg_pool3d(wide, *args, **kwargs).to(x.dtype)


def average_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    x, back, *settings = _pool(inputs, pool_size, strides, padding, data_format, 0.0)
    run = functional.avg_pool2d if x.dim() == 4 else _average_pool3d
    if settings[-1] != 0:
        return back(run(x, *settings, count_include_pad=False))
    ones = _pool(torch.ones_like(inputs[:1]), pool_size, strides, padding, data_format, 0.0)[0]
    return back(run(x, *settings) / run(ones, *settings))


def _floats_only(function):
    """Leave other dtypes, which torch has no kernel for, to the op's reference body."""
    return lambda x, *args: function(x, *args) if x.dtype in FLOATS else NotImplemented


@_floats_only
def _adaptive_pool(inputs, output_size, data_format, name):
    sizes = windows.per_axis(output_size, inputs.dim() - 2, "output_size")
    x, back = _channels_second(inputs, windows.channels_first(data_format))
    return back(getattr(functional, f"{name}{x.dim() - 2}d")(x, _image(sizes)))


def adaptive_average_pool(inputs, output_size, data_format=None):
    return _adaptive_pool(inputs, output_size, data_format, "adaptive_avg_pool")


def adaptive_max_pool(inputs, output_size, data_format=None):
    return _adaptive_pool(inputs, output_size, data_format, "adaptive_max_pool")


fold, unfold = _floats_only(functional.fold), _floats_only(functional.unfold)


# --- connectionist temporal classification -------------------------------------------------------
def ctc_loss(target, output, target_length, output_length, mask_index=0):
    if output.is_meta:  # torch cannot tell the shape without values
        return NotImplemented
    name = dtype_name(output)
    frames = torch.log_softmax(output.float() if output.dtype in _HALF else output, -1)
    lengths = output_length.long(), target_length.long()
    loss = functional.ctc_loss(
        frames.transpose(0, 1), target.long(), *lengths, mask_index, "none", zero_infinity=True
    )
    target, output_length, target_length = target.long(), *lengths
    places = torch.arange(1, target.shape[1], device=target.device)
    labels = places < target_length[:, None]
    repeats = ((target[:, 1:] == target[:, :-1]) & labels).sum(1)  # each needs a blank between
    loss = torch.where(target_length + repeats > output_length, math.inf, loss)
    return loss.to(NATIVE[name])


# Functions that leave some arguments to the op's reference body.
PARTIAL = {"dot_product_attention", "adaptive_average_pool", "adaptive_max_pool"}
PARTIAL |= {"layer_normalization", "rms_normalization"}
PARTIAL |= {"ctc_loss", "fold", "unfold", "resize_pixels", "sample_images", "bincount"}
