"""Callbacks: what happens around epochs and batches."""

import sys
import time

import numpy as np

_HOOKS = [
    f"on_{kind}_{edge}"
    for kind in ("epoch", "train", "test", "predict", "train_batch", "test_batch", "predict_batch")
    for edge in ("begin", "end")
]


class Callback:
    """Base of all callbacks; override the hooks you need."""

    def __init__(self):
        self.params, self._model = None, None

    @property
    def model(self):
        """The model being trained."""
        return self._model

    def set_params(self, params):
        """Called with verbose, epochs and steps."""
        self.params = params

    def set_model(self, model):
        """Called with the model."""
        self._model = model

    def on_batch_begin(self, batch, logs=None):
        """The same as `on_train_batch_begin`."""

    def on_batch_end(self, batch, logs=None):
        """The same as `on_train_batch_end`."""

    def on_epoch_begin(self, epoch, logs=None):
        """Before an epoch."""

    def on_epoch_end(self, epoch, logs=None):
        """After an epoch; logs: its losses and metrics, `val_...` ones too."""

    def on_train_batch_begin(self, batch, logs=None):
        """Before a training batch."""

    def on_train_batch_end(self, batch, logs=None):
        """After a training batch; logs: the averages so far."""

    def on_test_batch_begin(self, batch, logs=None):
        """Before an evaluation batch."""

    def on_test_batch_end(self, batch, logs=None):
        """After an evaluation batch."""

    def on_predict_batch_begin(self, batch, logs=None):
        """Before a prediction batch."""

    def on_predict_batch_end(self, batch, logs=None):
        """After a prediction batch; logs: its outputs."""

    def on_train_begin(self, logs=None):
        """Before training."""

    def on_train_end(self, logs=None):
        """After training."""

    def on_test_begin(self, logs=None):
        """Before evaluation."""

    def on_test_end(self, logs=None):
        """After evaluation."""

    def on_predict_begin(self, logs=None):
        """Before prediction."""

    def on_predict_end(self, logs=None):
        """After prediction."""


class Logs(dict):
    """Losses and metrics that stay on the device until somebody reads them."""

    def __getitem__(self, key):
        value = super().__getitem__(key)
        if not isinstance(value, (float, int)):
            value = to_number(value)
            self[key] = value
        return value

    def get(self, key, default=None):
        return default if key not in self else self[key]  # noqa: SIM401  (reads by __getitem__)

    def items(self):
        return [(key, self[key]) for key in self]

    def values(self):
        return [self[key] for key in self]

    def copy(self):
        return dict(self.items())


def to_number(value):
    """Return a scalar tensor as a float, an array as a list."""
    from khub.ops.core import convert_to_numpy

    array = np.asarray(convert_to_numpy(value))
    return float(array) if array.ndim == 0 else array.tolist()


class CallbackList:
    """Calls each hook on the callbacks that override it, and on no others."""

    def __init__(self, callbacks, model, **params):
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            callback.set_model(model)
            callback.set_params(params)
        self._by_hook = {}
        for hook in _HOOKS:
            base = getattr(Callback, hook)
            self._by_hook[hook] = [
                getattr(c, hook) for c in self.callbacks if getattr(type(c), hook, base) is not base
            ]
        for edge in ("begin", "end"):
            base = getattr(Callback, f"on_batch_{edge}")
            self._by_hook[f"on_train_batch_{edge}"] += [
                getattr(c, f"on_batch_{edge}")
                for c in self.callbacks
                if getattr(type(c), f"on_batch_{edge}", base) is not base
            ]

    def has(self, hook):
        """Say whether any callback wants this hook."""
        return bool(self._by_hook[hook])

    def call(self, hook, *args, **kwargs):
        """Call a hook, "on_epoch_end" for example."""
        for function in self._by_hook[hook]:
            function(*args, **kwargs)


class History(Callback):
    """What `fit` returns: `history[name]` lists the value of each epoch, `epoch` the epochs."""

    def __init__(self):
        super().__init__()
        self.history, self.epoch = {}, []

    def on_train_begin(self, logs=None):
        self.epoch = []

    def on_epoch_end(self, epoch, logs=None):
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)


class LambdaCallback(Callback):
    """Calls the functions it is given: `on_epoch_end=lambda epoch, logs: ...`."""

    def __init__(
        self,
        on_epoch_begin=None,
        on_epoch_end=None,
        on_train_begin=None,
        on_train_end=None,
        on_train_batch_begin=None,
        on_train_batch_end=None,
        **kwargs,
    ):
        super().__init__()
        given = {k: v for k, v in locals().items() if k in _HOOKS and v is not None} | kwargs
        self.__class__ = type("LambdaCallback", (LambdaCallback,), {})
        for hook, function in given.items():
            setattr(type(self), hook, staticmethod(function))


class TerminateOnNaN(Callback):
    """Stops training when the loss is no number."""

    def on_train_batch_end(self, batch, logs=None):
        loss = (logs or {}).get("loss")
        if loss is not None and not np.isfinite(loss):
            print(f"Batch {batch}: the loss is {loss}, training stops.", file=sys.stderr)
            self.model.stop_training = True


class EarlyStopping(Callback):
    """Stops when a quantity has not improved for `patience` epochs.

    monitor: name in the logs; min_delta: what counts as better; mode: "min", "max" or "auto" (by
    the name); baseline: no epoch that is worse ends the waiting; restore_best_weights: go back to
    the best epoch's; start_from_epoch: wait so long
    """

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
        super().__init__()
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode must be auto, min or max, got {mode!r}.")
        self.monitor, self.min_delta, self.patience = monitor, abs(min_delta), patience
        self.verbose, self.baseline, self.mode = verbose, baseline, mode
        self.restore_best_weights, self.start_from_epoch = restore_best_weights, start_from_epoch
        rising = mode == "max" or (
            mode == "auto" and monitor.endswith(("acc", "accuracy", "auc", "score"))
        )
        self._sign = -1 if rising else 1

    def on_train_begin(self, logs=None):
        self.wait, self.stopped_epoch, self.best_epoch = 0, 0, 0
        self.best, self.best_weights = None, None

    def _better(self, value, than):
        return than is None or self._sign * (value - than) < -self.min_delta

    def on_epoch_end(self, epoch, logs=None):
        if epoch < self.start_from_epoch:
            return
        value = (logs or {}).get(self.monitor)
        if value is None:
            raise ValueError(
                f"EarlyStopping watches {self.monitor!r}; the logs have {sorted(logs or {})}."
            )
        if self.restore_best_weights and self.best_weights is None:
            self.best_weights, self.best_epoch = self.model.get_weights(), epoch
        self.wait += 1
        if self._better(value, self.best):
            self.best, self.best_epoch = value, epoch
            if self.restore_best_weights:
                self.best_weights = self.model.get_weights()
            if self._better(value, self.baseline):  # the best so far may still be no good
                self.wait = 0
        elif self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        if self.stopped_epoch and self.verbose:
            print(f"Epoch {self.stopped_epoch + 1}: early stopping")
        if self.restore_best_weights and self.best_weights is not None:
            self.model.set_weights(self.best_weights)


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


class ProgressBar(Callback):
    """A bar, redrawn at most ten times a second; without a terminal one plain line an epoch."""

    def __init__(self, verbose="auto"):
        super().__init__()
        self.verbose, self._bar = verbose, None
        self._fitting = False  # then evaluation is a part of an epoch

    def set_params(self, params):
        super().set_params(params)
        self.epochs, self.steps = params.get("epochs", 1), params.get("steps")

    def _start(self, title):
        self._title, self._begun, self._seen, self._drawn = title, time.perf_counter(), 0, 0.0
        if self.verbose in (1, "auto") and sys.stdout.isatty():
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"),
                auto_refresh=False,
            )
            self._bar.start()
            self._task = self._bar.add_task(title, total=self.steps, values="")

    def _advance(self, batch, logs):
        self._seen = batch + 1
        now = time.perf_counter()
        if self._bar is not None and now - self._drawn > 0.1:
            self._drawn = now
            self._bar.update(self._task, completed=self._seen, values=_text(logs), refresh=True)

    def _finish(self, logs):
        seconds = time.perf_counter() - self._begun
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self._seen, total=self._seen, values=_text(logs), refresh=True
            )
            self._bar.stop()
            self._bar = None
        elif self.verbose:
            speed = f"{seconds:.1f}s, {1000 * seconds / max(self._seen, 1):.1f} ms/step"
            print(
                f"{self._title}: {self._seen} steps, {speed}{' - ' if logs else ''}{_text(logs)}",
                flush=True,
            )

    def on_train_begin(self, logs=None):
        self._fitting = True

    def on_train_end(self, logs=None):
        self._fitting = False

    def on_epoch_begin(self, epoch, logs=None):
        self._start(f"Epoch {epoch + 1}/{self.epochs}")

    def on_train_batch_end(self, batch, logs=None):
        self._advance(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._finish(logs)

    def on_test_begin(self, logs=None):
        if not self._fitting:
            self._start("Evaluation")

    def on_test_batch_end(self, batch, logs=None):
        if not self._fitting:
            self._advance(batch, logs)

    def on_test_end(self, logs=None):
        if not self._fitting:
            self._finish(logs)

    def on_predict_begin(self, logs=None):
        self._start("Prediction")

    def on_predict_batch_end(self, batch, logs=None):
        self._advance(batch, None)

    def on_predict_end(self, logs=None):
        self._finish(None)


ProgbarLogger = ProgressBar


def _text(logs):
    if not logs:
        return ""
    return " - ".join(
        f"{name}: {value:.4f}" if abs(value) > 1e-3 or value == 0 else f"{name}: {value:.3e}"
        for name, value in logs.items()
        if isinstance(value, (int, float))
    )
