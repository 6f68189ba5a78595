"""ModernBERT: a long-context encoder; most layers see a window. Warner et al. 2024, 2412.13663.

Rotary positions, gated feed-forward layers, normalization before each part, few biases.
"""

from khub import ops
from khub.fields import PositiveInt, Rate
from khub.layers import Dropout, Layer

from ..presets import Family, register
from .byte_pair import BytePairTokenizer
from .tasks import (
    Backbone,
    MaskedLM,
    QuestionAnswerer,
    TextClassifier,
    TextEmbedder,
    TokenClassifier,
    check_pooling,
    pooled,
)
from .tokenizers import SPECIAL_TOKENS
from .transformer import (
    ACTIVATIONS,
    GatedFeedForward,
    PredictionHead,
    SelfAttention,
    at_masks,
    dense,
    frequencies,
    hidden_bias,
    norm,
    rotation,
    table,
    tied_scores,
)

__all__ = [
    "ModernBertBackbone",
    "ModernBertClassifier",
    "ModernBertMaskedLM",
    "ModernBertQuestionAnswerer",
    "ModernBertTextEmbedder",
    "ModernBertTokenClassifier",
    "ModernBertTokenizer",
]
CONFIG = {  # khub's name -> the reference's
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "max_sequence_length": "max_position_embeddings",
    "activation": "hidden_activation",
    "layer_norm_epsilon": "norm_eps",
    "norm_bias": "norm_bias",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "dropout": "embedding_dropout",
    "attention_dropout": "attention_dropout",
    "mlp_dropout": "mlp_dropout",
    "local_window": "local_attention",
    "head_activation": "classifier_activation",
    "head_bias": "classifier_bias",
    "padding_id": "pad_token_id",
}
WEIGHTS = [
    ("embeddings.tok_embeddings", "word"),
    ("embeddings.norm", "word_norm"),
    ("layers.{i}.attn_norm", "blocks.{i}.attention_norm"),
    ("layers.{i}.attn.Wqkv", "blocks.{i}.attention.qkv"),
    ("layers.{i}.attn.Wo", "blocks.{i}.attention.projection"),
    ("layers.{i}.mlp_norm", "blocks.{i}.norm"),
    ("layers.{i}.mlp.Wi", "blocks.{i}.feed_forward.gate_up"),
    ("layers.{i}.mlp.Wo", "blocks.{i}.feed_forward.down"),
    ("final_norm", "norm"),
]
HEAD = [("head", "head"), ("classifier", "classifier")]
UNDROPPED = {"classifier_dropout": 0.0}  # where config.json does not say it
LAYER_TYPES = ("full_attention", "sliding_attention")


class ModernBertBlock(Layer):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); the first block has no first norm.

    call(x, bias, turned) as `SelfAttention`
    """

    def __init__(self, attention, feed_forward, attention_norm, after, dropout, **options):
        super().__init__(**options)
        self.attention, self.feed_forward = attention, feed_forward
        self.attention_norm, self.norm = attention_norm, after
        self.drop = Dropout(dropout, dtype=self.dtype_policy)
        self.built = True

    def call(self, x, bias=None, turned=None, training=None):
        y = x if self.attention_norm is None else self.attention_norm(x)
        y = self.attention(y, bias, turned, training=training)
        x = x + self.drop(y, training=training)
        return x + self.feed_forward(self.norm(x), training=training)


class ModernBertBackbone(Backbone):
    """ModernBERT's encoder. The layers of `local_layers` see local_window // 2 places to each side.

    inputs: {"token_ids": int (batch, time), "padding_mask": bool, the same shape, or none}
    -> {"sequence_output": (batch, time, hidden_dim)}
    head_activation, head_bias: of the dense layer that every task's head begins with
    """

    vocabulary_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    hidden_dim: PositiveInt
    intermediate_dim: PositiveInt
    dropout: Rate = 0.0
    max_sequence_length: PositiveInt = 8192
    local_window: PositiveInt = 128
    local_layers: tuple = None
    rope_max_wavelength: float = 160_000.0
    rope_local_wavelength: float = 10_000.0
    activation: str = "gelu"
    attention_dropout: Rate = 0.0
    mlp_dropout: Rate = 0.0
    layer_norm_epsilon: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    head_activation: str = "gelu"
    head_bias: bool = False
    padding_id: int = 0

    weight_map = WEIGHTS
    reference_prefix = "model"

    def setup(self):
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim must be a multiple of num_heads; got {self.hidden_dim} and "
                f"{self.num_heads}."
            )
        for name in ("activation", "head_activation"):
            if getattr(self, name) not in ACTIVATIONS:
                raise ValueError(
                    f"{name} must be one of {', '.join(ACTIVATIONS)}; got {getattr(self, name)!r}."
                )
        if self.local_layers is None:
            self.local_layers = tuple(i for i in range(self.num_layers) if i % 3)
        super().setup()

    def build(self, shape=None):
        self.word = table(self, self.vocabulary_size, self.hidden_dim)
        self.word_norm = self._norm()
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy)
        self.blocks = [self._block(i) for i in range(self.num_layers)]
        self.norm = self._norm()
        self._local = [i in self.local_layers for i in range(self.num_layers)]
        width = self.hidden_dim // self.num_heads
        waves = {False: self.rope_max_wavelength, True: self.rope_local_wavelength}
        self._turns = {local: frequencies(width, waves[local]) for local in set(self._local)}

    def _norm(self):
        return norm(self, self.hidden_dim, self.layer_norm_epsilon, center=self.norm_bias)

    def _block(self, index):
        options = dict(dtype=self.dtype_policy)
        attention = SelfAttention(
            self.hidden_dim, self.num_heads, self.attention_dropout, self.attention_bias, **options
        )
        feed_forward = GatedFeedForward(
            self.hidden_dim,
            self.intermediate_dim,
            self.activation,
            self.mlp_bias,
            self.mlp_dropout,
            **options,
        )
        attention.build(), feed_forward.build()
        norms = self._norm() if index else None, self._norm()
        return ModernBertBlock(attention, feed_forward, *norms, self.attention_dropout, **options)

    def call(self, inputs, training=None):
        self.check_inputs(inputs)
        x = self.drop(self.word_norm(self.word(inputs["token_ids"])), training=training)
        time = ops.shape(x)[1]
        places, name = ops.arange(time), ops.dtype(x)
        turned = {local: rotation(places[None], *t, name) for local, t in self._turns.items()}
        bias = self._bias(inputs.get("padding_mask"), places, time)
        for block, local in zip(self.blocks, self._local):
            x = block(x, bias[local], turned[local], training=training)
        return {"sequence_output": self.norm(x)}

    def _bias(self, mask, places, time):
        """What is added to the scores of layers without and with a window; None for nothing."""
        bias, side = None, self.local_window // 2
        if mask is not None:
            bias = hidden_bias(mask[:, None, None], self.compute_dtype)
        if not self.local_layers or isinstance(time, int) and time <= side + 1:
            return bias, bias
        near = ops.absolute(places[:, None] - places[None]) <= side
        far = hidden_bias(near[None, None], self.compute_dtype)
        return bias, far if bias is None else ops.minimum(bias, far)

    @classmethod
    def config_from_reference(cls, config):
        ours = {name: config[key] for name, key in CONFIG.items() if config.get(key) is not None}
        if missing := [CONFIG[name] for name in list(CONFIG)[:5] if name not in ours]:
            raise ValueError(f"The config.json of a ModernBERT must say {', '.join(missing)}.")
        every = config.get("global_attn_every_n_layers") or 3
        types = config.get("layer_types") or [
            LAYER_TYPES[bool(i % every)] for i in range(ours["num_layers"])
        ]
        if unknown := {*types} - {*LAYER_TYPES}:
            raise ValueError(
                f"layer_types must be {' or '.join(LAYER_TYPES)}; got {', '.join(unknown)}."
            )
        ours["local_layers"] = tuple(i for i, kind in enumerate(types) if kind == LAYER_TYPES[1])
        rope = config.get("rope_parameters") or {}
        old = ("global_rope_theta", "local_rope_theta")
        names = ("rope_max_wavelength", "rope_local_wavelength")
        for kind, name, key in zip(LAYER_TYPES, names, old):
            part = {"rope_theta": config.get(key), **(rope.get(kind) or {})}
            scaling = config.get("rope_scaling") or part
            if scaling.get("rope_type", "default") != "default":
                raise ValueError(
                    f"ModernBERT with rope_type {scaling['rope_type']!r} is not supported; "
                    "expected 'default'."
                )
            if part["rope_theta"] is not None:
                ours[name] = float(part["rope_theta"])
        return ours

    def reference_config(self):
        ours = {key: getattr(self, name) for name, key in CONFIG.items()}
        waves = self.rope_max_wavelength, self.rope_local_wavelength
        rope = [{"rope_type": "default", "rope_theta": wave} for wave in waves]
        return {
            "model_type": "modernbert",
            **ours,
            "layer_types": [LAYER_TYPES[local] for local in self._local],
            "rope_parameters": dict(zip(LAYER_TYPES, rope)),
        }


def _head(task):
    """The dense layer, activation and normalization that every head begins with."""
    body = task.backbone
    sizes = body.hidden_dim, body.head_activation, body.layer_norm_epsilon
    made = PredictionHead(*sizes, body.head_bias, body.norm_bias, dtype=task.dtype_policy)
    made.build()
    return made


def _build(task, units):
    task.head, task.drop = _head(task), Dropout(task.dropout, dtype=task.dtype_policy)
    task.classifier = dense(task, task.backbone.hidden_dim, units)


class ModernBertClassifier(TextClassifier):
    """A class for a text or a pair, from its first token ("cls") or the mean of all ("mean")."""

    backbone: Backbone
    num_classes: PositiveInt = 2
    preprocessor: object = None
    dropout: Rate = 0.0
    labels: tuple = None
    pooling: str = "cls"

    weight_map = HEAD

    def setup(self):
        check_pooling(self.pooling)
        super().setup()

    def build(self, shape=None):
        _build(self, self.num_classes)

    def call(self, inputs, training=None):
        x = self.backbone(inputs, training=training)["sequence_output"]
        x = pooled(x, inputs.get("padding_mask"), self.pooling)
        return self.classifier(self.drop(self.head(x), training=training))

    @classmethod
    def head_from_reference(cls, config):
        found = super().head_from_reference(UNDROPPED | config)
        return {**found, "pooling": config.get("classifier_pooling", "cls")}

    def reference_config(self):
        return {**super().reference_config(), "classifier_pooling": self.pooling}


class ModernBertTokenClassifier(TokenClassifier):
    """A class for every token."""

    weight_map = HEAD

    def build(self, shape=None):
        _build(self, self.num_classes)

    def call(self, inputs, training=None):
        x = self.backbone(inputs, training=training)["sequence_output"]
        return self.classifier(self.drop(self.head(x), training=training))

    @classmethod
    def head_from_reference(cls, config):
        return super().head_from_reference(UNDROPPED | config)


class ModernBertQuestionAnswerer(QuestionAnswerer):
    """Where an answer begins and ends."""

    weight_map = HEAD
    call = ModernBertTokenClassifier.call

    def build(self, shape=None):
        _build(self, 2)

    @classmethod
    def head_from_reference(cls, config):
        return {"dropout": config.get("classifier_dropout", 0.0)}

    def reference_config(self):
        ours = self.backbone.reference_config()
        return {**ours, "classifier_dropout": self.dropout}


class ModernBertMaskedLM(MaskedLM):
    """The hidden tokens: a head, then the word embeddings as the output's kernel, or a matrix of
    their shape.
    """

    backbone: Backbone
    preprocessor: object = None
    tie_embeddings: bool = True
    decoder_bias: bool = True

    weight_map = [("head", "head"), ("decoder", "decoder"), ("decoder.bias", "output_bias")]

    @property
    def ignored(self):
        return ("decoder.weight",) if self.tie_embeddings else ()

    def build(self, shape=None):
        size, self.output_bias = self.backbone.vocabulary_size, None
        self.head = _head(self)
        if not self.tie_embeddings:
            width = self.backbone.hidden_dim
            self.decoder = dense(self, width, size, use_bias=self.decoder_bias)
        elif self.decoder_bias:
            self.output_bias = self.add_weight((size,), initializer="zeros", name="output_bias")

    def call(self, inputs, training=None):
        x = self.backbone(inputs, training=training)["sequence_output"]
        x = self.head(at_masks(x, inputs))
        if not self.tie_embeddings:
            return self.decoder(x)
        scores = tied_scores(x, self.backbone.word)
        return scores if self.output_bias is None else scores + self.output_bias

    @classmethod
    def head_from_reference(cls, config):
        return {
            "tie_embeddings": config.get("tie_word_embeddings", True),
            "decoder_bias": config.get("decoder_bias", True),
        }

    def reference_config(self):
        tied = {"tie_word_embeddings": self.tie_embeddings, "decoder_bias": self.decoder_bias}
        return {**super().reference_config(), **tied}


class ModernBertTextEmbedder(TextEmbedder):
    """A vector for a text, as sentence-transformers makes it."""


class ModernBertTokenizer(BytePairTokenizer):
    """Byte-level BPE with BERT's special tokens.  [CLS] first [SEP] second [SEP]"""

    reference_class = "PreTrainedTokenizerFast"
    special_tokens = SPECIAL_TOKENS
    wrap = ("cls_token $A sep_token", "cls_token $A sep_token $B:1 sep_token:1")


register(
    Family(
        name="modernbert",
        model_types=("modernbert",),
        backbone=ModernBertBackbone,
        tokenizer=ModernBertTokenizer,
        tasks={
            "TextClassifier": ModernBertClassifier,
            "TokenClassifier": ModernBertTokenClassifier,
            "QuestionAnswerer": ModernBertQuestionAnswerer,
            "MaskedLM": ModernBertMaskedLM,
            "TextEmbedder": ModernBertTextEmbedder,
        },
        architectures={
            "TextClassifier": "ModernBertForSequenceClassification",
            "TokenClassifier": "ModernBertForTokenClassification",
            "QuestionAnswerer": "ModernBertForQuestionAnswering",
            "MaskedLM": "ModernBertForMaskedLM",
            "TextEmbedder": "ModernBertModel",
        },
    )
)
