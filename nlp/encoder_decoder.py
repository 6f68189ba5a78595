"""Encoder-decoders: what T5, BART and Whisper share, from blocks to the decoder's cache.

Vaswani et al. 2017, arXiv:1706.03762.
"""

from functools import partial

from khub import ops
from khub.fields import PositiveInt, Rate
from khub.layers import Dropout

from ..presets import Family, register
from . import transformer
from .cache import KVCache
from .tasks import Backbone
from .transformer import EncoderBlock, FeedForward, built, norm, renames, visible


class Block(EncoderBlock):
    """A decoder's block: `EncoderBlock` with a cache, and between its parts attention to what the
    encoder gave, all three with a norm.

    call(x, seen, bias, cache, at, kept, source) -> (y, cache), as `Attention`; kept: keys and
    values of `CrossAttention`; source: bool (batch, 1, 1, source time), which of them are real
    """

    def __init__(self, cross, cross_norm, *parts, **options):
        super().__init__(*parts, **options)
        self.cross, self.cross_norm = cross, cross_norm

    def call(self, x, seen, bias, cache=None, at=0, kept=None, source=None, training=None):
        y = self.before(self.attention_norm, x)
        y, cache = self.attention(y, None, seen, cache, at, bias, training=training)
        x = self.after(self.attention_norm, self.drop, x, y, training)
        y = self.cross(self.before(self.cross_norm, x), kept, source, training=training)
        x = self.after(self.cross_norm, self.drop, x, y, training)
        y = self.feed_forward(self.before(self.norm, x), training=training)
        return self.after(self.norm, self.drop, x, y, training), cache


class EncoderDecoder(Backbone):
    """A network that reads a whole source and then writes a target, token after token.

    call({"encoder_token_ids": int (batch, source time), "decoder_token_ids": int (batch, time),
    "encoder_padding_mask", "decoder_padding_mask": bool of the same shapes, or left out})
    -> {"encoder_sequence_output": (batch, source time, hidden_dim), "decoder_sequence_output":
    (batch, time, hidden_dim)}

    A family defines build(), source(x) and target(token_ids, positions), which embed, norm(), which
    makes one, and where it has them biases of relative positions.
    """

    vocabulary_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    hidden_dim: PositiveInt
    intermediate_dim: PositiveInt
    num_decoder_layers: int = None

    needed = ("encoder_token_ids", "decoder_token_ids")  # source and target
    norm_first = True
    encoder_norm = decoder_norm = None
    # call(queries, keys) -> bias, for all blocks or each
    encoder_positions = decoder_positions = ()

    def setup(self):
        self.num_decoder_layers = self.num_decoder_layers or self.num_layers
        super().setup()

    def build_side(self, side, count, heads, feed_forward, last_norm=True, **attention):
        """The blocks of "encoder" or "decoder", and where `last_norm` the norm behind them.

        feed_forward: makes one   attention: fields of both kinds of attention
        """
        self.drop = Dropout(self.dropout, dtype=self.dtype_policy)
        own = {"dropout": self.dropout, "output_bias": attention["bias"], **attention}
        head_width = own.pop("head_width", self.hidden_dim // heads)
        sizes = self.hidden_dim, heads, heads, head_width
        options = dict(dtype=self.dtype_policy)

        def block():
            kind = transformer.CausalAttention if side == "decoder" else transformer.SelfAttention
            inner = built(kind(*sizes, **own, **options)), built(feed_forward())
            parts = *inner, (self.norm(), self.norm()), (self.dropout,) * 2, self.norm_first
            if side == "encoder":
                return EncoderBlock(*parts, **options)
            cross = built(transformer.CrossAttention(*sizes, **own, **options))
            return Block(cross, self.norm(), *parts, **options)

        setattr(self, f"{side}_blocks", [block() for _ in range(count)])
        if last_norm:
            setattr(self, f"{side}_norm", self.norm())

    def reference_config(self):
        return {**super().reference_config(), "is_encoder_decoder": True}

    def call(self, inputs, training=None):
        self.check_inputs(inputs)
        mask = inputs.get("encoder_padding_mask")
        encoded = self.encoded(inputs[self.needed[0]], mask, training)
        hidden, _ = self.run(
            inputs["decoder_token_ids"],
            mask=inputs.get("decoder_padding_mask"),
            memory=self.remember(encoded, mask),
            training=training,
        )
        return {"encoder_sequence_output": encoded, "decoder_sequence_output": hidden}

    def encoded(self, source, mask=None, training=None):
        """The encoder's states of a source."""
        x = self.source(source)
        x = self.drop(x, training=training) if training else x
        hidden = transformer.padding_bias(mask, self.compute_dtype)
        near = self._biases(self.encoder_positions, *[lambda: ops.arange(ops.shape(x)[1])] * 2)
        for i, block in enumerate(self.encoder_blocks):
            both = [bias for bias in (hidden, near(i)) if bias is not None]
            x = block(x, sum(both) if both else None, training=training)
        return x if self.encoder_norm is None else self.encoder_norm(x)

    def remember(self, encoded, mask=None):
        """What every step of the decoder looks at: keys and values of each block, the mask."""
        kept = [block.cross.keep(encoded) for block in self.decoder_blocks]
        keys, values = map(list, zip(*kept))
        seen = {} if mask is None else {"seen": ops.cast(mask, "bool")[:, None, None]}
        return {"keys": keys, "values": values, **seen}

    def encode(self, source, mask=None):
        """The memory of a source."""
        return self.remember(self.encoded(source, mask), mask)

    def new_cache(self, batch, room, starts=None, memory=None):
        """An empty `KVCache` for `room` positions.  starts, memory: see there"""
        attention = self.decoder_blocks[0].attention
        shape = (batch, room, attention.key_heads, attention.head_width)
        count = len(self.decoder_blocks)
        return KVCache.zeros(count, shape, self.compute_dtype, starts, memory)

    def run(self, token_ids, cache=None, mask=None, memory=None, training=None):
        """Hidden states of target tokens, and the cache with these behind its own.

        mask: bool (batch, time), the real tokens   memory: where there is no cache with one
        """
        time, at = ops.shape(token_ids)[1], 0 if cache is None else cache.length
        memory = memory if cache is None else cache.memory
        positions = ops.arange(time) + at
        starts = None if cache is None else cache.starts
        places = positions if starts is None else ops.maximum(positions[None] - starts[:, None], 0)
        x = self.target(token_ids, places)
        x = self.drop(x, training=training) if training else x
        seen, count = visible(time, cache, mask), len(self.decoder_blocks)
        kept = [None] * count if cache is None else cache.layers()

        def keys():
            source = at + time if cache is None or seen is None else ops.shape(seen)[-1]
            return ops.arange(source)

        bias = self._biases(self.decoder_positions, lambda: positions, keys)
        both = zip(memory["keys"], memory["values"])
        source = memory.get("seen")
        for i, (block, there) in enumerate(zip(self.decoder_blocks, both)):
            x, kept[i] = block(x, seen, bias(i), kept[i], at, there, source, training=training)
        if cache is not None:
            cache = cache.written(kept, at + time)
        return x if self.decoder_norm is None else self.decoder_norm(x), cache

    def _biases(self, positions, queries, keys):
        """The number of a block -> the bias of its scores."""
        made = [each(queries(), keys()) for each in positions]
        return lambda i: made[min(i, len(made) - 1)] if made else None


# --- what BART and Whisper, which was built on it, have in common -------------------------------
SIZES = {  # khub's name -> the reference's
    "vocabulary_size": "vocab_size",
    "num_layers": "encoder_layers",
    "num_heads": "encoder_attention_heads",
    "hidden_dim": "d_model",
    "intermediate_dim": "encoder_ffn_dim",
    "num_decoder_layers": "decoder_layers",
    "num_decoder_heads": "decoder_attention_heads",
    "decoder_intermediate_dim": "decoder_ffn_dim",
    "activation": "activation_function",
    **transformer.same("dropout", "attention_dropout", "activation_dropout"),
    **transformer.same("decoder_start_token_id"),
}


_OWN, _CROSS = "self_attn", "encoder_attn"
BLOCK = {
    "attention.qkv": f"{_OWN}.q_proj {_OWN}.k_proj {_OWN}.v_proj",
    "attention.query_bias": f"{_OWN}.q_proj.bias",
    "attention.value_bias": f"{_OWN}.v_proj.bias",
    "attention.output_projection": f"{_OWN}.out_proj",
    "attention_norm": f"{_OWN}_layer_norm",
    "cross.query": f"{_CROSS}.q_proj",
    "cross.key_value": f"{_CROSS}.k_proj {_CROSS}.v_proj",
    "cross.value_bias": f"{_CROSS}.v_proj.bias",
    "cross.output_projection": f"{_CROSS}.out_proj",
    "cross_norm": f"{_CROSS}_layer_norm",
    "feed_forward.up": "fc1",
    "feed_forward.down": "fc2",
    "norm": "final_layer_norm",
}


def block_weights(side):
    """Renames of one side's blocks and last norms, for BART and what is built like it."""
    yield f"{side}.layer_norm", f"{side}_norm"
    yield from renames(f"{side}.layers.{{i}}.", f"{side}_blocks.{{i}}.", BLOCK)


def register_kinds(name, kinds, backbone, tokenizer, task, generic="Seq2SeqLM"):
    """Register the family of an encoder-decoder.

    kinds: {model_type: the reference's name}   generic: the name of the task
    """
    forms = {generic: "{}ForConditionalGeneration", "Backbone": "{}Model"}
    named = {key: tuple(map(form.format, kinds.values())) for key, form in forms.items()}
    if len(kinds) == 1:  # a folder that is saved can say which
        named = {key: names[0] for key, names in named.items()}
    register(Family(name, tuple(kinds), backbone, tokenizer, {generic: task}, named))


class SizedEncoderDecoder(EncoderDecoder):
    """An encoder-decoder of layer normalizations and biases, whose sides have sizes of their own.

    What a decoder's size leaves out is as in the encoder.
    """

    num_decoder_heads: int = None
    decoder_intermediate_dim: int = None
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.0
    activation_dropout: Rate = 0.0
    activation: transformer.ActivationName = "gelu"

    reference_prefix = "model"
    config_names = SIZES
    key_bias = True

    def setup(self):
        self.num_decoder_heads = self.num_decoder_heads or self.num_heads
        self.decoder_intermediate_dim = self.decoder_intermediate_dim or self.intermediate_dim
        if self.hidden_dim % self.num_decoder_heads:
            raise ValueError(
                f"hidden_dim must be a multiple of num_decoder_heads; got {self.hidden_dim} and "
                f"{self.num_decoder_heads}."
            )
        transformer.check_sizes(self)
        super().setup()

    def build_sides(self, last_norms):
        """The blocks of both sides, and where `last_norms` the norms behind them."""
        encoder = self.num_layers, self.num_heads, self.intermediate_dim
        decoder = self.num_decoder_layers, self.num_decoder_heads, self.decoder_intermediate_dim
        options = dict(dropout=self.activation_dropout, dtype=self.dtype_policy)
        own = dict(bias=True, key_bias=self.key_bias, dropout=self.attention_dropout)
        for side, (count, heads, hidden) in (("encoder", encoder), ("decoder", decoder)):
            sizes = self.hidden_dim, hidden, self.activation
            feed_forward = partial(FeedForward, *sizes, **options)
            self.build_side(side, count, heads, feed_forward, last_norms, **own)

    def norm(self):
        return norm(self, self.hidden_dim, 1e-5)
