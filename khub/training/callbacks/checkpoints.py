"""Callbacks that keep the model: checkpoints, averaged weights, a backup to resume from."""

from pathlib import Path

import numpy as np

from khub.training import resume
from khub.training.callbacks.callback import Callback
from khub.training.callbacks.monitors import Monitor


class _Saver(Monitor):
    """Saves after each epoch or every so many batches, all or what is better than before."""

    resumed = ("best", "_seen", "_batch")

    def __init__(self, monitor, verbose, best_only, mode, save_freq, threshold):
        super().__init__(monitor, mode, best=threshold)
        if save_freq != "epoch" and (not isinstance(save_freq, int) or save_freq < 1):
            raise ValueError(
                f'save_freq must be "epoch" or a number of batches, got {save_freq!r}.'
            )
        self.verbose, self.save_best_only, self.save_freq = verbose, best_only, save_freq
        self._seen, self._epoch, self._batch = 0, 0, -1

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._batch = epoch, -1

    def on_train_batch_end(self, batch, logs=None):
        self._seen, self._batch = self._seen + batch - self._batch, batch
        if self.save_freq != "epoch" and self._seen >= self.save_freq:
            self._seen = 0
            self._consider(self._epoch, batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        if self.save_freq == "epoch":
            self._consider(epoch, None, logs)

    def _consider(self, epoch, batch, logs):
        if self.save_best_only:
            value = self.get_monitor_value(logs)
            if value is None or not self.better(value, self.best):
                return
            self.best = value
        where = self.save(epoch, batch, logs or {})
        if self.verbose:
            why = f", {self.monitor} is {self.best:.5f}" if self.save_best_only else ""
            print(f"Epoch {epoch + 1}: saved to {where}{why}.")


class ModelCheckpoint(_Saver):
    """Saves the model, or its weights, after each epoch or every `save_freq` batches.

    filepath: may hold `{epoch}`, `{batch}` and names of the logs; ends with .keras, or, with
    `save_weights_only`, with .weights.h5, .weights.json or .safetensors
    save_best_only: only when `monitor` is better than before and than `initial_value_threshold`
    """

    def __init__(
        self,
        filepath,
        monitor="val_loss",
        verbose=0,
        save_best_only=False,
        save_weights_only=False,
        mode="auto",
        save_freq="epoch",
        initial_value_threshold=None,
    ):
        super().__init__(monitor, verbose, save_best_only, mode, save_freq, initial_value_threshold)
        self.filepath, self.save_weights_only = str(filepath), save_weights_only
        ends = (
            (".weights.h5", ".weights.json", ".safetensors") if save_weights_only else (".keras",)
        )
        if not self.filepath.endswith(ends):
            raise ValueError(f"filepath must end with {' or '.join(ends)}, got {self.filepath!r}.")

    def save(self, epoch, batch, logs):
        """Save now and return the path."""
        batch = {} if batch is None else {"batch": batch + 1}
        try:
            path = Path(self.filepath.format(epoch=epoch + 1, **batch, **logs))
        except KeyError as error:
            raise ValueError(
                f"filepath {self.filepath!r} names {error}; there are {['epoch', *batch, *logs]}."
            ) from None
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.model.save_weights if self.save_weights_only else self.model.save)(path)
        return path


class OrbaxCheckpoint(_Saver):
    """Saves weights and optimizer with Orbax, in the background if wanted; needs khub[orbax].

    Each step is a folder in `directory` that `model.set_state_tree` takes once
    `orbax.checkpoint.StandardCheckpointer().restore` has read it; max_to_keep: None keeps all
    """

    def __init__(
        self,
        directory,
        monitor="val_loss",
        verbose=0,
        save_best_only=False,
        mode="auto",
        save_freq="epoch",
        initial_value_threshold=None,
        max_to_keep=1,
        save_on_background=True,
        save_weights_only=False,
    ):
        super().__init__(monitor, verbose, save_best_only, mode, save_freq, initial_value_threshold)
        try:
            import orbax.checkpoint as orbax
        except ImportError:
            raise ImportError("OrbaxCheckpoint needs: pip install khub[orbax]") from None
        self.save_weights_only, self._orbax, self._count = save_weights_only, orbax, 0
        options = orbax.CheckpointManagerOptions(
            max_to_keep=max_to_keep, enable_async_checkpointing=save_on_background
        )
        self.manager = orbax.CheckpointManager(Path(directory).absolute(), options=options)

    def save(self, epoch, batch, logs):
        """Save now, or begin to, and return the path."""
        tree = self.model.get_state_tree(value_format="numpy_array")
        if self.save_weights_only:
            tree = {k: v for k, v in tree.items() if k.endswith("trainable_variables")}
        step = int(self.model.optimizer.iterations)
        self.manager.save(step, args=self._orbax.args.StandardSave(tree))
        return self.manager.directory / str(step)

    def on_train_end(self, logs=None):
        self.wait_until_finished()

    def wait_until_finished(self):
        """Wait until all is written."""
        self.manager.wait_until_finished()

    def is_multihost_enabled(self):
        """Say whether several processes save together."""
        return self._orbax.multihost.process_count() > 1

    def is_primary_host(self):
        """Say whether this is the process that others follow."""
        return self._orbax.multihost.process_index() == 0


class SwapEMAWeights(Callback):
    """Evaluates and predicts with the averages that the optimizer keeps (`use_ema=True`).

    swap_on_epoch: from the end of each epoch to the beginning of the next, so that callbacks after
    this one save the averages
    """

    resumed = ("_own",)

    def __init__(self, swap_on_epoch=False):
        super().__init__()
        self.swap_on_epoch, self._own = swap_on_epoch, []

    def _take_averages(self):
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        if not optimizer.use_ema:
            raise ValueError("SwapEMAWeights needs an optimizer with use_ema=True.")
        if optimizer.built and not self._own:  # before its first step there is no average
            self._own = [np.array(v.numpy()) for v in optimizer._trainable]
            optimizer.finalize_variable_values(optimizer._trainable)

    def _give_back(self):
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        for variable, value in zip(optimizer._trainable, self._own):
            variable.assign(value)
        self._own = []

    def on_epoch_begin(self, epoch, logs=None):
        self._give_back()

    def on_epoch_end(self, epoch, logs=None):
        if self.swap_on_epoch:
            self._take_averages()

    def on_test_begin(self, logs=None):
        self._take_averages()

    def on_test_end(self, logs=None):
        self._give_back()

    on_predict_begin, on_predict_end = on_test_begin, on_test_end

    def on_train_end(self, logs=None):
        self._own = []  # the averages stay: `fit` wrote them over the weights


class BackupAndRestore(Callback):
    """Backs up the whole state of a training; the same `fit` started again goes on from there.

    The weights, the optimizer, the metrics, the random numbers, the place in the data, the History
    and what built-in callbacks know: the rest is exactly what it would have been. A backup may be
    taken up on another backend.

    backup_dir: a folder for this alone; save_freq: "epoch" or a number of batches
    double_checkpoint: keep the backup before, which is taken when the last one is damaged
    delete_checkpoint: delete the backup when `fit` is done
    Raises ValueError for a backup that is damaged or of another model, optimizer or data.
    """

    resumed, comes_last = ("_done",), 2  # it saves what the others know after an epoch

    def __init__(
        self, backup_dir, save_freq="epoch", double_checkpoint=False, delete_checkpoint=True
    ):
        super().__init__()
        whole = isinstance(save_freq, int) and save_freq >= 1
        if not backup_dir or save_freq not in ("epoch", False) and not whole:
            raise ValueError(
                'BackupAndRestore needs a folder, and save_freq="epoch" or a number of batches; '
                f"got {backup_dir!r}, {save_freq!r}."
            )
        self.backup_dir, self.save_freq = Path(backup_dir), save_freq
        self.double_checkpoint, self.delete_checkpoint = double_checkpoint, delete_checkpoint
        names = ("training_state", "training_state_before")
        self._file, self._before = (self.backup_dir / f"{name}.safetensors" for name in names)
        self._epoch, self._done = 0, 0

    def on_train_begin(self, logs=None):
        self.model._compiled.resume = resume.read(self._file, self._before)

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
        self._done = batch
        self.backup_dir.mkdir(parents=True, exist_ok=True)
        before = self._before if self.double_checkpoint else None
        resume.write(self._file, before, self.model, epoch, batch)

    def on_train_end(self, logs=None):
        if self.delete_checkpoint:
            for file in (self._file, self._before):
                file.unlink(missing_ok=True)
            if self.backup_dir.is_dir() and not any(self.backup_dir.iterdir()):
                self.backup_dir.rmdir()
