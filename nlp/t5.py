"""T5: an encoder-decoder that takes every task as text to text. Raffel et al., arXiv:1910.10683.

Version 1.1 and FLAN (arXiv:2210.11416) have gated layers and a head of their own; mT5 is
arXiv:2010.11934, UMT5, which has relative positions in each block, arXiv:2304.09151.
"""

from functools import partial

import numpy as np

from khub import ops
from khub.fields import Choice, PositiveInt, Rate
from khub.initializers import RandomNormal, VarianceScaling
from khub.layers import Dense

from . import transformer
from .encoder_decoder import EncoderDecoder, register_kinds
from .generation import Seq2SeqLM
from .sentence_piece import T5Tokenizer
from .transformer import FeedForward, built, renames, root_mean_square_norm, table


def _side(side, last):
    """Renames of one side; `last`: which of a block's parts is its dense layers."""
    own, cross, dense = "0.SelfAttention.", "1.EncDecAttention.", f"{last}.DenseReluDense."
    names = {
        "attention.qkv": f"{own}q {own}k {own}v",
        "attention.output_projection": f"{own}o",
        "attention_norm": "0.layer_norm",
        "cross.query": f"{cross}q",
        "cross.key_value": f"{cross}k {cross}v",
        "cross.output_projection": f"{cross}o",
        "cross_norm": "1.layer_norm",
        "feed_forward.gate_up": f"{dense}wi_0 {dense}wi_1",
        "feed_forward.up": f"{dense}wi",
        "feed_forward.down": f"{dense}wo",
        "norm": f"{last}.layer_norm",
    }
    block = f"{side}.block.{{i}}.layer."
    yield from renames(block, f"{side}_blocks.{{i}}.", names)
    yield f"{block}{own}relative_attention_bias", f"{side}_positions.{{i}}.table"
    yield f"{side}.final_layer_norm", f"{side}_norm"


WEIGHTS = [("shared", "embeddings"), *_side("encoder", 1), *_side("decoder", 2)]
CONFIG = {  # khub's name -> the reference's
    "vocabulary_size": "vocab_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "hidden_dim": "d_model",
    "intermediate_dim": "d_ff",
    "key_value_dim": "d_kv",
    "dropout": "dropout_rate",
    "num_buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "max_sequence_length": "n_positions",
    "tie_embedding_weights": "tie_word_embeddings",
    "kind": "model_type",
    **transformer.same("num_decoder_layers", "layer_norm_epsilon", "decoder_start_token_id"),
}
KINDS = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}
GELU = "gelu_new"  # what "gated-gelu" means


class QueryScaling(VarianceScaling):
    """`VarianceScaling`, the first `count` columns times `factor`: they make queries, and T5 does
    not scale what these give."""

    count: int = 0
    factor: float = 1.0

    def _values(self, shape, dtype, seed):
        values = np.array(super()._values(shape, dtype, seed))
        values[:, : self.count] *= self.factor
        return values


class T5Backbone(EncoderDecoder):
    """T5's encoder and decoder; inputs and outputs: see `EncoderDecoder`.

    scale_outputs: whether the head takes states times hidden_dim ** -0.5, None: where it is tied
    position_biases: "shared" by the blocks of a side, or "each" block's own
    """

    key_value_dim: int = None
    dropout: Rate = 0.1
    activation: transformer.ActivationName = GELU
    use_gated_activation: bool = True
    layer_norm_epsilon: float = 1e-6
    tie_embedding_weights: bool = True
    scale_outputs: bool = None
    num_buckets: PositiveInt = 32
    max_distance: PositiveInt = 128
    position_biases: Choice("shared", "each") = "shared"
    max_sequence_length: PositiveInt = 512
    decoder_start_token_id: int = 0
    kind: Choice(*KINDS) = "t5"

    weight_map = WEIGHTS
    config_names = CONFIG
    ignored = (
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    )

    def setup(self):
        self.key_value_dim = self.key_value_dim or self.hidden_dim // self.num_heads
        if self.scale_outputs is None:
            self.scale_outputs = self.tie_embedding_weights
        super().setup()

    def build(self, shape=None):
        self.embeddings = table(self, self.vocabulary_size, self.hidden_dim)
        kind = transformer.GatedFeedForward if self.use_gated_activation else FeedForward
        sizes = (self.hidden_dim, self.intermediate_dim, self.activation, False, self.dropout)
        feed_forward = partial(kind, *sizes, dtype=self.dtype_policy)
        options = dict(head_width=self.key_value_dim, bias=False, scale=1.0)
        for side, count in (("encoder", self.num_layers), ("decoder", self.num_decoder_layers)):
            self.build_side(side, count, self.num_heads, feed_forward, **options)
            biases = range(count if self.position_biases == "each" else 1)
            sizes = self.num_heads, self.num_buckets, self.max_distance, side == "encoder"
            made = partial(transformer.RelativePositions, *sizes, dtype=self.dtype_policy)
            setattr(self, f"{side}_positions", [built(made()) for _ in biases])
        self._start()

    def norm(self):
        return root_mean_square_norm(self, self.hidden_dim, self.layer_norm_epsilon)

    def _start(self):
        """Initial values as in the paper's code: with those of BERT the network hardly learns."""
        self.embeddings.embeddings.initializer = RandomNormal(stddev=1.0)
        inner = self.num_heads * self.key_value_dim
        for name, layer in self.named_layers().items():
            if isinstance(layer, Dense):
                queries = inner if name.endswith(("attention.qkv", "cross.query")) else 0
                own = dict(count=queries, factor=self.key_value_dim**-0.5)
                layer.kernel.initializer = QueryScaling(distribution="untruncated_normal", **own)

    def source(self, token_ids, positions=None):
        return self.embeddings(token_ids)

    target = source

    @classmethod
    def config_from_reference(cls, config):
        ours = super().config_from_reference(config)
        gate, _, activation = config.get("feed_forward_proj", "relu").rpartition("-")
        if gate not in ("", "gated"):
            raise ValueError(
                f"feed_forward_proj must be an activation or 'gated-' and one; got "
                f"{config['feed_forward_proj']!r}."
            )
        if gate and activation == "gelu":
            activation = GELU
        kind, tied = config.get("model_type", "t5"), config.get("tie_word_embeddings", True)
        scaled = {"t5": config.get("scale_decoder_outputs", tied), "umt5": True}.get(kind, False)
        return {
            "decoder_start_token_id": config.get("pad_token_id") or 0,
            **ours,
            "use_gated_activation": bool(gate),
            "activation": activation,
            "scale_outputs": bool(scaled),
            "position_biases": "each" if kind == "umt5" else "shared",
        }

    @classmethod
    def config_from_names(cls, config, names):
        """What the names of a checkpoint's tensors say: transformers 5 writes "tied" always."""
        if config["kind"] != "t5" or not config["scale_outputs"]:
            config = {**config, "tie_embedding_weights": "lm_head.weight" not in names}
        return config

    def reference_config(self):
        activation = "gelu" if self.activation == GELU else self.activation
        return {
            **super().reference_config(),
            "feed_forward_proj": f"gated-{activation}" if self.use_gated_activation else activation,
            "scale_decoder_outputs": self.scale_outputs,
        }


class T5Seq2SeqLM(Seq2SeqLM):
    """The next token of the target: the embeddings, or a matrix of their shape, as the kernel."""

    @property
    def tied(self):
        return self.backbone.tie_embedding_weights

    def logits(self, x):
        if self.backbone.scale_outputs:
            x = x * ops.cast(self.backbone.hidden_dim**-0.5, ops.dtype(x))
        return super().logits(x)


register_kinds("t5", KINDS, T5Backbone, T5Tokenizer, T5Seq2SeqLM)
