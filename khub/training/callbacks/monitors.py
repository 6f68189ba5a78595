"""Callbacks that watch a quantity and change the course of the training."""

import inspect
import sys

import numpy as np

from khub import tree
from khub.backend import active
from khub.fields import Choice
from khub.training.callbacks.callback import Declared, Options, to_number


class Monitor(Declared):
    """What watches a quantity of the logs.

    monitor: its name; mode: "min" or "max" is better, "auto": what the metric of this name says, or
    the name (accuracy, auc and score rise); min_delta: what counts as better
    """

    resumed = ("best",)
    mode: Choice("auto", "min", "max") = "auto"
    min_delta = 0

    def get_monitor_value(self, logs):
        """Return the quantity, None in an epoch without validation.  Raises ValueError without."""
        value = (logs or {}).get(self.monitor)
        rare = self.monitor.startswith("val_") and self.model._compiled.running.rare
        if value is None and not rare:
            raise ValueError(
                f"{type(self).__name__} watches {self.monitor!r}; the logs have "
                f"{sorted(logs or {})}."
            )
        return value

    def better(self, value, than):
        """Say whether a value is better than another one; all are better than None."""
        name, up = self.monitor.removeprefix("val_"), self.mode == "max"
        if self.mode == "auto":
            built = [m for _, m, _ in self.model._compiled.built or ()]
            known = {getattr(m, "_logged_as", m.name): m for m in (*self.model.metrics, *built)}
            rises = name.endswith(("acc", "accuracy", "auc", "score"))
            up = (getattr(known.get(name), "_direction", None) or ("down", "up")[rises]) == "up"
        return than is None or (than - value if not up else value - than) > abs(self.min_delta)


class TerminateOnNaN(Declared):
    """Stops training when the loss is no number, and says where to look for the reason.

    raise_error: raise RuntimeError instead, so that `on_train_end` is not called
    """

    raise_error: bool = False

    def on_train_batch_end(self, batch, logs=None):
        loss = (logs or {}).get("loss")
        if loss is None or np.isfinite(loss):
            return
        data = tree.flatten(self.model._compiled.batch)
        data = [active.convert_to_numpy(x) for x in data if hasattr(x, "dtype")]
        hint = "The batch holds values that are not finite: look at the data."
        if all(np.isfinite(x).all() for x in data if x.dtype.kind == "f"):
            rate = to_number(self.model.optimizer.learning_rate)
            hint = f"Its data are finite: lower the learning rate ({rate:g}), limit the gradients "
            hint += "(clipnorm=1.0 in the optimizer), or look for log(0) and x / 0 in the loss."
        text = f"Batch {batch}: the loss is {loss}, training stops. {hint}"
        if self.raise_error:
            raise RuntimeError(text)
        print(text, file=sys.stderr)
        self.model.stop_training = True


class EarlyStopping(Monitor):
    """Stops when a quantity has not improved for `patience` epochs.

    monitor, min_delta, mode: see `Monitor`; baseline: no epoch that is worse ends the waiting;
    restore_best_weights: go back to the best epoch's; start_from_epoch: wait so long
    """

    resumed = ("best", "wait", "best_epoch", "best_weights", "stopped_epoch")
    first: Options(monitor="val_loss", min_delta=0, patience=0, verbose=0)
    mode: Choice("auto", "min", "max") = "auto"
    last: Options(baseline=None, restore_best_weights=False, start_from_epoch=0)

    def on_train_begin(self, logs=None):
        self.wait, self.stopped_epoch, self.best_epoch = 0, 0, 0
        self.best, self.best_weights = None, None

    def on_epoch_end(self, epoch, logs=None):
        if epoch < self.start_from_epoch:
            return
        value = self.get_monitor_value(logs)
        if value is None:
            return
        if self.restore_best_weights and self.best_weights is None:
            self.best_weights, self.best_epoch = self.model.get_weights(), epoch
        self.wait += 1
        if self.better(value, self.best):
            self.best, self.best_epoch = value, epoch
            if self.restore_best_weights:
                self.best_weights = self.model.get_weights()
            if self.better(value, self.baseline):  # the best so far may still be no good
                self.wait = 0
        elif self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        if self.stopped_epoch and self.verbose:
            print(f"Epoch {self.stopped_epoch + 1}: early stopping")
        if self.restore_best_weights and self.best_weights is not None:
            self.model.set_weights(self.best_weights)


class ReduceLROnPlateau(Monitor):
    """Multiplies the learning rate by `factor` when a quantity has not improved for a while.

    patience: epochs without improvement; cooldown: epochs to wait after that; min_lr: the lowest
    """

    resumed = ("best", "wait", "cooldown_counter")
    first: Options(monitor="val_loss", factor=0.1, patience=10, verbose=0)
    mode: Choice("auto", "min", "max") = "auto"
    last: Options(min_delta=1e-4, cooldown=0, min_lr=0.0)

    def setup(self):
        if self.factor >= 1:
            raise ValueError(f"factor must be below 1, got {self.factor!r}.")

    def on_train_begin(self, logs=None):
        self.wait, self.cooldown_counter, self.best = 0, 0, None

    def in_cooldown(self):
        """Say whether the rate was lowered a short time ago."""
        return self.cooldown_counter > 0

    def on_epoch_end(self, epoch, logs=None):
        optimizer, value = self.model.optimizer, self.get_monitor_value(logs)
        logs["learning_rate"] = rate = to_number(optimizer.learning_rate)
        if value is None:
            return
        if self.in_cooldown():
            self.cooldown_counter, self.wait = self.cooldown_counter - 1, 0
        if self.better(value, self.best):
            self.best, self.wait = value, 0
        elif not self.in_cooldown():
            self.wait += 1
            if self.wait >= self.patience and rate > np.float32(self.min_lr):
                optimizer.learning_rate = rate = max(rate * self.factor, self.min_lr)
                self.cooldown_counter, self.wait = self.cooldown, 0
                if self.verbose:
                    print(f"Epoch {epoch + 1}: the learning rate is lowered to {rate}.")


class LearningRateScheduler(Declared):
    """Sets the learning rate of each epoch to schedule(epoch[, learning rate so far])."""

    schedule: object
    verbose: int = 0

    def setup(self):
        parameters = inspect.signature(self.schedule).parameters
        self._takes_rate = len(parameters) > 1

    def on_epoch_begin(self, epoch, logs=None):
        optimizer = self.model.optimizer
        rate = self.schedule(epoch, *[to_number(optimizer.learning_rate)][: self._takes_rate])
        if not isinstance(rate, (float, np.floating)):
            raise ValueError(
                f"The schedule of LearningRateScheduler must return a float, got {rate!r}."
            )
        optimizer.learning_rate = rate
        if self.verbose:
            print(f"\nEpoch {epoch + 1}: the learning rate is {rate}.")

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["learning_rate"] = to_number(self.model.optimizer.learning_rate)


__all__ = ["EarlyStopping", "LearningRateScheduler", "ReduceLROnPlateau", "TerminateOnNaN"]
