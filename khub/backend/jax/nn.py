"""Neural-network functions on JAX arrays."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import soft_sign as softsign

from khub import config
from khub.backend import windows

# ruff: noqa: A002, F401  (imported names are this backend's functions)

SAME = """
celu elu gelu glu log_sigmoid log_softmax selu sigmoid silu softmax softplus sparse_plus
sparse_sigmoid squareplus
"""  # functions of one name and meaning in jax.nn
globals().update({name: getattr(jax.nn, name) for name in SAME.split()})

LONG, ROWS = 1024, 128  # from so many queries on, so many at once: caches hold their scores


_positive = jax.jit(lambda x: jnp.maximum(x, 0))


def relu(x):  # jax.nn.relu, a custom_jvp, takes 0.2 ms for an eager call
    return jax.nn.relu(x) if isinstance(x, jax.core.Tracer) else _positive(x)


def dot_product_attention(
    query, key, value, bias, mask, scale, is_causal, flash_attention, attn_logits_soft_cap
):
    if attn_logits_soft_cap is not None or query.shape[-1] != value.shape[-1]:
        return NotImplemented
    mask = None if mask is None else mask.astype(bool)
    bias = None if bias is None else bias.astype(query.dtype)
    automatic = None if config.is_flash_attention_enabled() else "xla"
    kernel = {None: automatic, True: "cudnn", False: "xla"}[flash_attention]
    options = dict(scale=scale, is_causal=is_causal, implementation=kernel)

    def attend(rows):
        return jax.nn.dot_product_attention(rows, key, value, bias, mask, **options)

    alike = bias is None and not is_causal and (mask is None or mask.shape[-2] == 1)
    size = query.shape[1]  # no int where export leaves it open
    long = isinstance(query, jax.core.Tracer) and type(size) is int and size >= LONG
    if not (alike and long and jax.default_backend() == "cpu"):
        return attend(query)
    rows = lax.map(lambda row: attend(row[:, None])[:, 0], query.swapaxes(0, 1), batch_size=ROWS)
    return rows.swapaxes(0, 1)


def _space(inputs, first):
    return inputs.shape[2:] if first else inputs.shape[1:-1]


def _conv(inputs, first, kernel, strides, padding, dilations):
    sizes = _space(inputs, first), kernel.shape[:-2]
    pads = padding if padding == "same" else windows.paddings(padding, *sizes, strides, dilations)
    return _convolve(inputs, first, kernel, strides, pads, None, dilations)


def _conv_transpose(inputs, first, kernel, strides, padding, dilations, extra):
    sizes = _space(inputs, first), kernel.shape[:-2]
    borders = windows.transposed(padding, *sizes, strides, dilations, extra)
    kernel = jnp.swapaxes(jnp.flip(kernel, range(kernel.ndim - 2)), -1, -2)
    pads, ones = [border[:2] for border in borders], (1,) * len(borders)
    return _convolve(inputs, first, kernel, ones, pads, strides, dilations)


def _convolve(inputs, first, kernel, strides, pads, spread, dilations):
    space = "DHW"[5 - kernel.ndim :]
    layout = f"NC{space}" if first else f"N{space}C"
    groups = inputs.shape[layout.index("C")] // kernel.shape[-2]
    dimensions = layout, f"{space}IO", layout
    return lax.conv_general_dilated(
        inputs, kernel, strides, pads, spread, dilations, dimensions, groups
    )


conv = windows.convolution(_conv)
conv_transpose = windows.transposed_convolution(_conv_transpose)


@windows.pooling
def _pool(inputs, first, sizes, strides, padding, start, function):
    def full(values, rest):
        return (rest, rest, *values) if first else (rest, *values, rest)

    sizes, strides = full(sizes, 1), full(strides, 1)
    return lax.reduce_window(inputs, start, function, sizes, strides, padding)


def max_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    floating = jnp.issubdtype(inputs.dtype, jnp.floating)
    lowest = -jnp.inf if floating else inputs.dtype.type(jnp.iinfo(inputs.dtype).min)
    return _pool(inputs, pool_size, strides, padding, data_format, lowest, lax.max)


def average_pool(inputs, pool_size, strides=None, padding="valid", data_format=None):
    settings = pool_size, strides, padding, data_format, 0.0, lax.add
    if padding == "valid":
        sizes = windows.per_axis(pool_size, inputs.ndim - 2, "pool_size")
        return _pool(inputs, *settings) / math.prod(sizes)
    return _pool(inputs, *settings) / _pool(jnp.ones_like(inputs), *settings)
