"""DeBERTa: attention to content and to relative positions apart. He et al. 2020, arXiv:2006.03654.

Its third version: arXiv:2111.09543. The reference calls versions 2 and 3 "deberta-v2".
"""

import numpy as np

from khub import ops
from khub.fields import PositiveInt, Rate
from khub.layers import Conv1D, Dropout, Layer

from ..presets import Family, register
from .sentence_piece import DebertaV3Tokenizer
from .tasks import (
    Backbone,
    MaskedLM,
    QuestionAnswerer,
    TextClassifier,
    TextEmbedder,
    TokenClassifier,
)
from .transformer import (
    ACTIVATIONS,
    EncoderBlock,
    JoinedDense,
    PredictionHead,
    at_masks,
    attend,
    dense,
    hidden_bias,
    norm,
    table,
    tied_scores,
)

__all__ = [
    "DebertaV3Backbone",
    "DebertaV3Classifier",
    "DebertaV3MaskedLM",
    "DebertaV3QuestionAnswerer",
    "DebertaV3TextEmbedder",
    "DebertaV3TokenClassifier",
    "DebertaV3Tokenizer",
]
CONFIG = {  # khub's name -> the reference's
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "dropout": "hidden_dropout_prob",
    "max_sequence_length": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "activation": "hidden_act",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_epsilon": "layer_norm_eps",
    "bucket_size": "position_buckets",
    "position_limit": "max_relative_positions",
    "share_keys": "share_att_key",
    "absolute_positions": "position_biased_input",
    "conv_kernel_size": "conv_kernel_size",
    "conv_activation": "conv_act",
    "conv_groups": "conv_groups",
}
DEFAULTS = {  # the reference's, where they are not khub's
    "position_buckets": -1,
    "share_att_key": False,
    "position_biased_input": True,
}
TERMS = ("c2p", "p2c")  # content to position, position to content
LAYER = "encoder.layer.{i}"
WEIGHTS = [
    ("embeddings.word_embeddings", "word"),
    ("embeddings.position_embeddings", "position"),
    ("embeddings.token_type_embeddings", "segment"),
    ("embeddings.LayerNorm", "word_norm"),
    ("encoder.rel_embeddings", "relative"),
    ("encoder.LayerNorm", "relative_norm"),
    ("encoder.conv.conv", "conv"),
    ("encoder.conv.LayerNorm", "conv_norm"),
    (
        (f"{LAYER}.attention.self.query_proj", f"{LAYER}.attention.self.key_proj"),
        "blocks.{i}.attention.query_key",
    ),
    (f"{LAYER}.attention.self.value_proj", "blocks.{i}.attention.value"),
    (f"{LAYER}.attention.self.pos_query_proj", "blocks.{i}.attention.position_query"),
    (f"{LAYER}.attention.self.pos_key_proj", "blocks.{i}.attention.position_key"),
    (f"{LAYER}.attention.output.dense", "blocks.{i}.attention.projection"),
    (f"{LAYER}.attention.output.LayerNorm", "blocks.{i}.attention_norm"),
    (f"{LAYER}.intermediate.dense", "blocks.{i}.up"),
    (f"{LAYER}.output.dense", "blocks.{i}.down"),
    (f"{LAYER}.output.LayerNorm", "blocks.{i}.norm"),
]


def relative_rows(distances, buckets, limit):
    """Row of the table of relative positions for each distance from key to query, int32.

    buckets: near distances have a row each, the others share one by their logarithm, up to `limit`;
    0: every distance below `limit` has its own   He et al. 2021, arXiv:2111.09543, appendix
    """
    places, span = np.asarray(distances), buckets or limit
    if half := buckets // 2:
        away = np.maximum(np.abs(places), half) / half
        share = np.log(away) / np.log((limit - 1) / half)
        far = np.ceil(share * (half - 1)) + half
        places = np.where(np.abs(places) <= half, places, np.sign(places) * far)
    return np.clip(places + span, 0, 2 * span - 1).astype("int32")


def by_distance(scores, start):
    """y[i, j] = scores[i, start - i + j]: a score for every distance to one for every key.

    scores: (batch, heads, time, 2 * time) -> (batch, heads, time, time), moving nothing: rows that
    are one place shorter begin one place earlier each.  Dai et al. 2019, arXiv:1901.02860, B
    """
    batch, heads, time, _ = ops.shape(scores)
    flat = ops.reshape(scores, (batch, heads, -1))[:, :, start : start + time * (2 * time - 1)]
    return ops.reshape(flat, (batch, heads, time, 2 * time - 1))[..., :time]


class DisentangledAttention(Layer):
    """softmax((q k' + q position_k' + position_q k') * scale) v in every head, then a projection.

    call(x, (padding, rows, ascending, descending)): x (batch, time, width), padding: what is added
    to the scores, like (batch, 1, 1, time), or None, rows: a table (n, width), ascending: the row
    of it for each distance -time .. time - 1, descending: for time - 1 .. -time -> (batch, time,
    width)   terms: which of c2p (q position_k') and p2c there are   share_keys: content's
    projections are also those of positions.  arXiv:2006.03654, equation 4
    """

    width: PositiveInt
    heads: PositiveInt
    terms: tuple
    share_keys: bool
    dropout: Rate
    attention_dropout: Rate

    def build(self, shape=None):
        width, parts = self.width, (self.width,) * 2
        self.query_key = dense(self, width, 2 * width, JoinedDense, parts=parts)
        self.value = dense(self, width, width)
        if not self.share_keys:
            self.position_key = dense(self, width, width) if "c2p" in self.terms else None
            self.position_query = dense(self, width, width) if "p2c" in self.terms else None
        self.projection = dense(self, width, width)
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy)
        self.attention_drop = Dropout(self.attention_dropout, dtype=self.dtype_policy)
        self._scale = (width // self.heads * (1 + len(self.terms))) ** -0.5

    def call(self, x, context, training=None):
        batch, time, _ = ops.shape(x)
        split = (batch, time, self.heads, self.width // self.heads)
        both, value = self.query_key(x), ops.reshape(self.value(x), split)
        query = ops.reshape(both[..., : self.width], split) * self._scale
        key = ops.reshape(both[..., self.width :], split)
        bias = self._bias(query, key, time, *context, training)
        y = attend(query, key, value, bias, 1.0, self.attention_drop, training)
        return self.projection(ops.reshape(y, (batch, time, self.width)))

    def _bias(self, query, key, time, bias, rows, ascending, descending, training):
        """`bias` and the terms with positions, (batch, heads, time, time)."""
        rows = self.drop(rows, training=training)
        split = (-1, self.heads, self.width // self.heads)
        shared = self.query_key(rows) if self.share_keys else None
        if "c2p" in self.terms:
            to = self.position_key(rows) if shared is None else shared[:, self.width :]
            to = ops.take(ops.reshape(to, split), descending, axis=0)
            term = by_distance(ops.einsum("bthd,chd->bhtc", query, to), time - 1)
            bias = term if bias is None else bias + term
        if "p2c" in self.terms:
            of = self.position_query(rows) if shared is None else shared[:, : self.width]
            of = ops.take(ops.reshape(of * self._scale, split), ascending, axis=0)
            term = by_distance(ops.einsum("bthd,chd->bhtc", key, of), time)
            term = ops.swapaxes(term, 2, 3)  # rows were keys
            bias = term if bias is None else bias + term
        return bias


class DebertaV3Backbone(Backbone):
    """DeBERTa's encoder, versions 2 and 3.

    inputs: {"token_ids": int (batch, time), "padding_mask": bool, "segment_ids": int, both the same
    shape, or none} -> {"sequence_output": (batch, time, hidden_dim)}
    bucket_size: how many buckets of distances there are to each side, 0: none, `position_limit`
    distances count, -1: max_sequence_length   terms, share_keys: see `DisentangledAttention`
    normalize_positions: the table of distances   absolute_positions: are added to the words, too
    conv_kernel_size: of a convolution of the words that is added after the first block, 0: none
    """

    vocabulary_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    hidden_dim: PositiveInt
    intermediate_dim: PositiveInt
    dropout: Rate = 0.1
    max_sequence_length: PositiveInt = 512
    bucket_size: int = 256
    position_limit: int = -1
    terms: tuple = TERMS
    share_keys: bool = True
    normalize_positions: bool = True
    absolute_positions: bool = False
    num_segments: int = 0
    activation: str = "gelu"
    attention_dropout: Rate = 0.1
    layer_norm_epsilon: float = 1e-7
    conv_kernel_size: int = 0
    conv_activation: str = "tanh"
    conv_groups: PositiveInt = 1

    weight_map = WEIGHTS
    ignored = (
        "embeddings.position_ids",
        "embeddings.position_embeddings.*",  # there, though not added
        "mask_predictions.*",
        "lm_predictions.*",  # of either head of a masked language model the other one
        "cls.predictions.*",
    )
    reference_prefix = "deberta"

    def setup(self):
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim must be a multiple of num_heads; got {self.hidden_dim} and "
                f"{self.num_heads}."
            )
        for name in ("activation", "conv_activation"):
            if getattr(self, name) not in ACTIVATIONS:
                raise ValueError(
                    f"{name} must be one of {', '.join(ACTIVATIONS)}; got {getattr(self, name)!r}."
                )
        if unknown := {*self.terms} - {*TERMS}:
            raise ValueError(f"terms must be of {', '.join(TERMS)}; got {', '.join(unknown)}.")
        self._limit = self.max_sequence_length if self.position_limit < 1 else self.position_limit
        if self.bucket_size % 2 or self.bucket_size and self.bucket_size // 2 >= self._limit - 1:
            raise ValueError(
                f"bucket_size must be even, and half of it less than the {self._limit} distances "
                f"less one; got {self.bucket_size}."
            )
        super().setup()

    def build(self, shape=None):
        width, limit = self.hidden_dim, self._limit
        self.word = table(self, self.vocabulary_size, width)
        absolute, segments = self.absolute_positions, self.num_segments
        self.position = table(self, self.max_sequence_length, width) if absolute else None
        self.segment = table(self, segments, width) if segments else None
        self.word_norm = self._norm()
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy)
        self.relative = table(self, 2 * (self.bucket_size or limit), width)
        self.relative_norm = self._norm() if self.normalize_positions else None
        self.blocks = [self._block() for _ in range(self.num_layers)]
        self.conv, size = None, self.conv_kernel_size
        if size:
            options = dict(groups=self.conv_groups, dtype=self.dtype_policy)
            self.conv = Conv1D(width, size, padding="same", **options)
            self.conv.build((None, None, width))
            self.conv_norm = self._norm()
        # Beyond `limit` all distances have the row of the last one.
        self._rows = relative_rows(np.arange(-limit, limit + 1), self.bucket_size, limit)

    def _norm(self):
        return norm(self, self.hidden_dim, self.layer_norm_epsilon)

    def _block(self):
        width, options = self.hidden_dim, dict(dtype=self.dtype_policy)
        attention = DisentangledAttention(
            width,
            self.num_heads,
            self.terms,
            self.share_keys,
            self.dropout,
            self.attention_dropout,
            **options,
        )
        attention.build()
        sizes = width, self.intermediate_dim, self.activation, self.dropout
        made = EncoderBlock(attention, *sizes, self.layer_norm_epsilon, **options)
        made.build()
        return made

    def call(self, inputs, training=None):
        self.check_inputs(inputs)
        x = words = self._embed(inputs, training)
        mask = inputs.get("padding_mask")
        bias = None if mask is None else hidden_bias(mask[:, None, None], self.compute_dtype)
        context = bias, *self._positions(ops.shape(x)[1])
        for index, block in enumerate(self.blocks):
            x = block(x, context, training=training)
            if index == 0 and self.conv is not None:
                y = self.drop(self.conv(words), training=training)
                x = self.conv_norm(x + ACTIVATIONS[self.conv_activation](y))
        return {"sequence_output": x}

    def _embed(self, inputs, training):
        """Embeddings of the tokens; padding is 0 where a convolution would read it."""
        token_ids = inputs["token_ids"]
        time = ops.shape(token_ids)[1]
        x = self.word(token_ids)
        if self.position is not None:
            if isinstance(time, int) and time > self.max_sequence_length:
                raise ValueError(
                    f"Got {time} tokens; this model has positions for {self.max_sequence_length}. "
                    "Use a preprocessor with a shorter sequence_length."
                )
            x = x + self.position(ops.arange(time))
        if self.segment is not None:
            segment_ids = inputs.get("segment_ids")
            segment_ids = ops.zeros_like(token_ids) if segment_ids is None else segment_ids
            x = x + self.segment(segment_ids)
        x = self.word_norm(x)
        if self.conv is not None and (mask := inputs.get("padding_mask")) is not None:
            x = x * ops.cast(mask, ops.dtype(x))[..., None]
        return self.drop(x, training=training)

    def _positions(self, time):
        """What `DisentangledAttention` takes: the rows that this length needs, and their order."""
        limit, rows = self._limit, ops.cast(self.relative.embeddings.value, self.compute_dtype)
        if isinstance(time, int):
            order = self._rows[np.clip(np.arange(-time, time), -limit, limit) + limit]
            first, last = int(order[0]), int(order[-1])
            rows, order = rows[first : last + 1], ops.convert_to_tensor(order - first)
        else:
            places = ops.clip(ops.arange(-time, time), -limit, limit) + limit
            order = ops.take(self._rows, places)
        if self.relative_norm is not None:
            rows = self.relative_norm(rows)
        return rows, order, ops.flip(order)

    @classmethod
    def config_from_reference(cls, config):
        given = {**DEFAULTS, **{k: v for k, v in config.items() if v is not None}}
        ours = {name: given[key] for name, key in CONFIG.items() if key in given}
        if missing := [CONFIG[name] for name in list(CONFIG)[:5] if name not in ours]:
            raise ValueError(f"The config.json of a DeBERTa must say {', '.join(missing)}.")
        width = ours["hidden_dim"]
        expected = {
            "relative_attention": True,
            "embedding_size": width,
            "pooler_hidden_size": width,
            "attention_head_size": width // ours["num_heads"],
        }
        given.setdefault("relative_attention", False)
        for key, value in expected.items():
            if given.get(key, value) != value:
                raise ValueError(
                    f"DeBERTa with {key} {given[key]!r} is not supported; expected {value!r}."
                )
        terms = given.get("pos_att_type", ())
        terms = terms.lower().split("|") if isinstance(terms, str) else terms
        normed = given.get("norm_rel_ebd", "none").lower().split("|")
        return {
            **ours,
            "bucket_size": max(ours["bucket_size"], 0),
            "terms": tuple(term.strip() for term in terms),
            "normalize_positions": "layer_norm" in [each.strip() for each in normed],
        }

    def reference_config(self):
        return {
            "model_type": "deberta-v2",
            **{key: getattr(self, name) for name, key in CONFIG.items()},
            "position_buckets": self.bucket_size or -1,
            "relative_attention": True,
            "pos_att_type": list(self.terms),
            "norm_rel_ebd": "layer_norm" if self.normalize_positions else "none",
            "pad_token_id": 0,
        }


class DebertaV3Classifier(TextClassifier):
    """A class for a text or a pair: a dense layer on the first token, and one more."""

    backbone: Backbone
    num_classes: PositiveInt = 2
    preprocessor: object = None
    dropout: Rate = 0.1
    labels: tuple = None
    pooler_dropout: Rate = 0.0
    pooler_activation: str = "gelu"

    weight_map = [("pooler.dense", "pooler"), ("classifier", "classifier")]
    dropout_name = "cls_dropout"

    def build(self, shape=None):
        width = self.backbone.hidden_dim
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy)
        self.pooler_drop = Dropout(self.pooler_dropout, dtype=self.dtype_policy)
        self.pooler = dense(self, width, width)
        self.classifier = dense(self, width, self.num_classes)

    def call(self, inputs, training=None):
        x = self.backbone(inputs, training=training)["sequence_output"][:, 0]
        x = self.pooler(self.pooler_drop(x, training=training))
        x = ACTIVATIONS[self.pooler_activation](x)
        return self.classifier(self.drop(x, training=training))

    @classmethod
    def head_from_reference(cls, config):
        return {
            **super().head_from_reference(config),
            "pooler_dropout": config.get("pooler_dropout", 0.0),
            "pooler_activation": config.get("pooler_hidden_act", "gelu"),
        }

    def reference_config(self):
        ours = dict(pooler_dropout=self.pooler_dropout, pooler_hidden_act=self.pooler_activation)
        return {**super().reference_config(), **ours}


class DebertaV3MaskedLM(MaskedLM):
    """The hidden tokens: a head, then the word embeddings as the output's kernel.

    legacy: how the reference names the head's weights. Microsoft's files have the newer names, and
    their config.json does not say so.
    """

    backbone: Backbone
    preprocessor: object = None
    legacy: bool = False

    @property
    def weight_map(self):
        at = "cls.predictions" if self.legacy else "lm_predictions.lm_head"
        inner = f"{at}.transform" if self.legacy else at
        return [
            (f"{inner}.dense", "head.dense"),
            (f"{inner}.LayerNorm", "head.norm"),
            (f"{at}.bias", "decoder_bias"),
        ]

    def build(self, shape=None):
        body = self.backbone
        sizes = body.hidden_dim, body.activation, body.layer_norm_epsilon
        self.head = PredictionHead(*sizes, dtype=self.dtype_policy)
        self.head.build()
        size = (body.vocabulary_size,)
        self.decoder_bias = self.add_weight(size, initializer="zeros", name="decoder_bias")

    def call(self, inputs, training=None):
        x = self.backbone(inputs, training=training)["sequence_output"]
        x = self.head(at_masks(x, inputs))
        return tied_scores(x, self.backbone.word) + self.decoder_bias

    @classmethod
    def head_from_reference(cls, config):
        if not config.get("tie_word_embeddings", True):
            raise ValueError(
                "DeBERTa with output embeddings of its own (tie_word_embeddings: false) is not "
                "supported."
            )
        return {"legacy": config.get("legacy", False)}

    def reference_config(self):
        return {**super().reference_config(), "legacy": self.legacy}


class DebertaV3TokenClassifier(TokenClassifier):
    """A class for every token."""


class DebertaV3QuestionAnswerer(QuestionAnswerer):
    """Where an answer begins and ends."""


class DebertaV3TextEmbedder(TextEmbedder):
    """A vector for a text, as sentence-transformers makes it."""


register(
    Family(
        name="deberta_v3",
        model_types=("deberta-v2",),
        backbone=DebertaV3Backbone,
        tokenizer=DebertaV3Tokenizer,
        tasks={
            "TextClassifier": DebertaV3Classifier,
            "TokenClassifier": DebertaV3TokenClassifier,
            "QuestionAnswerer": DebertaV3QuestionAnswerer,
            "MaskedLM": DebertaV3MaskedLM,
            "TextEmbedder": DebertaV3TextEmbedder,
        },
        architectures={
            "TextClassifier": "DebertaV2ForSequenceClassification",
            "TokenClassifier": "DebertaV2ForTokenClassification",
            "QuestionAnswerer": "DebertaV2ForQuestionAnswering",
            "MaskedLM": "DebertaV2ForMaskedLM",
            "TextEmbedder": "DebertaV2Model",
        },
    )
)
