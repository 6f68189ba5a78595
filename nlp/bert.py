"""BERT and its relatives: one encoder, and a table of what each architecture changes.

Attention to both sides and two dense layers a block, normalized after each addition. Devlin et al.
2018, arXiv:1810.04805.
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import repeat

from khub import ops
from khub.fields import PositiveInt, Rate
from khub.layers import Dropout, Layer

from ..presets import Family, register
from . import tasks, transformer
from .byte_pair import RobertaTokenizer
from .sentence_piece import AlbertTokenizer, XLMRobertaTokenizer
from .tokenizers import Tokenizer, WordPieceTokenizer
from .transformer import ACTIVATIONS, EncoderBlock, built, dense, norm, table

CONFIG = {  # khub's name -> the reference's
    **transformer.CONFIG,
    "dropout": "hidden_dropout_prob",
    "num_segments": "type_vocab_size",
    "activation": "hidden_act",
    "attention_dropout": "attention_probs_dropout_prob",
    "layer_norm_epsilon": "layer_norm_eps",
}


def sizes(vocabulary, layers, heads, width):
    return dict(zip(CONFIG, (vocabulary, layers, heads, width, 4 * width)))


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
ALWAYS = {  # in config.json
    **dict.fromkeys(("is_decoder", "add_cross_attention"), False),
    "position_embedding_type": "absolute",
}
EMBEDDINGS = [
    ("embeddings.word_embeddings", "embeddings.word"),
    ("embeddings.position_embeddings", "embeddings.position"),
    ("embeddings.token_type_embeddings", "embeddings.segment"),
    ("embeddings.LayerNorm", "embeddings.norm"),
]
PARTS = "attention.output_projection attention_norm feed_forward.up feed_forward.down norm"


def _weights(theirs, names, *more, ours="blocks.{i}"):
    """The weight map of an encoder.

    theirs, ours: a block's name   names: what the reference calls the layers of queries, keys and
    values, and `PARTS`   more: rows besides
    """
    names = [f"{theirs}.{name}" for name in names.split()]
    parts = [f"{ours}.{part}" for part in PARTS.split()]
    return [*EMBEDDINGS, (tuple(names[:3]), f"{ours}.attention.qkv"), *zip(names[3:], parts), *more]


LAYER, LAST = "encoder.layer.{i}", "intermediate.dense output.dense output.LayerNorm"
BERT = _weights(
    LAYER,
    "attention.self.query attention.self.key attention.self.value "
    f"attention.output.dense attention.output.LayerNorm {LAST}",
    ("pooler.dense", "pooler"),
)
DISTIL_BERT = _weights(
    "transformer.layer.{i}",
    "attention.q_lin attention.k_lin attention.v_lin attention.out_lin sa_layer_norm "
    "ffn.lin1 ffn.lin2 output_layer_norm",
)
ALBERT = _weights(
    "encoder.albert_layer_groups.{i}.albert_layers.{i}",
    "attention.query attention.key attention.value attention.dense attention.LayerNorm "
    "ffn ffn_output full_layer_layer_norm",
    ("encoder.embedding_hidden_mapping_in", "projection"),
    ("pooler", "pooler"),
    ours="groups.{i}.{i}",
)
MPNET = _weights(
    LAYER,
    "attention.attn.q attention.attn.k attention.attn.v attention.attn.o attention.LayerNorm "
    f"{LAST}",
    ("encoder.relative_attention_bias", "relative.table"),
    ("pooler.dense", "pooler"),
)


def masked_weights(at, *names):
    """The weight map of a masked language model's head.

    at: what stands before all names   names: of the dense layer, its normalization, the output
    and, where it is not below that, the bias of tied embeddings
    """
    names = [f"{at}.{name}".strip(".") for name in names]
    ours = "head.dense", "head.norm", "decoder", "decoder_bias"
    return list(zip([*names, f"{names[2]}.bias"], ours))


LM_HEAD = masked_weights("lm_head", "dense", "layer_norm", "decoder", "bias")
GENERATOR = masked_weights(
    "", "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head"
)
TRANSFORMED = "transform.dense", "transform.LayerNorm", "decoder", "bias"
ROBERTA_CLASSIFIER = [("classifier.dense", "hidden"), ("classifier.out_proj", "classifier")]


@dataclass(frozen=True)
class Kind:
    """What an architecture has that BERT has not.

    prefix: of the backbone's weights in a model with a head, None: as model_type   names: khub's
    name -> its own name in config.json   without: names of CONFIG that it lacks   defaults: of the
    backbone's arguments   classifier: the weight map of its head; one with "hidden" reads the first
    token through a dense layer with the activation `hidden`, the other the pooled output
    masked: of a masked language model's head, `masked_activation`: its activation where that is not
    the backbone's   dropout: the names in config.json of the dropout of texts' and tokens' heads
    extra: what config.json says besides
    """

    name: str
    model_type: str
    tokenizer: type
    paper: str = ""
    prefix: str = None
    names: dict = field(default_factory=dict)
    without: tuple = ()
    defaults: dict = field(default_factory=dict)
    weights: list = field(default_factory=lambda: BERT)
    pooler: bool = True
    counted: bool = False  # positions count the tokens that are no padding, from padding_id + 1 on
    classifier: list = field(default_factory=lambda: [("classifier", "classifier")])
    hidden: str = "tanh"
    drops_twice: bool = True  # before the dense layer `hidden` and after it
    masked: list = field(default_factory=lambda: LM_HEAD)
    masked_activation: str = None
    dropout: tuple = ("classifier_dropout",) * 2
    extra: dict = field(default_factory=dict)
    ignored: tuple = ()
    reference: str = None  # the name in the reference's classes, where it is another


COUNTED = dict(counted=True, classifier=ROBERTA_CLASSIFIER, masked_activation="gelu")
ROBERTA = dict(
    COUNTED, prefix="roberta", names={"padding_id": "pad_token_id"}, defaults={"padding_id": 1}
)


class DistilBertTokenizer(WordPieceTokenizer):
    """BERT's WordPiece; segments do not count."""

    reference_class = "DistilBertTokenizer"


class MPNetTokenizer(WordPieceTokenizer):
    """WordPiece with RoBERTa's special tokens.  <s> first </s></s> second </s>"""

    reference_class = "MPNetTokenizer"
    special_tokens = {**RobertaTokenizer.special_tokens, "unk_token": "[UNK]"}
    wrap = RobertaTokenizer.wrap


OWN = dict(
    masked=masked_weights("cls.predictions", *TRANSFORMED), ignored=("cls.seq_relationship.*",)
)
DISTIL = dict(
    names={
        **dict(num_layers="n_layers", num_heads="n_heads", hidden_dim="dim"),
        "intermediate_dim": "hidden_dim",
        **transformer.same("dropout", "activation", "attention_dropout"),
    },
    without=("num_segments", "layer_norm_epsilon"),
    defaults={"num_segments": 0},
    weights=DISTIL_BERT,
    pooler=False,
    classifier=[("pre_classifier", "hidden"), ("classifier", "classifier")],
    hidden="relu",
    drops_twice=False,
    masked=masked_weights("", "vocab_transform", "vocab_layer_norm", "vocab_projector"),
    dropout=("seq_classif_dropout", "classifier_dropout"),
)
DISCRIMINATOR = dict(
    names={"embedding_dim": "embedding_size"},
    weights=[*BERT, ("embeddings_project", "projection")],
    pooler=False,
    classifier=ROBERTA_CLASSIFIER,
    hidden="gelu",
    masked=GENERATOR,
    masked_activation="gelu",
    ignored=("discriminator_predictions.*",),
)
GROUPED = dict(
    names=dict(
        embedding_dim="embedding_size",
        num_groups="num_hidden_groups",
        group_layers="inner_group_num",
    ),
    defaults={"embedding_dim": 128, "num_groups": 1, "activation": "gelu_new"},
    weights=ALBERT,
    masked=masked_weights("predictions", "dense", "LayerNorm", "decoder", "bias"),
    dropout=("classifier_dropout_prob",) * 2,
    ignored=("sop_classifier.*",),
)
RELATIVE = dict(
    COUNTED,
    without=("num_segments",),
    defaults={"num_segments": 0, "padding_id": 1, "relative_buckets": 32},
    weights=MPNET,
    extra={"relative_attention_num_buckets": 32, "pad_token_id": 1},
)
KINDS = [
    Kind("Bert", "bert", WordPieceTokenizer, **OWN),
    Kind("Roberta", "roberta", RobertaTokenizer, "arXiv:1907.11692", **ROBERTA),
    Kind("XLMRoberta", "xlm-roberta", XLMRobertaTokenizer, "arXiv:1911.02116", **ROBERTA),
    Kind("Camembert", "camembert", Tokenizer, "arXiv:1911.03894", **ROBERTA),
    Kind("DistilBert", "distilbert", DistilBertTokenizer, "arXiv:1910.01108", **DISTIL),
    Kind("Electra", "electra", WordPieceTokenizer, "arXiv:2003.10555", **DISCRIMINATOR),
    Kind("Albert", "albert", AlbertTokenizer, "arXiv:1909.11942", **GROUPED),
    Kind("MPNet", "mpnet", MPNetTokenizer, "arXiv:2004.09297", **RELATIVE),
]


class EncoderEmbeddings(Layer):
    """norm(word + position + segment).

    token_ids, segment_ids: int (batch, time) -> (batch, time, width)
    padding_id: None where positions count from 0 on; else they count the tokens that are no
    padding from padding_id + 1 on, and padding has the position padding_id
    max_sequence_length, num_segments: 0 where positions or segments are not added
    """

    vocabulary_size: PositiveInt
    width: PositiveInt
    max_sequence_length: int
    num_segments: int
    dropout: Rate
    epsilon: float
    padding_id: int = None
    norm_bias: bool = True

    def build(self, shape=None):
        most, segments = self.max_sequence_length, self.num_segments
        before = 0 if self.padding_id is None else self.padding_id + 1
        self.word = table(self, self.vocabulary_size, self.width)
        self.position = table(self, most + before, self.width) if most else None
        self.segment = table(self, segments, self.width) if segments else None
        self.norm = norm(self, self.width, self.epsilon, center=self.norm_bias)
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy)

    def call(self, token_ids, segment_ids=None, training=None):
        x = self.word(token_ids)
        if self.position is not None:
            x = x + self.position(self._positions(token_ids))
        if self.segment is not None:
            if segment_ids is None or self.num_segments == 1:
                segment_ids = ops.zeros_like(token_ids)
            x = x + self.segment(segment_ids)
        return self.drop(self.norm(x), training=training)

    def _positions(self, token_ids):
        time = ops.shape(token_ids)[1]
        transformer.check_length(time, self.max_sequence_length)
        if self.padding_id is None:
            return ops.arange(time)
        real = ops.cast(ops.not_equal(token_ids, self.padding_id), "int32")
        return ops.cumsum(real, axis=1) * real + self.padding_id


class EncoderBackbone(tasks.Backbone):
    """Token ids to hidden states, each of which sees all tokens.

    inputs: {"token_ids": int (batch, time), "segment_ids": int, "padding_mask": bool, both the same
    shape}; without segment_ids all are 0, without padding_mask all tokens count
    -> {"sequence_output": (batch, time, hidden_dim), "pooled_output": (batch, hidden_dim)}, the
    second where the architecture has it
    num_segments: 0 where segments do not count   embedding_dim: None for hidden_dim
    num_groups: of layers, each of `group_layers` blocks that its layers share; None: every layer
    has its own   relative_buckets: of distances that have a bias in every head
    """

    vocabulary_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    hidden_dim: PositiveInt
    intermediate_dim: PositiveInt
    dropout: Rate = 0.1
    max_sequence_length: PositiveInt = 512
    num_segments: int = 2
    activation: transformer.ActivationName = "gelu"
    attention_dropout: Rate = 0.1
    layer_norm_epsilon: float = 1e-12
    padding_id: int = 0
    embedding_dim: int = None
    num_groups: int = None
    group_layers: PositiveInt = 1
    relative_buckets: int = None

    kind = KINDS[0]
    absolute_positions = norm_bias = attention_bias = head_bias = True
    head_activation = None
    optional = ("pooler",)

    def setup(self):
        transformer.check_sizes(self)
        self.embedding_dim = self.embedding_dim or self.hidden_dim
        super().setup()

    def build(self, shape=None):
        width, narrow = self.hidden_dim, self.embedding_dim
        places = self.max_sequence_length if self.absolute_positions else 0
        sizes = self.vocabulary_size, narrow, places, self.num_segments
        padding = self.padding_id if self.kind.counted else None
        more = self.dropout, self.layer_norm_epsilon, padding, self.norm_bias
        self.embeddings = built(EncoderEmbeddings(*sizes, *more, dtype=self.dtype_policy))
        projected = narrow != width or self.num_groups is not None
        self.projection = dense(self, narrow, width) if projected else None
        if self.num_groups is None:
            self.blocks = [self._block(i) for i in range(self.num_layers)]
        else:
            each = range(self.group_layers)
            self.groups = [[self._block(i) for i in each] for _ in range(self.num_groups)]
        if self.relative_buckets is not None:
            sizes, options = (self.num_heads, self.relative_buckets), dict(dtype=self.dtype_policy)
            self.relative = built(transformer.RelativePositions(*sizes, **options))
        self.pooler = dense(self, width, width, activation="tanh") if self.kind.pooler else None

    def _attention(self):
        sizes = self.hidden_dim, self.num_heads, self.attention_dropout
        return transformer.self_attention(self, *sizes, self.attention_bias)

    def _norm(self):
        return norm(self, self.hidden_dim, self.layer_norm_epsilon, center=self.norm_bias)

    def _block(self, index, kind=EncoderBlock, *parts):
        options = dict(dtype=self.dtype_policy)
        sizes = self.hidden_dim, self.intermediate_dim, self.activation
        feed_forward = built(transformer.FeedForward(*sizes, **options))
        norms, rates = (self._norm(), self._norm()), (self.dropout,) * 2
        return kind(*parts, self._attention(), feed_forward, norms, rates, **options)

    def prediction_head(self, task):
        """The layers that a masked language model's head begins with, and all of ModernBERT's."""
        activation = self.head_activation or self.kind.masked_activation or self.activation
        sizes = self.hidden_dim, self.embedding_dim, activation, self.layer_norm_epsilon
        biases = self.head_bias, self.norm_bias
        return built(transformer.PredictionHead(*sizes, *biases, dtype=task.dtype_policy))

    def _layers(self):
        """The blocks in the order of their use."""
        if self.num_groups is None:
            return self.blocks
        count = self.num_layers
        return [b for i in range(count) for b in self.groups[i * self.num_groups // count]]

    def _given(self, time, visible):
        """What each block takes besides states: of all the same."""
        return repeat((self._bias(time, visible),))

    def _bias(self, time, visible):
        """What is added to the scores, once for all layers: by distance, and against padding."""
        bias = transformer.padding_bias(visible, self.compute_dtype)
        if self.relative_buckets is None:
            return bias
        places = ops.arange(time)
        near = self.relative(places, places)
        return near if bias is None else near + bias

    def call(self, inputs, training=None):
        self.check_inputs(inputs)
        token_ids, visible = inputs["token_ids"], inputs.get("padding_mask")
        x = self.embeddings(token_ids, inputs.get("segment_ids"), training=training)
        if self.projection is not None:
            x = self.projection(x)
        given = self._given(ops.shape(token_ids)[1], visible)
        for block, each in zip(self._layers(), given):
            x = block(x, *each, training=training)
        if self.pooler is None:
            return {"sequence_output": x}
        return {"sequence_output": x, "pooled_output": self.pooler(x[:, 0])}

    @classmethod
    def config_from_reference(cls, config):
        what = cls.model_type.upper()
        transformer.check_config(config, {**ALWAYS, **cls.kind.extra}, what)
        ours = transformer.read_config(config, cls.config_names, what)
        if cls.kind.counted and "max_sequence_length" in ours:
            padding = ours.get("padding_id", cls.kind.defaults["padding_id"])
            ours["max_sequence_length"] -= padding + 1
        return ours

    def reference_config(self):
        ours = super().reference_config()
        if self.kind.counted:
            ours["max_position_embeddings"] += self.padding_id + 1
        return {**ours, "pad_token_id": self.padding_id, **ALWAYS, **self.kind.extra}


class EncoderClassifier(tasks.TextClassifier):
    """A class for a text or a pair: a dense layer on the pooled output, or two on the first token.

    Dropout comes before each dense layer, or before the last one.
    """

    def build(self, shape=None):
        super().build(shape)
        width, deep = self.backbone.hidden_dim, any(ours == "hidden" for _, ours in self.weight_map)
        self.hidden = dense(self, width, width) if deep else None

    def hidden_states(self, inputs, training):
        """What is classified, (batch, width)."""
        kind, found = self.backbone.kind, self.backbone(inputs, training=training)
        if self.hidden is None:
            return found["pooled_output"]
        x = found["sequence_output"][:, 0]
        x = self.drop(x, training=training) if kind.drops_twice else x
        return ACTIVATIONS[kind.hidden](self.hidden(x))


class EncoderMaskedLM(tasks.MaskedLM):
    """The hidden tokens: dense layer, activation, normalization, then the word embeddings as the
    output's kernel, or a matrix of their shape.
    """

    preprocessor: object = None
    tie_embeddings: bool = True

    def build(self, shape=None):
        body, size = self.backbone, self.backbone.vocabulary_size
        self.head = body.prediction_head(self)
        if self.tie_embeddings:
            self.decoder_bias = self.add_weight((size,), initializer="zeros", name="decoder_bias")
        else:
            self.decoder = dense(self, body.embedding_dim, size)

    @classmethod
    def head_from_reference(cls, config):
        return {"tie_embeddings": bool(config.get("tie_word_embeddings", True))}

    def reference_config(self):
        return {**super().reference_config(), "tie_word_embeddings": self.tie_embeddings}

    def call(self, inputs, training=None):
        x = self.head(transformer.at_masks(self.hidden_states(inputs, training), inputs))
        if not self.tie_embeddings:
            return self.decoder(x)
        return transformer.tied_scores(x, self.backbone.embeddings.word) + self.decoder_bias


TASKS = {  # generic name -> (its class here, the reference's suffix, khub's)
    "TextClassifier": (EncoderClassifier, "ForSequenceClassification", "Classifier"),
    "TokenClassifier": (tasks.TokenClassifier, "ForTokenClassification", "TokenClassifier"),
    "QuestionAnswerer": (tasks.QuestionAnswerer, "ForQuestionAnswering", "QuestionAnswerer"),
    "MaskedLM": (EncoderMaskedLM, "ForMaskedLM", "MaskedLM"),
    "TextEmbedder": (tasks.TextEmbedder, "Model", "TextEmbedder"),
}


def kind_family(kind, base=EncoderBackbone, **heads):
    """Make and register an architecture's classes; all by their names, BertBackbone, ...

    heads: generic name of a task -> its class, in place of that of TASKS
    """
    made = partial(tasks.kind_class, kind, base.__module__)
    prefix = kind.prefix or kind.model_type
    ignored = "embeddings.position_ids", "embeddings.token_type_ids", *kind.ignored
    own = dict(kind=kind, weight_map=kind.weights, reference_prefix=prefix, ignored=ignored)
    kept = {ours: name for ours, name in CONFIG.items() if ours not in kind.without}
    own |= dict(model_type=kind.model_type, config_names={**kept, **kind.names}, **kind.defaults)
    backbone = made("Backbone", base, **own)
    members = {
        "TextClassifier": {"weight_map": kind.classifier, "dropout_name": kind.dropout[0]},
        "TokenClassifier": {"dropout_name": kind.dropout[1]},
        "MaskedLM": {"weight_map": kind.masked},
    }
    made_heads = {
        task: made(suffix, heads.get(task, usual), **members.get(task, {}))
        for task, (usual, _, suffix) in TASKS.items()
    }
    tokenizer = made("Tokenizer", kind.tokenizer)
    theirs = kind.reference or kind.name
    names = {task: f"{theirs}{suffix}" for task, (_, suffix, _) in TASKS.items()}
    key = kind.model_type
    register(Family(key.replace("-", "_"), (key,), backbone, tokenizer, made_heads, names))
    return {cls.__name__: cls for cls in (backbone, tokenizer, *made_heads.values())}


__all__ = ["EncoderBackbone", "EncoderClassifier", "EncoderMaskedLM"]
for _kind in KINDS:
    _made = kind_family(_kind)
    globals().update(_made)
    __all__ += list(_made)
