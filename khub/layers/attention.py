"""Attention on tensors as they are (Luong, Bahdanau), and in heads with projections."""

from khub import ops, random
from khub.fields import Choice, PositiveInt, Rate, Weights
from khub.layers.core import EinsumDense
from khub.layers.layer import Layer


class Attention(Layer):
    """softmax(score(query, key)) value, on the inputs as they are.  arXiv:1508.04025

    inputs: [query (batch, time, n), value (batch, source, m), key (batch, source, n), or value]
    score_mode: "dot", or "concat": sum(tanh(query + key)); use_scale: whether to learn a factor.
    mask: [of the query, of the value], true where there is something.  ->  (batch, time, m)
    """

    use_scale: bool = False
    score_mode: Choice("dot", "concat") = "dot"
    dropout: Rate = 0.0
    seed: int = None
    supports_masking = True

    def setup(self):
        if self.dropout > 0:
            self.seed_generator = random.SeedGenerator(self.seed)

    def build(self, input_shape):
        self._check(input_shape)
        self.scale = self.concat_score_weight = None
        if self.use_scale:
            self.scale = self.add_weight((), "ones", name="scale")
        if self.score_mode == "concat":
            self.concat_score_weight = self.add_weight((), "ones", name="concat_score_weight")

    def _check(self, inputs):
        if not isinstance(inputs, (list, tuple)) or len(inputs) not in (2, 3):
            raise ValueError(
                f"{type(self).__name__} takes [query, value] or [query, value, key], got {inputs}."
            )

    def _scores(self, query, key):
        if self.score_mode == "dot":
            scores = ops.matmul(query, ops.transpose(key, (0, 2, 1)))
            return scores if self.scale is None else scores * self.scale
        both = ops.expand_dims(query, 2) + ops.expand_dims(key, 1)
        both = both if self.scale is None else both * self.scale
        return self.concat_score_weight * ops.sum(ops.tanh(both), axis=-1)

    def call(
        self,
        inputs,
        mask=None,
        return_attention_scores=False,
        training=None,
        use_causal_mask=False,
    ):
        self._check(inputs)
        query, value, key = inputs[0], inputs[1], inputs[-1]
        query_mask, value_mask = (*mask, None)[:2] if mask is not None else (None, None)
        scores = self._scores(query, key)
        seen = None if value_mask is None else ops.expand_dims(ops.cast(value_mask, "bool"), 1)
        if use_causal_mask:
            causal = _causal(scores)
            seen = causal if seen is None else ops.logical_and(seen, causal)
        if seen is not None:
            hidden = ops.cast(ops.logical_not(seen), scores.dtype)
            scores = scores - hidden * (6e4 if self.compute_dtype == "float16" else 1e9)
        weights = ops.softmax(scores, axis=-1)
        if training and self.dropout > 0:
            weights = random.dropout(weights, self.dropout, seed=self.seed_generator)
        result = ops.matmul(weights, value)
        if query_mask is not None:
            result = result * ops.cast(ops.expand_dims(query_mask, -1), result.dtype)
        return (result, weights) if return_attention_scores else result

    def compute_mask(self, inputs, previous_mask=None):
        return None if previous_mask is None else previous_mask[0]


class AdditiveAttention(Attention):
    """softmax(sum(scale * tanh(query + key))) value.  arXiv:1409.0473

    inputs: as those of `Attention`; use_scale: whether to learn a factor for each feature.
    """

    _unsaved = ("score_mode",)

    use_scale: bool = True
    dropout: Rate = 0.0

    def build(self, input_shape):
        self._check(input_shape)
        self.scale = None
        if self.use_scale:
            self.scale = self.add_weight((input_shape[0][-1],), "glorot_uniform", name="scale")

    def _scores(self, query, key):
        both = ops.tanh(ops.expand_dims(query, 2) + ops.expand_dims(key, 1))
        return ops.sum(both if self.scale is None else both * self.scale, axis=-1)


def _causal(scores):
    """True where a step of (..., time, source) may look: at itself and before."""
    time, source = ops.shape(scores)[-2:]
    return ops.expand_dims(ops.arange(time), -1) >= ops.expand_dims(ops.arange(source), 0)


class _Heads(Layer):
    """What the layers with projections share: masks, the attention itself, the way out."""

    supports_masking = True
    _keras_keys = {"activity_regularizer": None}
    _unsaved = ("flash_attention",)

    def setup(self):
        if self.dropout > 0:
            self.seed_generator = random.SeedGenerator(self.seed)

    def _dense(self, rank, name, output, bias_axes, equation):
        return EinsumDense(
            equation,
            output,
            bias_axes=bias_axes if self.use_bias else None,
            kernel_initializer=self.kernel_initializer,
            bias_initializer=self.bias_initializer,
            kernel_regularizer=self.kernel_regularizer,
            bias_regularizer=self.bias_regularizer,
            activity_regularizer=self.activity_regularizer,
            kernel_constraint=self.kernel_constraint,
            bias_constraint=self.bias_constraint,
            dtype=self.dtype_policy,
            name=name,
        )

    def _into_heads(self, rank, name, heads, width):
        """A projection (batch, *places, n) -> (batch, *places, heads, width)."""
        free = "abcdefgh"[: rank - 1]
        equation = f"{free}x,xyz->{free}yz"
        return self._dense(rank, name, (*[None] * (rank - 2), heads, width), "yz", equation)

    def _out_of_heads(self, rank, name, shape):
        """A projection (batch, *places, heads, width) -> (batch, *places, *shape)."""
        free, out = "abcdefgh"[: rank - 1], "opqrst"[: len(shape)]
        equation = f"{free}yz,yz{out}->{free}{out}"
        return self._dense(rank, name, (*[None] * (rank - 2), *shape), out, equation)

    def _allowed(self, time, source, masks, attention_mask, causal):
        """Which of (batch, time, source) may be looked at, or None: all."""
        query_mask, value_mask, key_mask = masks
        found = [] if attention_mask is None else [ops.cast(attention_mask, "bool")]
        if query_mask is not None:
            found.append(ops.expand_dims(ops.cast(query_mask, "bool"), -1))
        found += [
            ops.expand_dims(ops.cast(m, "bool"), -2)
            for m in (value_mask, key_mask)
            if m is not None
        ]
        if causal or self.sliding_window is not None:
            distance = ops.expand_dims(ops.arange(time), -1) - ops.expand_dims(
                ops.arange(source), 0
            )
            if causal:
                found.append(ops.expand_dims(distance >= 0, 0))
            if self.sliding_window is not None:
                near = ops.abs(distance) < self.sliding_window
                found.append(ops.expand_dims(near, 0))
        result = None
        for mask in found:
            result = mask if result is None else ops.logical_and(result, mask)
        return result

    def _attend(self, query, key, value, mask, training, scores_too):
        """(batch, time, heads, width)s -> the same, and the weights (batch, heads, time, source).

        mask: (batch, heads or 1, time, source) or None
        """
        dropped = training and self.dropout > 0
        if not (dropped or scores_too):
            return ops.dot_product_attention(
                query, key, value, mask=mask, flash_attention=self.flash_attention
            ), None
        if self.flash_attention:
            raise ValueError(
                f"{self.name}: flash_attention=True gives no scores and has no dropout; leave it "
                "None."
            )
        groups = query.shape[2] // key.shape[2]
        if groups > 1:
            key, value = (ops.repeat(x, groups, axis=2) for x in (key, value))
        scores = ops.einsum("bthw,bshw->bhts", query * query.shape[-1] ** -0.5, key)
        if mask is not None:
            low = -3e4 if self.compute_dtype == "float16" else -1e30
            scores = ops.where(mask, scores, low)
        weights = ops.softmax(scores, axis=-1)
        used = weights
        if dropped:
            used = random.dropout(weights, self.dropout, seed=self.seed_generator)
        return ops.einsum("bhts,bshw->bthw", used, value), weights


class MultiHeadAttention(_Heads):
    """Attention of several heads, each on projections of its own.  arXiv:1706.03762

    query: (batch, *time, n), value and key: (batch, *source, m)  ->  (batch, *time, output)
    key_dim, value_dim: width of a head; output_shape: as the query's last axis unless given;
    attention_axes: the axes attended over, all but batch and features unless given;
    sliding_window: how far a step sees; use_gate: whether a learnt gate scales each head's output.
    Masks are true where there is something to see; attention_mask: (batch, time, source).
    """

    num_heads: PositiveInt
    key_dim: PositiveInt
    value_dim: int = None
    dropout: Rate = 0.0
    use_bias: bool = True
    output_shape: tuple = None
    attention_axes: tuple = None
    sliding_window: int = None
    flash_attention: bool = None
    options: Weights(activity=True, kernel="glorot_uniform", bias="zeros")
    use_gate: bool = False
    seed: int = None

    def setup(self):
        super().setup()
        self.value_dim = self.value_dim or self.key_dim
        if isinstance(self.output_shape, int):
            self.output_shape = (self.output_shape,)
        if isinstance(self.attention_axes, int):
            self.attention_axes = (self.attention_axes,)

    def build(self, query_shape, value_shape, key_shape=None):
        key_shape = key_shape or value_shape
        rank = len(query_shape)
        axes = self.attention_axes or tuple(range(1, rank - 1))
        self._axes = [a % rank for a in axes]
        self.query_dense = self._into_heads(rank, "query", self.num_heads, self.key_dim)
        self.key_dense = self._into_heads(len(key_shape), "key", self.num_heads, self.key_dim)
        if self.use_gate:
            self.gate_dense = self._into_heads(rank, "gate", self.num_heads, self.value_dim)
        value_rank = len(value_shape)
        self.value_dense = self._into_heads(value_rank, "value", self.num_heads, self.value_dim)
        shape = self.output_shape or (query_shape[-1],)
        self.output_dense = self._out_of_heads(rank, "attention_output", shape)
        self.query_dense.build(query_shape)
        self.key_dense.build(key_shape)
        if self.use_gate:
            self.gate_dense.build(query_shape)
        self.value_dense.build(value_shape)
        self.output_dense.build((*query_shape[:-1], self.num_heads, self.value_dim))

    def call(
        self,
        query,
        value,
        key=None,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        return_attention_scores=False,
        training=None,
        use_causal_mask=False,
    ):
        gate = self.gate_dense(query) if self.use_gate else None
        masks = query_mask, value_mask, key_mask
        mask = self._allowed(query.shape[1], value.shape[1], masks, attention_mask, use_causal_mask)
        key = self.key_dense(value if key is None else key)
        query, value = self.query_dense(query), self.value_dense(value)
        shape, source = ops.shape(query), ops.shape(key)
        query, key, value = (self._fold(x) for x in (query, key, value))
        if mask is not None:
            mask = self._fold_mask(mask, shape, query.shape[1], key.shape[1])
        y, weights = self._attend(query, key, value, mask, training, return_attention_scores)
        y = self._unfold(y, shape)
        y = self.output_dense(y if gate is None else y * ops.sigmoid(gate))
        return (y, self._unfold_weights(weights, shape, source)) if return_attention_scores else y

    def _order(self, rank):
        """The axes of (batch, *places, heads, width): those outside the attention first."""
        outside = [a for a in range(rank - 2) if a not in self._axes]
        return [*outside, *self._axes, rank - 2, rank - 1]

    def _fold(self, x):
        """(batch, *places, heads, width) -> (all outside, all attended over, heads, width)"""
        rank = len(x.shape)
        if rank == 4 and self._axes == [1]:
            return x
        shape, order = ops.shape(x), self._order(rank)
        places = 1
        for a in self._axes:
            places = places * shape[a]
        return ops.reshape(ops.transpose(x, order), (-1, places, *shape[-2:]))

    def _unfold(self, y, shape):
        if len(shape) == 4 and self._axes == [1]:
            return y
        order = self._order(len(shape))
        y = ops.reshape(y, [*[shape[a] for a in order[:-1]], y.shape[-1]])
        return ops.transpose(y, sorted(range(len(order)), key=order.__getitem__))

    def _outside(self, shape):
        return [shape[a] for a in range(len(shape) - 2) if a not in self._axes]

    def _fold_mask(self, mask, shape, time, source):
        """Put a mask over (batch, *time, *source) in the shape of folded scores."""
        inner = 2 * len(self._axes)
        while len(mask.shape) < len(shape) - 1 + len(self._axes):
            mask = ops.expand_dims(mask, -inner - 1)
        if len(shape) == 4 and self._axes == [1]:
            return mask
        last = ops.shape(mask)[-inner - 1 :]
        mask = ops.broadcast_to(mask, (*self._outside(shape), *last))
        return ops.reshape(mask, (-1, last[0], time, source))

    def _unfold_weights(self, weights, shape, source):
        if len(shape) == 4 and self._axes == [1]:
            return weights
        places = [*(shape[a] for a in self._axes), *(source[a] for a in self._axes)]
        return ops.reshape(weights, (*self._outside(shape), self.num_heads, *places))


class GroupQueryAttention(_Heads):
    """Attention whose query heads share keys and values in groups.  arXiv:2305.13245

    query: (batch, time, n), value and key: (batch, source, m)  ->  (batch, time, n)
    Masks as those of `MultiHeadAttention`.
    """

    head_dim: PositiveInt
    num_query_heads: PositiveInt
    num_key_value_heads: PositiveInt
    dropout: Rate = 0.0
    use_bias: bool = True
    sliding_window: int = None
    flash_attention: bool = None
    options: Weights(activity=True, kernel="glorot_uniform", bias="zeros")
    use_gate: bool = False
    seed: int = None

    def setup(self):
        super().setup()
        if self.num_query_heads % self.num_key_value_heads:
            raise ValueError(
                f"GroupQueryAttention: {self.num_query_heads} query heads do not divide into "
                f"{self.num_key_value_heads} groups."
            )

    def build(self, query_shape, value_shape, key_shape=None):
        few, many, width = self.num_key_value_heads, self.num_query_heads, self.head_dim
        self._query_dense = self._into_heads(3, "query", many, width)
        self._key_dense = self._into_heads(3, "key", few, width)
        if self.use_gate:
            self._gate_dense = self._into_heads(3, "gate", many, width)
        self._value_dense = self._into_heads(3, "value", few, width)
        self._output_dense = self._out_of_heads(3, "attention_output", (query_shape[-1],))
        self._query_dense.build(query_shape)
        self._key_dense.build(key_shape or value_shape)
        if self.use_gate:
            self._gate_dense.build(query_shape)
        self._value_dense.build(value_shape)
        self._output_dense.build((*query_shape[:-1], many, width))

    def call(
        self,
        query,
        value,
        key=None,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        return_attention_scores=False,
        training=None,
        use_causal_mask=False,
    ):
        masks = query_mask, value_mask, key_mask
        mask = self._allowed(query.shape[1], value.shape[1], masks, attention_mask, use_causal_mask)
        if mask is not None and len(mask.shape) == 3:
            mask = ops.expand_dims(mask, 1)
        gate = self._gate_dense(query) if self.use_gate else None
        y, weights = self._attend(
            self._query_dense(query),
            self._key_dense(value if key is None else key),
            self._value_dense(value),
            mask,
            training,
            return_attention_scores,
        )
        y = self._output_dense(y if gate is None else y * ops.sigmoid(gate))
        return (y, weights) if return_attention_scores else y


__all__ = ["AdditiveAttention", "Attention", "GroupQueryAttention", "MultiHeadAttention"]
