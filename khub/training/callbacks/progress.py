"""The progress bar: where training stands, how long it will take."""

import sys
import time

from khub.training.callbacks.callback import Callback


class ProgressBar(Callback):
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
        self._title, self._begun, self._seen, self._drawn = title, time.perf_counter(), 0, 0.0
        if self.verbose in (1, "auto") and sys.stdout.isatty():
            from rich import progress

            text = progress.TextColumn
            self._bar = progress.Progress(
                *(text("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn()),
                *(progress.TimeRemainingColumn(), text("{task.fields[values]}")),
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
