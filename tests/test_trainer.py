"""Training by one's own steps, what is compiled and kept, and what is said about bad data."""

import copy
import pickle

import numpy as np
import pytest

import khub
from khub import layers, losses, metrics, ops, optimizers

BACKEND = khub.backend.name
trains = pytest.mark.skipif(BACKEND == "numpy", reason="no gradients")
RANDOM = np.random.RandomState(0)
X, Y = RANDOM.randn(12, 3).astype("float32"), RANDOM.randn(12, 2).astype("float32")


def dense(**options):
    return khub.Sequential([khub.Input((3,)), layers.Dense(2, **options)])


def compiled(**options):
    model = dense()
    model.compile(**{"optimizer": "sgd", "loss": "mse", **options})
    return model


class Own(khub.Model):
    """A model whose three steps are the user's, and which counts how often it is traced."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)
        self.distance = metrics.MeanAbsoluteError(name="distance")
        self.traced = 0

    def call(self, x, training=False):
        self.traced += 1
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        variables = self.trainable_variables

        def loss():
            y_pred = self(x, training=True)
            return ops.mean(ops.square(y - y_pred)), y_pred

        (value, y_pred), gradients = khub.value_and_grad(loss, variables, has_aux=True)()
        self.optimizer.apply(gradients, variables)
        self.distance.update_state(y, y_pred)
        return {"squared": value, "distance": self.distance.result()}

    def test_step(self, data):
        x, y = data
        self.distance.update_state(y, self(x))
        return {"distance": self.distance.result()}

    def predict_step(self, data):
        x = data if not isinstance(data, tuple) else data[0]
        return -self(x)


@trains
def test_own_steps():
    model = Own()
    model.compile(optimizer=optimizers.SGD(0.1))
    history = model.fit(
        X, Y, epochs=5, batch_size=4, validation_data=(X, Y), verbose=0, shuffle=False
    )
    assert list(history.history) == ["squared", "distance", "val_distance"]
    for values in history.history.values():
        assert values[-1] < values[0]
    predicted = model.predict(X, verbose=0)
    np.testing.assert_allclose(-predicted, ops.convert_to_numpy(model(X)), rtol=1e-6)
    distance = model.evaluate(X, Y, batch_size=4, verbose=0)
    assert distance == pytest.approx(np.abs(Y + predicted).mean(), rel=1e-5)


@trains
def test_steps_are_traced_once_for_a_shape():
    model = Own()
    model.compile(optimizer="sgd")
    model.fit(X, Y, epochs=2, batch_size=4, verbose=0)
    before = model.traced
    model.fit(X, Y, epochs=2, batch_size=4, verbose=0)
    assert model.traced - before == (6 if BACKEND == "torch" else 0)


@trains
def test_own_loss_of_a_batch():
    class Doubled(khub.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return 2 * super().compute_loss(x, y, y_pred, sample_weight, training)

    plain, doubled = dense(), Doubled([khub.Input((3,)), layers.Dense(2)])
    doubled.set_weights(plain.get_weights())
    values = []
    for model in (plain, doubled):
        model.compile(optimizer="sgd", loss="mse")
        values.append(model.evaluate(X, Y, verbose=0))
    assert values[1] == pytest.approx(2 * values[0])


@trains
def test_frozen_layers_stay_and_thaw():
    model = khub.Sequential([khub.Input((3,)), layers.Dense(4), layers.Dense(2)])
    model.layers[0].trainable = False
    for moves in (False, True):
        model.compile(optimizer="sgd", loss="mse")
        before = model.get_weights()
        model.fit(X, Y, verbose=0)
        moved = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights())]
        assert moved == [moves, moves, True, True]
        model.layers[0].trainable = True


@trains
def test_an_interrupted_fit_leaves_a_model_that_trains():
    class Stop(khub.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model = compiled()
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, batch_size=4, callbacks=[Stop()], verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    losses = model.fit(X, Y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@trains
def test_half_precision_scales_its_loss():
    policy = "mixed_float16" if BACKEND != "numpy" else "float32"
    model = khub.Sequential([khub.Input((3,)), layers.Dense(2, dtype=policy)], name="half")
    model.dtype_policy = policy
    model.compile(optimizer=optimizers.SGD(0.1), loss="mse")
    assert isinstance(model.optimizer, optimizers.LossScaleOptimizer)
    losses = model.fit(X, Y, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0] and model.weights[0].dtype == "float32"


@trains
@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_what_is_printed_without_a_terminal(verbose, capsys):
    compiled().fit(X, Y, epochs=2, batch_size=4, validation_data=(X, Y), verbose=verbose)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (0 if verbose == 0 else 2)
    for number, line in enumerate(lines):
        assert line.startswith(f"Epoch {number + 1}/2: 3 steps") and "val_loss: " in line


def test_every_source_of_rows_predicts_the_same():
    class Rows(khub.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]

    model = dense()
    wanted = ops.convert_to_numpy(model(X))
    batches = [X[i : i + 4] for i in range(0, 12, 4)]
    for source in (X, X.astype("float64"), Rows(), iter(batches)):
        found = model.predict(source, verbose=0)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


# --- errors --------------------------------------------------------------------------------------
def short():
    compiled().fit(iter([(X, Y)]), steps_per_epoch=3, verbose=0)


ERRORS = {  # what is done, kind of error, words of the message; True: needs gradients
    "fit without compile": (lambda: dense().fit(X, Y), ValueError, "compile.* before fit", False),
    "evaluate": (lambda: dense().evaluate(X, Y), ValueError, "before evaluate", False),
    "lengths": (
        lambda: compiled().evaluate(X, Y[:5], verbose=0),
        ValueError,
        r"equal lengths, got \[5, 12\]",
        False,
    ),
    "no rows": (lambda: compiled().evaluate(X[:0], Y[:0]), ValueError, "no rows", False),
    "no data": (lambda: compiled().fit(5), ValueError, "iterable of batches, got int", False),
    "y twice": (lambda: compiled().fit(iter([X]), Y), ValueError, "pass no y beside it", False),
    "loss name": (lambda: compiled(loss="msee").fit(X, Y), ValueError, "msee", True),
    "metric name": (lambda: compiled(metrics=["maee"]).fit(X, Y), ValueError, "maee", True),
    "optimizer": (lambda: compiled(optimizer="adaam"), ValueError, "adaam.*adam", False),
    "too many losses": (
        lambda: compiled(loss=["mse", "mae"]).evaluate(X, Y, verbose=0),
        ValueError,
        "2 entries for 1 outputs",
        False,
    ),
    "foreign output": (
        lambda: compiled(loss={"b": losses.MeanSquaredError()}).evaluate(X, Y, verbose=0),
        ValueError,
        r"outputs \['b'\]",
        False,
    ),
    "no loss": (lambda: compiled(loss=None).fit(X, Y, verbose=0), ValueError, "minimize", True),
    "generator runs dry": (short, ValueError, "ended after 1 of 3", True),
    "validation split": (
        lambda: compiled().fit(iter([(X, Y)]), validation_split=0.5),
        ValueError,
        "validation_split needs arrays",
        False,
    ),
    "split of all": (
        lambda: compiled().fit(X, Y, validation_split=0.99),
        ValueError,
        "leaves one part",
        False,
    ),
    "steps per execution": (
        lambda: compiled(steps_per_execution=0),
        ValueError,
        "steps_per_execution must be a positive integer, got 0",
        False,
    ),
    "watched quantity": (
        lambda: compiled().fit(
            X, Y, verbose=0, callbacks=[khub.callbacks.EarlyStopping("val_loss")]
        ),
        ValueError,
        "watches 'val_loss'; the logs have",
        True,
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    act, kind, words, gradients = ERRORS[name]
    if gradients and BACKEND == "numpy":
        pytest.skip("no gradients")
    with pytest.raises(kind, match=words):
        act()


@trains
@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_a_trained_model_predicts_and_trains_by_itself(way):
    model = compiled(optimizer=optimizers.Adam(0.1), metrics=["mae"])
    model.fit(X, Y, verbose=0)
    before, other = model.predict(X, verbose=0), way(model)
    assert other.evaluate(X, Y, verbose=0) == model.evaluate(X, Y, verbose=0)
    model.layers[0].kernel.assign(model.layers[0].kernel.numpy() + 1)
    np.testing.assert_allclose(other.predict(X, verbose=0), before, atol=1e-6)
    kept = model.predict(X, verbose=0)
    other.fit(X, Y, verbose=0)
    assert int(other.optimizer.iterations) == 2 and int(model.optimizer.iterations) == 1
    np.testing.assert_array_equal(model.predict(X, verbose=0), kept)
    assert not np.allclose(other.predict(X, verbose=0), before)


def test_losses_of_single_outputs_are_means_over_rows():
    given = khub.Input((3,))
    model = khub.Model(given, {"a": layers.Dense(2)(given), "b": layers.Dense(2)(given)})
    model.compile("sgd", {"a": "mse", "b": "mae"})
    found = model.evaluate(X, {"a": Y, "b": Y}, batch_size=5, verbose=0, return_dict=True)
    predicted = model.predict(X, verbose=0)
    assert found["a_loss"] == pytest.approx(np.mean((predicted["a"] - Y) ** 2), rel=1e-5)
    assert found["b_loss"] == pytest.approx(np.mean(np.abs(predicted["b"] - Y)), rel=1e-5)
