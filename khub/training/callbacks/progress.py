"""The progress bar: where training stands, how long it will take."""

import sys
import time

from khub.training.callbacks.callback import Callback
from khub.utils.progress import Progbar, values_text


class ProgbarLogger(Callback):
    """A bar, redrawn at most ten times a second; without a terminal one plain line an epoch."""

    def __init__(self, verbose="auto"):
        super().__init__()
        self.verbose, self._bar = verbose, None
        self.epochs, self.steps = 1, None
        self._fitting = False  # then evaluation is a part of an epoch

    def set_params(self, params):
        super().set_params(params)
        self.epochs, self.steps = params.get("epochs", 1), params.get("steps")

    def _start(self, title):
        self._title, self._begun, self._seen, self._bar = title, time.perf_counter(), 0, None
        if self.verbose in (1, "auto") and sys.stdout.isatty():
            print(title)
            self._bar = Progbar(self.steps, interval=0.1)

    def _advance(self, batch, logs):
        self._seen = batch + 1
        if self._bar is not None and self._bar.is_due():
            self._draw(logs)

    def _draw(self, logs, finalize=False):
        self._bar.stateful_metrics.update(logs or ())
        self._bar.update(self._seen, (logs or {}).items(), finalize)

    def _finish(self, logs):
        seconds = time.perf_counter() - self._begun
        if self._bar is not None:
            self._bar.target = self._seen
            self._draw(logs, finalize=True)
        elif self.verbose:
            speed = f"{seconds:.1f}s, {1000 * seconds / max(self._seen, 1):.1f} ms/step"
            text = values_text((logs or {}).items())
            print(f"{self._title}: {self._seen} steps, {speed}{text}", flush=True)

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
