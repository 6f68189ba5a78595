"""Metrics give Keras' numbers after several batches: every class, options, weights, masks."""

import inspect

import numpy as np
import pytest

# Keras' NumPy backend has faults here (cosine similarity over axis 0, masks of the circle loss).
keras = pytest.importorskip("keras")

from khub import metrics, ops  # noqa: E402
from khub.layers.masks import set_mask  # noqa: E402
from khub.saving import registry  # noqa: E402


def batches(make, count=3):
    return [tuple(map(np.asarray, make(np.random.RandomState(seed)))) for seed in range(count)]


def labels(r, *shape):
    return r.randint(0, 2, shape).astype("float32")


def one_hot(r, rows, classes):
    return np.eye(classes, dtype="float32")[r.randint(0, classes, rows)]


REAL = batches(lambda r: (r.randn(6, 5).astype("f4"), r.randn(6, 5).astype("f4")))
COLUMN = batches(lambda r: (r.randn(6).astype("f4"), r.randn(6, 1).astype("f4")))
POSITIVE = batches(lambda r: (r.rand(6, 5).astype("f4"), r.rand(6, 5).astype("f4")))
BINARY = batches(lambda r: (labels(r, 6, 5), r.rand(6, 5).astype("f4")))
BINARY_COLUMN = batches(lambda r: (labels(r, 8, 1), r.rand(8, 1).astype("f4")))
VECTOR = batches(lambda r: (labels(r, 9), r.rand(9).astype("f4")))
LOGITS = batches(lambda r: (labels(r, 6, 5), 3 * r.randn(6, 5).astype("f4")))
EXTREME = batches(lambda r: (labels(r, 6, 5), r.randint(0, 3, (6, 5)).astype("f4") / 2))
ONE_HOT = batches(lambda r: (one_hot(r, 6, 8), r.rand(6, 8).astype("f4")))
CLASSES = batches(lambda r: (r.randint(0, 8, 6), r.rand(6, 8).astype("f4")))
CLASS_COLUMN = batches(lambda r: (r.randint(0, 8, (6, 1)), r.rand(6, 8).astype("f4")))
PIXELS = batches(lambda r: (r.randint(0, 8, (3, 4)), r.rand(3, 4, 8).astype("f4")))
HOT_PIXELS = batches(lambda r: (one_hot(r, (3, 4), 8), r.rand(3, 4, 8).astype("f4")))
SORTED_IDS = batches(lambda r: (r.randint(0, 8, 6), np.argsort(r.rand(6, 8)).astype("f4")))
EXACT = batches(lambda r: (r.randint(0, 3, (6, 4)), r.randint(0, 3, (6, 4))))
MAPS = batches(lambda r: (r.randint(0, 4, (3, 5)), r.randint(0, 4, (3, 5))))
RARE = batches(lambda r: (r.randint(0, 2, (3, 5)), r.randint(0, 2, (3, 5))))
ODD = batches(lambda r: (r.randint(-1, 6, (3, 5)), r.randint(-1, 6, (3, 5))))

SAMPLES = {  # class -> (options, batches, whether each sample has one weight)
    "Accuracy": [({}, EXACT)],
    "BinaryAccuracy": [({}, BINARY), ({"threshold": 0.3}, BINARY), ({}, VECTOR)],
    "CategoricalAccuracy": [({}, ONE_HOT), ({}, HOT_PIXELS)],
    "SparseCategoricalAccuracy": [({}, CLASSES), ({}, CLASS_COLUMN), ({}, PIXELS)],
    "TopKCategoricalAccuracy": [({}, ONE_HOT), ({"k": 2}, HOT_PIXELS)],
    "SparseTopKCategoricalAccuracy": [
        ({}, CLASSES),
        ({"k": 2}, PIXELS),
        ({"k": 3, "from_sorted_ids": True}, SORTED_IDS),
    ],
    "MeanSquaredError": [({}, REAL), ({}, COLUMN)],
    "RootMeanSquaredError": [({}, REAL), ({}, COLUMN)],
    "MeanAbsoluteError": [({}, REAL)],
    "MeanAbsolutePercentageError": [({}, REAL)],
    "MeanSquaredLogarithmicError": [({}, POSITIVE)],
    "CosineSimilarity": [({}, REAL), ({"axis": 0}, REAL)],
    "LogCoshError": [({}, REAL)],
    "PearsonCorrelation": [({}, REAL), ({"axis": 0}, REAL)],
    "ConcordanceCorrelation": [({}, REAL), ({"axis": 0}, REAL)],
    "R2Score": [
        ({}, REAL),
        ({"class_aggregation": None}, REAL),
        ({"class_aggregation": "variance_weighted_average", "num_regressors": 2}, REAL),
    ],
    "Hinge": [({}, LOGITS)],
    "SquaredHinge": [({}, LOGITS)],
    "CategoricalHinge": [({}, ONE_HOT)],
    "KLDivergence": [({}, POSITIVE)],
    "Poisson": [({}, POSITIVE)],
    "BinaryCrossentropy": [({}, BINARY), ({"from_logits": True, "label_smoothing": 0.1}, LOGITS)],
    "CategoricalCrossentropy": [
        ({}, ONE_HOT),
        ({"from_logits": True, "label_smoothing": 0.1}, HOT_PIXELS),
    ],
    "SparseCategoricalCrossentropy": [
        ({}, CLASSES),
        ({"from_logits": True}, PIXELS),
        ({"from_logits": True, "ignore_class": 2}, PIXELS),
    ],
    "TruePositives": [({}, BINARY), ({"thresholds": [0.2, 0.7]}, BINARY)],
    "FalsePositives": [({}, BINARY), ({"thresholds": [0.2, 0.7]}, BINARY)],
    "TrueNegatives": [({}, BINARY), ({"thresholds": [0.0, 0.25, 0.5, 0.75, 1.0]}, EXTREME)],
    "FalseNegatives": [({}, BINARY), ({"thresholds": [0.0, 0.5, 1.0]}, EXTREME)],
    "Precision": [
        ({}, BINARY),
        ({}, VECTOR),
        ({"thresholds": [0.1, 0.5]}, BINARY_COLUMN),
        ({"top_k": 2}, BINARY),
        ({"class_id": 1, "thresholds": 0.3}, BINARY),
        ({"top_k": 3, "class_id": 2}, BINARY),
    ],
    "Recall": [({}, BINARY), ({"top_k": 2}, BINARY), ({"class_id": 1}, BINARY)],
    "SensitivityAtSpecificity": [
        ({"specificity": 0.4}, BINARY),
        ({"specificity": 0.5, "num_thresholds": 1}, BINARY),
        ({"specificity": 0.5, "num_thresholds": 30, "class_id": 2}, BINARY),
    ],
    "SpecificityAtSensitivity": [({"sensitivity": 0.4}, BINARY)],
    "PrecisionAtRecall": [({"recall": 0.6}, BINARY)],
    "RecallAtPrecision": [({"precision": 0.55}, BINARY), ({"precision": 1.0}, EXTREME)],
    "AUC": [
        ({}, BINARY),
        ({}, EXTREME),
        ({"from_logits": True}, LOGITS),
        ({"thresholds": [0.3, 0.1, 0.8]}, BINARY),
        ({"thresholds": [0.25, 0.5, 0.75]}, EXTREME),
        ({"num_thresholds": 7}, VECTOR),
        *(
            ({"curve": curve, "summation_method": method}, BINARY)
            for curve in ("PR", "ROC", "PRGAIN")
            for method in ("interpolation", "minoring", "majoring")
        ),
        ({"multi_label": True}, BINARY),
        ({"multi_label": True, "num_labels": 5, "label_weights": [1, 2, 0.5, 1, 3]}, EXTREME),
        ({"multi_label": True, "curve": "PR", "thresholds": [0.2, 0.9]}, BINARY),
    ],
    "F1Score": [({}, BINARY), ({"average": "weighted", "threshold": 0.4}, BINARY)],
    "FBetaScore": [
        ({}, ONE_HOT),
        ({"average": "micro", "beta": 2.0}, BINARY),
        ({"average": "macro", "beta": 0.5, "threshold": 0.6}, BINARY),
    ],
    "IoU": [
        ({"num_classes": 4, "target_class_ids": [0, 2]}, MAPS),
        ({"num_classes": 4, "target_class_ids": [1], "ignore_class": 0}, ODD),
        (
            {
                "num_classes": 8,
                "target_class_ids": [1, 3],
                "sparse_y_true": False,
                "sparse_y_pred": False,
            },
            HOT_PIXELS,
        ),
    ],
    "MeanIoU": [({"num_classes": 4}, MAPS), ({"num_classes": 4}, RARE)],
    "BinaryIoU": [({}, BINARY), ({"threshold": 0.3, "target_class_ids": [1]}, BINARY)],
    "OneHotIoU": [({"num_classes": 8, "target_class_ids": [1, 3]}, HOT_PIXELS)],
    "OneHotMeanIoU": [({"num_classes": 8}, HOT_PIXELS)],
}
CASES = [(name, *sample) for name, samples in SAMPLES.items() for sample in samples]
WHOLE = {
    "IoU",
    "MeanIoU",
    "BinaryIoU",
    "OneHotIoU",
    "OneHotMeanIoU",
}  # weights: one an entry, whole


def both(name, options):
    return [getattr(module, name)(**options) for module in (metrics, keras.metrics)]


def agree(ours, theirs):
    np.testing.assert_allclose(
        ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs), rtol=2e-5, atol=2e-6
    )


def weights_of(name, data, options):
    """One weight a sample, and where Keras takes it one a time step."""
    r = np.random.RandomState(7)
    shape = np.shape(data[0]) if options.get("sparse_y_true", "OneHot" not in name) else (3, 4)
    if name in WHOLE:
        return [r.randint(0, 4, shape)]
    rows = len(data[0])
    if "ignore_class" in options:  # Keras takes no other weights here
        return [r.rand(*shape).astype("float32")]
    steps = [(3, 4)] if np.ndim(data[1]) == 3 else []
    return [r.rand(*shape).astype("float32") for shape in ((rows,), *steps)]


def test_every_metric_has_a_sample():
    registered = registry.registered("metrics").values()
    own = [c for c in registered if isinstance(c, type) and c.__module__.startswith("khub.metrics")]
    classes = {c.__name__ for c in own}
    assert classes - {"Metric", "Mean", "Sum", "MeanMetricWrapper"} == SAMPLES.keys()


@pytest.mark.parametrize(("name", "options", "data"), CASES)
def test_result_after_each_batch(name, options, data):
    ours, theirs = both(name, options)
    for batch in data:
        ours.update_state(*batch)
        theirs.update_state(*batch)
        agree(ours.result(), theirs.result())
    assert len(ours.variables) == len(theirs.variables)
    assert [v.name for v in ours.variables] == [v.name for v in theirs.variables]
    ours.reset_state()
    theirs.reset_state()
    tensors = [ops.convert_to_tensor(x) for x in data[1]]
    agree(ours(*tensors), theirs(*data[1]))


@pytest.mark.parametrize(("name", "options", "data"), CASES)
def test_weights(name, options, data):
    for i in range(len(weights_of(name, data[0], options))):
        ours, theirs = both(name, options)
        whole = name in ("CosineSimilarity", "PearsonCorrelation", "ConcordanceCorrelation")
        if whole and options.get("axis") == 0:
            pytest.skip("one value for the batch")
        for batch in data:
            weight = weights_of(name, batch, options)[i]
            ours.update_state(*batch, sample_weight=weight)
            theirs.update_state(*batch, sample_weight=weight.copy())
            agree(ours.result(), theirs.result())


@pytest.mark.parametrize("name", ["Mean", "Sum"])
@pytest.mark.parametrize("weight", [None, 2, (3,), (3, 1), (3, 4), (3, 4, 5)])
def test_mean_and_sum(name, weight):
    r = np.random.RandomState(5)
    ours, theirs = both(name, {})
    for _ in range(2):
        values = r.rand(3, 4, 5).astype("float32")
        given = r.rand(*weight).astype("float32") if isinstance(weight, tuple) else weight
        if weight == (3, 1):
            values = values[..., 0]
        if name == "Sum" and isinstance(weight, tuple) and len(weight) < values.ndim:
            given = given.reshape(weight + (1,) * (values.ndim - len(weight)))
        ours.update_state(values, given)
        theirs.update_state(values, given)
        agree(ours.result(), theirs.result())
    ours.update_state(3.5)
    theirs.update_state(3.5)
    ours.update_state([1.0, 2.0], sample_weight=[0.5, 0.25])
    theirs.update_state([1.0, 2.0], sample_weight=[0.5, 0.25])
    agree(ours.result(), theirs.result())
    for a, b in zip(ours.variables, theirs.variables, strict=True):
        agree(a.value, b.value)


@pytest.mark.parametrize("given", [False, True])
def test_masks(given):
    mask = np.random.RandomState(3).rand(3, 4) > 0.4
    weight = np.random.RandomState(4).rand(3, 4).astype("float32") if given else None
    for name in ("SparseCategoricalAccuracy", "SparseCategoricalCrossentropy"):
        ours, theirs = both(name, {})
        for y_true, y_pred in PIXELS:
            prediction = keras.ops.convert_to_tensor(y_pred)
            keras.src.backend.set_keras_mask(prediction, keras.ops.convert_to_tensor(mask))
            theirs.update_state(
                y_true, prediction, sample_weight=None if weight is None else weight.copy()
            )
            prediction = ops.convert_to_tensor(y_pred.copy())
            set_mask(prediction, ops.convert_to_tensor(mask))
            ours.update_state(y_true, prediction, weight)
            agree(ours.result(), theirs.result())


@pytest.mark.parametrize("name", SAMPLES)
def test_config_and_names(name):
    options, data = SAMPLES[name][-1]
    ours = getattr(metrics, name)(**options, name="given")
    again = metrics.deserialize(metrics.serialize(ours))
    assert again.get_config() == ours.get_config() and again.name == "given"
    agree(again(*data[0]), ours(*data[0]))
    read = metrics.get(keras.metrics.serialize(getattr(keras.metrics, name)(**options)))
    assert type(read) is type(ours)
    assert read.dtype == ours.dtype or name in WHOLE  # Keras' "int" is int64 on TensorFlow
    default = inspect.signature(getattr(keras.metrics, name)).parameters["name"].default
    assert inspect.signature(getattr(metrics, name)).parameters["name"].default == default


FUNCTIONS = {
    "binary_accuracy": BINARY,
    "categorical_accuracy": HOT_PIXELS,
    "sparse_categorical_accuracy": CLASS_COLUMN,
    "top_k_categorical_accuracy": ONE_HOT,
    "sparse_top_k_categorical_accuracy": PIXELS,
    "pearson_correlation": REAL,
    "concordance_correlation": REAL,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    for batch in FUNCTIONS[name]:
        agree(getattr(metrics, name)(*batch), getattr(keras.metrics, name)(*batch))


# --- without side effects ------------------------------------------------------------------------
@pytest.mark.parametrize("name", SAMPLES)
def test_stateless_updates(name):
    options, data = SAMPLES[name][0]
    ours, theirs = both(name, options)
    ours.update_state(*data[0])  # which makes the Variables of some
    theirs.update_state(*data[0])
    kept = [v.numpy() for v in ours.variables]
    state = ours.stateless_reset_state()
    for batch in data:
        state = ours.stateless_update_state(state, *batch)
    theirs.reset_state()
    for batch in data:
        theirs.update_state(*batch)
    agree(ours.stateless_result(state), theirs.result())
    for old, variable in zip(kept, ours.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


# --- edges ---------------------------------------------------------------------------------------
def constant(value, *shape):
    return np.full(shape, value, "float32")


EDGES = [(constant(a, 4, 5), constant(b, 4, 5)) for a in (0, 1) for b in (0, 0.5, 1)]
ELEMENTWISE = [  # of any (batch, 5)
    *("Accuracy", "BinaryAccuracy", "MeanSquaredError", "RootMeanSquaredError", "Poisson"),
    *("MeanAbsoluteError", "MeanAbsolutePercentageError", "MeanSquaredLogarithmicError"),
    *("CosineSimilarity", "LogCoshError", "ConcordanceCorrelation", "Hinge", "SquaredHinge"),
    *("CategoricalHinge", "KLDivergence", "BinaryCrossentropy", "TruePositives", "FalsePositives"),
    *("TrueNegatives", "FalseNegatives", "Precision", "Recall", "AUC", "F1Score", "FBetaScore"),
    *("BinaryIoU", "CategoricalAccuracy", "TopKCategoricalAccuracy"),
]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_edges(name):
    for y_true, y_pred in EDGES:
        for weight in (None, constant(0, 4)):
            if name == "BinaryIoU" and weight is not None:
                weight = constant(0, 4, 5)
            ours, theirs = both(name, {})
            agree(ours(y_true, y_pred, weight), theirs(y_true, y_pred, weight))


@pytest.mark.parametrize("name", SAMPLES)
def test_before_the_first_batch(name):
    options, _ = SAMPLES[name][0]
    ours, theirs = both(name, options)
    if name in ("FBetaScore", "F1Score", "R2Score"):  # where Keras has no Variables yet
        assert np.all(ops.convert_to_numpy(ours.result()) == 0)
    else:
        agree(ours.result(), theirs.result())


@pytest.mark.parametrize("thresholds", [0.0, 1.0, [0.5], [0.0, 1.0], [0.9, 0.1, 0.5], [0.5, 0.5]])
@pytest.mark.parametrize("name", ["TruePositives", "Precision", "Recall", "TrueNegatives"])
def test_lists_of_thresholds(name, thresholds):
    for data in (BINARY, EXTREME):
        ours, theirs = both(name, {"thresholds": thresholds})
        for batch in data:
            agree(ours(*batch), theirs(*batch))
