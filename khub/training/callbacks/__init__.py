"""Callbacks: what happens around epochs and batches."""

# ruff: noqa: F401  (what is imported is the public namespace)
from khub.training.callbacks.callback import Callback, CallbackList, History, LambdaCallback, Logs
from khub.training.callbacks.checkpoints import *  # noqa: F403
from khub.training.callbacks.monitors import *  # noqa: F403
from khub.training.callbacks.progress import ProgbarLogger
from khub.training.callbacks.reports import CSVLogger, RemoteMonitor, TensorBoard
