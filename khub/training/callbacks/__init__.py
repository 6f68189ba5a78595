"""Callbacks: what happens around epochs and batches."""

# ruff: noqa: F401  (what is imported is the public namespace)
from khub.training.callbacks.callback import Callback, CallbackList, History, LambdaCallback, Logs
from khub.training.callbacks.checkpoints import (
    BackupAndRestore,
    ModelCheckpoint,
    OrbaxCheckpoint,
    SwapEMAWeights,
)
from khub.training.callbacks.monitors import (
    EarlyStopping,
    LearningRateScheduler,
    ReduceLROnPlateau,
    TerminateOnNaN,
)
from khub.training.callbacks.progress import ProgbarLogger, ProgressBar
from khub.training.callbacks.reports import CSVLogger, RemoteMonitor, TensorBoard
