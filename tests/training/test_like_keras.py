"""What code written for Keras expects of training: its guides' own steps, outputs, epochs."""

import warnings

import numpy as np
import pytest

import khub
from khub import layers, ops
from khub.saving import files

BACKEND = khub.backend.name
trains = pytest.mark.skipif(BACKEND == "numpy", reason="no gradients")
RANDOM = np.random.RandomState(0)
X, Y = RANDOM.randn(20, 3).astype("float32"), RANDOM.randn(20, 2).astype("float32")
FIT = {"batch_size": 10, "epochs": 2, "shuffle": False, "verbose": 0}


def wired(kind=khub.Model, **options):
    x = khub.Input((3,))
    model = kind(x, layers.Dense(2, kernel_initializer=khub.initializers.Constant(0.1))(x))
    model.compile(khub.optimizers.SGD(0.1), "mse", metrics=["mae"], **options)
    return model


class Guide(khub.Model):
    """The steps that Keras' guides write, one for each framework."""

    def _measured(self, loss, y, y_pred):
        for metric in self.metrics:
            metric.update_state(*([loss] if metric.name == "loss" else [y, y_pred]))
        return {metric.name: metric.result() for metric in self.metrics}

    if BACKEND == "tensorflow":

        def train_step(self, data):
            import tensorflow as tf

            x, y = data
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                loss = self.compute_loss(y=y, y_pred=y_pred)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return self._measured(loss, y, y_pred)

    if BACKEND == "torch":

        def train_step(self, data):
            import torch

            x, y = data
            self.zero_grad()
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
            loss.backward()
            with torch.no_grad():
                weights = list(self.trainable_weights)
                self.optimizer.apply([v.value.grad for v in weights], weights)
            return self._measured(loss, y, y_pred)

    if BACKEND == "jax":

        def _loss(self, trained, others, x, y):
            y_pred, others = self.stateless_call(trained, others, x, training=True)
            return self.compute_loss(x, y, y_pred), (y_pred, others)

        def train_step(self, state, data):
            import jax

            (trained, others, optimizer, measured), (x, y) = state, data
            gradient = jax.value_and_grad(self._loss, has_aux=True)
            (loss, (y_pred, others)), gradients = gradient(trained, others, x, y)
            trained, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trained)
            new, logs = [], {}
            for metric in self.metrics:
                mine = measured[len(new) : len(new) + len(metric.variables)]
                given = [loss] if metric.name == "loss" else [y, y_pred]
                mine = metric.stateless_update_state(mine, *given)
                logs[metric.name] = metric.stateless_result(mine)
                new += mine
            return logs, (trained, others, optimizer, new)


@trains
def test_steps_of_the_guides():
    found, wanted = (wired(kind).fit(X, Y, **FIT).history for kind in (Guide, khub.Model))
    assert sorted(found) == sorted(wanted) == ["loss", "mae"]
    for key in wanted:
        np.testing.assert_allclose(found[key], wanted[key], rtol=1e-5)


def test_a_loss_without_the_argument_training():
    class Own(khub.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return 2 * super().compute_loss(x, y, y_pred, sample_weight)

    values = [wired(kind).evaluate(X, Y, verbose=0)[0] for kind in (Own, khub.Model)]
    assert values[0] == pytest.approx(2 * values[1])


@trains
def test_losses_of_layers_leave_no_trace():
    class Size(layers.Layer):
        def call(self, x):
            self.add_loss(ops.mean(x))
            return x

    x = khub.Input((3,))
    model = khub.Model(x, Size()(layers.Dense(2)(x)))
    model.compile("sgd", "mse")
    model.fit(X, Y, **FIT)
    assert all(np.isfinite(float(ops.convert_to_numpy(loss))) for loss in model.losses)


def test_outputs_in_outputs():
    x = khub.Input((3,))
    a, b, c = (layers.Dense(2, name=name)(x) for name in "abc")
    model = khub.Model(x, {"p": a, "q": [b, c]})
    given = {
        "loss": {"p": "mse", "q": ["mse", "mae"]},
        "metrics": {"p": ["mae"], "q": ["mse", None]},
    }
    model.compile(**given)
    logs = model.evaluate(X, {"p": Y, "q": [Y, -Y]}, verbose=0, return_dict=True)
    assert list(logs) == ["loss", "p_loss", "q/b_loss", "q/c_loss", "a_mae", "b_mse"]
    assert logs["q/b_loss"] == pytest.approx(logs["b_mse"], rel=1e-5)


OUTPUTS = {  # outputs -> whether they come in a container
    "list": (lambda y: [y], False),
    "tuple": (lambda y: (y,), False),
    "dict": (lambda y: {"y": y}, True),
    "list of a list": (lambda y: [[y]], True),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_alone(name):
    make, contained = OUTPUTS[name]
    x = khub.Input((3,))
    model = khub.Model(x, make(layers.Dense(2)(x)))
    assert isinstance(model.predict(X, verbose=0), (list, dict)) == contained


RANKS = {  # shape of the Input, data, shape of the result
    "column": ((1,), X[:, 0], (20, 1)),
    "last axis of one": ((3,), X[..., None], (20, 3)),
    "one more": ((3, 1), X, (20, 3, 1)),
}


@pytest.mark.parametrize("name", RANKS)
def test_a_last_axis_of_one(name):
    shape, data, wanted = RANKS[name]
    x = khub.Input(shape)
    chain = khub.Sequential([x, layers.Activation("relu")])
    for model in (khub.Model(x, x * 2.0), chain):
        assert model.predict(data, verbose=0).shape == wanted


def test_equal_metrics_have_two_names():
    model = wired()
    model.compile(loss="mse", metrics=["mae", "mae"], weighted_metrics=["mae"])
    logs = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert list(logs) == ["loss", "mae", "mae_1", "weighted_mae"]
    assert model.metrics_names == ["loss", "compile_metrics"]


# --- epochs of some steps ------------------------------------------------------------------------
class Rows(khub.utils.PyDataset):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.seen.append(index)
        return X[5 * index : 5 * index + 5], Y[5 * index : 5 * index + 5]


@trains
@pytest.mark.parametrize("steps, epochs", [(2, [2, 2, 2]), (3, [3, 1, 3]), (6, [4, 4, 4])])
def test_data_begin_anew(steps, epochs):
    for data in ((X, Y), (Rows(),)):
        counts = []
        count = khub.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs, counts=counts: counts.append(0),
            on_train_batch_end=lambda batch, logs, counts=counts: counts.__setitem__(-1, batch + 1),
        )
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            options = {**FIT, "epochs": 3, "batch_size": 5, "steps_per_epoch": steps}
            wired().fit(*data, callbacks=[count], **options)
        assert counts == epochs
        assert any("data ended after" in str(w.message) for w in said) == (min(epochs) < steps)


@trains
def test_the_order_of_a_data_set_changes_with_the_epoch():
    data = Rows()
    wired().fit(data, epochs=2, verbose=0)
    epochs = data.seen[:4], data.seen[4:]
    assert [sorted(e) for e in epochs] == [[0, 1, 2, 3]] * 2 and epochs[0] != epochs[1]


@trains
def test_a_stop_does_not_shorten_the_validation():
    class Stop(khub.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = True

    model = wired()
    held = {"validation_data": (X, Y), "validation_batch_size": 5, "callbacks": [Stop()]}
    logs = model.fit(X, Y, **FIT, **held).history
    assert logs["val_loss"] == pytest.approx(model.evaluate(X, Y, verbose=0)[:1], rel=1e-5)


def test_evaluation_and_prediction_are_stopped():
    class Stop(khub.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            self.model.stop_evaluating = True

        def on_predict_batch_end(self, batch, logs=None):
            self.model.stop_predicting = True

    model, options = wired(), {"batch_size": 5, "verbose": 0, "callbacks": [Stop()]}
    first = model.evaluate(X[:5], Y[:5], verbose=0)
    np.testing.assert_allclose(model.evaluate(X, Y, **options), first, rtol=1e-5)
    assert len(model.predict(X, **options)) == 5


@trains
def test_epochs_that_are_validated():
    data = {"validation_data": (X, Y), "validation_split": 0.5, "validation_freq": [1, 3]}
    history = wired().fit(X, Y, **{**FIT, "epochs": 3}, **data)
    assert len(history.history["val_loss"]) == 2 and history.params["steps"] == 2


ERRORS = {
    "weights beside batches": (
        lambda model: model.evaluate(iter([(X, Y)]), sample_weight=X[:, 0], verbose=0),
        "pass no sample_weight beside it",
    ),
    "size": (lambda model: model.evaluate(X, Y, batch_size=-1), "batch_size must be a positive"),
    "steps": (lambda model: model.evaluate(X, Y, steps=1.5), "steps must be a positive integer"),
    "argument": (lambda model: model.evaluate(X, Y, step=1), "does not know step"),
    "no targets": (
        lambda model: [model.evaluate(X, y, verbose=0) for y in (Y, None)],
        "has a loss and no target",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_refused(name):
    act, words = ERRORS[name]
    with pytest.raises(ValueError, match=words):
        act(wired())


@trains
def test_pictures_and_tables_of_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    parts = [khub.Input((4,)), layers.Embedding(6, 3, name="table"), layers.Flatten()]
    model = khub.Sequential([*parts, layers.Dense(2)])
    model.compile("sgd", "mse")
    options = {"histogram_freq": 1, "write_images": True, "embeddings_freq": 1}
    board = khub.callbacks.TensorBoard(
        tmp_path, **options, embeddings_metadata={"table": "words.tsv"}
    )
    model.fit(np.ones((10, 4), "int32"), Y[:10], verbose=0, callbacks=[board])
    (file,) = (tmp_path / "train").iterdir()
    values = [v for event in EventFileLoader(str(file)).Load() for v in event.summary.value]
    pictures = {v.tag: v.tensor.string_val for v in values if v.tag.endswith("/image")}
    assert len(pictures) == 3
    (picture,) = (text for tag, text in pictures.items() if "embeddings" in tag)
    assert list(picture[:2]) == [b"6", b"3"] and picture[2].startswith(b"\x89PNG")
    text = (tmp_path / "projector_config.pbtxt").read_text()
    assert 'tensor_path: "table.tsv"' in text and 'metadata_path: "words.tsv"' in text
    table = np.loadtxt(tmp_path / "table.tsv")
    np.testing.assert_allclose(table, model.get_layer("table").get_weights()[0], rtol=1e-6)


@trains
def test_the_profile_of_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    model = khub.Sequential([khub.Input((4,)), layers.Dense(2)])
    model.compile("sgd", "mse")
    board = khub.callbacks.TensorBoard(tmp_path, profile_batch="2,3")
    x = np.ones((12, 4), "float32")
    model.fit(x, x[:, :2], batch_size=3, verbose=0, callbacks=[board])
    traces = [p for p in tmp_path.rglob("*") if p.suffix in (".pb", ".json") and p.stat().st_size]
    assert traces
    with pytest.raises(ValueError, match="two in order, got"):
        khub.callbacks.TensorBoard(tmp_path, profile_batch=(3, 2))


@trains
def test_a_process_that_is_not_the_first_writes_no_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "is_writer", lambda: False)
    model = khub.Sequential([khub.Input((4,)), layers.Dense(2)])
    model.compile("sgd", "mse")
    reports = [khub.callbacks.CSVLogger(tmp_path / "log.csv")]
    reports.append(khub.callbacks.TensorBoard(tmp_path, embeddings_freq=1, histogram_freq=1))
    x = np.ones((6, 4), "float32")
    data = x, x[:, :2]
    model.fit(*data, validation_data=data, epochs=2, verbose=0, callbacks=reports)
    assert list(tmp_path.iterdir()) == []
