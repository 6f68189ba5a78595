"""A training that was killed goes on exactly: weights, optimizer, metrics, seeds, data, History."""

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
    assert not (tmp_path / "killed").exists()  # done: nothing to go on from
