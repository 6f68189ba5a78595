"""Losses: functions that give one number a sample, and classes that weigh and reduce these.

y_true and y_pred: (batch, ..., d)  ->  (batch, ...) from a function, a scalar from an object
"""

import inspect
from typing import Annotated, ClassVar

from khub import config, dtypes, ops, tree
from khub.backend import active
from khub.backend.variable import unique_name
from khub.fields import Configurable, FieldsOf
from khub.layers.masks import MASKS, get_mask
from khub.saving import registry

_TENSORS = active.TENSORS


# --- shapes, dtypes, weights ---------------------------------------------------------------------
def compute_dtype(name, value):
    """Return the dtype that a dtype, a policy or its name means; None is `floatx()`."""
    value = getattr(value, "compute_dtype", value)
    return dtypes.standardize(value.removeprefix("mixed_") if isinstance(value, str) else value)


Dtype = Annotated[str, compute_dtype]


def match_ranks(x1, x2):
    """Add or drop a last axis of size 1 where the ranks differ by one."""
    more = len(x1.shape) - len(x2.shape)
    if more < 0:
        return match_ranks(x2, x1)[::-1]
    if more != 1 or x1.shape[-1] != 1:
        return x1, x2
    return (x1, ops.expand_dims(x2, -1)) if len(x2.shape) == 1 else (ops.squeeze(x1, -1), x2)


def weighted(values, weight):
    """Return values * weight and the weight.

    A weight of fewer axes belongs to the leading ones, where it fits them, else to the last ones.
    """
    values, weight = match_ranks(values, weight)
    rank, sizes = len(values.shape), weight.shape
    leading = all(a in (1, b, None) or b is None for a, b in zip(sizes, values.shape, strict=False))
    if 0 < len(sizes) < rank and leading:
        weight = ops.expand_dims(weight, tuple(range(len(sizes) - rank, 0)))
    return values * weight, weight


def divide_no_nan(x1, x2):
    """x1 / x2, 0 where x2 is 0"""
    zero = ops.equal(x2, 0)
    return ops.where(zero, 0.0, x1 / ops.where(zero, 1.0, x2))


def masked_weight(weight, mask, dtype, mean=False):
    """Return the weights, 0 where masked; with `mean`, scaled by all / kept elements."""
    mask = ops.cast(mask, dtype)
    if mean:
        mask = mask * divide_no_nan(1.0, ops.mean(mask))
    return mask if weight is None else weighted(mask, ops.convert_to_tensor(weight, dtype))[0]


def pair(y_true, y_pred):
    """Return both as tensors of the predictions' dtype and of one rank."""
    if not (type(y_true) in _TENSORS and type(y_pred) in _TENSORS and y_true.dtype is y_pred.dtype):
        y_pred = ops.convert_to_tensor(y_pred)
        y_true = ops.convert_to_tensor(y_true, y_pred.dtype)
    return match_ranks(y_true, y_pred)


# --- regression ----------------------------------------------------------------------------------
def mean_squared_error(y_true, y_pred):
    """mean((y_true - y_pred)**2)"""
    y_true, y_pred = pair(y_true, y_pred)
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


def mean_absolute_error(y_true, y_pred):
    """mean(|y_true - y_pred|)"""
    y_true, y_pred = pair(y_true, y_pred)
    return ops.mean(ops.absolute(y_true - y_pred), axis=-1)


def mean_absolute_percentage_error(y_true, y_pred):
    """100 mean(|y_true - y_pred| / |y_true|)"""
    y_true, y_pred = pair(y_true, y_pred)
    size = ops.maximum(ops.absolute(y_true), config.epsilon())
    return 100.0 * ops.mean(ops.absolute((y_true - y_pred) / size), axis=-1)


def mean_squared_logarithmic_error(y_true, y_pred):
    """mean((log(1 + y_true) - log(1 + y_pred))**2), negative values taken as 0"""
    y_true, y_pred = (ops.log(ops.maximum(y, config.epsilon()) + 1.0) for y in pair(y_true, y_pred))
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


def huber(y_true, y_pred, delta=1.0):
    """mean(e**2 / 2 where the error |e| <= delta, else delta |e| - delta**2 / 2)"""
    y_true, y_pred = pair(y_true, y_pred)
    size = ops.absolute(y_pred - y_true)
    near, far = 0.5 * ops.square(size), delta * size - 0.5 * delta**2
    return ops.mean(ops.where(size <= delta, near, far), axis=-1)


def log_cosh(y_true, y_pred):
    """mean(log(cosh(y_pred - y_true)))"""
    y_true, y_pred = pair(y_true, y_pred)
    error = y_pred - y_true
    return ops.mean(error + ops.softplus(-2.0 * error) - 0.6931471805599453, axis=-1)


def cosine_similarity(y_true, y_pred, axis=-1):
    """-cosine of the angle between y_true and y_pred"""
    y_true, y_pred = pair(y_true, y_pred)
    return -ops.sum(ops.normalize(y_true, axis) * ops.normalize(y_pred, axis), axis=axis)


# --- probabilities -------------------------------------------------------------------------------
def kl_divergence(y_true, y_pred):
    """sum(y_true log(y_true / y_pred))"""
    y_true, y_pred = (ops.clip(y, config.epsilon(), 1.0) for y in pair(y_true, y_pred))
    return ops.sum(y_true * ops.log(y_true / y_pred), axis=-1)


def poisson(y_true, y_pred):
    """mean(y_pred - y_true log(y_pred))"""
    y_true, y_pred = pair(y_true, y_pred)
    return ops.mean(y_pred - y_true * ops.log(y_pred + config.epsilon()), axis=-1)


def _smooth(y_true, amount, classes=None):
    """Move `amount` of the labels to the other classes; the last axis counts them."""
    if not amount:
        return y_true
    return y_true * (1.0 - amount) + amount / (classes or y_true.shape[-1])


def binary_crossentropy(y_true, y_pred, from_logits=False, label_smoothing=0.0, axis=-1):
    """mean(-y_true log(y_pred) - (1 - y_true) log(1 - y_pred)); labels 0 or 1"""
    y_true, y_pred = pair(y_true, y_pred)
    y_true = _smooth(y_true, label_smoothing, 2)
    return ops.mean(ops.binary_crossentropy(y_true, y_pred, from_logits), axis=axis)


def binary_focal_crossentropy(
    y_true,
    y_pred,
    apply_class_balancing=False,
    alpha=0.25,
    gamma=2.0,
    from_logits=False,
    label_smoothing=0.0,
    axis=-1,
):
    """Binary crossentropy times (1 - p)**gamma, p the label's probability.  arXiv:1708.02002"""
    y_true, y_pred = pair(y_true, y_pred)
    y_true = _smooth(y_true, label_smoothing, 2)
    y_pred = ops.sigmoid(y_pred) if from_logits else y_pred
    right = y_true * y_pred + (1.0 - y_true) * (1.0 - y_pred)
    loss = ops.power(1.0 - right, gamma) * ops.binary_crossentropy(y_true, y_pred)
    if apply_class_balancing:
        loss = loss * (y_true * alpha + (1.0 - y_true) * (1.0 - alpha))
    return ops.mean(loss, axis=axis)


def categorical_crossentropy(y_true, y_pred, from_logits=False, label_smoothing=0.0, axis=-1):
    """-sum(y_true log(y_pred)); y_true: one-hot or probabilities"""
    y_true, y_pred = pair(y_true, y_pred)
    return ops.categorical_crossentropy(_smooth(y_true, label_smoothing), y_pred, from_logits, axis)


def categorical_focal_crossentropy(
    y_true, y_pred, alpha=0.25, gamma=2.0, from_logits=False, label_smoothing=0.0, axis=-1
):
    """-alpha sum((1 - y_pred)**gamma y_true log(y_pred)).  arXiv:1708.02002"""
    y_true, y_pred = pair(y_true, y_pred)
    y_pred = ops.softmax(y_pred, axis) if from_logits else y_pred
    y_pred = y_pred / ops.sum(y_pred, axis=axis, keepdims=True)
    y_pred = ops.clip(y_pred, config.epsilon(), 1.0 - config.epsilon())
    y_true = _smooth(y_true, label_smoothing)
    return -alpha * ops.sum(ops.power(1.0 - y_pred, gamma) * y_true * ops.log(y_pred), axis=axis)


def sparse_categorical_crossentropy(y_true, y_pred, from_logits=False, ignore_class=None, axis=-1):
    """-log(y_pred) at the class y_true, 0 where that is `ignore_class`.

    y_true: int (batch, ...) or (batch, ..., 1), y_pred: (batch, ..., classes)  ->  (batch, ...)
    """
    if ignore_class is None:
        return ops.sparse_categorical_crossentropy(y_true, y_pred, from_logits, axis)
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    valid = kept(y_true, y_pred, ignore_class, axis)
    classes = ops.where(valid, ops.reshape(y_true, ops.shape(valid)), 0)
    y_pred = ops.where(ops.expand_dims(valid, axis), y_pred, 0.0)
    loss = ops.sparse_categorical_crossentropy(classes, y_pred, from_logits, axis)
    return ops.where(valid, loss, 0.0)


def kept(y_true, y_pred, ignore_class, axis):
    """Where the class is not `ignore_class`.  -> bool, in the loss's shape"""
    if len(y_true.shape) == len(y_pred.shape) and y_true.shape[axis] == 1:
        y_true = ops.squeeze(y_true, axis)
    return ops.not_equal(ops.cast(y_true, "int32"), ignore_class)


def categorical_generalized_cross_entropy(y_true, y_pred, q):
    """(1 - p**q) / q, p the probability of the class y_true.  arXiv:1805.07836

    y_true: int (batch, ...), y_pred: (batch, ..., classes)  ->  (batch, ...)
    """
    y_pred = ops.convert_to_tensor(y_pred)
    hot = ops.one_hot(ops.cast(y_true, "int32"), y_pred.shape[-1], dtype=y_pred.dtype)
    return (1.0 - ops.power(ops.sum(y_pred * hot, axis=-1), q)) / q


# --- margins, overlap, metric learning -----------------------------------------------------------
def _signs(y_true):
    """Labels -1 and 1; labels that are all 0 or 1 are taken as such."""
    binary = ops.all(ops.logical_or(ops.equal(y_true, 0), ops.equal(y_true, 1)))
    return ops.where(binary, 2.0 * y_true - 1.0, y_true)


def hinge(y_true, y_pred):
    """mean(max(1 - y_true y_pred, 0)); labels -1 or 1"""
    y_true, y_pred = pair(y_true, y_pred)
    return ops.mean(ops.maximum(1.0 - _signs(y_true) * y_pred, 0.0), axis=-1)


def squared_hinge(y_true, y_pred):
    """mean(max(1 - y_true y_pred, 0)**2); labels -1 or 1"""
    y_true, y_pred = pair(y_true, y_pred)
    return ops.mean(ops.square(ops.maximum(1.0 - _signs(y_true) * y_pred, 0.0)), axis=-1)


def categorical_hinge(y_true, y_pred):
    """max(0, 1 + the largest wrong prediction - the right one); y_true: one-hot"""
    y_true, y_pred = pair(y_true, y_pred)
    right = ops.sum(y_true * y_pred, axis=-1)
    wrong = ops.max((1.0 - y_true) * y_pred, axis=-1)
    return ops.maximum(wrong - right + 1.0, 0.0)


def dice(y_true, y_pred, axis=None):
    """1 - 2 |intersection| / (|y_true| + |y_pred|) over `axis` (None: all)"""
    y_true, y_pred = pair(y_true, y_pred)
    both = ops.sum(y_true, axis=axis) + ops.sum(y_pred, axis=axis)
    return 1.0 - 2.0 * ops.sum(y_true * y_pred, axis=axis) / (both + config.epsilon())


def tversky(y_true, y_pred, alpha=0.5, beta=0.5, axis=None):
    """`dice`, what was missed weighing alpha, what was wrongly found beta.  arXiv:1706.05721"""
    y_true, y_pred = pair(y_true, y_pred)
    common = ops.sum(y_true * y_pred, axis=axis)
    missed = ops.sum(y_true * (1.0 - y_pred), axis=axis)
    wrong = ops.sum(y_pred * (1.0 - y_true), axis=axis)
    return 1.0 - common / (common + alpha * missed + beta * wrong + config.epsilon())


def circle(
    y_true, y_pred, ref_labels=None, ref_embeddings=None, remove_diagonal=True, gamma=80, margin=0.4
):
    """The circle loss of embeddings of length 1.  arXiv:2002.10857

    y_true: int (batch,), y_pred: (batch, width), compared with the references or, without them,
    with each other (not with themselves: `remove_diagonal`)  ->  (batch,)
    """
    y_pred = ops.convert_to_tensor(y_pred)
    labels = ops.reshape(ops.cast(y_true, "int32"), (-1, 1))
    others = y_pred if ref_embeddings is None else ops.convert_to_tensor(ref_embeddings)
    other_labels = labels if ref_labels is None else ops.cast(ref_labels, "int32")
    same = ops.equal(labels, ops.reshape(other_labels, (1, -1)))
    different = ops.logical_not(same)
    if remove_diagonal:
        diagonal = ops.eye(ops.shape(same)[0], ops.shape(same)[1], dtype="bool")
        same = ops.logical_and(same, ops.logical_not(diagonal))
    distance = ops.maximum(1.0 - ops.matmul(y_pred, ops.transpose(others)), 0.0)
    # equation 6, with distances in place of similarities
    positive = gamma * ops.maximum(distance + margin, 0.0) * (distance - margin)
    negative = gamma * ops.maximum(1.0 + margin - distance, 0.0) * (1.0 - margin - distance)
    infinity = float("inf")
    positive = ops.logsumexp(ops.where(same, positive, -infinity), axis=1)
    negative = ops.logsumexp(ops.where(different, negative, -infinity), axis=1)
    return ops.softplus(positive + negative)


def ctc(y_true, y_pred):
    """Connectionist temporal classification.  Graves et al. 2006

    y_true: int (batch, length), 0 is no label; y_pred: logits (batch, steps, classes), class 0 is
    the blank  ->  (batch,)
    """
    y_true, y_pred = ops.cast(y_true, "int32"), ops.convert_to_tensor(y_pred)
    lengths = ops.sum(ops.cast(ops.not_equal(y_true, 0), "int32"), axis=-1)
    steps = ops.zeros_like(lengths) + ops.shape(y_pred)[1]
    return ops.ctc_loss(y_true, y_pred, lengths, steps, mask_index=0)


# --- objects -------------------------------------------------------------------------------------
_REDUCTIONS = ("sum_over_batch_size", "mean", "sum", "mean_with_sample_weight", "none", None)


def _reduction(name, value):
    if value not in _REDUCTIONS:
        raise ValueError(f"{name} must be one of {_REDUCTIONS}, got {value!r}.")
    return value


Reduction = Annotated[str, _reduction]


class Loss(Configurable):
    """Base of losses; a subclass defines `call(y_true, y_pred)`, which gives one number a sample.

    reduction: "sum_over_batch_size" or "mean", "sum", "mean_with_sample_weight" (divided by
    the sum of the weights), "none" or None.  dtype: what labels and predictions are cast to.
    sample_weight: (batch, ...), of the loss's leading axes. A mask that travels with y_pred counts.
    """

    _kind: ClassVar = "losses"
    _casts_labels: ClassVar = True
    name: str | None = None
    reduction: Reduction = "sum_over_batch_size"
    dtype: Dtype = None

    def setup(self):
        """Find a name."""
        if self.name is None:
            self.name = unique_name(registry.snake_case(type(self).__name__))

    def call(self, y_true, y_pred):
        """Return the loss of each sample; override."""
        raise NotImplementedError(f"{type(self).__name__} must define call(y_true, y_pred).")

    def __call__(self, y_true, y_pred, sample_weight=None):
        mask = get_mask(y_pred) if MASKS else None
        if type(y_pred) in _TENSORS and (not self._casts_labels or type(y_true) in _TENSORS):
            y_pred = active.cast(y_pred, self.dtype)
            y_true = active.cast(y_true, self.dtype) if self._casts_labels else y_true
        else:
            y_pred = tree.map_structure(self._tensor, y_pred)
            y_true = tree.map_structure(self._tensor, y_true) if self._casts_labels else y_true
        values = self.call(y_true, y_pred)
        own = self._mask(y_true, y_pred, values)
        if own is not None:
            mask = own if mask is None else ops.logical_and(own, mask)
        return self._reduce(values, sample_weight, mask)

    def _tensor(self, x):
        return ops.convert_to_tensor(x, self.dtype)

    def _mask(self, y_true, y_pred, values):
        """Which values count; None: all."""
        return None

    def _reduce(self, values, weight, mask):
        reduction = self.reduction
        mean = reduction in ("sum_over_batch_size", "mean")
        if mask is not None:
            weight = masked_weight(weight, mask, self.dtype, mean)
        if weight is not None:
            values, weight = weighted(values, ops.convert_to_tensor(weight, self.dtype))
        shape = tuple(values.shape)
        if reduction in (None, "none") or shape in ((), (0,)):
            return values
        if reduction == "sum" or 0 in shape:  # a mean of nothing is 0
            return ops.sum(values)
        if mean or weight is None:
            return ops.mean(values)
        return divide_no_nan(ops.sum(values), ops.sum(weight))


class LossFunctionWrapper(Loss):
    """A loss made of a function of (y_true, y_pred, **kwargs)."""

    def __init__(self, fn, reduction="sum_over_batch_size", name=None, dtype=None, **kwargs):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.fn, self._options = fn, kwargs

    def call(self, y_true, y_pred):
        """Return the loss of each sample."""
        return self.fn(*match_ranks(y_true, y_pred), **self._options)


class OfFunction:
    """What is made of a function `of` (y_true, y_pred, **options): the options are its fields."""

    _leading: ClassVar = ()  # the fields that come before the options
    _function: ClassVar = None

    def __init_subclass__(cls, of=None, **kwargs):
        if of is not None:
            cls._function = of
            cls.name = cls.__dict__.get("name", registry.snake_case(cls.__name__))
            cls.__doc__ = cls.__doc__ or f"{cls._says}: {of.__doc__}"
            if not inspect.get_annotations(cls):
                parameters = list(inspect.signature(of).parameters.values())[2:]
                options = [(p.name, None, p.default) for p in parameters]
                cls.__annotations__ = {"options": FieldsOf(cls, *cls._leading) + options}
        super().__init_subclass__(**kwargs)

    def setup(self):
        """Collect the function's options."""
        super().setup()
        options = {name for name, *_ in self._fields} - {"reduction", "name", "dtype"}
        self._options = {name: getattr(self, name) for name in options}
        self._call = type(self)._function


class _Built(OfFunction, Loss):
    """A loss made of a function of this module; `short` is another name of the function."""

    _says: ClassVar = "Loss object"
    reduction: Reduction = "sum_over_batch_size"
    name: str | None = None
    dtype: Dtype = None

    def __init_subclass__(cls, of, short=None, **kwargs):
        registry.register("losses", of, *((short, short.upper()) if short else ()))
        super().__init_subclass__(of=of, **kwargs)

    def call(self, y_true, y_pred):
        """Return the loss of each sample."""
        return self._call(y_true, y_pred, **self._options)


class MeanSquaredError(_Built, of=mean_squared_error, short="mse"): ...


class MeanAbsoluteError(_Built, of=mean_absolute_error, short="mae"): ...


class MeanAbsolutePercentageError(_Built, of=mean_absolute_percentage_error, short="mape"): ...


class MeanSquaredLogarithmicError(_Built, of=mean_squared_logarithmic_error, short="msle"): ...


class Huber(_Built, of=huber):
    name = "huber_loss"


class LogCosh(_Built, of=log_cosh, short="logcosh"): ...


class CosineSimilarity(_Built, of=cosine_similarity): ...


class KLDivergence(_Built, of=kl_divergence, short="kld"): ...


class Poisson(_Built, of=poisson): ...


class BinaryCrossentropy(_Built, of=binary_crossentropy, short="bce"): ...


class BinaryFocalCrossentropy(_Built, of=binary_focal_crossentropy): ...


class CategoricalCrossentropy(_Built, of=categorical_crossentropy): ...


class CategoricalFocalCrossentropy(_Built, of=categorical_focal_crossentropy): ...


class SparseCategoricalCrossentropy(_Built, of=sparse_categorical_crossentropy):
    _casts_labels: ClassVar = False
    from_logits: bool = False
    ignore_class: int | None = None
    reduction: Reduction = "sum_over_batch_size"
    axis: int = -1

    def _mask(self, y_true, y_pred, values):
        if self.ignore_class is None:
            return None
        return kept(ops.convert_to_tensor(y_true), y_pred, self.ignore_class, self.axis)


class CategoricalGeneralizedCrossEntropy(_Built, of=categorical_generalized_cross_entropy):
    _casts_labels: ClassVar = False
    q: float = 0.5

    def setup(self):
        """Check q."""
        super().setup()
        if not 0 < self.q < 1:
            raise ValueError(f"q must lie between 0 and 1, got {self.q}.")


class Hinge(_Built, of=hinge): ...


class SquaredHinge(_Built, of=squared_hinge): ...


class CategoricalHinge(_Built, of=categorical_hinge): ...


class CTC(_Built, of=ctc):
    _casts_labels: ClassVar = False


class Dice(_Built, of=dice):
    reduction: Reduction = "sum_over_batch_size"
    name: str = "dice"
    axis: int | tuple | None = None


class Tversky(_Built, of=tversky):
    alpha: float = 0.5
    beta: float = 0.5
    reduction: Reduction = "sum_over_batch_size"
    name: str = "tversky"
    axis: int | tuple | None = None


class Circle(_Built, of=circle):
    _casts_labels: ClassVar = False
    gamma: float = 80.0
    margin: float = 0.4
    remove_diagonal: bool = True

    def _mask(self, y_true, y_pred, values):
        return values > 0


def get(identifier):
    """Return the loss that a name, config, class, object or function stands for."""
    return registry.get("losses", identifier)


def serialize(loss):
    """Return the loss as plain data."""
    return registry.serialize(loss)


def deserialize(name, custom_objects=None):
    """Return the loss that `serialize` described."""
    return registry.deserialize(name, custom_objects, "losses")
