"""Encoder-decoders: what T5, BART and Whisper share, from blocks to the decoder's cache.

Vaswani et al. 2017, arXiv:1706.03762.
"""

from khub import ops
from khub.layers import Dropout, Layer

from .cache import KVCache
from .tasks import Backbone
from .transformer import CausalAttention, CrossAttention, SelfAttention, visible


class Block(Layer):
    """Attention, in a decoder attention to the encoder's states, two dense layers; all added to x.

    Each part's input is normalized, or (norm_first=False) the sum behind it.
    call(x, seen, bias, cache, at, kept, source) -> (y, cache), as `SelfAttention`; kept: keys and
    values of `CrossAttention`; source: bool (batch, 1, 1, source time), which of them are real
    """

    def __init__(self, attention, cross, feed_forward, norms, norm_first, dropout, **options):
        super().__init__(**options)
        self.attention, self.cross, self.feed_forward = attention, cross, feed_forward
        self.attention_norm, *middle, self.norm = norms
        self.cross_norm = middle[0] if middle else None
        self.norm_first = norm_first
        self.drop = Dropout(dropout, dtype=self.dtype_policy)
        for part in filter(None, (attention, cross, feed_forward)):
            part.build()
        self.built = True

    def _before(self, norm, x):
        return norm(x) if self.norm_first else x

    def _after(self, norm, x, y, training):
        x = x + (self.drop(y, training=training) if training else y)
        return x if self.norm_first else norm(x)

    def call(
        self,
        x,
        seen=None,
        bias=None,
        cache=None,
        at=0,
        kept=None,
        source=None,
        training=None,
    ):
        y = self._before(self.attention_norm, x)
        y, cache = self.attention(y, None, seen, cache, at, bias, training=training)
        x = self._after(self.attention_norm, x, y, training)
        if self.cross is not None:
            y = self.cross(self._before(self.cross_norm, x), kept, source, training=training)
            x = self._after(self.cross_norm, x, y, training)
        y = self.feed_forward(self._before(self.norm, x), training=training)
        return self._after(self.norm, x, y, training), cache


class EncoderDecoder(Backbone):
    """A network that reads a whole source and then writes a target, token after token.

    call({"encoder_token_ids": int (batch, source time), "decoder_token_ids": int (batch, time),
    "encoder_padding_mask", "decoder_padding_mask": bool of the same shapes, or left out})
    -> {"encoder_sequence_output": (batch, source time, hidden_dim), "decoder_sequence_output":
    (batch, time, hidden_dim)}

    A family defines build(), source(x, training) and target(token_ids, positions, training), which
    embed, and where it has them the last norms and biases of relative positions.
    """

    source_name = "encoder_token_ids"
    norm_first = True
    encoder_norm = decoder_norm = None
    encoder_positions = (
        decoder_positions
    ) = ()  # call(queries, keys) -> bias, for all blocks or each

    def make_blocks(self, count, cross, norm, feed_forward, heads, dropout, **attention):
        """Blocks of `count`, those of a decoder where `cross`.

        norm, feed_forward: make one   attention: fields of both kinds of attention
        """
        width, options = self.hidden_dim, dict(dtype=self.dtype_policy)
        head = attention.pop("head_width", width // heads)
        attention["dropout"] = attention.pop("attention_dropout", dropout)
        own = {**attention, "output_bias": attention["bias"], **options}
        kind = CausalAttention if cross else SelfAttention
        return [
            Block(
                kind(width, heads, heads, head, **own),
                CrossAttention(width, heads, head, **attention, **options) if cross else None,
                feed_forward(),
                [norm() for _ in range(3 if cross else 2)],
                self.norm_first,
                dropout,
                **options,
            )
            for _ in range(count)
        ]

    def check_inputs(self, inputs):
        needed = {self.source_name, "decoder_token_ids"}
        if not (isinstance(inputs, dict) and needed <= inputs.keys()):
            given = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
            raise TypeError(
                f"{type(self).__name__} takes a dict with {' and '.join(sorted(needed))}, got "
                f"{given}. Raw data goes to fit, evaluate and generate of a task."
            )

    def call(self, inputs, training=None):
        self.check_inputs(inputs)
        mask = inputs.get("encoder_padding_mask")
        encoded = self.encoded(inputs[self.source_name], mask, training)
        hidden, _ = self.run(
            inputs["decoder_token_ids"],
            mask=inputs.get("decoder_padding_mask"),
            memory=self.remember(encoded, mask),
            training=training,
        )
        return {"encoder_sequence_output": encoded, "decoder_sequence_output": hidden}

    def encoded(self, source, mask=None, training=None):
        """The encoder's states of a source."""
        x = self.source(source, training)
        seen = None if mask is None else ops.cast(mask, "bool")[:, None, None]
        bias = self._biases(self.encoder_positions, *[lambda: ops.arange(ops.shape(x)[1])] * 2)
        for i, block in enumerate(self.encoder_blocks):
            x, _ = block(x, seen, bias(i), training=training)
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
        x = self.target(token_ids, places, training)
        seen, count = visible(time, cache, mask), len(self.decoder_blocks)
        kept = [None] * count if cache is None else list(zip(cache.keys, cache.values))

        def keys():
            source = at + time if cache is None or seen is None else ops.shape(seen)[-1]
            return ops.arange(source)

        bias = self._biases(self.decoder_positions, lambda: positions, keys)
        both = zip(memory["keys"], memory["values"])
        for i, (block, there) in enumerate(zip(self.decoder_blocks, both)):
            source = memory.get("seen")
            x, kept[i] = block(x, seen, bias(i), kept[i], at, there, source, training=training)
        if cache is not None:
            keys, values = map(list, zip(*kept))
            cache = cache._replace(keys=keys, values=values, length=at + time)
        return x if self.decoder_norm is None else self.decoder_norm(x), cache

    def _biases(self, positions, queries, keys):
        """The number of a block -> the bias of its scores."""
        made = [each(queries(), keys()) for each in positions]
        return lambda i: made[min(i, len(made) - 1)] if made else None
