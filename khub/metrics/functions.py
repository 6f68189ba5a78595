"""Accuracies, errors, correlations: functions of (y_true, y_pred), and their means as metrics."""

from typing import ClassVar

from khub import config, losses, ops
from khub.losses import Dtype, pair
from khub.metrics.metric import Mean, _FunctionMean


# --- accuracies: 1 where right, else 0 -----------------------------------------------------------
def accuracy(y_true, y_pred):
    """y_true == y_pred"""
    return ops.cast(ops.equal(*pair(y_true, y_pred)), config.floatx())


def binary_accuracy(y_true, y_pred, threshold=0.5):
    """y_true == (y_pred > threshold); labels 0 or 1"""
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    y_true, y_pred = losses.match_ranks(y_true, y_pred)
    found = ops.cast(ops.greater(y_pred, threshold), ops.dtype(y_true))
    return ops.cast(ops.equal(y_true, found), config.floatx())


def categorical_accuracy(y_true, y_pred):
    """argmax(y_true) == argmax(y_pred).  (batch, ..., classes) -> (batch, ...)"""
    right = ops.equal(ops.argmax(y_true, axis=-1), ops.argmax(y_pred, axis=-1))
    return ops.cast(right, config.floatx())


def sparse_categorical_accuracy(y_true, y_pred):
    """y_true == argmax(y_pred); y_true: int (batch, ...) or (batch, ..., 1)"""
    y_pred = ops.convert_to_tensor(y_pred)
    y_true = _classes(y_true, y_pred)
    return ops.cast(ops.equal(y_true, ops.argmax(y_pred, axis=-1)), config.floatx())


def _classes(y_true, y_pred):
    y_true = ops.convert_to_tensor(y_true)
    shape = y_true.shape
    if len(shape) == len(y_pred.shape) and shape[-1] == 1:
        y_true = ops.squeeze(y_true, -1)
    return ops.cast(y_true, "int32")


def top_k_categorical_accuracy(y_true, y_pred, k=5):
    """Whether argmax(y_true) is among the k largest predictions."""
    return _top_k(ops.argmax(y_true, axis=-1), ops.convert_to_tensor(y_pred), k)


def sparse_top_k_categorical_accuracy(y_true, y_pred, k=5, from_sorted_ids=False):
    """Whether y_true is among the k largest predictions, or the first k of sorted ids `y_pred`."""
    y_pred = ops.convert_to_tensor(y_pred)
    y_true = _classes(y_true, y_pred)
    if not from_sorted_ids:
        return _top_k(y_true, y_pred, k)
    found = ops.equal(ops.expand_dims(y_true, -1), ops.cast(y_pred[..., :k], "int32"))
    return ops.cast(ops.any(found, axis=-1), config.floatx())


def _top_k(classes, y_pred, k):
    rows = ops.reshape(y_pred, (-1, y_pred.shape[-1]))
    found = ops.in_top_k(ops.reshape(classes, (-1,)), rows, k)
    return ops.reshape(ops.cast(found, config.floatx()), ops.shape(classes))


# --- similarity ----------------------------------------------------------------------------------
def cosine_similarity(y_true, y_pred, axis=-1):
    """The cosine of the angle between y_true and y_pred."""
    return -losses.cosine_similarity(y_true, y_pred, axis)


def _centred(x, axis):
    return x - ops.mean(x, axis=axis, keepdims=True)


def pearson_correlation(y_true, y_pred, axis=-1):
    """The correlation of y_true and y_pred along `axis`."""
    y_true, y_pred = (_centred(y, axis) for y in pair(y_true, y_pred))
    y_true, y_pred = (y / ops.std(y, axis=axis, keepdims=True) for y in (y_true, y_pred))
    return ops.mean(y_true * y_pred, axis=axis)


def concordance_correlation(y_true, y_pred, axis=-1):
    """Correlation that is lowered by a difference of means or scales.  Lin 1989"""
    y_true, y_pred = pair(y_true, y_pred)
    mean_true, mean_pred = (ops.mean(y, axis=axis, keepdims=True) for y in (y_true, y_pred))
    spread = sum(ops.var(y, axis=axis, keepdims=True) for y in (y_true, y_pred))
    spread = spread + ops.square(mean_true - mean_pred) + config.epsilon()
    return ops.mean(2.0 * (y_true - mean_pred) * (y_pred - mean_pred) / spread, axis=axis)


# --- metrics: the fields of a class are its function's options -----------------------------------
class _Score(_FunctionMean):
    _direction: ClassVar = "up"


class _Error(_FunctionMean):
    _direction: ClassVar = "down"


class Accuracy(_Score, of=accuracy): ...


class BinaryAccuracy(_Score, of=binary_accuracy): ...


class CategoricalAccuracy(_Score, of=categorical_accuracy): ...


class SparseCategoricalAccuracy(_Score, of=sparse_categorical_accuracy): ...


class TopKCategoricalAccuracy(_Score, of=top_k_categorical_accuracy):
    k: int = 5


class SparseTopKCategoricalAccuracy(_Score, of=sparse_top_k_categorical_accuracy):
    k: int = 5
    name: str = "sparse_top_k_categorical_accuracy"
    dtype: Dtype = None
    from_sorted_ids: bool = False


class CosineSimilarity(_Score, of=cosine_similarity): ...


class PearsonCorrelation(_Score, of=pearson_correlation): ...


class ConcordanceCorrelation(_Score, of=concordance_correlation): ...


class MeanSquaredError(_Error, of=losses.mean_squared_error): ...


class MeanAbsoluteError(_Error, of=losses.mean_absolute_error): ...


class MeanAbsolutePercentageError(_Error, of=losses.mean_absolute_percentage_error): ...


class MeanSquaredLogarithmicError(_Error, of=losses.mean_squared_logarithmic_error): ...


class LogCoshError(_Error, of=losses.log_cosh):
    name = "logcosh"


class RootMeanSquaredError(Mean):
    """The square root of the mean of (y_true - y_pred)**2."""

    _direction: ClassVar = "down"
    name = "root_mean_squared_error"

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch."""
        y_true, y_pred = pair(y_true, ops.convert_to_tensor(y_pred, self.dtype))
        super().update_state(ops.square(y_true - y_pred), sample_weight)

    def result(self):
        """Return the root."""
        return ops.sqrt(super().result())


class Hinge(_Error, of=losses.hinge): ...


class SquaredHinge(_Error, of=losses.squared_hinge): ...


class CategoricalHinge(_Error, of=losses.categorical_hinge): ...


class KLDivergence(_Error, of=losses.kl_divergence): ...


class Poisson(_Error, of=losses.poisson): ...


class BinaryCrossentropy(_Error, of=losses.binary_crossentropy):
    name: str = "binary_crossentropy"
    dtype: Dtype = None
    from_logits: bool = False
    label_smoothing: float = 0


class CategoricalCrossentropy(_Error, of=losses.categorical_crossentropy): ...


class SparseCategoricalCrossentropy(_Error, of=losses.sparse_categorical_crossentropy):
    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch."""
        if sample_weight is not None and self.ignore_class is not None:
            y_pred = ops.convert_to_tensor(y_pred)
            kept = losses.kept(ops.convert_to_tensor(y_true), y_pred, self.ignore_class, self.axis)
            sample_weight = losses.masked_weight(sample_weight, kept, self.dtype)
        super().update_state(y_true, y_pred, sample_weight)


_here = {name for name, x in globals().items() if getattr(x, "__module__", "") == __name__}
__all__ = sorted(name for name in _here if not name.startswith("_"))
