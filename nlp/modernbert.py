"""ModernBERT: a long-context encoder; most layers see a window. Warner et al. 2024, 2412.13663.

Rotary positions, gated feed-forward layers, normalization before each part, few biases.
"""

from khub import ops
from khub.fields import PositiveInt, Rate

from . import tasks, transformer
from .bert import EncoderBackbone, EncoderMaskedLM, Kind, kind_family, masked_weights
from .byte_pair import BytePairTokenizer
from .tokenizers import SPECIAL_TOKENS
from .transformer import EncoderBlock, built, rotation

WEIGHTS = [
    ("embeddings.tok_embeddings", "embeddings.word"),
    ("embeddings.norm", "embeddings.norm"),
    ("layers.{i}.attn_norm", "blocks.{i}.attention_norm"),
    ("layers.{i}.attn.Wqkv", "blocks.{i}.attention.qkv"),
    ("layers.{i}.attn.Wo", "blocks.{i}.attention.output_projection"),
    ("layers.{i}.mlp_norm", "blocks.{i}.norm"),
    ("layers.{i}.mlp.Wi", "blocks.{i}.feed_forward.gate_up"),
    ("layers.{i}.mlp.Wo", "blocks.{i}.feed_forward.down"),
    ("final_norm", "norm"),
]
LAYER_TYPES = ("full_attention", "sliding_attention")


class ModernBertEncoder(EncoderBackbone):
    """ModernBERT's encoder. The layers of `local_layers` see local_window // 2 places to each side.

    inputs: {"token_ids": int (batch, time), "padding_mask": bool, the same shape, or none}
    -> {"sequence_output": (batch, time, hidden_dim)}
    head_activation, head_bias: of the dense layer that every task's head begins with
    """

    local_window: PositiveInt = 128
    local_layers: tuple = None
    rope_max_wavelength: float = 160_000.0
    rope_local_wavelength: float = 10_000.0
    mlp_dropout: Rate = 0.0
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    head_activation: transformer.ActivationName = "gelu"
    head_bias: bool = False

    absolute_positions = False

    def setup(self):
        if self.local_layers is None:
            self.local_layers = tuple(i for i in range(self.num_layers) if i % 3)
        super().setup()

    def build(self, shape=None):
        super().build(shape)
        self.norm = self._norm()
        self._local = [i in self.local_layers for i in range(self.num_layers)]
        width = self.hidden_dim // self.num_heads
        waves, used = (self.rope_max_wavelength, self.rope_local_wavelength), set(self._local)
        self._turns = {local: transformer.frequencies(width, waves[local]) for local in used}

    def _block(self, index):
        sizes = self.hidden_dim, self.intermediate_dim, self.activation
        more, options = (self.mlp_bias, self.mlp_dropout), dict(dtype=self.dtype_policy)
        feed_forward = built(transformer.GatedFeedForward(*sizes, *more, **options))
        norms = self._norm() if index else None, self._norm()
        rates = dict(dropouts=(self.attention_dropout, 0.0), norm_first=True)
        return EncoderBlock(self._attention(), feed_forward, norms, **rates, **options)

    def _given(self, time, visible):
        """What each block takes besides states: the bias of its scores, and its rotation."""
        places, dtype = ops.arange(time), self.compute_dtype
        turned = {local: rotation(places[None], *t, dtype) for local, t in self._turns.items()}
        bias, side = [transformer.padding_bias(visible, dtype)] * 2, self.local_window // 2
        if self.local_layers and not (isinstance(time, int) and time <= side + 1):
            near = ops.absolute(places[:, None] - places[None]) <= side
            far = transformer.hidden_bias(near[None, None], dtype)
            bias[True] = far if bias[False] is None else ops.minimum(bias[False], far)
        return [(bias[local], turned[local]) for local in self._local]

    def call(self, inputs, training=None):
        found = super().call(inputs, training)
        return {"sequence_output": self.norm(found["sequence_output"])}

    @classmethod
    def config_from_reference(cls, config):
        ours = super().config_from_reference(config)
        every, count = config.get("global_attn_every_n_layers") or 3, ours["num_layers"]
        types = config.get("layer_types") or [LAYER_TYPES[bool(i % every)] for i in range(count)]
        if unknown := {*types} - {*LAYER_TYPES}:
            raise ValueError(
                f"layer_types must be {' or '.join(LAYER_TYPES)}; got {', '.join(unknown)}."
            )
        ours["local_layers"] = tuple(i for i, kind in enumerate(types) if kind == LAYER_TYPES[1])
        rope, names = config.get("rope_parameters") or {}, ("max", "local")
        for kind, name, old in zip(LAYER_TYPES, names, ("global", "local")):
            part = {**(rope.get(kind) or {}), **(config.get("rope_scaling") or {})}
            transformer.check_config(part, {"rope_type": "default"}, "ModernBERT")
            if wave := part.get("rope_theta", config.get(f"{old}_rope_theta")):
                ours[f"rope_{name}_wavelength"] = float(wave)
        return ours

    def reference_config(self):
        waves = self.rope_max_wavelength, self.rope_local_wavelength
        rope = [{"rope_type": "default", "rope_theta": wave} for wave in waves]
        return {
            **super().reference_config(),
            "layer_types": [LAYER_TYPES[local] for local in self._local],
            "rope_parameters": dict(zip(LAYER_TYPES, rope)),
        }


class ModernBertHead:
    """What a task adds whose head begins with `EncoderBackbone.prediction_head`."""

    dropout_name = "classifier_dropout"
    weight_map = [("head", "head"), ("classifier", "classifier")]

    def build(self, shape=None):
        super().build(shape)
        self.head = self.backbone.prediction_head(self)

    def hidden_states(self, inputs, training):
        """What the head makes of the tokens, (batch, time, width)."""
        return self.head(super().hidden_states(inputs, training))

    @classmethod
    def head_from_reference(cls, config):
        return super().head_from_reference({"classifier_dropout": 0.0, **config})


class ModernBertClassifier(ModernBertHead, tasks.TextClassifier):
    """A class for a text or a pair, from its first token ("cls") or the mean of all ("mean")."""

    pooling: tasks.Pooling = "cls"

    def hidden_states(self, inputs, training):
        """What the head makes of one vector, (batch, width)."""
        x = super(ModernBertHead, self).hidden_states(inputs, training)
        return self.head(tasks.pooled(x, inputs.get("padding_mask"), self.pooling))

    @classmethod
    def head_from_reference(cls, config):
        pooling = config.get("classifier_pooling", "cls")
        return {**super().head_from_reference(config), "pooling": pooling}

    def reference_config(self):
        return {**super().reference_config(), "classifier_pooling": self.pooling}


class ModernBertTokenClassifier(ModernBertHead, tasks.TokenClassifier):
    """A class for every token."""


class ModernBertQuestionAnswerer(ModernBertHead, tasks.QuestionAnswerer):
    """Where an answer begins and ends."""


class ModernBertMaskedLM(EncoderMaskedLM):
    """`EncoderMaskedLM`, whose scores have a bias."""

    weight_map = masked_weights("", "head.dense", "head.norm", "decoder")

    @classmethod
    def head_from_reference(cls, config):
        transformer.check_config(config, {"decoder_bias": True}, "ModernBERT")
        return super().head_from_reference(config)


class ModernBertTokenizer(BytePairTokenizer):
    """Byte-level BPE with BERT's special tokens.  [CLS] first [SEP] second [SEP]"""

    reference_class = "PreTrainedTokenizerFast"
    special_tokens = SPECIAL_TOKENS
    wrap = ("cls_token $A sep_token", "cls_token $A sep_token $B:1 sep_token:1")


OWN = dict(
    prefix="model",
    names={  # khub's name -> the reference's
        **transformer.same("norm_bias", "attention_bias", "mlp_bias"),
        **transformer.same("attention_dropout", "mlp_dropout"),
        "activation": "hidden_activation",
        "layer_norm_epsilon": "norm_eps",
        "dropout": "embedding_dropout",
        "local_window": "local_attention",
        "head_activation": "classifier_activation",
        "head_bias": "classifier_bias",
    },
    without=("num_segments",),
    defaults={
        **dict.fromkeys(("num_segments", "dropout", "attention_dropout"), 0),
        "max_sequence_length": 8192,
        "layer_norm_epsilon": 1e-5,
    },
    weights=WEIGHTS,
    pooler=False,
)
_made = kind_family(
    Kind("ModernBert", "modernbert", ModernBertTokenizer, "arXiv:2412.13663", **OWN),
    ModernBertEncoder,
    TextClassifier=ModernBertClassifier,
    TokenClassifier=ModernBertTokenClassifier,
    QuestionAnswerer=ModernBertQuestionAnswerer,
    MaskedLM=ModernBertMaskedLM,
)
globals().update(_made)
__all__ = list(_made)
