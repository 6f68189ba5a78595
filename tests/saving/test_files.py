"""Every backend writes the same file and reads it; a file is replaced as a whole or not at all."""

import itertools
import json
import os
import resource
import signal
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

import khub
from khub import layers, ops, saving
from khub.saving.files import replacing

# One backend wrote it. Each writes the same and reads it: each reads what each other writes.
EVERYWHERE = Path(__file__).parent / "everywhere.keras"
X = np.linspace(-1, 1, 2 * 6 * 4, dtype="float32").reshape(2, 6, 4)
OUTPUTS = [[1.33266], [0.67317]]


def everything():
    """A compiled model of several kinds of layers, whose weights are the same everywhere."""
    x = khub.Input((6, 4), name="x")
    y = layers.Conv1D(4, 3, padding="same", activation="relu", name="conv")(x)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.MultiHeadAttention(2, 3, name="attention")(y, y) + x
    y = layers.Bidirectional(layers.GRU(3, name="gru"), name="both")(y)
    y = layers.Dense(2, dtype="bfloat16", name="half")(layers.Dropout(0.5, name="drop")(y))
    model = khub.Model(x, layers.Dense(1, name="head")(y), name="everything")
    model.compile(khub.optimizers.Adam(0.01, name="adam"), "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    random = np.random.RandomState(0)
    for v in [*model.weights, *model.optimizer.variables[2:]]:
        v.assign(random.uniform(0.1, 0.5, v.shape).astype("float32"))
    return model


def content(path):
    """The config, and name -> bytes of the arrays, of an archive."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        arrays = {}

        def add(name, item):
            if isinstance(item, h5py.Dataset):
                arrays[name] = (item.shape, item.dtype.str, item[()].tobytes())

        with archive.open("model.weights.h5") as member, h5py.File(member) as file:
            file.visititems(add)
    return config, arrays


def test_every_backend_writes_the_same_and_reads_it(tmp_path):
    model = everything()
    model.save(tmp_path / "model.keras")
    config, arrays = content(tmp_path / "model.keras")
    wanted = content(EVERYWHERE)
    assert config == wanted[0]
    assert arrays == wanted[1]
    read = saving.load_model(EVERYWHERE)
    assert read.compiled and read.optimizer.variables[2].path == model.optimizer.variables[2].path
    for a, b in zip(read.weights, model.weights, strict=True):
        assert a.dtype == b.dtype and a.trainable == b.trainable
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    for a, b in zip(read.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    y = ops.convert_to_numpy(ops.cast(read(X), "float32"))
    np.testing.assert_allclose(y, OUTPUTS, rtol=1e-2)


FORMATS = ["w.weights.h5", "w.weights.json", "w.safetensors"]


@pytest.mark.parametrize("name", FORMATS)
def test_weights(name, tmp_path):
    model, other = everything(), everything()
    other.set_weights([w * 0 for w in other.get_weights()])
    limit = 2e-7 if name.endswith("json") else None
    model.save_weights(tmp_path / name, max_shard_size=limit)
    assert (len(list(tmp_path.iterdir())) > 5) == (limit is not None)
    other.load_weights(tmp_path / name)
    for a, b in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    with pytest.raises(FileExistsError):
        model.save_weights(tmp_path / name, overwrite=False)


def small(units=2):
    model = khub.Sequential([khub.Input((3,)), layers.Dense(units, name="dense")], name="net")
    return model


def test_what_does_not_fit_is_listed_and_nothing_is_assigned(tmp_path):
    small(5).save_weights(tmp_path / "w.weights.h5")
    model = small()
    before = model.get_weights()
    with pytest.raises(
        saving.WeightsError, match=r"misshaped   layers/dense is \[\(3, 5\), \(5,\)\]"
    ):
        model.load_weights(tmp_path / "w.weights.h5")
    with pytest.warns(UserWarning, match="misshaped"):
        model.load_weights(tmp_path / "w.weights.h5", skip_mismatch=True)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    model.save_weights(tmp_path / "v.weights.h5")
    other = small()
    other.load_weights(tmp_path / "v.weights.h5", objects_to_skip=[other.layers[0]])
    with pytest.raises(ValueError, match="must end in one of"):
        model.save_weights(tmp_path / "w.bin")
    with pytest.raises(ValueError, match="is no file of weights"):
        model.load_weights(tmp_path / "w.bin")
    with pytest.raises(ValueError, match="must end in .keras"):
        model.save(tmp_path / "model.h5")
    with pytest.raises(saving.WeightsError, match="it is not built: call it on data first"):
        khub.Sequential([layers.Dense(2)]).load_weights(tmp_path / "v.weights.h5")


@pytest.mark.once
def test_folders(tmp_path):
    for units in (2, 3):  # the second takes the place of the first
        small(units).save(tmp_path / "net", zipped=False)
        assert saving.load_model(tmp_path / "net").layers[0].units == units
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    with pytest.raises(FileExistsError):
        small().save(tmp_path / "net", zipped=False, overwrite=False)


@pytest.mark.once
def test_the_editor(tmp_path, capsys):
    path = tmp_path / "model.keras"
    small().save(path)
    editor = saving.KerasFileEditor(path)
    assert editor.compare(small())["status"] == "success"
    editor.summary()
    assert "layers/dense {'0': (3, 2), '1': (2,)}" in capsys.readouterr().out
    editor.rename_object("dense", "old")
    editor.add_object("layers/dense", {"0": np.ones((3, 2), "float32")})
    editor.add_weights("dense", {"1": np.ones(2, "float32"), "2": np.ones(2)})
    assert editor.compare(small()) == {"status": "error", "error_count": 3, "match_count": 2}
    editor.delete_weight("layers/dense", "2")
    editor.delete_object("old")
    with pytest.raises(ValueError, match="must be one object of the file"):
        editor.delete_object("old")
    editor.save(tmp_path / "new.weights.h5")
    model = small()
    model.load_weights(tmp_path / "new.weights.h5")
    assert model.get_weights()[0].tolist() == np.ones((3, 2)).tolist()


SAVES = {
    "model.keras": lambda model, path: model.save(path),
    "folder": lambda model, path: model.save(path, zipped=False),
    "w.weights.h5": lambda model, path: model.save_weights(path),
    "w.weights.json": lambda model, path: model.save_weights(path, max_shard_size=2e-8),
    "w.safetensors": lambda model, path: model.save_weights(path),
}


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.once
@pytest.mark.parametrize("name", SAVES)
def test_a_full_disk_leaves_the_old_file(name, tmp_path):
    save, model = SAVES[name], small()
    save(small(3), tmp_path / name)
    before, failed = files(tmp_path), 0
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (*range(0, 2000, 101), *range(2000, 12000, 997)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))  # bytes a file may have
        try:
            save(model, tmp_path / name)
        except Exception:
            failed += 1
            assert files(tmp_path) == before
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert failed > 1 and files(tmp_path) != before


@pytest.mark.once
@pytest.mark.parametrize("name", [name for name in SAVES if name != "w.safetensors"])
def test_a_process_killed_while_it_writes_leaves_the_old_file(name, tmp_path):
    save, model = SAVES[name], small()
    save(small(3), tmp_path / name)
    before, killed = files(tmp_path), 0
    for size in (*range(0, 2000, 101), *range(2000, 12000, 997)):
        child = os.fork()
        if child == 0:  # the system kills the child at the first byte beyond `size`
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            save(model, tmp_path / name)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed += 1
            left = {p: c for p, c in files(tmp_path).items() if not p.parts[0].startswith(".")}
            assert left == before
    assert killed > 1


@pytest.mark.once
def test_a_process_killed_between_renames_leaves_the_old_shards(tmp_path):
    path, save = tmp_path / "w.weights.json", SAVES["w.weights.json"]
    save(small(3), path)
    old = files(tmp_path).keys()
    for renames in itertools.count():
        child = os.fork()
        if child == 0:
            left = iter(range(renames))
            saving.files.os.replace = lambda *paths, left=left: (
                os._exit(9) if next(left, None) is None else os.rename(*paths)
            )
            save(small(2), path)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
        small(3).load_weights(path)
    small(2).load_weights(path)
    left = {p for p in files(tmp_path) if not p.name.startswith(".")}
    assert renames == len(left) > 2
    assert left & old == {Path(path.name)}  # the old shards are removed


@pytest.mark.once
def test_a_folder_that_cannot_be_replaced_is_put_back(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("kept")

    def refuse(*_):
        raise OSError("on purpose")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="on purpose"), replacing(folder) as new:
        new.mkdir()
    assert (folder / "old").read_text() == "kept"
    assert list(tmp_path.iterdir()) == [folder]


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "w.weights.json"
    SAVES[path.name](small(), path)
    (tmp_path / "w_00001.weights.h5").unlink()
    with pytest.raises(FileNotFoundError, match="w_00001"):
        small().load_weights(path)
    for name, save in SAVES.items():
        with pytest.raises(FileNotFoundError, match="none is no folder: make it first"):
            save(small(), tmp_path / "none" / name)
    with pytest.raises(ValueError, match="is one file"):
        small().save_weights(tmp_path / "w.safetensors", max_shard_size=1)


def keras_2(name, cls, inputs, **config):
    entry = {"class_name": cls, "name": name, "config": {"name": name, "trainable": True} | config}
    calls = [[[source, 0, 0, {}] for source in inputs]] if inputs else []
    return entry | {"inbound_nodes": calls}


@pytest.mark.once
def test_whole_models_of_keras_2(tmp_path):
    zeros = {"class_name": "Zeros", "config": {}}
    found = [
        keras_2("x", "InputLayer", [], batch_input_shape=[None, 3], dtype="float32"),
        keras_2("one", "Dense", ["x"], units=2, kernel_initializer=zeros, dtype="float32"),
        keras_2("norm", "BatchNormalization", ["one"], axis=[1], dtype="float32"),
        keras_2("sum", "Add", ["one", "norm"]),
    ]
    graph = {"layers": found, "input_layers": [["x", 0, 0]], "output_layers": [["sum", 0, 0]]}
    adam = {"class_name": "Adam", "config": {"name": "Adam", "learning_rate": 0.25, "decay": 0.0}}
    arrays = {"one": [np.ones((3, 2)), np.ones(2)], "norm": [np.ones(2)] * 4}
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["keras_version"] = "2.4.0"
        file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": graph})
        file.attrs["training_config"] = json.dumps({"loss": "mse", "optimizer_config": adam})
        top = file.create_group("model_weights")
        top.attrs["layer_names"] = list(arrays)
        for name, values in arrays.items():
            top.create_group(name).attrs["weight_names"] = [str(i) for i in range(len(values))]
            for i, value in enumerate(values):
                top[name][str(i)] = value
    with pytest.warns(UserWarning, match="of Keras 2: its optimizer begins anew"):
        model = saving.load_model(tmp_path / "m.h5")
    y = ops.convert_to_numpy(model(np.ones((1, 3), "float32")))
    np.testing.assert_allclose(y, [[8 - 0.0015] * 2], atol=1e-4)  # 4 + (4 - 1) / sqrt(1.001) + 1
    assert float(model.optimizer.learning_rate) == 0.25 and model.loss == "mse"
