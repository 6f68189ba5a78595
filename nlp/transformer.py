"""Parts of transformers that the families share: dense layers, rotary positions, cached attention.

Vaswani et al. 2017, arXiv:1706.03762.
"""

import math
from functools import partial

import numpy as np

from khub import initializers, ops
from khub.fields import PositiveInt
from khub.layers import Dense, Layer, LayerNormalization, RMSNormalization

from .cache import EAGER, overwrite

ACTIVATIONS = {  # the references' hidden_act
    "gelu": partial(ops.gelu, approximate=False),
    "gelu_new": partial(ops.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(ops.gelu, approximate=True),
    "relu": ops.relu,
    "silu": ops.silu,
    "swish": ops.silu,
    "tanh": ops.tanh,
}


def normal():
    return initializers.TruncatedNormal(stddev=0.02)


def dense(layer, inputs, units, kind=Dense, **options):
    """A built Dense of `layer`, with the usual initial values and the layer's dtype."""
    made = kind(units, kernel_initializer=normal(), dtype=layer.dtype_policy, **options)
    made.build((None, inputs))
    return made


def norm(layer, width, epsilon):
    made = LayerNormalization(epsilon=epsilon, dtype=layer.dtype_policy)
    made.build((None, width))
    return made


def root_mean_square_norm(layer, width, epsilon, offset=0.0):
    """A built RMS normalization; with an offset its scale is kept less that number (Gemma)."""
    options = dict(epsilon=epsilon, dtype=layer.dtype_policy)
    made = OffsetNormalization(offset=offset, **options) if offset else RMSNormalization(**options)
    made.build((None, width))
    return made


class OffsetNormalization(RMSNormalization):
    """x / sqrt(mean(x**2) + epsilon) * (offset + scale), computed in float32."""

    offset: float = 1.0

    def build(self, shape):
        self.scale = self.add_weight((shape[-1],), "zeros", name="scale")

    def call(self, x):
        scale = ops.cast(self.scale.value, "float32") + self.offset
        y = ops.rms_normalization(ops.cast(x, "float32"), scale, self.axis, self.epsilon)
        return ops.cast(y, ops.dtype(x))


class JoinedDense(Dense):
    """Several Dense layers of one input as one product; `parts`: the units of each, in order.

    A reference that keeps them apart has a tensor for each part.
    """

    parts: tuple = None


# --- rotary positions, Su et al. 2021, arXiv:2104.09864 ------------------------------------------
def frequencies(width, wavelength, scaling=None):
    """Angles a position of a head's pairs, float32 (width / 2,), and the factor of cos and sin.

    scaling: {"rope_type": "linear" | "llama3" | "yarn", "factor": ...} as in a config.json
    """
    angles = 1.0 / wavelength ** (np.arange(0, width, 2, dtype="float64") / width)
    scaling = scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in SCALINGS:
        raise ValueError(
            f"rope_type must be one of {', '.join(SCALINGS)}; got {kind!r} in rope_scaling."
        )
    angles, factor = SCALINGS[kind](angles, scaling, width, wavelength)
    return angles.astype("float32"), factor


def _linear(angles, scaling, width, wavelength):
    return angles / scaling["factor"], 1.0


def _llama3(angles, scaling, width, wavelength):
    """Slow pairs slower by `factor`, fast ones as they are. Grattafiori et al. 2024, 2407.21783."""
    factor, length = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = length * angles / (2 * math.pi)  # of a pair in the original context
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return angles / factor * (1 - share) + angles * share, 1.0


def _yarn(angles, scaling, width, wavelength):
    """Interpolation by the number of turns, and sharper attention. Peng et al., 2309.00071."""
    factor, length = scaling["factor"], scaling["original_max_position_embeddings"]

    def pair(turns):
        return width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(wavelength))

    first = max(math.floor(pair(scaling.get("beta_fast") or 32)), 0)
    last = min(math.ceil(pair(scaling.get("beta_slow") or 1)), width - 1)
    ramp = (np.arange(width // 2) - first) / max(last - first, 0.001)
    share = 1 - np.clip(ramp, 0.0, 1.0)
    sharper = scaling.get("attention_factor") or (
        0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    )
    return angles / factor * (1 - share) + angles * share, sharper


SCALINGS = {
    "default": lambda angles, *_: (angles, 1.0),
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


def rotation(positions, angles, factor, dtype):
    """(cos, sin) of positions, each (batch, time, 1, width): halves of a head are the pairs."""
    turns = ops.cast(positions, "float32")[..., None] * ops.convert_to_tensor(angles)
    cos, sin = ops.cos(turns) * factor, ops.sin(turns) * factor
    both = ops.concatenate([cos, cos], -1), ops.concatenate([-sin, sin], -1)
    return tuple(ops.cast(x, dtype)[:, :, None] for x in both)


def rotate(x, turned):
    """Turn the pairs of every head.  x: (batch, time, heads, width)"""
    cos, sin = turned
    half, width = x.shape[-1] // 2, cos.shape[-1]
    if width < x.shape[-1]:  # a part of each head alone
        return ops.concatenate([rotate(x[..., :width], turned), x[..., width:]], -1)
    return x * cos + ops.roll(x, half, -1) * sin


def position_buckets(distances, buckets, most=128, both_sides=True):
    """Bucket of each distance, int32: near ones have their own, far ones share by their logarithm.

    Half of the buckets are for keys behind the query where both sides are seen. Distances from
    `most` on share the last.  Raffel et al. 2019, arXiv:1910.10683, section 2.1
    """
    distances = np.asarray(distances)
    first = np.where(distances > 0, buckets // 2, 0) if both_sides else 0
    buckets = buckets // 2 if both_sides else buckets
    away = np.abs(distances) if both_sides else np.maximum(-distances, 0)
    exact = buckets // 2
    share = np.log(np.maximum(away, 1) / exact) / math.log(most / exact)
    far = np.minimum(exact + (share * (buckets - exact)).astype(int), buckets - 1)
    return (first + np.where(away < exact, away, far)).astype("int32")


# --- attention -----------------------------------------------------------------------------------
class CausalAttention(Layer):
    """Attention of `heads` query heads to `key_heads` heads of keys and values, with a cache.

    call(x, turned, visible, cache, at) -> (y, cache).  x: (batch, time, width); turned: cos and sin
    of the positions, or None; visible: bool (batch or 1, 1, time, source), None: all before;
    cache: keys and values (batch, source, key_heads, head_width) that are written from `at` on.
    """

    width: PositiveInt
    heads: PositiveInt
    key_heads: PositiveInt
    head_width: PositiveInt
    bias: bool = False
    output_bias: bool = False
    norm_epsilon: float = None
    norm_offset: float = 0.0
    scale: float = None
    soft_cap: float = None

    def build(self, shape=None):
        parts = tuple(n * self.head_width for n in (self.heads, self.key_heads, self.key_heads))
        options = dict(parts=parts, use_bias=self.bias)
        self.qkv = dense(self, self.width, sum(parts), JoinedDense, **options)
        self.output_projection = dense(self, parts[0], self.width, use_bias=self.output_bias)
        if self.norm_epsilon is not None:
            made = partial(root_mean_square_norm, self, self.head_width, self.norm_epsilon)
            self.query_norm, self.key_norm = made(self.norm_offset), made(self.norm_offset)

    def call(self, x, turned=None, visible=None, cache=None, at=0):
        batch, time, _ = ops.shape(x)
        rows = self.heads + self.key_heads
        parts = ops.reshape(self.qkv(x), (batch, time, rows + self.key_heads, self.head_width))
        both, value = parts[:, :, :rows], parts[:, :, rows:]
        if self.norm_epsilon is not None:
            query, key = both[:, :, : self.heads], both[:, :, self.heads :]
            both = ops.concatenate([self.query_norm(query), self.key_norm(key)], 2)
        if turned is not None:
            both = rotate(both, turned)
        query, key = both[:, :, : self.heads], both[:, :, self.heads :]
        causal = visible is None and cache is None
        if cache is not None:
            key, value = cache = [overwrite(c, at, n) for c, n in zip(cache, (key, value))]
            if EAGER:  # what lies behind needs no mask, and no work
                key, value = key[:, : at + time], value[:, : at + time]
                causal = visible is None and time > 1
        y = ops.dot_product_attention(
            query,
            key,
            value,
            mask=visible,
            scale=self.scale,
            is_causal=causal,
            attn_logits_soft_cap=self.soft_cap,
        )
        return self.output_projection(ops.reshape(y, (batch, time, -1))), cache


class GatedFeedForward(Layer):
    """down(activation(gate(x)) * up(x)).  Shazeer 2020, arXiv:2002.05202"""

    width: PositiveInt
    hidden: PositiveInt
    activation: str = "silu"
    bias: bool = False

    def build(self, shape=None):
        parts = (self.hidden, self.hidden)
        options = dict(parts=parts, use_bias=self.bias)
        self.gate_up = dense(self, self.width, sum(parts), JoinedDense, **options)
        self.down = dense(self, self.hidden, self.width, use_bias=self.bias)

    def call(self, x):
        both = self.gate_up(x)
        gate, up = both[..., : self.hidden], both[..., self.hidden :]
        return self.down(ACTIVATIONS[self.activation](gate) * up)
