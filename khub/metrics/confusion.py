"""Metrics made of counts and sums: precision, AUC, F scores, R2, intersection over union, ..."""

from typing import Annotated, ClassVar

import numpy as np

from khub import config, ops
from khub.choices import choose
from khub.fields import Choice, NotNegative, PositiveInt, Rate
from khub.losses import Dtype, compute_dtype, divide_no_nan, pair, weighted
from khub.metrics.metric import _Named

_LOWEST = -1e10  # below every prediction, and what predictions outside the top k become


def _thresholds(given, default):
    values = [default] if given is None else list(np.ravel(given).astype(float))
    if given is not None and not all(0 <= value <= 1 for value in values):
        raise ValueError(f"thresholds must lie between 0 and 1, got {given!r}.")
    return values


def _even(thresholds):
    count = len(thresholds)
    even = np.arange(count) / max(1, count - 1)
    return count > 2 and np.allclose(thresholds, even, atol=config.epsilon())


class _Totals(_Named):
    """Variables that amounts are added to."""

    _direction: ClassVar = "up"

    def _begin(self, shape, *names, dtype=None):
        """Make a Variable, which is an attribute too, of each name."""
        for name in names:
            setattr(self, name, self.add_variable(shape, "zeros", dtype, name=name))

    def _add(self, weight, axis=0, **amounts):
        """Add the sums over `axis` of amounts, each times the weight of its row."""
        for name, amount in amounts.items():
            total = getattr(self, name)
            if weight is not None:
                amount = weighted(amount, ops.convert_to_tensor(weight, total.dtype))[0]
            total.assign_add(ops.sum(amount, axis=axis))


class _Counts(_Totals):
    """Counts of the four outcomes at each of `self._levels`, as Variables with the outcomes' names.

    They and the predictions are of the dtype `floatx`: a half float counts to 2048 only.
    y_true, y_pred: any shape; sample_weight: of their leading axes
    """

    _outcomes: ClassVar = ()

    def _start(self, levels, even=None, open_ends=False, shape=None):
        """Make the Variables; with `open_ends`, the first level is below 0 and the last above 1."""
        self._levels = np.asarray(levels, "float32")
        self._even = _even(levels) if even is None else even
        self._open_ends = open_ends
        names = self._outcomes if len(self._outcomes) > 1 else ("accumulator",)
        self._begin(shape or (len(levels),), *names)
        self._names = dict(zip(names, self._outcomes, strict=True))

    def _count(self, y_true, y_pred, weight=None, top_k=None, class_id=None, labels=None):
        """Add a batch; `labels` is the number of columns that are counted apart."""
        y_true, y_pred = pair(y_true, ops.convert_to_tensor(y_pred, config.floatx()))
        if top_k is not None:
            chosen = ops.one_hot(ops.top_k(y_pred, top_k)[1], y_pred.shape[-1], dtype="bool")
            y_pred = ops.where(ops.any(chosen, axis=-2), y_pred, _LOWEST)
        if class_id is not None:
            if len(y_pred.shape) < 2:
                raise ValueError(f"class_id needs a class axis, got predictions {y_pred.shape}.")
            y_true, y_pred = y_true[..., class_id, None], y_pred[..., class_id, None]
        positive = ops.cast(ops.not_equal(y_true, 0), config.floatx())
        negative = 1.0 - positive
        if weight is not None:
            weight = ops.convert_to_tensor(weight, config.floatx())
            positive, negative = (weighted(x, weight)[0] for x in (positive, negative))
        shape = (-1, labels or 1)
        y_pred, positive, negative = (ops.reshape(x, shape) for x in (y_pred, positive, negative))
        count = self._in_buckets if self._even else self._compared
        true_positives, false_positives = count(y_pred, positive), count(y_pred, negative)
        found = {
            "true_positives": true_positives,
            "false_positives": false_positives,
            "true_negatives": ops.sum(negative, axis=0) - false_positives,
            "false_negatives": ops.sum(positive, axis=0) - true_positives,
        }
        for name, outcome in self._names.items():
            total = getattr(self, name)
            total.assign_add(ops.reshape(found[outcome], total.shape))

    def _compared(self, y_pred, amounts):
        """The amounts whose prediction exceeds each level.  (batch, labels) -> (levels, labels)"""
        levels = ops.convert_to_tensor(self._levels.reshape(-1, 1, 1), config.floatx())
        return ops.sum(ops.where(y_pred > levels, amounts, 0.0), axis=1)

    def _in_buckets(self, y_pred, amounts):
        """The same for evenly spaced levels, without a comparison with each."""
        levels, labels = len(self._levels), y_pred.shape[1]
        exceeded = ops.ceil(ops.clip(y_pred, 0.0, 1.0) * (levels - 1.0))
        if self._open_ends:
            exceeded = ops.maximum(exceeded, 1.0)
        label = ops.zeros_like(exceeded) + ops.arange(labels, dtype=exceeded.dtype)
        index = ops.cast(ops.stack([exceeded, label], axis=-1), "int32")
        index, amounts = ops.reshape(index, (-1, 2)), ops.reshape(amounts, (-1,))
        sums = ops.scatter(index, amounts, (levels, labels))
        above = ops.flip(ops.cumsum(ops.flip(sums, axis=0), axis=0), axis=0)
        return ops.concatenate([above[1:], ops.zeros_like(above[:1])], axis=0)

    def _ratio(self, part, rest):
        """part / (part + rest) of two outcomes."""
        part, rest = getattr(self, part).value, getattr(self, rest).value
        return divide_no_nan(part, part + rest)


# --- counts and ratios at thresholds -------------------------------------------------------------
class _AtThresholds(_Counts):
    thresholds: object = None
    top_k: ClassVar = None
    class_id: ClassVar = None

    def setup(self):
        """Make the counts."""
        super().setup()
        self._start(_thresholds(self.thresholds, 0.5 if self.top_k is None else _LOWEST))

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch."""
        self._count(y_true, y_pred, sample_weight, self.top_k, self.class_id)

    def result(self):
        """Return the value at each threshold, a scalar if there is one."""
        value = self._ratio(*self._outcomes) if len(self._outcomes) > 1 else self.accumulator.value
        return value[0] if len(self._levels) == 1 else value


class TruePositives(_AtThresholds):
    """The number of positive labels found."""

    _outcomes: ClassVar = ("true_positives",)


class FalsePositives(_AtThresholds):
    """The number of negative labels taken for positive."""

    _outcomes: ClassVar = ("false_positives",)
    _direction: ClassVar = "down"


class TrueNegatives(_AtThresholds):
    """The number of negative labels recognised."""

    _outcomes: ClassVar = ("true_negatives",)


class FalseNegatives(_AtThresholds):
    """The number of positive labels missed."""

    _outcomes: ClassVar = ("false_negatives",)
    _direction: ClassVar = "down"


class _Share(_AtThresholds):
    thresholds: object = None
    top_k: int | None = None
    class_id: int | None = None


class Precision(_Share):
    """The share of found positives that are right; top_k: the k largest predictions are found."""

    _outcomes: ClassVar = ("true_positives", "false_positives")


class Recall(_Share):
    """The share of positive labels that are found; top_k: the k largest predictions are found."""

    _outcomes: ClassVar = ("true_positives", "false_negatives")


# --- the best of one ratio where another is good enough ------------------------------------------
_ALL = ("true_positives", "false_positives", "true_negatives", "false_negatives")
_RATIOS = {
    "sensitivity": ("true_positives", "false_negatives"),
    "recall": ("true_positives", "false_negatives"),
    "specificity": ("true_negatives", "false_positives"),
    "precision": ("true_positives", "false_positives"),
}


class _BestAt(_Counts):
    _outcomes: ClassVar = _ALL
    _best: ClassVar = None
    num_thresholds: PositiveInt = 200
    class_id: int | None = None

    def setup(self):
        """Make the counts; the first field is the constraint."""
        super().setup()
        self._given = type(self)._fields[0][0]
        single = self.num_thresholds == 1
        self._start([0.5] if single else np.linspace(0, 1, self.num_thresholds), even=not single)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch."""
        self._count(y_true, y_pred, sample_weight, class_id=self.class_id)

    def result(self):
        """Return the largest value among the thresholds that meet the constraint."""
        allowed = self._ratio(*_RATIOS[self._given]) >= getattr(self, self._given)
        return ops.max(ops.where(allowed, self._ratio(*_RATIOS[self._best]), 0.0))


class SensitivityAtSpecificity(_BestAt):
    """The best sensitivity where the specificity is at least this."""

    _best: ClassVar = "sensitivity"
    specificity: Rate


class SpecificityAtSensitivity(_BestAt):
    """The best specificity where the sensitivity is at least this."""

    _best: ClassVar = "specificity"
    sensitivity: Rate


class PrecisionAtRecall(_BestAt):
    """The best precision where the recall is at least this."""

    _best: ClassVar = "precision"
    recall: Rate


class RecallAtPrecision(_BestAt):
    """The best recall where the precision is at least this."""

    _best: ClassVar = "recall"
    precision: Rate


# --- area under a curve --------------------------------------------------------------------------
CURVES = ("roc", "pr", "prgain")


class AUC(_Counts):
    """The area under the curve of recall over false-positive rate, or of precision over recall.

    curve: "ROC", "PR" or "PRGAIN" (precision gain over recall gain)
    summation_method: "interpolation", "minoring" or "majoring"
    multi_label: the mean, weighted by `label_weights`, of the areas of `num_labels` columns
    """

    _outcomes: ClassVar = _ALL
    num_thresholds: int = 200
    curve: Annotated[str, lambda name, value: choose(name, value, CURVES).upper()] = "ROC"
    summation_method: Choice("interpolation", "minoring", "majoring") = "interpolation"
    name: str | None = None
    dtype: Dtype = None
    thresholds: object = None
    multi_label: bool = False
    num_labels: int | None = None
    label_weights: object = None
    from_logits: bool = False

    def setup(self):
        """Make the counts, at the first update if the number of labels is not known."""
        super().setup()
        if self.num_labels and not self.multi_label:
            raise ValueError("num_labels is for multi_label=True.")
        if self.thresholds is not None:
            self.thresholds = sorted(_thresholds(self.thresholds, None))
            self.num_thresholds = len(self.thresholds) + 2
        elif self.num_thresholds < 2:
            raise ValueError(f"num_thresholds must be at least 2, got {self.num_thresholds}.")
        if not self.multi_label or self.num_labels:
            self._build(self.num_labels)

    def _build(self, labels):
        if self.thresholds is not None:
            inner = self.thresholds
        else:
            inner = list(np.linspace(0, 1, self.num_thresholds)[1:-1])
        levels = [-config.epsilon(), *inner, 1 + config.epsilon()]
        even = self.thresholds is None or _even([0.0, *inner, 1.0])
        self._labels = labels
        self._start(levels, even, True, (len(levels), labels) if labels else None)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch."""
        y_pred = ops.convert_to_tensor(y_pred, config.floatx())
        if not self._variables:
            if len(y_pred.shape) != 2:
                raise ValueError(f"multi_label needs (batch, labels), got {tuple(y_pred.shape)}.")
            self._build(y_pred.shape[1])
        if self.from_logits:
            y_pred = ops.sigmoid(y_pred)
        if self.label_weights is not None and not self.multi_label:
            by_label = ops.broadcast_to(self._label_weights(), ops.shape(y_pred))
            weight = 1.0 if sample_weight is None else sample_weight
            sample_weight = weighted(by_label, ops.convert_to_tensor(weight, config.floatx()))[0]
        self._count(y_true, y_pred, sample_weight, labels=self._labels)

    def _label_weights(self):
        return ops.convert_to_tensor(self.label_weights, config.floatx())

    def _curve(self):
        recall = self._ratio("true_positives", "false_negatives")
        if self.curve == "ROC":
            return self._ratio("false_positives", "true_negatives"), recall
        if self.curve == "PR":
            return recall, self._ratio("true_positives", "false_positives")
        # Flach & Kull 2015: gains over the classifier that finds everything positive
        right, wrong, rejected, missed = (getattr(self, name).value for name in _ALL)
        scale = divide_no_nan(right + missed, wrong + rejected)
        none = ops.equal(right, 0)
        recall_gain = ops.where(none, 0.0, 1.0 - scale * divide_no_nan(missed, right))
        precision_gain = ops.where(none, 1.0, 1.0 - scale * divide_no_nan(wrong, right))
        return ops.maximum(recall_gain, 0.0), precision_gain

    def interpolate_pr_auc(self):
        """Return the area under the curve of precision over recall.  Davis & Goadrich 2006"""
        right, missed = self.true_positives.value, self.false_negatives.value
        found = right + self.false_positives.value
        slope = divide_no_nan(right[:-1] - right[1:], ops.maximum(found[:-1] - found[1:], 0.0))
        intercept = right[1:] - slope * found[1:]
        both = ops.logical_and(found[:-1] > 0, found[1:] > 0)
        ratio = ops.where(both, divide_no_nan(found[:-1], found[1:]), 1.0)
        area = slope * (right[:-1] - right[1:] + intercept * ops.log(ratio))
        return self._area(divide_no_nan(area, ops.maximum(right[1:] + missed[1:], 0.0)))

    def result(self):
        """Return the area."""
        if self.curve == "PR" and self.summation_method == "interpolation":
            return self.interpolate_pr_auc()
        (x, y), a, b = self._curve(), slice(None, -1), slice(1, None)
        low, high = ops.minimum(y[a], y[b]), ops.maximum(y[a], y[b])
        heights = {"interpolation": (low + high) / 2.0, "minoring": low, "majoring": high}
        return self._area((x[a] - x[b]) * heights[self.summation_method])

    def _area(self, parts):
        if not self.multi_label:
            return ops.sum(parts)
        areas = ops.sum(parts, axis=0)
        if self.label_weights is None:
            return ops.mean(areas)
        weights = self._label_weights()
        return divide_no_nan(ops.sum(areas * weights), ops.sum(weights))


def _without(cls, *names):
    """The fields of a class but these."""
    return tuple(field for field in cls._fields if field[0] not in names)


# --- F scores ------------------------------------------------------------------------------------
class FBetaScore(_Totals):
    """(1 + beta**2) precision recall / (beta**2 precision + recall) of each class.

    y_true, y_pred: (batch, classes)   threshold: predictions above it are found; None: the largest
    average: None (a score each), "micro" (classes together), "macro", "weighted" (by label counts)
    """

    average: Choice(None, "micro", "macro", "weighted") = None
    beta: float = 1.0
    threshold: float | None = None
    name = "fbeta_score"

    def setup(self):
        """Check the numbers."""
        super().setup()
        if not isinstance(self.beta, float) or self.beta <= 0:
            raise ValueError(f"beta must be a positive float, got {self.beta!r}.")
        threshold = self.threshold
        if threshold is not None and not (isinstance(threshold, float) and 0 < threshold <= 1):
            raise ValueError(f"threshold must be a float in (0, 1], got {threshold!r}.")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch."""
        y_true, y_pred = pair(y_true, ops.convert_to_tensor(y_pred, self.dtype))
        shape = tuple(y_pred.shape)
        if len(shape) != 2:
            raise ValueError(f"{self.name} needs (batch, classes), got the shape {shape}.")
        shape = () if self.average == "micro" else shape[-1:]
        if not self._variables:
            self._begin(shape, *_ALL[:2], _ALL[3], "intermediate_weights", dtype=self.dtype)
        if self.threshold is None:
            largest = ops.equal(y_pred, ops.max(y_pred, axis=-1, keepdims=True))
            found = ops.logical_and(largest, ops.absolute(y_pred) > 1e-9)
        else:
            found = y_pred > self.threshold
        found = ops.cast(found, self.dtype)
        self._add(
            sample_weight,
            axis=0 if shape else None,
            true_positives=found * y_true,
            false_positives=found * (1.0 - y_true),
            false_negatives=(1.0 - found) * y_true,
            intermediate_weights=y_true,
        )

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

    _fields = _without(FBetaScore, "beta")
    beta: ClassVar = 1.0
    name = "f1_score"


# --- regression ----------------------------------------------------------------------------------
class R2Score(_Totals):
    """1 - the sum of squared errors / that of a constant prediction.

    y_true, y_pred: (batch, outputs)

    class_aggregation: None (one score an output), "uniform_average" or "variance_weighted_average"
    num_regressors: above 0, the score is adjusted for that many inputs
    """

    class_aggregation: Choice(None, "uniform_average", "variance_weighted_average") = (
        "uniform_average"
    )
    num_regressors: NotNegative = 0
    name = "r2_score"

    def setup(self):
        """Make the number of samples; the other Variables wait for the number of outputs."""
        super().setup()
        self._begin((), "num_samples")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch."""
        y_true, y_pred = pair(y_true, ops.convert_to_tensor(y_pred, config.floatx()))
        if len(y_true.shape) != 2:
            raise ValueError(f"R2Score needs (batch, outputs), got {tuple(y_true.shape)}.")
        if len(self._variables) == 1:
            self._begin((y_true.shape[-1],), "squared_sum", "sum", "residual", "count")
        ones = ops.ones_like(y_true)
        self._add(
            sample_weight,
            squared_sum=ops.square(y_true),
            sum=y_true,
            residual=ops.square(y_true - y_pred),
            count=ones,
        )
        self._add(None, axis=None, num_samples=ones)

    def result(self):
        """Return the score: a scalar, or (outputs,) without aggregation."""
        if len(self._variables) == 1:
            return ops.zeros((), dtype=self.dtype)
        total = self.squared_sum.value - ops.square(self.sum.value) / self.count.value
        score = 1.0 - self.residual.value / total
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


class IoU(_Named):
    """The mean over `target_class_ids` of |label and prediction| / |label or prediction|.

    y_true, y_pred: class numbers, or scores along `axis` where not sparse; any shape.
    Entries of `ignore_class`, and classes outside [0, num_classes), do not count.
    """

    _direction: ClassVar = "up"
    num_classes: int
    target_class_ids: object
    name: str | None = None
    dtype: IntegerDtype = None
    ignore_class: int | None = None
    sparse_y_true: bool = True
    sparse_y_pred: bool = True
    axis: int = -1

    def setup(self):
        """Make the confusion matrix."""
        super().setup()
        if max(self._targets()) >= self.num_classes:
            raise ValueError(
                f"target_class_ids must lie in [0, {self.num_classes}), got {self._targets()}."
            )
        shape = (self.num_classes, self.num_classes)
        self.total_cm = self.add_variable(shape, "zeros", self.dtype, name="total_confusion_matrix")

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
        self.total_cm.assign_add(new)

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


class MeanIoU(IoU):
    """`IoU`, the mean over all classes."""

    _fields = _without(IoU, "target_class_ids")


class BinaryIoU(IoU):
    """`IoU` of labels 0 or 1 with predictions, 1 where they reach the threshold."""

    _fields = ()  # none of the base class
    num_classes: ClassVar[int] = 2
    target_class_ids: object = (0, 1)
    threshold: float = 0.5
    name: str | None = None
    dtype: IntegerDtype = None

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add a batch."""
        found = ops.convert_to_tensor(y_pred, "float32") >= self.threshold
        super().update_state(y_true, found, sample_weight)


class OneHotIoU(IoU):
    """`IoU` of one-hot labels and scores."""

    _fields = _without(IoU, "sparse_y_true")
    sparse_y_true = sparse_y_pred = False


class OneHotMeanIoU(IoU):
    """`MeanIoU` of one-hot labels and scores."""

    _fields = _without(OneHotIoU, "target_class_ids")
    sparse_y_true = False


_here = {name for name, x in globals().items() if getattr(x, "__module__", "") == __name__}
__all__ = sorted(name for name in _here if not name.startswith("_"))
