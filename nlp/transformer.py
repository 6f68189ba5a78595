"""Parts of transformers that the families share: dense layers, rotary positions, cached attention.

Vaswani et al. 2017, arXiv:1706.03762.
"""

import math
from functools import partial

import numpy as np

from khub import initializers, ops
from khub.fields import Choice, PositiveInt, Rate
from khub.layers import (
    Dense,
    Dropout,
    Embedding,
    Layer,
    LayerNormalization,
    RMSNormalization,
)

from .cache import EAGER, overwrite

ACTIVATIONS = {  # the references' hidden_act
    "gelu": partial(ops.gelu, approximate=False),
    "gelu_new": partial(ops.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(ops.gelu, approximate=True),
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),
    "relu": ops.relu,
    "silu": ops.silu,
    "swish": ops.silu,
    "tanh": ops.tanh,
}
ActivationName = Choice(*ACTIVATIONS)

HIDDEN = -3e4  # a score of which softmax makes 0; float16 has it


def normal():
    return initializers.TruncatedNormal(stddev=0.02)


def built(layer, shape=None):
    """The layer itself, with its weights."""
    layer.build(shape)
    return layer


def dense(layer, inputs, units, kind=Dense, **options):
    """A built Dense of `layer`, with the usual initial values and the layer's dtype."""
    made = kind(units, kernel_initializer=normal(), dtype=layer.dtype_policy, **options)
    return built(made, (None, inputs))


def norm(layer, width, epsilon, **options):
    """A built LayerNormalization of `layer`."""
    made = LayerNormalization(epsilon=epsilon, dtype=layer.dtype_policy, **options)
    return built(made, (None, width))


def table(layer, rows, width):
    """A built Embedding of `layer`."""
    return built(Embedding(rows, width, normal(), dtype=layer.dtype_policy))


def root_mean_square_norm(layer, width, epsilon, offset=0.0):
    """A built RMS normalization; with an offset its scale is kept less that number (Gemma)."""
    options = dict(epsilon=epsilon, dtype=layer.dtype_policy)
    made = OffsetNormalization(offset=offset, **options) if offset else RMSNormalization(**options)
    return built(made, (None, width))


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
    Where the angles depend on a text's length they are a function of it.
    """
    angles = 1.0 / wavelength ** (np.arange(0, width, 2, dtype="float64") / width)
    scaling = scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in SCALINGS:
        raise ValueError(
            f"rope_type must be one of {', '.join(SCALINGS)}; got {kind!r} in rope_scaling."
        )
    angles, factor = SCALINGS[kind](angles, scaling, width, wavelength)
    return angles if callable(angles) else angles.astype("float32"), factor


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


def _longrope(angles, scaling, width, wavelength):
    """Each pair slower by a factor of its own, others in long texts. Ding et al., 2402.13753."""
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    short, long = (
        (angles / np.asarray(scaling[name], "float64")).astype("float32")
        for name in ("short_factor", "long_factor")
    )
    sharper = scaling.get("attention_factor") or (
        math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    )
    return lambda length: ops.where(length > original, long, short), sharper


def _dynamic(angles, scaling, width, wavelength):
    """A longer wavelength for longer texts, such that the slowest pair is interpolated.

    u/emozilla 2023; Peng et al., arXiv:2309.00071, section 3.
    """
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    angles = angles.astype("float32")
    power = (-np.arange(0, width, 2) / (width - 2)).astype("float32")

    def longer(length):
        share = ops.maximum(ops.cast(length, "float32") / original, 1.0)
        return ops.multiply(angles, ops.power(factor * share - (factor - 1), power))

    return longer, 1.0


SCALINGS = {
    "default": lambda angles, *_: (angles, 1.0),
    "dynamic": _dynamic,
    "linear": _linear,
    "llama3": _llama3,
    "longrope": _longrope,
    "yarn": _yarn,
}


def rotation(positions, angles, factor, dtype, length=None):
    """(cos, sin) of positions, each (batch, time, 1, width): halves of a head are the pairs.

    length: of the text that they are in
    """
    angles = angles(length) if callable(angles) else angles
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
    share = np.log(np.maximum(away, 1).astype("float32") / exact) / math.log(most / exact)
    far = np.minimum(exact + (share * (buckets - exact)).astype(int), buckets - 1)
    return (first + np.where(away < exact, away, far)).astype("int32")


class RelativePositions(Layer):
    """What each head adds to the score of a key by the bucket of its distance from the query.

    queries, keys: int (n,), positions -> (1, heads, queries, keys)
    """

    heads: PositiveInt
    buckets: PositiveInt = 32
    max_distance: PositiveInt = 128
    both_sides: bool = True

    def build(self, shape=None):
        self.table = table(self, self.buckets, self.heads)
        most = self.max_distance
        distances = np.arange(-most, most + 1)
        self._bucket = position_buckets(distances, self.buckets, most, self.both_sides)

    def call(self, queries, keys):
        most = self.max_distance
        distance = ops.clip(keys[None] - queries[:, None], -most, most) + most
        bucket = ops.take(ops.convert_to_tensor(self._bucket), distance)
        return ops.transpose(self.table(bucket), (2, 0, 1))[None]


# --- attention -----------------------------------------------------------------------------------
def hidden_bias(seen, dtype):
    """0 where `seen` is true; else what, added to a score, makes softmax's result 0."""
    return ops.cast(ops.where(ops.cast(seen, "bool"), 0.0, HIDDEN), dtype)


def padding_bias(mask, dtype):
    """`hidden_bias` of a mask (batch, time), (batch, 1, 1, time); None without one."""
    return None if mask is None else hidden_bias(mask[:, None, None], dtype)


def visible(time, cache=None, mask=None, window=None):
    """What each of `time` queries behind a cache's positions sees, bool (batch or 1, 1, time,
    source); None where it is all that lies before it.

    mask: bool (batch, time), the real tokens   window: how many positions it looks back
    """
    at, starts = (0, None) if cache is None else (cache.length, cache.starts)
    behind = cache is not None and (not EAGER or time > 1 and at > 0)
    if mask is None and starts is None and not behind and window is None:
        return None
    source = time if cache is None else at + time if EAGER else cache.room
    queries, keys = (ops.arange(time) + at)[:, None], ops.arange(source)[None]
    seen = (keys <= queries)[None, None]
    if mask is not None:
        seen = ops.logical_and(seen, ops.cast(mask, "bool")[:, None, None])
    if starts is not None:
        seen = ops.logical_and(seen, keys[None, None] >= starts[:, None, None, None])
    return seen if window is None else ops.logical_and(seen, keys > queries - window)


def attend(query, key, value, drop=None, training=None, **options):
    """`ops.dot_product_attention`; in training with a share `drop` of the weights left out."""
    if not training or drop is None or not drop.rate:
        return ops.dot_product_attention(query, key, value, **options)
    scale = options.get("scale") or query.shape[-1] ** -0.5  # no fused kernel drops everywhere
    scores = ops.einsum("bqhd,bkhd->bhqk", query, key) * scale
    if options.get("bias") is not None:
        scores = scores + options["bias"]
    mask = options.get("mask")
    if options.get("is_causal"):
        time = ops.shape(query)[1]
        mask = visible(time, window=time)
    if mask is not None:
        scores = ops.where(mask, scores, -3e4)
    weights = drop(ops.softmax(scores, axis=-1), training=True)
    return ops.einsum("bhqk,bkhd->bqhd", weights, value)


class EncoderBlock(Layer):
    """norm(x + attention(x)), then norm(x + feed_forward(x)); with `norm_first` what goes into the
    two is normalized instead, where there is a norm.

    norms, dropouts: of the attention and the feed-forward layers, which are built
    x: (batch, time, width), bias, turned: what the attention takes besides -> (batch, time, width)
    """

    def __init__(self, attention, feed_forward, norms, dropouts, norm_first=False, **options):
        super().__init__(**options)
        self.attention, self.feed_forward = attention, feed_forward
        (self.attention_norm, self.norm), self.norm_first = norms, norm_first
        self.drop, self.last_drop = (Dropout(x, dtype=self.dtype_policy) for x in dropouts)
        self.build(None)

    def call(self, x, bias=None, turned=None, training=None):
        y = self.before(self.attention_norm, x)
        y = self.attention(y, bias, turned, training=training)
        x = self.after(self.attention_norm, self.drop, x, y, training)
        y = self.feed_forward(self.before(self.norm, x), training=training)
        return self.after(self.norm, self.last_drop, x, y, training)

    def before(self, norm, x):
        """What a part takes of x."""
        return norm(x) if self.norm_first and norm is not None else x

    def after(self, norm, drop, x, y, training):
        """x with what a part made of it, y."""
        x = x + (drop(y, training=training) if training else y)
        return x if self.norm_first else norm(x)


class Attention(Layer):
    """Attention of `heads` query heads to `key_heads` heads of keys and values, with a cache.

    call(x, turned, visible, cache, at, bias) -> (y, cache).  x: (batch, time, width); turned: cos
    and sin of the positions, or None; visible: bool (batch or 1, 1, time, source), None: all (all
    before, in `CausalAttention`); cache: keys and values (batch, source, key_heads, head_width)
    that are written from `at` on; bias: added to the scores, (1, heads, time, source)
    by_head: query, key and value of a head lie side by side, not those of all heads
    key_bias: False where a reference has biases of queries and values alone
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
    by_head: bool = False
    key_bias: bool = True
    dropout: Rate = 0.0

    causal = False

    def build(self, shape=None):
        parts = tuple(n * self.head_width for n in (self.heads, self.key_heads, self.key_heads))
        options = dict(parts=parts, use_bias=self.bias and self.key_bias)
        self.qkv = dense(self, self.width, sum(parts), JoinedDense, **options)
        if self.bias and not self.key_bias:
            self.query_bias = self.add_weight((parts[0],), "zeros", name="query_bias")
            self.value_bias = self.add_weight((parts[2],), "zeros", name="value_bias")
        self._build_last()
        if self.norm_epsilon is not None:
            made = partial(root_mean_square_norm, self, self.head_width, self.norm_epsilon)
            self.query_norm, self.key_norm = made(self.norm_offset), made(self.norm_offset)

    def _build_last(self):
        inner, biased = self.heads * self.head_width, self.output_bias
        self.output_projection = dense(self, inner, self.width, use_bias=biased)
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy) if self.dropout else None

    def _projected(self, x):
        y = self.qkv(x)
        if not self.bias or self.key_bias:
            return y
        query, value = (ops.cast(b.value, ops.dtype(y)) for b in (self.query_bias, self.value_bias))
        none = ops.zeros((self.key_heads * self.head_width,), ops.dtype(y))
        return y + ops.concatenate([query, none, value], 0)

    def call(self, x, turned=None, visible=None, cache=None, at=0, bias=None, training=None):
        batch, time, _ = ops.shape(x)
        rows = self.heads + self.key_heads
        parts = self._projected(x)
        if self.by_head:
            parts = ops.reshape(parts, (batch, time, self.heads, 3, self.head_width))
            parts = ops.swapaxes(parts, 2, 3)
        parts = ops.reshape(parts, (batch, time, rows + self.key_heads, self.head_width))
        both, value = parts[:, :, :rows], parts[:, :, rows:]
        if self.norm_epsilon is not None:
            query, key = both[:, :, : self.heads], both[:, :, self.heads :]
            both = ops.concatenate([self.query_norm(query), self.key_norm(key)], 2)
        if turned is not None:
            both = rotate(both, turned)
        query, key = both[:, :, : self.heads], both[:, :, self.heads :]
        causal = self.causal and visible is None and cache is None
        if cache is not None:
            key, value = cache = overwrite(cache[0], at, key), overwrite(cache[1], at, value)
            if EAGER:  # what lies behind needs no mask, and no work
                key, value = key[:, : at + time], value[:, : at + time]
                causal = visible is None and time > 1
        y = attend(
            query,
            key,
            value,
            self.drop,
            training,
            bias=bias,
            mask=visible,
            scale=self.scale,
            is_causal=causal,
            attn_logits_soft_cap=self.soft_cap,
        )
        return self.output_projection(ops.reshape(y, (batch, time, -1))), cache


class SelfAttention(Attention):
    """`Attention` to both sides without a cache: call(x, bias, turned) -> y"""

    def call(self, x, bias=None, turned=None, training=None):
        return super().call(x, turned, None, None, 0, bias, training)[0]


def self_attention(layer, width, heads, dropout, bias=True):
    """A built `SelfAttention` of `layer`, whose heads share the width."""
    options = dict(bias=bias, output_bias=bias, dropout=dropout, dtype=layer.dtype_policy)
    return built(SelfAttention(width, heads, heads, width // heads, **options))


class CausalAttention(Attention):
    """`Attention` in which a position sees itself and those before it."""

    causal = True


class CrossAttention(Attention):
    """Attention to what an encoder gave, whose keys and values are computed once.

    keep(encoded (batch, source, width)) -> [keys, values], each (batch, source, heads, head_width)
    call(x (batch, time, width), kept, visible: bool (batch, 1, 1, source)) -> (batch, time, width)
    """

    def build(self, shape=None):
        inner = self.heads * self.head_width
        self.query = dense(self, self.width, inner, use_bias=self.bias)
        options = dict(parts=(inner, inner), use_bias=self.bias and self.key_bias)
        self.key_value = dense(self, self.width, 2 * inner, JoinedDense, **options)
        if self.bias and not self.key_bias:
            self.value_bias = self.add_weight((inner,), "zeros", name="value_bias")
        self._build_last()

    def keep(self, encoded):
        batch, source, _ = ops.shape(encoded)
        inner, split = self.heads * self.head_width, (batch, source, self.heads, self.head_width)
        both = self.key_value(encoded)
        value = both[..., inner:]
        if self.bias and not self.key_bias:
            value = value + ops.cast(self.value_bias.value, ops.dtype(value))
        return [ops.reshape(part, split) for part in (both[..., :inner], value)]

    def call(self, x, kept, visible=None, training=None):
        batch, time, _ = ops.shape(x)
        query = ops.reshape(self.query(x), (batch, time, self.heads, self.head_width))
        y = attend(query, *kept, self.drop, training, mask=visible, scale=self.scale)
        return self.output_projection(ops.reshape(y, (batch, time, -1)))


class FeedForward(Layer):
    """down(activation(up(x))).  x: (..., width) -> same"""

    width: PositiveInt
    hidden: PositiveInt
    activation: str = "gelu"
    bias: bool = True
    dropout: Rate = 0.0

    def build(self, shape=None):
        self._build_first()
        self.down = dense(self, self.hidden, self.width, use_bias=self.bias)
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy)

    def _build_first(self):
        self.up = dense(self, self.width, self.hidden, use_bias=self.bias)

    def _hidden(self, x):
        return ACTIVATIONS[self.activation](self.up(x))

    def call(self, x, training=None):
        x = self._hidden(x)
        return self.down(self.drop(x, training=training) if training else x)


class GatedFeedForward(FeedForward):
    """down(activation(gate(x)) * up(x)).  Shazeer 2020, arXiv:2002.05202"""

    activation = "silu"
    bias = False

    def _build_first(self):
        parts = (self.hidden, self.hidden)
        options = dict(parts=parts, use_bias=self.bias)
        self.gate_up = dense(self, self.width, sum(parts), JoinedDense, **options)

    def _hidden(self, x):
        return gated(self.gate_up(x), self.activation)


def gated(both, activation):
    """activation(gate) * up of gate and up side by side, (..., 2 hidden) -> (..., hidden)"""
    hidden = both.shape[-1] // 2
    return ACTIVATIONS[activation](both[..., :hidden]) * both[..., hidden:]


# --- masked language models ----------------------------------------------------------------------
class PredictionHead(Layer):
    """norm(activation(dense(x))): what comes before the scores of words or classes.

    x: (..., width) -> (..., units)
    """

    width: PositiveInt
    units: PositiveInt
    activation: str
    epsilon: float
    use_bias: bool = True
    norm_bias: bool = True

    def build(self, shape=None):
        self.dense = dense(self, self.width, self.units, use_bias=self.use_bias)
        self.norm = norm(self, self.units, self.epsilon, center=self.norm_bias)

    def call(self, x):
        return self.norm(ACTIVATIONS[self.activation](self.dense(x)))


def at_masks(x, inputs):
    """Hidden states at inputs["mask_positions"], (batch, masks, width); without, all of them."""
    positions = inputs.get("mask_positions")
    if positions is None:
        return x
    return ops.take_along_axis(x, ops.cast(positions, "int32")[:, :, None], axis=1)


def tied_scores(x, embedding):
    """Scores of all words, with the word embeddings as the kernel.  (..., width) -> (..., words)"""
    return ops.matmul(x, ops.transpose(ops.cast(embedding.embeddings.value, ops.dtype(x))))


# --- configurations ------------------------------------------------------------------------------
def renames(there, here, names):
    """Pairs of a weight map, see presets/weights.py, of what lies below two modules.

    names: {khub's: the reference's, or several with spaces between that khub keeps as one}
    """
    for ours, theirs in names.items():
        yield tuple(f"{there}{name}" for name in theirs.split()), f"{here}{ours}"


CONFIG = {  # khub's name -> that of most references, first the needed five
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
}


def same(*names):
    """A table of names that the reference has, too."""
    return dict(zip(names, names))


def check_sizes(backbone):
    """Raise ValueError for heads that do not share the width."""
    if backbone.hidden_dim % backbone.num_heads:
        raise ValueError(
            f"hidden_dim must be a multiple of num_heads; got {backbone.hidden_dim} and "
            f"{backbone.num_heads}."
        )


def check_length(time, most):
    """Raise ValueError for more tokens, where their number is known, than there are positions."""
    if isinstance(time, int) and time > most:
        raise ValueError(
            f"Got {time} tokens; this model has positions for {most}. Use a preprocessor with a "
            "shorter sequence_length, or cut the text."
        )


def read_config(config, names, what):
    """khub's arguments in a config.json.  names: khub's -> the reference's, first the needed five

    what: the architecture, for the ValueError
    """
    if missing := [name for name in list(names.values())[:5] if config.get(name) is None]:
        raise ValueError(f"The config.json of a {what} must say {', '.join(missing)}.")
    return {name: config[key] for name, key in names.items() if config.get(key) is not None}


def check_config(config, expected, what):
    """Raise ValueError for an option of a config.json that is not as expected, {name: value}."""
    for key, value in expected.items():
        if config.get(key) not in (None, value):
            raise ValueError(
                f"{what} with {key}={config[key]!r} is not supported; expected {value!r}."
            )
