"""Attention on tensors as they are (Luong, Bahdanau), and in heads with projections."""

from functools import reduce

from khub import ops, random
from khub.fields import Choice, Integers, PositiveInt, Rate, Weights
from khub.layers.core import EinsumDense
from khub.layers.layer import Layer

_OPTIONS = Weights(activity=True, kernel="glorot_uniform", bias="zeros")


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
        training=False,
        return_attention_scores=False,
        use_causal_mask=False,
    ):
        self._check(inputs)
        query, value, key = inputs[0], inputs[1], inputs[-1]
        query_mask, value_mask = (*mask, None)[:2] if mask is not None else (None, None)
        scores = self._scores(query, key)
        seen = None if value_mask is None else ops.expand_dims(ops.cast(value_mask, "bool"), 1)
        if use_causal_mask:
            causal = _distances(*ops.shape(scores)[-2:]) >= 0
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

    def compute_mask(self, inputs, mask=None):
        return None if mask is None else mask[0]


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


def _distances(time, source):
    """How far each of `time` steps lies behind each of `source` steps: (time, source)"""
    return ops.expand_dims(ops.arange(time), -1) - ops.expand_dims(ops.arange(source), 0)


class _Heads(Layer):
    """Attention in heads on projections; a subclass has more fields and says the heads' sizes.

    `_prefix` begins the names of the projections' attributes.
    """

    sliding_window: int = None
    flash_attention: bool = None
    options: _OPTIONS
    use_gate: bool = False
    seed: int = None
    supports_masking = True
    output_shape = attention_axes = None
    _keras_keys = {"activity_regularizer": None}
    _unsaved = ("flash_attention",)
    _prefix = ""
    _rank = None  # of the inputs, where one alone will do
    _hides_queries = False  # whether a hidden query sees nothing, or as much as the others

    def setup(self):
        if self.dropout > 0:
            self.seed_generator = random.SeedGenerator(self.seed)

    def build(self, query_shape, value_shape, key_shape=None):
        heads, groups, width, value_width = self._sizes()
        rank = self._rank or len(query_shape)
        self._axes = [a % rank for a in self.attention_axes or range(1, rank - 1)]
        self._add_into_heads("query", query_shape, heads, width)
        self._add_into_heads("key", key_shape or value_shape, groups, width)
        if self.use_gate:
            self._add_into_heads("gate", query_shape, heads, value_width)
        self._add_into_heads("value", value_shape, groups, value_width)
        outputs = self.output_shape or (query_shape[-1],)
        free, out = "abcdefgh"[: rank - 1], "opqrst"[: len(outputs)]
        dense = self._dense("attention_output", rank, f"{free}yz,yz{out}->{free}{out}", outputs)
        dense.build((*query_shape[:-1], heads, value_width))
        setattr(self, self._place("output"), dense)

    def _add_into_heads(self, name, shape, heads, width):
        """Make a projection (batch, *places, n) -> (batch, *places, heads, width)."""
        rank = self._rank or len(shape)
        free = "abcdefgh"[: rank - 1]
        dense = self._dense(name, rank, f"{free}x,xyz->{free}yz", (heads, width))
        dense.build(shape)
        setattr(self, self._place(name), dense)

    def _place(self, name):
        return f"{'_' if name == 'gate' else self._prefix}{name}_dense"

    def _dense(self, name, rank, equation, outputs):
        return EinsumDense(
            equation,
            (*[None] * (rank - 2), *outputs),
            bias_axes=equation[-len(outputs) :] if self.use_bias else None,
            **{field: getattr(self, field) for field, *_ in _OPTIONS},
            dtype=self.dtype_policy,
            name=name,
        )

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
        masks = (attention_mask, None), (value_mask, -2), (key_mask, -2)
        masks += ((query_mask, -1),) if self._hides_queries else ()
        mask = self._allowed(ops.shape(query)[1], ops.shape(value)[1], masks, use_causal_mask)
        gate = self._project("gate", query) if self.use_gate else None
        key = self._project("key", value if key is None else key)
        query, value = self._project("query", query), self._project("value", value)
        shape, source = ops.shape(query), ops.shape(key)
        folds = len(shape) != 4 or self._axes != [1]
        if mask is not None:
            while len(mask.shape) < len(shape) - 1 + len(self._axes):
                mask = ops.expand_dims(mask, -2 * len(self._axes) - 1)
        if folds:
            query, key, value = (self._fold(x) for x in (query, key, value))
            if mask is not None:
                mask = self._fold_mask(mask, shape, query.shape[1], key.shape[1])
        y, weights = self._attend(query, key, value, mask, training, return_attention_scores)
        if folds:
            y = self._unfold(y, shape)
        y = self._project("output", y if gate is None else y * ops.sigmoid(gate))
        if not return_attention_scores:
            return y
        return y, self._unfold_weights(weights, shape, source) if folds else weights

    def _project(self, name, x):
        return getattr(self, self._place(name))(x)

    def _allowed(self, time, source, masks, causal):
        """Which of (batch, time, source) may be looked at, or None: all.

        masks: pairs of a mask or None, and the axis it lacks or None
        """
        found = [
            ops.cast(mask if axis is None else ops.expand_dims(mask, axis), "bool")
            for mask, axis in masks
            if mask is not None
        ]
        if causal:
            found.append(_distances(time, source) >= 0)
        if self.sliding_window is not None:
            found.append(ops.abs(_distances(time, source)) < self.sliding_window)
        return reduce(ops.logical_and, found) if found else None

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

    def _order(self, rank):
        """The axes of (batch, *places, heads, width): those outside the attention first."""
        outside = [a for a in range(rank - 2) if a not in self._axes]
        return [*outside, *self._axes, rank - 2, rank - 1]

    def _fold(self, x):
        """(batch, *places, heads, width) -> (all outside, all attended over, heads, width)"""
        shape, order = ops.shape(x), self._order(len(x.shape))
        places = 1
        for a in self._axes:
            places = places * shape[a]
        return ops.reshape(ops.transpose(x, order), (-1, places, *shape[-2:]))

    def _unfold(self, y, shape):
        order = self._order(len(shape))
        y = ops.reshape(y, [*[shape[a] for a in order[:-1]], y.shape[-1]])
        return ops.transpose(y, sorted(range(len(order)), key=order.__getitem__))

    def _outside(self, shape):
        return [shape[a] for a in range(len(shape) - 2) if a not in self._axes]

    def _fold_mask(self, mask, shape, time, source):
        """Put a mask over (batch, 1, *time, *source) in the shape of folded scores."""
        last = ops.shape(mask)[-2 * len(self._axes) - 1 :]
        mask = ops.broadcast_to(mask, (*self._outside(shape), *last))
        return ops.reshape(mask, (-1, last[0], time, source))

    def _unfold_weights(self, weights, shape, source):
        places = [*(shape[a] for a in self._axes), *(source[a] for a in self._axes)]
        return ops.reshape(weights, (*self._outside(shape), weights.shape[1], *places))


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
    output_shape: Integers = None
    attention_axes: Integers = None

    def setup(self):
        super().setup()
        self.value_dim = self.value_dim or self.key_dim

    def _sizes(self):
        return self.num_heads, self.num_heads, self.key_dim, self.value_dim


class GroupQueryAttention(_Heads):
    """Attention whose query heads share keys and values in groups.  arXiv:2305.13245

    query: (batch, time, n), value and key: (batch, source, m)  ->  (batch, time, n)
    Masks as those of `MultiHeadAttention`.
    """

    _prefix, _rank, _file_class = "_", 3, "GroupedQueryAttention"
    _hides_queries = True

    head_dim: PositiveInt
    num_query_heads: PositiveInt
    num_key_value_heads: PositiveInt
    dropout: Rate = 0.0
    use_bias: bool = True

    def setup(self):
        super().setup()
        if self.num_query_heads % self.num_key_value_heads:
            raise ValueError(
                f"GroupQueryAttention: {self.num_query_heads} query heads do not divide into "
                f"{self.num_key_value_heads} groups."
            )

    def _sizes(self):
        return self.num_query_heads, self.num_key_value_heads, self.head_dim, self.head_dim


__all__ = ["AdditiveAttention", "Attention", "GroupQueryAttention", "MultiHeadAttention"]
