"""Losses give Keras' numbers: every class, its options, weights, reductions, masks."""

import numpy as np
import pytest

# Keras' own NumPy backend has faults here (cosine similarity over axis 0, the circle loss).
keras = pytest.importorskip("keras")

from khub import backend, losses, ops  # noqa: E402
from khub.layers.masks import set_mask  # noqa: E402
from khub.saving import registry  # noqa: E402

random = np.random.RandomState(1)
REAL = random.randn(6, 5).astype("float32"), random.randn(6, 5).astype("float32")
POSITIVE = random.rand(6, 5).astype("float32"), random.rand(6, 5).astype("float32")
BINARY = random.randint(0, 2, (6, 5)).astype("float32"), POSITIVE[1]
BINARY_LOGITS = BINARY[0], REAL[1]
SIGNS = 2 * BINARY[0] - 1, REAL[1]
ONE_HOT = np.eye(5, dtype="float32")[random.randint(0, 5, 6)], POSITIVE[1]
ONE_HOT_LOGITS = ONE_HOT[0], 3 * REAL[1]
CLASSES = np.array([0, 3, 2, 4, 1, 3]), POSITIVE[1]
CLASS_LOGITS = CLASSES[0], REAL[1]
PIXELS = random.randint(0, 5, (3, 4)), random.randn(3, 4, 5).astype("float32")
TOKENS = np.float32(PIXELS[1][..., 0] > 0)[..., None], PIXELS[1][..., :1]
SHARES = tuple(x / x.sum(-1, keepdims=True) for x in POSITIVE)
TEXTS = np.array([[1, 2, 0], [3, 3, 1], [0, 0, 0]]), random.randn(3, 8, 4).astype("float32")
EMBEDDINGS = np.array([0, 1, 0, 2, 1, 0]), REAL[0] / np.linalg.norm(REAL[0], axis=1, keepdims=True)

SAMPLES = {  # class -> (options, data); the function has the class's name
    "MeanSquaredError": [({}, REAL), ({}, TOKENS)],
    "MeanAbsoluteError": [({}, REAL)],
    "MeanAbsolutePercentageError": [({}, REAL)],
    "MeanSquaredLogarithmicError": [({}, REAL), ({}, POSITIVE)],
    "Huber": [({}, REAL), ({"delta": 0.3}, REAL)],
    "LogCosh": [({}, REAL)],
    "CosineSimilarity": [({}, REAL), ({"axis": 0}, REAL)],
    "KLDivergence": [({}, SHARES), ({}, POSITIVE)],
    "Poisson": [({}, POSITIVE)],
    "BinaryCrossentropy": [
        ({}, BINARY),
        ({"from_logits": True}, BINARY_LOGITS),
        ({"label_smoothing": 0.2}, BINARY),
        ({"axis": 0}, BINARY),
        ({"from_logits": True}, TOKENS),
    ],
    "BinaryFocalCrossentropy": [
        ({}, BINARY),
        ({"apply_class_balancing": True, "alpha": 0.3, "gamma": 1.5}, BINARY),
        ({"from_logits": True, "label_smoothing": 0.1, "axis": 0}, BINARY_LOGITS),
    ],
    "CategoricalCrossentropy": [
        ({}, ONE_HOT),
        ({"from_logits": True, "label_smoothing": 0.1}, ONE_HOT_LOGITS),
        ({"axis": 0, "from_logits": True}, ONE_HOT_LOGITS),
    ],
    "CategoricalFocalCrossentropy": [
        ({}, ONE_HOT),
        ({"alpha": 0.5, "gamma": 1.0, "from_logits": True, "label_smoothing": 0.1}, ONE_HOT_LOGITS),
    ],
    "SparseCategoricalCrossentropy": [
        ({}, CLASSES),
        ({"from_logits": True}, CLASS_LOGITS),
        ({"from_logits": True}, (CLASSES[0][:, None], REAL[1])),
        ({"from_logits": True}, PIXELS),
        ({"from_logits": True, "ignore_class": 2}, PIXELS),
        ({"ignore_class": 3}, CLASSES),
    ],
    "CategoricalGeneralizedCrossEntropy": [({}, CLASSES), ({"q": 0.3}, CLASSES)],
    "Hinge": [({}, SIGNS), ({}, BINARY_LOGITS), ({}, REAL)],
    "SquaredHinge": [({}, SIGNS), ({}, BINARY_LOGITS)],
    "CategoricalHinge": [({}, ONE_HOT_LOGITS)],
    "CTC": [({}, TEXTS)],
    "Dice": [({}, BINARY), ({"axis": (1,)}, BINARY)],
    "Tversky": [({}, BINARY), ({"alpha": 0.3, "beta": 0.8, "axis": (0,)}, BINARY)],
    "Circle": [
        ({}, EMBEDDINGS),
        ({"gamma": 30.0, "margin": 0.25, "remove_diagonal": False}, EMBEDDINGS),
    ],
}
CASES = [(name, *sample) for name, samples in SAMPLES.items() for sample in samples]
REDUCTIONS = ("sum_over_batch_size", "sum", "mean_with_sample_weight", None)


def agree(ours, theirs):
    np.testing.assert_allclose(
        ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs), rtol=2e-5, atol=2e-6
    )


def test_every_loss_has_a_sample():
    classes = {c.__name__ for c in registry.registered("losses").values() if isinstance(c, type)}
    assert classes - {"Loss", "LossFunctionWrapper"} == SAMPLES.keys()


@pytest.mark.parametrize(("name", "options", "data"), CASES)
def test_functions(name, options, data):
    function = {"CategoricalGeneralizedCrossEntropy": "categorical_generalized_cross_entropy"}.get(
        name, registry.snake_case(name)
    )
    if name == "CategoricalGeneralizedCrossEntropy":
        options = {"q": 0.5, **options}
    agree(
        getattr(losses, function)(*data, **options),
        getattr(keras.losses, function)(*map(keras.ops.convert_to_tensor, data), **options),
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("name", "options", "data"), CASES)
def test_objects(name, options, data, reduction):
    options = {**options, "reduction": reduction}
    ours, theirs = (getattr(m, name)(**options) for m in (losses, keras.losses))
    agree(ours(*data), theirs(*data))
    tensors = [ops.convert_to_tensor(x) for x in data]
    agree(ours(*tensors), theirs(*data))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("name", "options", "data"), CASES)
def test_weighted_objects(name, options, data, reduction):
    options = {**options, "reduction": reduction}
    ours, theirs = (getattr(m, name)(**options) for m in (losses, keras.losses))
    shape = theirs.call(*map(keras.ops.convert_to_tensor, data)).shape
    if len(shape) == 0:
        pytest.skip("one number for the whole batch")
    weight = np.random.RandomState(2).rand(*shape).astype("float32")
    for each in (weight, weight[..., None], 0 * weight):  # copied: Keras on torch changes it
        agree(ours(*data, each), theirs(*data, each.copy()))
    if (
        "ignore_class" not in options and name != "Circle"
    ):  # where a scalar weight fails in Keras on torch
        agree(ours(*data, sample_weight=2.5), theirs(*data, sample_weight=2.5))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kept", ["some", "none"])
def test_masks(reduction, kept, given):
    mask = np.random.RandomState(3).rand(3, 4) > (0.4 if kept == "some" else 2)
    weight = np.random.RandomState(4).rand(3, 4).astype("float32") if given else None
    for ignored in (None, 2):
        options = {"from_logits": True, "reduction": reduction, "ignore_class": ignored}
        prediction = keras.ops.convert_to_tensor(PIXELS[1])
        keras.src.backend.set_keras_mask(prediction, keras.ops.convert_to_tensor(mask))
        theirs = keras.losses.SparseCategoricalCrossentropy(**options)(
            PIXELS[0], prediction, sample_weight=None if weight is None else weight.copy()
        )
        prediction = ops.convert_to_tensor(PIXELS[1].copy())
        set_mask(prediction, ops.convert_to_tensor(mask))
        ours = losses.SparseCategoricalCrossentropy(**options)(PIXELS[0], prediction, weight)
        agree(ours, theirs)


@pytest.mark.parametrize("name", SAMPLES)
def test_config_is_read_by_both(name):
    options = SAMPLES[name][-1][0]
    ours = getattr(losses, name)(**options, reduction="sum", name="given")
    again = losses.deserialize(losses.serialize(ours))
    assert again.get_config() == ours.get_config()
    config = {k: v for k, v in ours.get_config().items() if k in ("name", "reduction", *options)}
    theirs = getattr(keras.losses, name)(**config)
    assert theirs.name == again.name == "given" and theirs.reduction == again.reduction == "sum"
    assert getattr(losses, name)().name == getattr(keras.losses, name)().name
    plain = getattr(keras.losses, name)()  # Keras leaves some options out of its configs
    saved = losses.get(keras.losses.serialize(plain))
    agree(saved(*SAMPLES[name][0][1]), plain(*SAMPLES[name][0][1]))


# --- edges: zeros, ones, infinities, nothing at all ----------------------------------------------
ZEROS, ONES = np.zeros((4, 3), "float32"), np.ones((4, 3), "float32")
HUGE = np.array([[1e4, -1e4, 0], [3e3, 0, -3e3], [0, 0, 0], [-1e4, 1e4, 1e4]], "float32")
EDGES = [(a, b) for a in (ZEROS, ONES) for b in (ZEROS, ONES, HUGE, -ONES)]
EDGES += [(np.eye(4, 3, dtype="float32"), b) for b in (np.eye(4, 3, dtype="float32"), HUGE, ZEROS)]
TEXTS_ONLY = {"CTC", "Circle"}
NAN = np.where(np.eye(4, 3) > 0, np.nan, ONES).astype("float32")


@pytest.mark.parametrize("name", sorted(SAMPLES.keys() - TEXTS_ONLY))
def test_edges(name):
    sparse = name.startswith(("Sparse", "CategoricalGeneralized"))
    variants = [{}, *({"from_logits": True} for _ in "1" if "ross" in name and "Gen" not in name)]
    for options in variants:
        ours, theirs = (
            getattr(m, name)(reduction="none", **options) for m in (losses, keras.losses)
        )
        for y_true, y_pred in EDGES:
            shares = (abs(y_pred - 0.5) <= 0.5).all() and y_pred.sum(-1).all()
            if "ross" in name and not options and not shares:
                continue  # no probabilities: backends of Keras differ in what they make of them
            huge = options and abs(y_pred).max() > 1
            if name == "BinaryFocalCrossentropy" and huge and backend.name == "tensorflow":
                continue  # there alone Keras finds the logits behind a sigmoid
            y_true = y_true.argmax(-1) if sparse else y_true
            agree(ours(y_true, y_pred), theirs(y_true, y_pred))


NOT_NUMBERS = ["MeanSquaredError", "MeanAbsoluteError", "LogCosh", "Huber", "Hinge", "Poisson"]


@pytest.mark.parametrize("name", NOT_NUMBERS)
def test_what_is_no_number_stays_none(name):
    ours, theirs = (getattr(m, name)(reduction="none") for m in (losses, keras.losses))
    agree(ours(ONES, NAN), theirs(ONES, NAN))
    agree(ours(NAN, ONES), theirs(NAN, ONES))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32"])
@pytest.mark.parametrize(
    "name", ["MeanSquaredError", "BinaryCrossentropy", "CategoricalCrossentropy"]
)
def test_dtypes_of_labels_and_predictions(name, dtype):
    if dtype == "float64":
        labels, scores = ONE_HOT[0].astype(dtype), ONE_HOT[1].astype(dtype)
    elif dtype == "int32":
        labels, scores = ONE_HOT[0].astype(dtype), ONE_HOT[1]
    else:
        labels, scores = ONE_HOT
    options = {"dtype": dtype} if dtype in ("float16", "bfloat16") else {}
    ours, theirs = (getattr(m, name)(**options)(labels, scores) for m in (losses, keras.losses))
    tolerance = 2e-2 if options else 2e-5
    assert ops.dtype(ours) == keras.backend.standardize_dtype(theirs.dtype)
    found = ops.convert_to_numpy(ops.cast(ours, "float32"))
    wanted = keras.ops.convert_to_numpy(keras.ops.cast(theirs, "float32"))
    np.testing.assert_allclose(found, wanted, rtol=tolerance)
