"""BART: an encoder-decoder that learned to mend damaged texts. Lewis et al. 2019, arXiv:1910.13461.

mBART, which normalizes before each part, is arXiv:2001.08210.
"""

from khub import ops
from khub.fields import PositiveInt, Rate
from khub.layers import Dropout, Embedding

from ..presets import Family, register
from .byte_pair import RobertaTokenizer
from .encoder_decoder import EncoderDecoder
from .generation import Seq2SeqLM
from .transformer import ACTIVATIONS, FeedForward, norm, normal


def block_weights(side):
    """Renames of one side's blocks and last norms, for BART and what is built like it."""
    there, here = f"{side}.layers.{{i}}", f"{side}_blocks.{{i}}"
    yield tuple(f"{there}.self_attn.{x}_proj" for x in "qkv"), f"{here}.attention.qkv"
    yield f"{there}.self_attn.q_proj.bias", f"{here}.attention.query_bias"
    yield f"{there}.self_attn.v_proj.bias", f"{here}.attention.value_bias"
    yield f"{there}.self_attn.out_proj", f"{here}.attention.output_projection"
    yield f"{there}.self_attn_layer_norm", f"{here}.attention_norm"
    yield f"{there}.encoder_attn.q_proj", f"{here}.cross.query"
    yield tuple(f"{there}.encoder_attn.{x}_proj" for x in "kv"), f"{here}.cross.key_value"
    yield f"{there}.encoder_attn.v_proj.bias", f"{here}.cross.value_bias"
    yield f"{there}.encoder_attn.out_proj", f"{here}.cross.output_projection"
    yield f"{there}.encoder_attn_layer_norm", f"{here}.cross_norm"
    yield f"{there}.fc1", f"{here}.feed_forward.up"
    yield f"{there}.fc2", f"{here}.feed_forward.down"
    yield f"{there}.final_layer_norm", f"{here}.norm"
    yield f"{side}.layer_norm", f"{side}_norm"


WEIGHTS = [("shared", "embeddings")]
for _side in ("encoder", "decoder"):
    WEIGHTS += block_weights(_side)
    WEIGHTS += [
        (f"{_side}.embed_positions", f"{_side}_position"),
        (f"{_side}.layernorm_embedding", f"{_side}_embedding_norm"),
    ]
CONFIG = {  # khub's name -> the reference's
    "vocabulary_size": "vocab_size",
    "num_layers": "encoder_layers",
    "num_heads": "encoder_attention_heads",
    "hidden_dim": "d_model",
    "intermediate_dim": "encoder_ffn_dim",
    "num_decoder_layers": "decoder_layers",
    "num_decoder_heads": "decoder_attention_heads",
    "decoder_intermediate_dim": "decoder_ffn_dim",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "max_sequence_length": "max_position_embeddings",
    "activation": "activation_function",
    "scale_embeddings": "scale_embedding",
    "decoder_start_token_id": "decoder_start_token_id",
}
ALWAYS = {  # of old files
    "normalize_before": False,
    "normalize_embedding": True,
    "add_final_layer_norm": False,
    "static_position_embeddings": False,
    "tie_word_embeddings": True,
}
OFFSET = 2  # the first row of a position table that is used
KINDS = {"bart": "Bart", "mbart": "MBart"}


class BartBackbone(EncoderDecoder):
    """BART's encoder and decoder; inputs and outputs: see `EncoderDecoder`.

    norm_first: mBART's order, with a norm at the end of each side
    """

    vocabulary_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    hidden_dim: PositiveInt
    intermediate_dim: PositiveInt
    num_decoder_layers: int = None
    num_decoder_heads: int = None
    decoder_intermediate_dim: int = None
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.0
    activation_dropout: Rate = 0.0
    max_sequence_length: PositiveInt = 1024
    activation: str = "gelu"
    scale_embeddings: bool = False
    norm_first: bool = False
    decoder_start_token_id: int = 2

    weight_map = WEIGHTS
    ignored = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    reference_prefix = "model"

    def setup(self):
        self.num_decoder_layers = self.num_decoder_layers or self.num_layers
        self.num_decoder_heads = self.num_decoder_heads or self.num_heads
        self.decoder_intermediate_dim = self.decoder_intermediate_dim or self.intermediate_dim
        if self.hidden_dim % self.num_heads or self.hidden_dim % self.num_decoder_heads:
            raise ValueError(
                f"hidden_dim must be a multiple of num_heads and num_decoder_heads; got "
                f"{self.hidden_dim}, {self.num_heads} and {self.num_decoder_heads}."
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}."
            )
        super().setup()

    def build(self, shape=None):
        self.embeddings = self._table(self.vocabulary_size)
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy)
        for side, count, heads, hidden in (
            ("encoder", self.num_layers, self.num_heads, self.intermediate_dim),
            (
                "decoder",
                self.num_decoder_layers,
                self.num_decoder_heads,
                self.decoder_intermediate_dim,
            ),
        ):
            setattr(self, f"{side}_position", self._table(self.max_sequence_length + OFFSET))
            setattr(self, f"{side}_embedding_norm", self._norm())
            blocks = self.make_blocks(
                count,
                side == "decoder",
                self._norm,
                lambda hidden=hidden: FeedForward(
                    self.hidden_dim,
                    hidden,
                    self.activation,
                    dropout=self.activation_dropout,
                    dtype=self.dtype_policy,
                ),
                heads,
                self.dropout,
                bias=True,
                attention_dropout=self.attention_dropout,
            )
            setattr(self, f"{side}_blocks", blocks)
            if self.norm_first:
                setattr(self, f"{side}_norm", self._norm())

    def _table(self, rows):
        made = Embedding(rows, self.hidden_dim, normal(), dtype=self.dtype_policy)
        made.build()
        return made

    def _norm(self):
        return norm(self, self.hidden_dim, 1e-5)

    def source(self, token_ids, training=None):
        time = ops.shape(token_ids)[1]
        if isinstance(time, int) and time > self.max_sequence_length:
            raise ValueError(
                f"Got {time} tokens; this model has positions for {self.max_sequence_length}. Cut "
                "the text, or use a preprocessor with a shorter encoder_sequence_length."
            )
        return self._embedded("encoder", token_ids, ops.arange(time), training)

    def target(self, token_ids, positions, training=None):
        return self._embedded("decoder", token_ids, positions, training)

    def _embedded(self, side, token_ids, positions, training):
        x = self.embeddings(token_ids)
        if self.scale_embeddings:
            x = x * ops.cast(self.hidden_dim**0.5, ops.dtype(x))
        x = x + getattr(self, f"{side}_position")(positions + OFFSET)
        x = getattr(self, f"{side}_embedding_norm")(x)
        return self.drop(x, training=training) if training else x

    @classmethod
    def config_from_reference(cls, config):
        for name, only in ALWAYS.items():
            if config.get(name, only) is not only:
                raise ValueError(f"BART with {name}={config[name]!r} is not supported.")
        ours = {name: config[key] for name, key in CONFIG.items() if config.get(key) is not None}
        missing = [CONFIG[name] for name in list(CONFIG)[:5] if name not in ours]
        if missing:
            raise ValueError(f"The config.json of a BART must say {', '.join(missing)}.")
        return {**ours, "norm_first": config.get("model_type") == "mbart"}

    def reference_config(self):
        ours = {key: getattr(self, name) for name, key in CONFIG.items()}
        kind = "mbart" if self.norm_first else "bart"
        return {"model_type": kind, **ours, "is_encoder_decoder": True}


class BartSeq2SeqLM(Seq2SeqLM):
    """The next token of the target: the embeddings as the output's kernel, and a bias."""

    weight_map = [("final_logits_bias", "logits_bias")]
    ignored = ("lm_head.weight",)

    def build(self, shape=None):
        size = (1, self.backbone.vocabulary_size)
        self.logits_bias = self.add_weight(size, "zeros", name="logits_bias", trainable=False)

    def logits(self, x):
        """(..., hidden_dim) -> (..., vocabulary_size)"""
        table = ops.cast(self.backbone.embeddings.embeddings.value, ops.dtype(x))
        bias = ops.cast(self.logits_bias.value[0], ops.dtype(x))
        return ops.matmul(x, ops.transpose(table)) + bias


class BartTokenizer(RobertaTokenizer):
    """BART's byte-level BPE, RoBERTa's.  <s> first </s></s> second </s>"""

    reference_class = "BartTokenizer"


register(
    Family(
        name="bart",
        model_types=tuple(KINDS),
        backbone=BartBackbone,
        tokenizer=BartTokenizer,
        tasks={"Seq2SeqLM": BartSeq2SeqLM},
        architectures={
            "Seq2SeqLM": tuple(f"{name}ForConditionalGeneration" for name in KINDS.values()),
            "Backbone": tuple(f"{name}Model" for name in KINDS.values()),
        },
    )
)
