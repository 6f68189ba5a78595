"""What `fit` says about data that do not fit: which output it is and what to do, everywhere."""

import warnings

import numpy as np
import pytest

import khub
from khub import layers, ops

trains = pytest.mark.skipif(khub.backend.name == "numpy", reason="no gradients")
RANDOM = np.random.RandomState(0)
X = RANDOM.randn(6, 3).astype("float32")
CLASSES = np.array([0, 1, 2, 1, 0, 2])
HOT = np.eye(3, dtype="float32")[CLASSES]
ONE = np.array([0, 1, 0, 1, 1, 0])


def model_of(loss, units=3, activation="softmax", drawn=True):
    parts = [layers.Dense(units, activation=activation, name="head")]
    model = khub.Sequential([khub.Input((3,)), *parts] if drawn else parts)
    model.compile("sgd", loss)
    return model


def two_outputs(loss):
    x = khub.Input((3,))
    heads = [
        layers.Dense(n, activation="softmax", name=name)(x) for n, name in ((3, "a"), (2, "b"))
    ]
    model = khub.Model(x, heads)
    model.compile("sgd", loss)
    return model


CATEGORICAL, SPARSE, BINARY = (
    f"{kind}_crossentropy" for kind in ("categorical", "sparse_categorical", "binary")
)
LATE = np.r_[CLASSES, CLASSES, 7]  # wrong in the last batch only
CASES = {  # model, targets, words of the message
    "classes for one-hot": (model_of, (CATEGORICAL,), CLASSES, "'head'.*class numbers.*sparse_cat"),
    "a column of classes": (model_of, (CATEGORICAL,), CLASSES[:, None], "'head'.*to_categorical"),
    "one-hot for classes": (model_of, (SPARSE,), HOT, "'head'.*one-hot: use categorical_cross"),
    "too many classes": (
        model_of,
        (SPARSE,),
        CLASSES + 1,
        "'head'.*from 1 to 3.* 0 to 2.* 4 classes",
    ),
    "negative classes": (model_of, (SPARSE,), CLASSES - 1, "'head'.*from -1 to 1"),
    "parts of classes": (model_of, (SPARSE,), CLASSES / 2, "'head' must be class numbers.*got"),
    "classes for two": (model_of, (BINARY, 1, "sigmoid"), CLASSES, "'head'.*from 0 to 2.*0 to 1"),
    "wrong width": (
        model_of,
        ("mse", 3),
        X[:, :2],
        r"'head' has the shape.*, 3\), its target.*2\)",
    ),
    "no width": (model_of, ("mse", 3), ONE, "'head'.*mean_squared_error.*element by element"),
    "no targets": (model_of, ("mse",), None, "'head' has a loss and no target"),
    "built late": (model_of, (SPARSE, 3, "softmax", False), CLASSES + 1, "classes from 1 to 3"),
    "second output": (
        two_outputs,
        ([SPARSE, SPARSE],),
        [CLASSES, CLASSES],
        "'b' has classes from 0",
    ),
    "one of two": (two_outputs, (SPARSE,), {"a": CLASSES}, "'b' has a loss and no target"),
    "number of targets": (two_outputs, (SPARSE,), CLASSES, r"2 outputs \['a', 'b'\], got 1"),
}


@pytest.mark.parametrize("name", CASES)
def test_targets_that_do_not_fit(name):
    make, given, y, words = CASES[name]
    model = make(*given)
    act = model.evaluate if khub.backend.name == "numpy" else model.fit
    with pytest.raises(ValueError, match=words):
        act(X, y, batch_size=4, verbose=0)


@trains
def test_no_weight_moves_before_the_message():
    model = model_of(SPARSE)
    before = model.get_weights()
    with pytest.raises(ValueError, match="classes from 0 to 7"):
        model.fit(np.r_[X, X, X[:1]], LATE, batch_size=4, shuffle=False, verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@trains
def test_the_second_fit_is_looked_at_too():
    model = model_of(SPARSE)
    model.fit(X, CLASSES, verbose=0)
    for data in ((X, CLASSES + 1), (iter([(X, CLASSES + 1)]),)):
        with pytest.raises(ValueError, match="classes from 1 to 3"):
            model.fit(*data, verbose=0)
    model.fit(X, CLASSES, verbose=0)


def good():
    yield model_of(SPARSE), CLASSES
    yield model_of(SPARSE), CLASSES[:, None].astype("float32")
    yield model_of(CATEGORICAL), HOT
    yield model_of(BINARY, 1, "sigmoid"), ONE
    yield model_of(BINARY, 1, "sigmoid"), ONE[:, None] / 2
    yield model_of("mse", 1), ONE
    yield model_of("mse", 3), X[:, :1]  # one number for all three
    yield model_of(khub.losses.SparseCategoricalCrossentropy(ignore_class=-1)), CLASSES - 1
    yield model_of(lambda y, y_pred: ops.mean(y_pred, axis=-1) + 0 * ops.sum(y)), X[:, :2]


def test_targets_that_fit():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for model, y in good():
            assert np.isfinite(model.evaluate(X, y, batch_size=4, verbose=0))


@pytest.mark.parametrize("loss", [SPARSE, BINARY])
def test_a_warning_where_logits_seem_to_be_meant(loss):
    y = CLASSES if loss == SPARSE else HOT
    with pytest.warns(UserWarning, match="'head' has no activation.*from_logits=True"):
        model_of(loss, activation=None).evaluate(X, y, verbose=0)


@trains
@pytest.mark.parametrize("broken", [True, False], ids=["NaN in the data", "a rate too high"])
def test_a_loss_that_is_no_number(broken, capsys):
    x = X.copy()
    if broken:
        x[4, 1] = np.nan
    words = "not finite: look at the data" if broken else "lower the learning rate .*clipnorm=1.0"

    def fit(**options):
        model = model_of("mse", activation=None)
        model.optimizer.learning_rate = 0.1 if broken else 1e20
        stop = khub.callbacks.TerminateOnNaN(**options)
        return model.fit(x, X, epochs=9, batch_size=2, shuffle=False, verbose=0, callbacks=[stop])

    assert len(fit().epoch) == 1
    printed = capsys.readouterr().err
    assert "the loss is" in printed and ("look at the data" in printed) == broken
    with pytest.raises(RuntimeError, match=words):
        fit(raise_error=True)


@trains
def test_no_batch_at_all():
    for data in (iter([]), []):
        with pytest.raises(ValueError, match="no batch|no rows"):
            model_of("mse").fit(data, verbose=0)
