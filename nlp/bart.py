"""BART: an encoder-decoder that learned to mend damaged texts. Lewis et al. 2019, arXiv:1910.13461.

mBART, which normalizes before each part, is arXiv:2001.08210.
"""

from khub import ops
from khub.fields import PositiveInt

from .byte_pair import RobertaTokenizer
from .encoder_decoder import SIZES, SizedEncoderDecoder, block_weights, register_kinds
from .generation import Seq2SeqLM
from .transformer import check_config, check_length, table

WEIGHTS = [("shared", "embeddings")]
for _side in ("encoder", "decoder"):
    WEIGHTS += block_weights(_side)
    WEIGHTS += [
        (f"{_side}.embed_positions", f"{_side}_position"),
        (f"{_side}.layernorm_embedding", f"{_side}_embedding_norm"),
    ]
ALWAYS = {  # of old files
    **dict.fromkeys(("normalize_before", "add_final_layer_norm"), False),
    **dict.fromkeys(("normalize_embedding", "tie_word_embeddings"), True),
    "static_position_embeddings": False,
}
OFFSET = 2  # the first row of a position table that is used
KINDS = {"bart": "Bart", "mbart": "MBart"}


class BartBackbone(SizedEncoderDecoder):
    """BART's encoder and decoder; inputs and outputs: see `EncoderDecoder`.

    norm_first: mBART's order, with a norm at the end of each side
    """

    max_sequence_length: PositiveInt = 1024
    scale_embeddings: bool = False
    norm_first: bool = False
    decoder_start_token_id: int = 2

    config_names = {
        **SIZES,
        "max_sequence_length": "max_position_embeddings",
        "scale_embeddings": "scale_embedding",
    }
    weight_map = WEIGHTS
    ignored = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "*coder.version")

    def build(self, shape=None):
        self.embeddings = table(self, self.vocabulary_size, self.hidden_dim)
        rows = self.max_sequence_length + OFFSET
        for side in ("encoder", "decoder"):
            setattr(self, f"{side}_position", table(self, rows, self.hidden_dim))
            setattr(self, f"{side}_embedding_norm", self.norm())
        self.build_sides(last_norms=self.norm_first)

    def source(self, token_ids):
        time = ops.shape(token_ids)[1]
        check_length(time, self.max_sequence_length)
        return self._embedded("encoder", token_ids, ops.arange(time))

    def target(self, token_ids, positions):
        return self._embedded("decoder", token_ids, positions)

    def _embedded(self, side, token_ids, positions):
        x = self.embeddings(token_ids)
        if self.scale_embeddings:
            x = x * ops.cast(self.hidden_dim**0.5, ops.dtype(x))
        x = x + getattr(self, f"{side}_position")(positions + OFFSET)
        return getattr(self, f"{side}_embedding_norm")(x)

    @classmethod
    def config_from_reference(cls, config):
        check_config(config, ALWAYS, "BART")
        kind = config.get("model_type", "bart")
        return {**super().config_from_reference(config), "norm_first": kind == "mbart"}

    def reference_config(self):
        return {**super().reference_config(), "model_type": "mbart" if self.norm_first else "bart"}


class BartSeq2SeqLM(Seq2SeqLM):
    """The next token of the target: the embeddings as the output's kernel, and a bias."""

    weight_map = [("final_logits_bias", "logits_bias")]
    ignored = ("lm_head.weight",)

    def build(self, shape=None):
        size = (1, self.backbone.vocabulary_size)
        self.logits_bias = self.add_weight(size, "zeros", name="logits_bias", trainable=False)

    def logits(self, x):
        return super().logits(x) + ops.cast(self.logits_bias.value[0], ops.dtype(x))


class BartTokenizer(RobertaTokenizer):
    """BART's byte-level BPE, RoBERTa's.  <s> first </s></s> second </s>"""

    reference_class = "BartTokenizer"


register_kinds("bart", KINDS, BartBackbone, BartTokenizer, BartSeq2SeqLM)
