"""Neural-network functions on JAX arrays."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import soft_sign as softsign

from khub.backend import windows

# ruff: noqa: A002, F401  (imported names are this backend's functions)

SAME = """
celu elu glu log_sigmoid log_softmax selu sigmoid silu softplus sparse_plus sparse_sigmoid
squareplus
"""  # functions of one name and meaning in jax.nn
globals().update({name: getattr(jax.nn, name) for name in SAME.split()})


@jax.jit
def relu(x):  # jax.nn.relu, a custom_jvp, takes 0.2 ms for an eager call
    return jnp.where(x <= 0, jnp.zeros((), x.dtype), x)


def gelu(x, approximate=True):
    return jax.nn.gelu(x, approximate)


def softmax(x, axis=-1):
    return jax.nn.softmax(x, axis)


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
    if attn_logits_soft_cap is not None or query.shape[-1] != value.shape[-1]:
        return NotImplemented
    mask = None if mask is None else mask.astype(bool)
    bias = None if bias is None else bias.astype(query.dtype)
    kernel = {None: None, True: "cudnn", False: "xla"}[flash_attention]
    return jax.nn.dot_product_attention(
        query, key, value, bias, mask, scale=scale, is_causal=is_causal, implementation=kernel
    )


def conv(inputs, kernel, strides=1, padding="valid", data_format=None, dilation_rate=1):
    count = kernel.ndim - 2
    first = windows.channels_first(data_format)
    strides = windows.per_axis(strides, count, "strides")
    dilations = windows.per_axis(dilation_rate, count, "dilation_rate")
    sizes = inputs.shape[2:] if first else inputs.shape[1:-1]
    pads = windows.paddings(padding, sizes, kernel.shape[:count], strides, dilations)
    channels = inputs.shape[1 if first else -1]
    return lax.conv_general_dilated(
        inputs,
        kernel,
        strides,
        pads,
        rhs_dilation=dilations,
        dimension_numbers=_dimensions(count, first),
        feature_group_count=channels // kernel.shape[-2],
    )


def _dimensions(count, first):
    space = "DHW"[3 - count :]
    layout = f"NC{space}" if first else f"N{space}C"
    return layout, f"{space}IO", layout


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
    first = windows.channels_first(data_format)
    strides = windows.per_axis(strides, count, "strides")
    dilations = windows.per_axis(dilation_rate, count, "dilation_rate")
    extra = [None] * count
    if output_padding is not None:
        extra = windows.per_axis(output_padding, count, "output_padding")
    sizes = inputs.shape[2:] if first else inputs.shape[1:-1]
    axes = zip(sizes, kernel.shape[:count], strides, dilations, extra, strict=True)
    return lax.conv_general_dilated(
        inputs,
        jnp.swapaxes(jnp.flip(kernel, range(count)), -1, -2),
        (1,) * count,
        [windows.transposed(padding, *axis)[:2] for axis in axes],
        lhs_dilation=strides,
        rhs_dilation=dilations,
        dimension_numbers=_dimensions(count, first),
    )


def _pool(inputs, pool_size, strides, padding, data_format, start, function):
    count = inputs.ndim - 2
    first = windows.channels_first(data_format)
    sizes = windows.per_axis(pool_size, count, "pool_size")
    strides = sizes if strides is None else windows.per_axis(strides, count, "strides")

    def full(values, rest):
        return (rest, rest, *values) if first else (rest, *values, rest)

    space = inputs.shape[2:] if first else inputs.shape[1:-1]
    pads = windows.paddings(padding, space, sizes, strides, (1,) * count)
    return lax.reduce_window(
        inputs, start, function, full(sizes, 1), full(strides, 1), full(pads, (0, 0))
    )


def max_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    floating = jnp.issubdtype(inputs.dtype, jnp.floating)
    lowest = -jnp.inf if floating else jnp.iinfo(inputs.dtype).min
    return _pool(inputs, pool_size, strides, padding, data_format, lowest, lax.max)


def average_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    total = _pool(inputs, pool_size, strides, padding, data_format, 0.0, lax.add)
    if str(padding).lower() == "valid":
        count = inputs.ndim - 2
        return total / math.prod(windows.per_axis(pool_size, count, "pool_size"))
    return total / _pool(
        jnp.ones_like(inputs), pool_size, strides, padding, data_format, 0.0, lax.add
    )
