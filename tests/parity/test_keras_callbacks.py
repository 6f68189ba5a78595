"""Callbacks do what Keras' do: rates, files, weights, texts."""

import http.server
import json
import threading

import numpy as np
import pytest

keras = pytest.importorskip("keras")

import khub  # noqa: E402

pytestmark = pytest.mark.skipif(khub.backend.name == "numpy", reason="no gradients")
RANDOM = np.random.RandomState(0)
X, Y = RANDOM.randn(12, 3).astype("float32"), RANDOM.randn(12, 2).astype("float32")
BOTH = (khub, keras)


def fit(package, *callbacks, optimizer=None, start=None, epochs=6, **options):
    """Train from the same weights in both; return the model and its history."""
    parts = [package.Input((3,)), package.layers.Dense(2, name="head")]
    model = package.Sequential(parts, name="model")
    kernel = np.random.RandomState(1).randn(3, 2).astype("float32")
    model.set_weights([kernel, np.zeros(2, "float32")])
    model.compile(optimizer or package.optimizers.SGD(0.4), "mse", metrics=["mae"])
    options = {"validation_data": (X[:5], -Y[:5]), "shuffle": False, "verbose": 0, **options}
    history = model.fit(X, Y, epochs=epochs, batch_size=4, callbacks=list(callbacks), **options)
    return model, history.history


def agree(one, other):
    assert sorted(one) == sorted(other)
    for key in one:
        np.testing.assert_allclose(one[key], other[key], rtol=2e-5, atol=1e-6, err_msg=key)


PLATEAUS = [
    {"monitor": "val_loss", "patience": 1, "factor": 0.5},
    {"monitor": "loss", "patience": 1, "min_delta": 1.0, "cooldown": 1, "min_lr": 0.1},
    {"monitor": "val_mae", "mode": "max", "patience": 2, "factor": 0.3, "cooldown": 2},
    {"monitor": "loss", "patience": 2, "min_delta": 5.0, "min_lr": 0.05},
]


@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_rates_fall_alike(options):
    found = [fit(p, p.callbacks.ReduceLROnPlateau(**options), epochs=9)[1] for p in BOTH]
    assert len(set(found[0]["learning_rate"])) > 1
    agree(*found)


def test_rates_of_a_schedule():
    def schedule(epoch, rate):
        return rate * (0.5 if epoch > 1 else 1.1)

    agree(*(fit(p, p.callbacks.LearningRateScheduler(schedule))[1] for p in BOTH))


CHECKPOINTS = [
    {"filepath": "{epoch:02d}.weights.h5", "save_weights_only": True},
    {"filepath": "best.keras", "save_best_only": True, "monitor": "loss"},
    {
        "filepath": "{epoch}-{val_loss:.2f}.weights.h5",
        "save_weights_only": True,
        "save_best_only": True,
        "mode": "max",
        "monitor": "val_mae",
    },
    {"filepath": "{epoch}-{batch}.weights.h5", "save_weights_only": True, "save_freq": 4},
    {
        "filepath": "{epoch}.weights.h5",
        "save_weights_only": True,
        "save_best_only": True,
        "monitor": "loss",
        "initial_value_threshold": 1.5,
    },
]


@pytest.mark.parametrize("options", CHECKPOINTS, ids=lambda options: options["filepath"])
def test_the_same_files_are_saved(options, tmp_path):
    names = []
    for package in BOTH:
        folder = tmp_path / package.__name__
        folder.mkdir()
        path = str(folder / options["filepath"])
        fit(package, package.callbacks.ModelCheckpoint(**{**options, "filepath": path}))
        names.append(sorted(file.name for file in folder.iterdir()))
    assert names[0] == names[1] and names[0]
    for name in names[0][:2]:
        loaded = []
        for package in BOTH:
            path = tmp_path / package.__name__ / name
            if name.endswith(".keras"):
                model = keras.saving.load_model(path)  # Keras reads khub's
            else:
                model, _ = fit(keras, epochs=0, validation_data=None)
                model.load_weights(path)
            loaded.append(model.get_weights())
        for mine, other in zip(*loaded, strict=True):
            np.testing.assert_allclose(mine, other, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"separator": ";"}, {"append": True}], ids=str)
def test_the_same_table(options, tmp_path):
    texts = []
    for package in BOTH:
        file = tmp_path / f"{package.__name__}.csv"
        for _ in range(2):
            fit(package, package.callbacks.CSVLogger(str(file), **options), epochs=2)
        texts.append(file.read_text().splitlines())
    separator = options.get("separator", ",")
    assert [len(t) for t in texts] == [3 + 2 * ("append" in options)] * 2
    assert texts[0][0] == texts[1][0]
    for mine, other in zip(texts[0][1:], texts[1][1:], strict=True):
        rows = [[float(word) for word in line.split(separator)] for line in (mine, other)]
        np.testing.assert_allclose(*rows, rtol=1e-4)


@pytest.mark.parametrize("swap", [False, True])
def test_averages_are_evaluated(swap):
    found = []
    for package in BOTH:
        seen = []
        optimizer = package.optimizers.SGD(0.4, use_ema=True, ema_momentum=0.7)

        def note(epoch, logs, seen=seen):
            seen.extend(note.model.get_weights())

        watch = package.callbacks.LambdaCallback(on_epoch_end=note)
        watch_model = package.callbacks.LambdaCallback()
        watch_model.set_model = lambda model: setattr(note, "model", model)
        swapping = package.callbacks.SwapEMAWeights(swap_on_epoch=swap)
        _, history = fit(package, watch_model, swapping, watch, optimizer=optimizer, epochs=4)
        found.append({**history, "weights": np.concatenate([np.ravel(w) for w in seen])})
    agree(*found)


def test_the_same_posts():
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            received.append((self.path, self.headers["Content-Type"], body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_port}"
    for as_json in (True, False):
        monitor = khub.callbacks.RemoteMonitor(root, send_as_json=as_json)
        fit(khub, monitor, epochs=1)
    server.shutdown()
    (path, kind, text), (_, form, pairs) = received
    assert path == "/publish/epoch/end/" and kind == "application/json"
    assert json.loads(text).keys() == {"epoch", "loss", "mae", "val_loss", "val_mae"}
    assert form == "application/x-www-form-urlencoded" and pairs.startswith("data=%7B%22epoch%22")
    with pytest.warns(UserWarning, match="took no logs"):
        fit(khub, khub.callbacks.RemoteMonitor("http://127.0.0.1:1"), epochs=1)


def test_the_scalars_of_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    options = {"histogram_freq": 1, "update_freq": 2, "write_steps_per_second": True}
    board = khub.callbacks.TensorBoard(str(tmp_path), **options)
    _, history = fit(khub, board, epochs=2)
    found = {}
    for run in ("train", "validation"):
        (file,) = (tmp_path / run).iterdir()
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                found.setdefault((run, value.tag), {})[event.step] = value
    # the names that Keras 3.15.1 writes, but its graph
    names = {f"epoch_{n}" for n in ("loss", "mae", "learning_rate", "steps_per_second")}
    names |= {f"batch_{n}" for n in ("loss", "mae", "steps_per_second")} | {"model"}
    assert {tag for run, tag in found if run == "train" and "histogram" not in tag} == names
    held = {"epoch_loss", "epoch_mae", "evaluation_loss_vs_iterations"}
    assert {tag for run, tag in found if run == "validation"} >= held
    assert sum("histogram" in tag for _, tag in found) == 2
    for run, key in (("train", "loss"), ("validation", "val_loss")):
        values = [v.tensor.float_val[0] for _, v in sorted(found[run, "epoch_loss"].items())]
        np.testing.assert_allclose(values, history[key], rtol=1e-6)
    assert list(found["train", "batch_loss"]) == [2, 4, 6]
    assert "head" in found["train", "model"][0].tensor.string_val[0].decode()


def test_orbax_keeps_the_state(tmp_path):
    orbax = pytest.importorskip("orbax.checkpoint")
    keep = khub.callbacks.OrbaxCheckpoint(str(tmp_path), max_to_keep=2)
    model, _ = fit(khub, keep, optimizer=khub.optimizers.Adam(0.1, name="adam"), epochs=3)
    folders = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert folders == [6, 9]
    tree = orbax.StandardCheckpointer().restore(tmp_path.absolute() / "9" / "default")
    other, _ = fit(khub, optimizer=khub.optimizers.Adam(0.1, name="adam"), epochs=1)
    other.set_state_tree(tree)
    for mine, wanted in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, wanted)
    assert int(other.optimizer.iterations) == 9


def test_a_list_of_callbacks():
    calls = []
    for package in (khub,):
        seen = []
        one = package.callbacks.LambdaCallback(
            on_epoch_end=lambda e, logs, seen=seen: seen.append(e)
        )
        many = package.callbacks.CallbackList([one], epochs=3)
        many.on_train_begin()
        many.on_epoch_begin(0)
        many.on_train_batch_begin(0)
        many.on_batch_end(0, {"loss": 1.0})
        many.on_epoch_end(0, {"loss": 2.0})
        many.append(
            package.callbacks.LambdaCallback(on_train_end=lambda logs=None, s=seen: s.append("b"))
        )
        many.on_epoch_end(1, {"loss": 3.0})
        many.on_train_end()
        calls.append(seen)
    assert calls == [[0, 1, "b"]]


def test_curves():
    pytest.importorskip("matplotlib")
    model, _ = fit(khub, epochs=3)
    figure = model.history.plot()
    lines = {axes.get_title(): [line.get_label() for line in axes.lines] for axes in figure.axes}
    assert {k: sorted(v) for k, v in lines.items()} == {
        "loss": ["loss", "val_loss"],
        "mae": ["mae", "val_mae"],
    }
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), [1, 2, 3])
