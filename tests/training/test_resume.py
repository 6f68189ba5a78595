"""A training that was killed goes on exactly: weights, optimizer, metrics, seeds, data, History."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import khub
from khub import callbacks, layers, optimizers

BACKEND = khub.backend.name
pytestmark = pytest.mark.skipif(BACKEND == "numpy", reason="no gradients")
RANDOM = np.random.RandomState(0)
X, Y = RANDOM.randn(20, 3).astype("float32"), RANDOM.randint(0, 4, 20)


class Killed(Exception):
    pass


class Kill(callbacks.Callback):
    """Stops everything at a batch of an epoch, or at an epoch's end (batch None)."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise Killed

    def on_epoch_end(self, epoch, logs=None):
        if (epoch, None) == self.at:
            raise Killed


def model_of(dropout=0.3, optimizer=None):
    model = khub.Sequential(
        [
            khub.Input((3,)),
            layers.Dense(8, activation="relu"),
            layers.Dropout(dropout),
            layers.BatchNormalization(),
            layers.Dense(4),
        ]
    )
    loss = khub.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or optimizers.Adam(0.05), loss, metrics=["accuracy"])
    return model


def watchers():
    return [
        callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, min_delta=0.3),
        callbacks.EarlyStopping("loss", patience=30, restore_best_weights=True),
        callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
    ]


def fit(folder, *more, save_freq=2, make=model_of, data=(X, Y), **options):
    """Train in a process that knows nothing yet; return what came of it."""
    khub.utils.set_random_seed(7)
    model = make()
    backup = callbacks.BackupAndRestore(folder, save_freq=save_freq)
    options = {"epochs": 4, "batch_size": 3, "verbose": 0, "validation_data": (X, Y), **options}
    history = model.fit(*data, callbacks=[backup, *watchers(), *more], **options)
    return history.history, history.epoch, model.get_weights(), model.optimizer.variables


def same(one, other):
    assert one[0] == other[0] and one[1] == other[1]
    for mine, theirs in zip((*one[2], *one[3]), (*other[2], *other[3]), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


PLACES = {  # where it dies, how often it saves
    "in the first epoch": ((0, 4), 2),
    "before the first backup": ((0, 0), 2),
    "in the middle": ((2, 3), 1),
    "at an epoch's last batch": ((1, 6), 7),
    "between epochs": ((1, None), 3),
    "by epochs": ((2, 5), "epoch"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_training_goes_on_bit_for_bit(place, tmp_path):
    at, save_freq = PLACES[place]
    whole = fit(tmp_path / "whole")
    with pytest.raises(Killed):
        fit(tmp_path / "killed", Kill(*at), save_freq=save_freq)
    same(fit(tmp_path / "killed", save_freq=save_freq), whole)
    assert not list((tmp_path / "killed").iterdir())  # done: nothing to go on from


OTHERS = {  # optimizers whose state is more than tensors a weight; models with state of their own
    "averages, accumulation": lambda: optimizers.SGD(
        0.05, momentum=0.9, use_ema=True, gradient_accumulation_steps=2
    ),
    "loss scale": lambda: optimizers.LossScaleOptimizer(optimizers.Nadam(0.05)),
    "two optimizers": lambda: optimizers.MultiOptimizer(
        optimizers.OptimizerMap(optimizers.SGD(0.1), {".*kernel": optimizers.Muon(0.01)})
    ),
    "schedule": lambda: optimizers.RMSprop(optimizers.schedules.CosineDecay(0.1, 30)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_state_of_optimizers_is_taken_up(name, tmp_path):
    if name in ("schedule", "two optimizers"):  # whose rate no callback may set
        run = lambda *more, folder: bare(folder, *more, make=make)  # noqa: E731
    else:
        run = lambda *more, folder: fit(folder, *more, make=make)  # noqa: E731

    def make():
        return model_of(0.0, OTHERS[name]())

    whole = run(folder=tmp_path / "whole")
    with pytest.raises(Killed):
        run(Kill(1, 4), folder=tmp_path / "killed")
    same(run(folder=tmp_path / "killed"), whole)


def bare(folder, *more, make=model_of, data=(X, Y), **options):
    """Train without callbacks that set the rate."""
    khub.utils.set_random_seed(7)
    model, backup = make(), callbacks.BackupAndRestore(folder, save_freq=2)
    options = {"epochs": 3, "batch_size": 3, "verbose": 0, **options}
    history = model.fit(*data, callbacks=[backup, *more], **options)
    return history.history, history.epoch, model.get_weights(), model.optimizer.variables


class Rows(khub.utils.PyDataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]


def endless():
    number = 0
    while True:
        rows = np.random.RandomState(number).permutation(20)[:4]
        yield X[rows], Y[rows]
        number += 1


SOURCES = {
    "data set": (lambda: (Rows(),), {}),
    "endless generator": (lambda: (endless(),), {"steps_per_epoch": 5}),
    "groups of batches": (lambda: (X, Y), {"batch_size": 2}),
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_place_in_the_data_is_found_again(name, tmp_path):
    data, options = SOURCES[name]
    options = {"batch_size": None, **options}

    def make():
        model = model_of(0.0)
        if name == "groups of batches":
            model._compiled.options["steps_per_execution"] = 2
        return model

    whole = bare(tmp_path / "whole", data=data(), make=make, **options)
    with pytest.raises(Killed):
        bare(tmp_path / "killed", Kill(1, 3), data=data(), make=make, **options)
    same(bare(tmp_path / "killed", data=data(), make=make, **options), whole)


def test_a_subclass_that_is_built_by_its_data(tmp_path):
    class Own(khub.Model):
        def __init__(self):
            super().__init__()
            self.first, self.last = layers.Dense(5), layers.Dense(4)
            self.distance = khub.metrics.Mean(name="distance")

        def call(self, x):
            x = self.first(x)
            self.distance.update_state(khub.ops.abs(x))
            return self.last(x)

    def make():
        model = Own()
        model.compile("adam", khub.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    whole = bare(tmp_path / "whole", make=make)
    with pytest.raises(Killed):
        bare(tmp_path / "killed", Kill(1, 4), make=make)
    same(bare(tmp_path / "killed", make=make), whole)


# --- other backends ------------------------------------------------------------------------------
ELSEWHERE = """
import sys
sys.path.insert(0, {folder!r})
import test_resume
history, *_ = test_resume.fit({backup!r}, make=lambda: test_resume.model_of(0.0))
print("LOSSES", *history["loss"], *history["val_loss"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("other", ["jax", "torch", "tensorflow"])
def test_another_backend_goes_on_with_the_same_losses(other, tmp_path):
    if other == BACKEND or find_spec(other) is None:
        pytest.skip("needs another backend")

    def make():
        return model_of(0.0)

    whole = fit(tmp_path / "whole", make=make)
    with pytest.raises(Killed):
        fit(tmp_path / "killed", Kill(2, 3), make=make)
    text = ELSEWHERE.format(folder=str(Path(__file__).parent), backup=str(tmp_path / "killed"))
    run = [sys.executable, "-c", text]
    environment = {**os.environ, "KHUB_BACKEND": other, "KHUB_TEST_BLOCK_OTHERS": "0"}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("LOSSES"))
    found = [float(word) for word in line.split()[1:]]
    np.testing.assert_allclose(found, whole[0]["loss"] + whole[0]["val_loss"], rtol=1e-5, atol=1e-5)


# --- files that are no backup, kills while one is written ----------------------------------------
def killed(folder, **options):
    with pytest.raises(Killed):
        bare(folder, Kill(1, 3), **options)
    return folder / "training_state.safetensors"


def flip(data):
    data = bytearray(data)
    data[-9] ^= 64
    return bytes(data)


BROKEN = {
    "cut": (lambda data: data[: len(data) // 2], "is damaged"),
    "cut in the header": (lambda data: data[:100], "is damaged"),
    "empty": (lambda data: b"", "is damaged"),
    "a bit": (flip, "is damaged"),
    "text": (lambda data: b"not a backup at all", "is damaged"),
    "weights": (lambda data: foreign(), "no backup of a training"),
}


def foreign():
    from safetensors.numpy import save

    return save({"kernel": np.zeros(3, "float32")})


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_backup_is_said_to_be_one(name, tmp_path):
    change, words = BROKEN[name]
    path = killed(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=words):
        bare(tmp_path)


def test_the_backup_before_the_last_is_taken_when_that_is_damaged(tmp_path):
    backup = callbacks.BackupAndRestore(tmp_path, save_freq=1, double_checkpoint=True)
    khub.utils.set_random_seed(7)
    with pytest.raises(Killed):
        model_of().fit(X, Y, batch_size=3, verbose=0, callbacks=[backup, Kill(0, 4)])
    path = tmp_path / "training_state.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    whole = bare(tmp_path / "whole")
    with pytest.warns(UserWarning, match="training_state_before"):
        same(bare(tmp_path), whole)


def wider():
    model = khub.Sequential([khub.Input((3,)), layers.Dense(9), layers.Dense(4)])
    model.compile("adam", "mse")
    return model


FOREIGN = {
    "model": ({"make": wider}, r"of another training.*model\."),
    "optimizer": ({"make": lambda: model_of(0.3, optimizers.SGD())}, "has Adam, here is SGD"),
    "data": ({"batch_size": 5}, "has 7 batches an epoch, here is 4"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_backup_of_another_training_is_refused(name, tmp_path):
    options, words = FOREIGN[name]
    killed(tmp_path)
    with pytest.raises(ValueError, match=words):
        bare(tmp_path, **options)


def test_a_kill_while_a_backup_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    import safetensors.numpy

    path = killed(tmp_path)
    before = path.read_bytes()

    def die(tensors, file, metadata):
        Path(file).write_bytes(b"half of it")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", die)
        with pytest.raises(Killed):
            bare(tmp_path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    same(bare(tmp_path), bare(tmp_path / "whole"))


@pytest.mark.parametrize("frequency", [0, -1, "batch", 1.5])
def test_a_frequency_that_is_none(frequency):
    with pytest.raises(ValueError, match="save_freq must be"):
        callbacks.BackupAndRestore("folder", save_freq=frequency)
