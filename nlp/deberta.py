"""DeBERTa: attention to content and to relative positions apart. He et al. 2020, arXiv:2006.03654.

Its third version: arXiv:2111.09543. The reference calls versions 2 and 3 "deberta-v2".
"""

import numpy as np

from khub import ops
from khub.fields import PositiveInt, Rate
from khub.layers import Conv1D, Dropout, Layer

from . import bert, transformer
from .sentence_piece import DebertaV3Tokenizer
from .transformer import ACTIVATIONS, EncoderBlock, JoinedDense, built, dense, table

SELF, ATTENTION = "encoder.layer.{i}.attention.self", "blocks.{i}.attention"
WEIGHTS = [
    *(row for row in bert.BERT if row[1] not in (f"{ATTENTION}.qkv", "pooler")),
    ((f"{SELF}.query_proj", f"{SELF}.key_proj"), f"{ATTENTION}.query_key"),
    (f"{SELF}.value_proj", f"{ATTENTION}.value"),
    ((f"{SELF}.pos_query_proj", f"{SELF}.pos_key_proj"), f"{ATTENTION}.positions"),
    ("encoder.rel_embeddings", "relative"),
    ("encoder.LayerNorm", "relative_norm"),
    ("encoder.conv.conv", "blocks.0.conv"),
    ("encoder.conv.LayerNorm", "blocks.0.conv_norm"),
]


def relative_rows(distances, buckets, limit):
    """Row of the table of relative positions for each distance from key to query, int32.

    buckets: near distances have a row each, the others share one by their logarithm, up to `limit`;
    0: every distance below `limit` has its own
    """
    places, span = np.asarray(distances), buckets or limit
    if half := buckets // 2:
        away = np.maximum(np.abs(places), half) / half
        far = np.ceil(np.log(away) / np.log((limit - 1) / half) * (half - 1)) + half
        places = np.where(np.abs(places) <= half, places, np.sign(places) * far)
    return np.clip(places + span, 0, 2 * span - 1).astype("int32")


def by_distance(scores, start):
    """y[i, j] = scores[i, start - i + j]: a score for every distance to one for every key.

    scores: (batch, heads, time, 2 * time) -> (batch, heads, time, time), a view where there are
    views: rows one place shorter begin one place earlier each.  Dai et al. 2019, arXiv:1901.02860
    """
    batch, heads, time, _ = ops.shape(scores)
    flat = ops.reshape(scores, (batch, heads, -1))[:, :, start : start + time * (2 * time - 1)]
    return ops.reshape(flat, (batch, heads, time, 2 * time - 1))[..., :time]


class DisentangledAttention(Layer):
    """softmax((q k' + q position_k' + position_q k') * scale) v in every head, then a projection.

    call(x, (padding, rows, order)): x (batch, time, width), padding: what is added to the scores,
    like (batch, 1, 1, time), or None, rows: a table (n, width) of positions, order: the row of it
    for each distance -time .. time - 1 -> (batch, time, width)
    share_keys: content's projections are also those of positions.  arXiv:2006.03654, equation 4
    """

    width: PositiveInt
    heads: PositiveInt
    share_keys: bool
    dropout: Rate
    attention_dropout: Rate

    def build(self, shape=None):
        parts = (self.width,) * 2
        self.query_key = dense(self, self.width, sum(parts), JoinedDense, parts=parts)
        self.value = dense(self, self.width, self.width)
        if not self.share_keys:
            self.positions = dense(self, self.width, sum(parts), JoinedDense, parts=parts)
        self.output_projection = dense(self, self.width, self.width)
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy)
        self.attention_drop = Dropout(self.attention_dropout, dtype=self.dtype_policy)

    def call(self, x, context, turned=None, training=None):
        (batch, time, _), heads = ops.shape(x), self.heads
        split = self.width // heads
        padding, rows, order = context
        both = ops.reshape(self.query_key(x), (batch, time, 2 * heads, split))
        query, key = both[:, :, :heads] * (3 * split) ** -0.5, both[:, :, heads:]
        project = self.query_key if self.share_keys else self.positions
        rows = project(self.drop(rows, training=training))
        rows = ops.take(ops.reshape(rows, (-1, 2 * heads, split)), order, axis=0)
        of, to = rows[:, :heads] * (3 * split) ** -0.5, ops.flip(rows[:, heads:], 0)
        bias = by_distance(ops.einsum("bthd,chd->bhtc", query, to), time - 1)
        keys = by_distance(ops.einsum("bthd,chd->bhtc", key, of), time)
        bias = bias + ops.swapaxes(keys, 2, 3)
        bias = bias if padding is None else bias + padding
        value = ops.reshape(self.value(x), (batch, time, heads, split))
        drop, options = self.attention_drop, dict(bias=bias, scale=1.0)
        y = transformer.attend(query, key, value, drop, training, **options)
        return self.output_projection(ops.reshape(y, (batch, time, self.width)))


class ConvolvedBlock(EncoderBlock):
    """norm(block(x) + activation(convolution(x))), as `EncoderBlock`; padding counts as 0."""

    def __init__(self, conv, conv_norm, conv_activation, *parts, **options):
        super().__init__(*parts, **options)
        self.conv, self.conv_norm, self.conv_activation = conv, conv_norm, conv_activation

    def call(self, x, context, turned=None, training=None):
        y, padding = super().call(x, context, turned, training), context[0]
        if padding is not None:
            x = x * ops.cast(ops.equal(padding[:, 0, 0, :, None], 0), ops.dtype(x))
        x = self.drop(self.conv(x), training=training)
        return self.conv_norm(y + ACTIVATIONS[self.conv_activation](x))


class DisentangledBackbone(bert.EncoderBackbone):
    """DeBERTa's encoder, versions 2 and 3: `EncoderBackbone` with `DisentangledAttention`.

    bucket_size: how many buckets of distances there are to each side, 0: a row for each distance
    share_keys: see `DisentangledAttention`   normalize_positions: the table of distances
    absolute_positions: are added to the words, too   conv_kernel_size: of a convolution beside the
    first block, 0: none
    """

    bucket_size: int = 256
    share_keys: bool = True
    normalize_positions: bool = True
    absolute_positions: bool = False
    conv_kernel_size: int = 0
    conv_activation: transformer.ActivationName = "tanh"

    def setup(self):
        size, limit = self.bucket_size, self.max_sequence_length
        if size % 2 or size and size // 2 >= limit - 1:
            raise ValueError(
                f"bucket_size must be even, and half of it less than max_sequence_length - 1; got "
                f"{size} and {limit}."
            )
        super().setup()

    def build(self, shape=None):
        super().build(shape)
        limit, size = self.max_sequence_length, self.bucket_size
        self.relative = table(self, 2 * (size or limit), self.hidden_dim)
        self.relative_norm = self._norm() if self.normalize_positions else None
        # Beyond `limit` all distances have the row of the last one.
        self._rows = relative_rows(np.arange(-limit, limit + 1), size, limit)

    def _attention(self):
        sizes = self.hidden_dim, self.num_heads, self.share_keys
        rates = self.dropout, self.attention_dropout
        return built(DisentangledAttention(*sizes, *rates, dtype=self.dtype_policy))

    def _block(self, index):
        if index or not self.conv_kernel_size:
            return super()._block(index)
        options = dict(padding="same", dtype=self.dtype_policy)
        conv = Conv1D(self.hidden_dim, self.conv_kernel_size, **options)
        parts = built(conv, (None, None, self.hidden_dim)), self._norm(), self.conv_activation
        return super()._block(index, ConvolvedBlock, *parts)

    def _bias(self, time, visible):
        """What `DisentangledAttention` takes; of the table, the rows that this length needs."""
        dtype, limit = self.compute_dtype, self.max_sequence_length
        padding = transformer.padding_bias(visible, dtype)
        rows = ops.cast(self.relative.embeddings.value, dtype)
        if isinstance(time, int):
            order = self._rows[np.clip(np.arange(-time, time), -limit, limit) + limit]
            first, last = int(order[0]), int(order[-1])
            rows, order = rows[first : last + 1], ops.convert_to_tensor(order - first)
        else:
            places = ops.clip(ops.arange(-time, time), -limit, limit) + limit
            order = ops.take(self._rows, places)
        return padding, rows if self.relative_norm is None else self.relative_norm(rows), order

    @classmethod
    def config_from_reference(cls, config):
        given = {**DEFAULTS, **{key: value for key, value in config.items() if value is not None}}
        width, heads = given.get("hidden_size", 0), given.get("num_attention_heads") or 1
        expected = {
            "embedding_size": width,
            "pooler_hidden_size": width,
            "attention_head_size": width // heads,
            "max_relative_positions": given.get("max_position_embeddings", 512),
        }
        said = {key: value for key, value in given.items() if value != -1}
        transformer.check_config(said, expected, "DeBERTa")
        terms = given["pos_att_type"]
        terms = terms.split("|") if isinstance(terms, str) else terms
        given["pos_att_type"] = sorted(term.strip().lower() for term in terms)
        given["norm_rel_ebd"] = "layer_norm" in given["norm_rel_ebd"]
        given["position_buckets"] = max(given["position_buckets"], 0)
        return super().config_from_reference(given)

    def reference_config(self):
        ours = {"norm_rel_ebd": "layer_norm" if self.normalize_positions else "none"}
        return {**super().reference_config(), **ours, "max_relative_positions": -1}


class DebertaV3MaskedLM(bert.EncoderMaskedLM):
    """`EncoderMaskedLM`, with tied embeddings.

    legacy: how the reference names the head's weights. Microsoft's files have the newer names, and
    their config.json does not say so.
    """

    legacy: bool = False

    @property
    def weight_map(self):
        if self.legacy:
            return bert.masked_weights("cls.predictions", *bert.TRANSFORMED)
        names = "dense", "LayerNorm", "decoder", "bias"
        return bert.masked_weights("lm_predictions.lm_head", *names)

    @classmethod
    def head_from_reference(cls, config):
        transformer.check_config(config, {"tie_word_embeddings": True}, "DeBERTa")
        return {**super().head_from_reference(config), "legacy": config.get("legacy", False)}

    def reference_config(self):
        return {**super().reference_config(), "legacy": self.legacy}


DEFAULTS = {  # of the reference, where config.json says nothing
    "relative_attention": False,
    "pos_att_type": (),
    "norm_rel_ebd": "none",
    "position_buckets": -1,
    "share_att_key": False,
    "position_biased_input": True,
}
OWN = dict(
    prefix="deberta",
    names={
        "bucket_size": "position_buckets",
        "share_keys": "share_att_key",
        "normalize_positions": "norm_rel_ebd",
        "absolute_positions": "position_biased_input",
        "conv_kernel_size": "conv_kernel_size",
        "conv_activation": "conv_act",
    },
    defaults={"num_segments": 0, "layer_norm_epsilon": 1e-7},
    weights=WEIGHTS,
    pooler=False,
    classifier=[("pooler.dense", "hidden"), ("classifier", "classifier")],
    hidden="gelu",
    drops_twice=False,
    dropout=("cls_dropout", "classifier_dropout"),
    extra={
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "conv_groups": 1,
        "pooler_dropout": 0.0,
        "pooler_hidden_act": "gelu",
    },
    # Microsoft's files; of either head of a masked language model the other one
    ignored=("embeddings.position_embeddings.*", "*predictions.*"),
    reference="DebertaV2",
)
KIND = bert.Kind("DebertaV3", "deberta-v2", DebertaV3Tokenizer, "arXiv:2111.09543", **OWN)
_made = bert.kind_family(KIND, DisentangledBackbone, MaskedLM=DebertaV3MaskedLM)
globals().update(_made)
__all__ = list(_made)
