"""Metrics: values that add up over the batches of an epoch."""

# ruff: noqa: F401  (what is imported is the public namespace)
from khub.losses import (
    binary_crossentropy,
    binary_focal_crossentropy,
    categorical_crossentropy,
    categorical_focal_crossentropy,
    categorical_hinge,
    hinge,
    huber,
    kl_divergence,
    log_cosh,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    poisson,
    sparse_categorical_crossentropy,
    squared_hinge,
)
from khub.metrics.confusion import (
    AUC,
    BinaryIoU,
    F1Score,
    FalseNegatives,
    FalsePositives,
    FBetaScore,
    IoU,
    MeanIoU,
    OneHotIoU,
    OneHotMeanIoU,
    Precision,
    PrecisionAtRecall,
    R2Score,
    Recall,
    RecallAtPrecision,
    SensitivityAtSpecificity,
    SpecificityAtSensitivity,
    TrueNegatives,
    TruePositives,
)
from khub.metrics.functions import (
    Accuracy,
    BinaryAccuracy,
    BinaryCrossentropy,
    CategoricalAccuracy,
    CategoricalCrossentropy,
    CategoricalHinge,
    ConcordanceCorrelation,
    CosineSimilarity,
    Hinge,
    KLDivergence,
    LogCoshError,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    PearsonCorrelation,
    Poisson,
    RootMeanSquaredError,
    SparseCategoricalAccuracy,
    SparseCategoricalCrossentropy,
    SparseTopKCategoricalAccuracy,
    SquaredHinge,
    TopKCategoricalAccuracy,
    accuracy,
    binary_accuracy,
    categorical_accuracy,
    concordance_correlation,
    cosine_similarity,
    pearson_correlation,
    sparse_categorical_accuracy,
    sparse_top_k_categorical_accuracy,
    top_k_categorical_accuracy,
)
from khub.metrics.metric import Mean, MeanMetricWrapper, Metric, Sum
from khub.saving import registry

_CLASSES = (
    (BinaryCrossentropy, "bce", "BCE"),
    (MeanSquaredError, "mse", "MSE"),
    (MeanAbsoluteError, "mae", "MAE"),
    (MeanAbsolutePercentageError, "mape", "MAPE"),
    (MeanSquaredLogarithmicError, "msle", "MSLE"),
)
for _class, *_aliases in _CLASSES:
    registry.register("metrics", _class, *_aliases)


def get(identifier):
    """Return the metric that a name, config, class, object or function stands for."""
    return registry.get("metrics", identifier)


def serialize(metric):
    """Return the metric as plain data."""
    return registry.serialize(metric)


def deserialize(config, custom_objects=None):
    """Return the metric that `serialize` described."""
    return registry.deserialize(config, custom_objects, "metrics")
