"""Callbacks that keep the model: checkpoints, averaged weights, a backup to go on from."""

from pathlib import Path
from typing import Annotated

import numpy as np

from khub.fields import Choice
from khub.training import resume
from khub.training.callbacks.callback import Declared, Options
from khub.training.callbacks.monitors import Monitor


def _frequency(name, value):
    if value != "epoch" and (not isinstance(value, int) or value < 1):
        raise ValueError(f'{name} must be "epoch" or a number of batches, got {value!r}.')
    return value


Frequency = Annotated[object, _frequency]


class _Saver(Monitor):
    """Saves after each epoch or every so many batches, all or what is better than before."""

    resumed = ("best", "_done", "_batch")

    def setup(self):
        self.best, self._done, self._epoch, self._batch = self.initial_value_threshold, 0, 0, -1

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._batch = epoch, -1

    def on_train_batch_end(self, batch, logs=None):
        self._done, self._batch = self._done + batch - self._batch, batch
        if self.save_freq != "epoch" and self._done >= self.save_freq:
            self._done = 0
            self._consider({"epoch": self._epoch + 1, "batch": batch + 1, **logs.copy()})

    def on_epoch_end(self, epoch, logs=None):
        if self.save_freq == "epoch":
            self._consider({"epoch": epoch + 1, **(logs or {})})

    def _consider(self, logs):
        if self.save_best_only:
            value = self.get_monitor_value(logs)
            if value is None or not self.better(value, self.best):
                return
            self.best = value
        where = self.save(logs)
        if self.verbose:
            why = f", {self.monitor} is {self.best:.5f}" if self.save_best_only else ""
            print(f"Epoch {logs['epoch']}: saved to {where}{why}.")


class ModelCheckpoint(_Saver):
    """Saves the model, or its weights, after each epoch or every `save_freq` batches.

    filepath: may hold `{epoch}`, `{batch}` and names of the logs; ends with .keras, or, with
    `save_weights_only`, with .weights.h5, .weights.json or .safetensors
    save_best_only: only when `monitor` is better than before and than `initial_value_threshold`
    """

    filepath: str
    first: Options(monitor="val_loss", verbose=0, save_best_only=False, save_weights_only=False)
    mode: Choice("auto", "min", "max") = "auto"
    save_freq: Frequency = "epoch"
    initial_value_threshold: float = None

    def setup(self):
        super().setup()
        ends = (".weights.h5", ".weights.json", ".safetensors")
        ends = ends if self.save_weights_only else (".keras",)
        if not str(self.filepath).endswith(ends):
            raise ValueError(f"filepath must end with {' or '.join(ends)}, got {self.filepath!r}.")

    def save(self, logs):
        """Save now and return the path."""
        try:
            path = Path(str(self.filepath).format(**logs))
        except KeyError as error:
            raise ValueError(f"{self.filepath!r} names {error}; there are {list(logs)}.") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.model.save_weights if self.save_weights_only else self.model.save)(path)
        return path


class OrbaxCheckpoint(_Saver):
    """Saves weights and optimizer with Orbax, in the background if wanted; needs khub[orbax].

    Each is a folder in `directory`, named by the optimizer's iteration, which
    `orbax.checkpoint.StandardCheckpointer().restore` reads and `model.set_state_tree` takes.
    max_to_keep: None keeps all
    """

    directory: str
    first: Options(monitor="val_loss", verbose=0, save_best_only=False)
    mode: Choice("auto", "min", "max") = "auto"
    save_freq: Frequency = "epoch"
    last: Options(initial_value_threshold=None, max_to_keep=1, save_on_background=True)
    save_weights_only: bool = False

    def setup(self):
        super().setup()
        try:
            import orbax.checkpoint as orbax
        except ImportError:
            raise ImportError("OrbaxCheckpoint needs: pip install khub[orbax]") from None
        background = {"enable_async_checkpointing": self.save_on_background}
        options = orbax.CheckpointManagerOptions(max_to_keep=self.max_to_keep, **background)
        self._orbax = orbax
        self.manager = orbax.CheckpointManager(Path(self.directory).absolute(), options=options)

    def save(self, logs):
        """Save now, or begin to, and return the path."""
        tree, step = self.model.get_state_tree("numpy_array"), int(self.model.optimizer.iterations)
        if self.save_weights_only:
            tree = {key: value for key, value in tree.items() if key[-19:] == "trainable_variables"}
        self.manager.save(step, args=self._orbax.args.StandardSave(tree))
        return self.manager.directory / str(step)

    def wait_until_finished(self, logs=None):
        """Wait until all is written."""
        self.manager.wait_until_finished()

    on_train_end = wait_until_finished

    def is_multihost_enabled(self):
        """Say whether several processes save together."""
        return self._orbax.multihost.process_count() > 1

    def is_primary_host(self):
        """Say whether this is the process that others follow."""
        return self._orbax.multihost.process_index() == 0


class SwapEMAWeights(Declared):
    """Evaluates and predicts with the averages that the optimizer keeps (`use_ema=True`).

    swap_on_epoch: from the end of each epoch to the beginning of the next, so that callbacks after
    this one save the averages
    """

    resumed = ("_own",)
    swap_on_epoch: bool = False
    _own = ()

    def _optimizer(self):
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        if not optimizer.use_ema:
            raise ValueError("SwapEMAWeights needs an optimizer with use_ema=True.")
        return optimizer

    def on_test_begin(self, logs=None):
        optimizer = self._optimizer()
        if optimizer.built and not self._own:  # before its first step there is no average
            self._own = [np.array(v.numpy()) for v in optimizer._trainable]
            optimizer.finalize_variable_values(optimizer._trainable)

    def on_test_end(self, logs=None):
        for variable, value in zip(self._optimizer()._trainable, self._own):
            variable.assign(value)
        self._own = []

    on_predict_begin, on_predict_end = on_test_begin, on_test_end

    def on_epoch_begin(self, epoch, logs=None):
        self.on_test_end()

    def on_epoch_end(self, epoch, logs=None):
        if self.swap_on_epoch:
            self.on_test_begin()

    def on_train_end(self, logs=None):
        self._own = []  # the averages stay: `fit` wrote them over the weights


class BackupAndRestore(Declared):
    """Backs up the whole state of a training; the same `fit` started again goes on from there.

    Weights, optimizer, metrics, random numbers, the place in the data, the History and what
    callbacks know (`Callback.resumed`): the rest is exactly what it would have been. A backup may
    be taken up on another backend.

    backup_dir: a folder for this alone; save_freq: "epoch" or a number of batches
    double_checkpoint: keep the backup before, which is taken when the last one is damaged
    delete_checkpoint: delete the backup when `fit` is done
    Raises ValueError for a backup that is damaged or of another model, optimizer or data.
    """

    resumed, comes_last = ("_done",), 2  # it saves what the others know after an epoch
    backup_dir: str
    save_freq: Annotated[object, lambda name, v: v is not False and _frequency(name, v)] = "epoch"
    last: Options(double_checkpoint=False, delete_checkpoint=True)
    _epoch = _done = 0

    def _files(self):
        names = ("training_state", "training_state_before")
        return [Path(self.backup_dir) / f"{name}.safetensors" for name in names]

    def on_train_begin(self, logs=None):
        self.model._compiled.resume = resume.read(*self._files())

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._done = epoch, 0

    def on_train_batch_end(self, batch, logs=None):
        often = self.save_freq not in ("epoch", False) and batch + 1 - self._done >= self.save_freq
        if often and batch + 1 != self.params.get("steps"):  # the epoch's end saves too
            self._save(self._epoch, batch + 1)

    def on_epoch_end(self, epoch, logs=None):
        if self.save_freq:
            self._save(epoch + 1, 0)

    def _save(self, epoch, batch):
        file, before = self._files()
        self._done = batch
        file.parent.mkdir(parents=True, exist_ok=True)
        resume.write(file, before if self.double_checkpoint else None, self.model, epoch, batch)

    def on_train_end(self, logs=None):
        for file in self._files() if self.delete_checkpoint else ():
            file.unlink(missing_ok=True)


__all__ = ["BackupAndRestore", "ModelCheckpoint", "OrbaxCheckpoint", "SwapEMAWeights"]
