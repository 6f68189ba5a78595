"""BERT: a bidirectional transformer encoder of text. Devlin et al. 2018, arXiv:1810.04805."""

from khub import ops
from khub.fields import PositiveInt, Rate
from khub.layers import Dropout, Embedding, Layer

from ..presets import Family, register
from .tasks import Backbone, MaskedLM, TextClassifier, TextEmbedder
from .tokenizers import WordPieceTokenizer
from .transformer import ACTIVATIONS, attend, dense, norm, normal


def sizes(vocabulary, layers, heads, width):
    return {
        "vocabulary_size": vocabulary,
        "num_layers": layers,
        "num_heads": heads,
        "hidden_dim": width,
        "intermediate_dim": 4 * width,
    }


VARIANTS = {  # vocabulary, layers, heads, width
    # Turc et al. 2019, arXiv:1908.08962, table 1 (base: Devlin et al., section 3)
    "bert_tiny_en_uncased": sizes(30_522, 2, 2, 128),
    "bert_mini_en_uncased": sizes(30_522, 4, 4, 256),
    "bert_small_en_uncased": sizes(30_522, 4, 8, 512),
    "bert_medium_en_uncased": sizes(30_522, 8, 8, 512),
    # https://github.com/google-research/bert
    "bert_base_en_uncased": sizes(30_522, 12, 12, 768),
    "bert_base_en": sizes(28_996, 12, 12, 768),
    "bert_base_zh": sizes(21_128, 12, 12, 768),
    "bert_base_multi": sizes(119_547, 12, 12, 768),
    "bert_large_en_uncased": sizes(30_522, 24, 16, 1024),
    "bert_large_en": sizes(28_996, 24, 16, 1024),
    # khub's own, presets/recipes/bert_micro_en_uncased.py
    "bert_micro_en_uncased": sizes(8_192, 2, 2, 128),
}

WEIGHTS = [
    ("embeddings.word_embeddings", "embeddings.word"),
    ("embeddings.position_embeddings", "embeddings.position"),
    ("embeddings.token_type_embeddings", "embeddings.segment"),
    ("embeddings.LayerNorm", "embeddings.norm"),
    ("encoder.layer.{i}.attention.self", "blocks.{i}.attention"),  # query, key, value
    ("encoder.layer.{i}.attention.output.dense", "blocks.{i}.attention.projection"),
    ("encoder.layer.{i}.attention.output.LayerNorm", "blocks.{i}.attention_norm"),
    ("encoder.layer.{i}.intermediate.dense", "blocks.{i}.up"),
    ("encoder.layer.{i}.output.dense", "blocks.{i}.down"),
    ("encoder.layer.{i}.output.LayerNorm", "blocks.{i}.norm"),
    ("pooler.dense", "pooler"),
]


class BertEmbeddings(Layer):
    """norm(word + position + segment).

    token_ids, segment_ids: int (batch, time) -> (batch, time, width)
    """

    vocabulary_size: PositiveInt
    width: PositiveInt
    max_sequence_length: PositiveInt
    num_segments: PositiveInt
    dropout: Rate
    epsilon: float

    def build(self, shape=None):
        def table(rows):
            made = Embedding(rows, self.width, normal(), dtype=self.dtype_policy)
            made.build()
            return made

        self.word = table(self.vocabulary_size)
        self.position = table(self.max_sequence_length)
        self.segment = table(self.num_segments)
        self.norm = norm(self, self.width, self.epsilon)
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy)

    def call(self, token_ids, segment_ids=None, training=None):
        time = ops.shape(token_ids)[1]
        if isinstance(time, int) and time > self.max_sequence_length:
            raise ValueError(
                f"Got {time} tokens; this model has positions for {self.max_sequence_length}. "
                "Use a preprocessor with a shorter sequence_length."
            )
        if segment_ids is None:
            segment_ids = ops.zeros_like(token_ids)
        x = self.word(token_ids) + self.position(ops.arange(time)) + self.segment(segment_ids)
        return self.drop(self.norm(x), training=training)


class BertAttention(Layer):
    """softmax(q k' / sqrt(head width)) v in every head, then a projection.

    x: (batch, time, width), visible: bool (batch, 1, 1, time) -> (batch, time, width)
    """

    width: PositiveInt
    heads: PositiveInt
    dropout: Rate

    def build(self, shape=None):
        self.query = dense(self, self.width, self.width)
        self.key = dense(self, self.width, self.width)
        self.value = dense(self, self.width, self.width)
        self.projection = dense(self, self.width, self.width)
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy)

    def call(self, x, visible=None, training=None):
        batch, time, _ = ops.shape(x)
        split = (batch, time, self.heads, self.width // self.heads)
        q, k, v = (ops.reshape(part(x), split) for part in (self.query, self.key, self.value))
        y = attend(q, k, v, self.drop, training, mask=visible)
        return self.projection(ops.reshape(y, (batch, time, self.width)))


class BertBlock(Layer):
    """Attention, then two dense layers, normalized after each addition.

    x: (batch, time, width), visible: bool (batch, 1, 1, time) -> (batch, time, width)
    """

    width: PositiveInt
    heads: PositiveInt
    hidden: PositiveInt
    activation: str
    dropout: Rate
    attention_dropout: Rate
    epsilon: float

    def build(self, shape=None):
        self.attention = BertAttention(
            self.width, self.heads, self.attention_dropout, dtype=self.dtype_policy
        )
        self.attention.build()
        self.attention_norm = norm(self, self.width, self.epsilon)
        self.up = dense(self, self.width, self.hidden)
        self.down = dense(self, self.hidden, self.width)
        self.norm = norm(self, self.width, self.epsilon)
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy)

    def call(self, x, visible=None, training=None):
        y = self.attention(x, visible, training=training)
        x = self.attention_norm(x + self.drop(y, training=training))
        y = self.down(ACTIVATIONS[self.activation](self.up(x)))
        return self.norm(x + self.drop(y, training=training))


class BertBackbone(Backbone):
    """BERT's encoder.

    inputs: {"token_ids": int (batch, time), "segment_ids": int, "padding_mask": bool, both the same
    shape}; without segment_ids all are 0, without padding_mask all tokens count
    -> {"sequence_output": (batch, time, hidden_dim), "pooled_output": (batch, hidden_dim)}
    """

    vocabulary_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    hidden_dim: PositiveInt
    intermediate_dim: PositiveInt
    dropout: Rate = 0.1
    max_sequence_length: PositiveInt = 512
    num_segments: PositiveInt = 2
    activation: str = "gelu"
    attention_dropout: Rate = 0.1
    layer_norm_epsilon: float = 1e-12

    weight_map = WEIGHTS
    ignored = ("embeddings.position_ids", "cls.predictions.decoder.*", "cls.seq_relationship.*")
    optional = ("pooler",)
    reference_prefix = "bert"

    def setup(self):
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim must be a multiple of num_heads; got {self.hidden_dim} and "
                f"{self.num_heads}."
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"BERT's activation must be one of {', '.join(ACTIVATIONS)}; got "
                f"{self.activation!r}."
            )
        super().setup()

    def build(self, shape=None):
        self.embeddings = BertEmbeddings(
            self.vocabulary_size,
            self.hidden_dim,
            self.max_sequence_length,
            self.num_segments,
            self.dropout,
            self.layer_norm_epsilon,
            dtype=self.dtype_policy,
        )
        self.embeddings.build()
        self.blocks = [
            BertBlock(
                self.hidden_dim,
                self.num_heads,
                self.intermediate_dim,
                self.activation,
                self.dropout,
                self.attention_dropout,
                self.layer_norm_epsilon,
                dtype=self.dtype_policy,
            )
            for _ in range(self.num_layers)
        ]
        for block in self.blocks:
            block.build()
        self.pooler = dense(self, self.hidden_dim, self.hidden_dim, activation="tanh")

    def call(self, inputs, training=None):
        self.check_inputs(inputs)
        x = self.embeddings(inputs["token_ids"], inputs.get("segment_ids"), training=training)
        visible = inputs.get("padding_mask")
        if visible is not None:
            visible = ops.cast(visible, "bool")[:, None, None, :]
        for block in self.blocks:
            x = block(x, visible, training=training)
        return {"sequence_output": x, "pooled_output": self.pooler(x[:, 0])}

    @classmethod
    def config_from_reference(cls, config):
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise ValueError(
                "BERT with position_embedding_type "
                f"{config['position_embedding_type']!r} is not supported; expected 'absolute'."
            )
        if config.get("is_decoder") or config.get("add_cross_attention"):
            raise ValueError(
                "BERT as a decoder (is_decoder, add_cross_attention) is not supported."
            )
        ours = {name: config[key] for name, key in CONFIG.items() if key in config}
        missing = [CONFIG[name] for name in list(CONFIG)[:5] if name not in ours]
        if missing:
            raise ValueError(f"The config.json of a BERT must say {', '.join(missing)}.")
        return ours

    def reference_config(self):
        ours = {key: getattr(self, name) for name, key in CONFIG.items()}
        return {
            "model_type": "bert",
            **ours,
            "pad_token_id": 0,
            "position_embedding_type": "absolute",
        }


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
}


class BertClassifier(TextClassifier):
    """A class for a text or a pair: dropout and a dense layer on the pooled first token."""

    weight_map = [("classifier", "classifier")]

    def build(self, shape=None):
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy)
        self.classifier = dense(self, self.backbone.hidden_dim, self.num_classes)

    def call(self, inputs, training=None):
        pooled = self.backbone(inputs, training=training)["pooled_output"]
        return self.classifier(self.drop(pooled, training=training))


class BertMaskedLM(MaskedLM):
    """The hidden tokens: dense layer, normalization, the word embeddings as the output's kernel."""

    weight_map = [
        ("cls.predictions.transform.dense", "transform"),
        ("cls.predictions.transform.LayerNorm", "transform_norm"),
        ("cls.predictions.bias", "decoder_bias"),
    ]

    def build(self, shape=None):
        width = self.backbone.hidden_dim
        self.transform = dense(self, width, width)
        self.transform_norm = norm(self, width, self.backbone.layer_norm_epsilon)
        self.decoder_bias = self.add_weight(
            (self.backbone.vocabulary_size,), initializer="zeros", name="decoder_bias"
        )

    @classmethod
    def head_from_reference(cls, config):
        if not config.get("tie_word_embeddings", True):
            raise ValueError(
                "BERT with output embeddings of its own (tie_word_embeddings: false) is not "
                "supported."
            )
        return {}

    def call(self, inputs, training=None):
        x = self.backbone(inputs, training=training)["sequence_output"]
        positions = inputs.get("mask_positions")
        if positions is not None:
            positions = ops.cast(positions, "int32")[:, :, None]
            x = ops.take_along_axis(x, positions, axis=1)  # (batch, masks, width)
        x = ACTIVATIONS[self.backbone.activation](self.transform(x))
        table = ops.cast(self.backbone.embeddings.word.embeddings, self.compute_dtype)
        return ops.matmul(self.transform_norm(x), ops.transpose(table)) + self.decoder_bias


class BertTextEmbedder(TextEmbedder):
    """A vector for a text, as sentence-transformers' BERT models make it."""


class BertTokenizer(WordPieceTokenizer):
    """BERT's WordPiece."""


register(
    Family(
        name="bert",
        model_types=("bert",),
        backbone=BertBackbone,
        tokenizer=BertTokenizer,
        tasks={
            "TextClassifier": BertClassifier,
            "MaskedLM": BertMaskedLM,
            "TextEmbedder": BertTextEmbedder,
        },
        architectures={
            "TextClassifier": "BertForSequenceClassification",
            "MaskedLM": "BertForMaskedLM",
            "TextEmbedder": "BertModel",
        },
    )
)
