"""Metrics made of sums over classes: F scores, R2, intersection over union."""

from typing import Annotated, ClassVar

from khub import config, ops
from khub.losses import Dtype, compute_dtype, pair, weighted
from khub.metrics.metric import Metric

# --- F scores ------------------------------------------------------------------------------------
_SUMS = ("true_positives", "false_positives", "false_negatives", "intermediate_weights")


class FBetaScore(Metric):
    """(1 + beta**2) precision recall / (beta**2 precision + recall) of each class.

    y_true, y_pred: (batch, classes)   threshold: predictions above it are found; None: the largest
    average: None (a score each), "micro" (classes together), "macro", "weighted" (by label counts)
    """

    _direction: ClassVar = "up"
    average: str | None = None
    beta: float = 1.0
    threshold: float | None = None
    name: str = "fbeta_score"
    dtype: Dtype = None

    def setup(self):
        """Check the choices."""
        super().setup()
        if self.average not in (None, "micro", "macro", "weighted"):
            raise ValueError(
                f'average must be "micro", "macro", "weighted" or None, got {self.average!r}.'
            )
        if not isinstance(self.beta, float) or self.beta <= 0:
            raise ValueError(f"beta must be a positive float, got {self.beta!r}.")
        threshold = self.threshold
        if threshold is not None and not (isinstance(threshold, float) and 0 < threshold <= 1):
            raise ValueError(f"threshold must be a float in (0, 1], got {threshold!r}.")

    def _build(self, shape):
        if len(shape) != 2:
            raise ValueError(f"{self.name} needs (batch, classes), got the shape {tuple(shape)}.")
        shape = () if self.average == "micro" else (shape[-1],)
        for name in _SUMS:
            setattr(self, name, self.add_variable(shape, "zeros", name=name))

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch."""
        y_true, y_pred = pair(y_true, ops.convert_to_tensor(y_pred, self.dtype))
        if not self._variables:
            self._build(y_pred.shape)
        if self.threshold is None:
            largest = ops.equal(y_pred, ops.max(y_pred, axis=-1, keepdims=True))
            found = ops.logical_and(largest, ops.absolute(y_pred) > 1e-9)
        else:
            found = y_pred > self.threshold
        found = ops.cast(found, self.dtype)
        axis = None if self.average == "micro" else 0
        for variable, amounts in (
            (self.true_positives, found * y_true),
            (self.false_positives, found * (1.0 - y_true)),
            (self.false_negatives, (1.0 - found) * y_true),
            (self.intermediate_weights, y_true),
        ):
            if sample_weight is not None:
                weight = ops.convert_to_tensor(sample_weight, self.dtype)
                amounts = weighted(amounts, weight)[0]
            variable.assign(variable.value + ops.sum(amounts, axis=axis))

    def result(self):
        """Return the score: a scalar, or (classes,) without an average."""
        if not self._variables:
            return ops.zeros((), dtype=self.dtype)
        small, square = config.epsilon(), self.beta**2
        right, count = self.true_positives.value, self.intermediate_weights.value
        precision = right / (right + self.false_positives.value + small)
        recall = right / (right + self.false_negatives.value + small)
        score = (1 + square) * (precision * recall / (square * precision + recall + small))
        if self.average == "weighted":
            return ops.sum(score * (count / (ops.sum(count) + small)))
        return score if self.average is None else ops.mean(score)


class F1Score(FBetaScore):
    """`FBetaScore` with beta = 1."""

    def __init__(self, average=None, threshold=None, name="f1_score", dtype=None):
        super().__init__(average, 1.0, threshold, name, dtype)


# --- regression ----------------------------------------------------------------------------------
class R2Score(Metric):
    """1 - the sum of squared errors / that of a constant prediction.

    y_true, y_pred: (batch, outputs)

    class_aggregation: None (one score an output), "uniform_average" or "variance_weighted_average"
    num_regressors: above 0, the score is adjusted for that many inputs
    """

    _direction: ClassVar = "up"
    class_aggregation: str | None = "uniform_average"
    num_regressors: int = 0
    name: str = "r2_score"
    dtype: Dtype = None

    def setup(self):
        """Check the choices."""
        super().setup()
        choices = (None, "uniform_average", "variance_weighted_average")
        if self.class_aggregation not in choices:
            given = self.class_aggregation
            raise ValueError(f"class_aggregation must be one of {choices}, got {given!r}.")
        if self.num_regressors < 0:
            raise ValueError(f"num_regressors must not be negative, got {self.num_regressors}.")
        self.num_samples = self.add_variable((), "zeros", name="num_samples")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch."""
        y_true, y_pred = pair(y_true, ops.convert_to_tensor(y_pred, self.dtype))
        if len(y_true.shape) != 2:
            raise ValueError(f"R2Score needs (batch, outputs), got {tuple(y_true.shape)}.")
        if len(self._variables) == 1:
            outputs = (y_true.shape[-1],)
            self.squared_sum = self.add_variable(outputs, "zeros", name="squared_sum")
            self.sum = self.add_variable(outputs, "zeros", name="sum")
            self.total_mse = self.add_variable(outputs, "zeros", name="residual")
            self.count = self.add_variable(outputs, "zeros", name="count")
        weight = ops.ones_like(y_true)
        if sample_weight is not None:
            weight = weighted(weight, ops.convert_to_tensor(sample_weight, self.dtype))[0]
        for variable, amounts in (
            (self.squared_sum, weight * ops.square(y_true)),
            (self.sum, weight * y_true),
            (self.total_mse, weight * ops.square(y_true - y_pred)),
            (self.count, weight),
        ):
            variable.assign(variable.value + ops.sum(amounts, axis=0))
        number = self.num_samples.value
        self.num_samples.assign(number + ops.sum(ops.ones_like(y_true)))

    def result(self):
        """Return the score: a scalar, or (outputs,) without aggregation."""
        if len(self._variables) == 1:
            return ops.zeros((), dtype=self.dtype)
        total = self.squared_sum.value - ops.square(self.sum.value) / self.count.value
        score = 1.0 - self.total_mse.value / total
        score = ops.where(ops.isinf(score), 0.0, score)
        if self.class_aggregation == "uniform_average":
            score = ops.mean(score)
        elif self.class_aggregation == "variance_weighted_average":
            score = ops.sum(total * score) / ops.sum(total)
        if not self.num_regressors:
            return score
        number = self.num_samples.value
        left = number - self.num_regressors - 1.0  # without samples to spare, the plain score
        adjusted = 1.0 - (1.0 - score) * (number - 1.0) / ops.where(left > 0, left, 1.0)
        return ops.where(left > 0, adjusted, score)


# --- intersection over union ---------------------------------------------------------------------
IntegerDtype = Annotated[str, lambda name, value: compute_dtype(name, value or "int")]


class _Overlap(Metric):
    """The mean over `target_class_ids` of |label and prediction| / |label or prediction|.

    y_true, y_pred: class numbers, or scores along `axis` where not sparse; any shape.
    Entries of `ignore_class`, and classes outside [0, num_classes), do not count.
    """

    _direction: ClassVar = "up"
    sparse_y_true: ClassVar[bool] = True
    sparse_y_pred: ClassVar[bool] = True
    ignore_class: ClassVar[int | None] = None
    axis: ClassVar[int] = -1

    def setup(self):
        """Make the confusion matrix."""
        super().setup()
        if max(self._targets()) >= self.num_classes:
            raise ValueError(
                f"target_class_ids must lie in [0, {self.num_classes}), got {self._targets()}."
            )
        shape = (self.num_classes, self.num_classes)
        self.total_cm = self.add_variable(shape, "zeros", name="total_confusion_matrix")

    def _targets(self):
        return list(getattr(self, "target_class_ids", range(self.num_classes)))

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch."""
        y_true = y_true if self.sparse_y_true else ops.argmax(y_true, axis=self.axis)
        y_pred = y_pred if self.sparse_y_pred else ops.argmax(y_pred, axis=self.axis)
        y_true, y_pred = (ops.reshape(ops.cast(y, "int32"), (-1,)) for y in (y_true, y_pred))
        counts = ops.ones_like(y_true, dtype=self.dtype)
        if sample_weight is not None:
            weight = ops.cast(sample_weight, self.dtype)
            counts = counts * (ops.reshape(weight, (-1,)) if len(weight.shape) else weight)
        valid = ops.logical_and(y_true >= 0, y_true < self.num_classes)
        valid = ops.logical_and(valid, ops.logical_and(y_pred >= 0, y_pred < self.num_classes))
        if self.ignore_class is not None:
            valid = ops.logical_and(valid, ops.not_equal(y_true, self.ignore_class))
        y_true, y_pred, counts = (ops.where(valid, x, 0) for x in (y_true, y_pred, counts))
        shape = (self.num_classes, self.num_classes)
        new = ops.scatter(ops.stack([y_true, y_pred], axis=1), counts, shape)
        self.total_cm.assign(self.total_cm.value + ops.cast(new, self.dtype))

    def result(self):
        """Return the mean over the classes that occur."""
        matrix = ops.cast(self.total_cm.value, "float32")
        common = ops.sum(matrix * ops.eye(self.num_classes), axis=0)
        either = ops.sum(matrix, axis=0) + ops.sum(matrix, axis=1) - common
        targets = ops.convert_to_tensor(self._targets(), "int32")
        common, either = ops.take(common, targets, axis=0), ops.take(either, targets, axis=0)
        occurs = ops.cast(either > 1e-9, "float32")
        overlap = occurs * common / (either + config.epsilon())
        return ops.sum(overlap) / (ops.sum(occurs) + config.epsilon())


class IoU(_Overlap):
    __doc__ = _Overlap.__doc__

    num_classes: int
    target_class_ids: object
    name: str | None = None
    dtype: IntegerDtype = None
    ignore_class: int | None = None
    sparse_y_true: bool = True
    sparse_y_pred: bool = True
    axis: int = -1


class MeanIoU(_Overlap):
    """`IoU`, the mean over all classes."""

    num_classes: int
    name: str | None = None
    dtype: IntegerDtype = None
    ignore_class: int | None = None
    sparse_y_true: bool = True
    sparse_y_pred: bool = True
    axis: int = -1


class BinaryIoU(_Overlap):
    """`IoU` of labels 0 or 1 with predictions, 1 where they reach the threshold."""

    num_classes: ClassVar[int] = 2
    target_class_ids: object = (0, 1)
    threshold: float = 0.5
    name: str | None = None
    dtype: IntegerDtype = None

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch."""
        found = ops.convert_to_tensor(y_pred, "float32") >= self.threshold
        super().update_state(y_true, found, sample_weight)


class OneHotIoU(_Overlap):
    """`IoU` of one-hot labels and scores."""

    sparse_y_true: ClassVar[bool] = False
    num_classes: int
    target_class_ids: object
    name: str | None = None
    dtype: IntegerDtype = None
    ignore_class: int | None = None
    sparse_y_pred: bool = False
    axis: int = -1


class OneHotMeanIoU(_Overlap):
    """`MeanIoU` of one-hot labels and scores."""

    sparse_y_true: ClassVar[bool] = False
    num_classes: int
    name: str | None = None
    dtype: IntegerDtype = None
    ignore_class: int | None = None
    sparse_y_pred: bool = False
    axis: int = -1
