"""Callbacks that watch a quantity and change the course of the training."""

import sys

import numpy as np

from khub import tree
from khub.training.callbacks.callback import Callback, to_number


class Monitor(Callback):
    """What watches a quantity of the logs.

    monitor: its name; mode: "min" or "max" is better, "auto": as the metric of this name says, or
    the name (accuracy, auc and score rise)
    min_delta: what counts as better
    """

    resumed = ("best",)

    def __init__(self, monitor, mode="auto", min_delta=0, best=None):
        super().__init__()
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode must be auto, min or max, got {mode!r}.")
        self.monitor, self.mode, self.min_delta, self.best = monitor, mode, abs(min_delta), best

    def get_monitor_value(self, logs):
        """Return the quantity, None in an epoch without validation.  Raises ValueError without."""
        value = (logs or {}).get(self.monitor)
        rare = self.monitor.startswith("val_") and (self.params or {}).get("validation_freq", 1) > 1
        if value is None and not rare:
            raise ValueError(
                f"{type(self).__name__} watches {self.monitor!r}; the logs have "
                f"{sorted(logs or {})}."
            )
        return value

    def _rises(self):
        if self.mode != "auto":
            return self.mode == "max"
        name = self.monitor.removeprefix("val_")
        for metric in self.model.metrics:
            if metric._direction and name == getattr(metric, "_logged_as", metric.name):
                return metric._direction == "up"
        return name.endswith(("acc", "accuracy", "auc", "score"))

    def better(self, value, than):
        """Say whether a value is better than another one; all are better than None."""
        sign = -1 if self._rises() else 1
        return than is None or sign * (value - than) < -self.min_delta


class TerminateOnNaN(Callback):
    """Stops training when the loss is no number, and says where to look for the reason.

    raise_error: raise RuntimeError instead, so that `on_train_end` is not called
    """

    def __init__(self, raise_error=False):
        super().__init__()
        self.raise_error = raise_error

    def on_train_batch_end(self, batch, logs=None):
        loss = (logs or {}).get("loss")
        if loss is None or np.isfinite(loss):
            return
        text = f"Batch {batch}: the loss is {loss}, training stops. {self._hint()}"
        if self.raise_error:
            raise RuntimeError(text)
        print(text, file=sys.stderr)
        self.model.stop_training = True

    def _hint(self):
        leaves = [np.asarray(x) for x in tree.flatten(self.model._compiled.batch) if x is not None]
        if not all(np.isfinite(x).all() for x in leaves if x.dtype.kind == "f"):
            return "This batch holds values that are not finite: look at the data."
        rate = self.model.optimizer.learning_rate
        return (
            f"The data of this batch are finite: lower the learning rate ({to_number(rate):g}), "
            "limit the gradients (clipnorm=1.0 in the optimizer), or look for a logarithm or a "
            "division of 0 in the loss."
        )


class EarlyStopping(Monitor):
    """Stops when a quantity has not improved for `patience` epochs.

    monitor: name in the logs; min_delta: what counts as better; mode: "min", "max" or "auto" (by
    the name); baseline: no epoch that is worse ends the waiting; restore_best_weights: go back to
    the best epoch's; start_from_epoch: wait so long
    """

    resumed = ("best", "wait", "best_epoch", "best_weights", "stopped_epoch")

    def __init__(
        self,
        monitor="val_loss",
        min_delta=0,
        patience=0,
        verbose=0,
        mode="auto",
        baseline=None,
        restore_best_weights=False,
        start_from_epoch=0,
    ):
        super().__init__(monitor, mode, min_delta)
        self.patience, self.verbose, self.baseline = patience, verbose, baseline
        self.restore_best_weights, self.start_from_epoch = restore_best_weights, start_from_epoch

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

    def __init__(
        self,
        monitor="val_loss",
        factor=0.1,
        patience=10,
        verbose=0,
        mode="auto",
        min_delta=1e-4,
        cooldown=0,
        min_lr=0.0,
        **kwargs,
    ):
        super().__init__(monitor, mode, kwargs.pop("epsilon", min_delta))  # its name in Keras 1
        if factor >= 1 or kwargs:
            what = f"arguments of these names: {', '.join(kwargs)}" if kwargs else f"{factor=}"
            raise ValueError(f"ReduceLROnPlateau needs a factor below 1, got {what}.")
        self.factor, self.patience, self.verbose = factor, patience, verbose
        self.cooldown, self.min_lr = cooldown, min_lr

    def on_train_begin(self, logs=None):
        self.wait, self.cooldown_counter, self.best = 0, 0, None

    def in_cooldown(self):
        """Say whether the rate was lowered a short time ago."""
        return self.cooldown_counter > 0

    def on_epoch_end(self, epoch, logs=None):
        optimizer, value = self.model.optimizer, self.get_monitor_value(logs)
        rate = float(to_number(optimizer.learning_rate))
        logs["learning_rate"] = rate
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


class LearningRateScheduler(Callback):
    """Sets the learning rate of each epoch to schedule(epoch, learning rate so far)."""

    def __init__(self, schedule, verbose=0):
        super().__init__()
        self.schedule, self.verbose = schedule, verbose

    def on_epoch_begin(self, epoch, logs=None):
        optimizer = self.model.optimizer
        rate = self.schedule(epoch, float(to_number(optimizer.learning_rate)))
        if not isinstance(rate, (float, np.floating)):
            raise ValueError(
                f"The schedule of LearningRateScheduler must return a float, got {rate!r}."
            )
        optimizer.learning_rate = rate
        if self.verbose:
            print(f"\nEpoch {epoch + 1}: the learning rate is {rate}.")

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["learning_rate"] = float(to_number(self.model.optimizer.learning_rate))
