"""Callbacks: what happens around epochs and batches."""

from functools import wraps

import numpy as np

from khub import tree
from khub.fields import Configurable

HOOKS = [
    f"on_{kind}_{edge}"
    for kind in ("epoch", "train", "test", "predict", "train_batch", "test_batch", "predict_batch")
    for edge in ("begin", "end")
]


class Callback:
    """Base of all callbacks; override the hooks you need.

    resumed: names of attributes (plain values, lists of them or of arrays) that a resumed training
    takes up; comes_last: called after the
    callbacks with a lower number
    """

    resumed, comes_last = (), 0

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


def Options(**defaults):  # noqa: N802  (it stands where a type does)
    """Several fields of any type, with their defaults."""
    return [(name, None, default) for name, default in defaults.items()]


class Declared(Configurable, Callback):
    """A callback whose constructor follows from its fields; it refuses arguments that are none."""

    def __init__(self, **kwargs):
        Callback.__init__(self)
        if kwargs:
            raise TypeError(f"{type(self).__name__} has no argument {', '.join(kwargs)}.")


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


class CallbackList(Callback):
    """Calls each hook on the callbacks that override it, and on no others.

    add_history, add_progbar: whether to add a `History`, a `ProgbarLogger`, where there is none
    """

    def __init__(self, callbacks=None, add_history=False, add_progbar=False, model=None, **params):
        from khub.training.callbacks.progress import ProgbarLogger

        super().__init__()
        self.callbacks = tree.flatten(callbacks or ())
        if add_progbar and self.find(ProgbarLogger) is None:
            self.callbacks.append(ProgbarLogger(params.get("verbose", "auto")))
        if add_history and self.find(History) is None:
            self.callbacks.append(History())
        self._sort_hooks()
        if model is not None:
            self.set_model(model)
        self.set_params(params)

    def _sort_hooks(self):
        self.callbacks.sort(key=lambda callback: callback.comes_last)
        self._by_hook = {hook: [] for hook in HOOKS}
        for name, hook in _NAMES:
            own = (c for c in self.callbacks if not hasattr(getattr(type(c), name), "says_nothing"))
            self._by_hook[hook] += [getattr(c, name) for c in own]

    def find(self, kind):
        """Return the first callback of a class, None where there is none."""
        return next((c for c in self.callbacks if isinstance(c, kind)), None)

    def append(self, callback):
        """Add a callback."""
        self.callbacks.append(callback)
        self._sort_hooks()

    def set_params(self, params):
        self.params = params
        for callback in self.callbacks if params else ():
            callback.set_params(params)

    def set_model(self, model):
        super().set_model(model)
        for callback in self.callbacks:
            callback.set_model(model)

    def has(self, hook):
        """Say whether any callback wants this hook."""
        return bool(self._by_hook[hook])

    def call(self, hook, *args, **kwargs):
        """Call a hook, "on_epoch_end" for example."""
        for function in self._by_hook[hook]:
            function(*args, **kwargs)


def _forward(name, hook):
    @wraps(getattr(Callback, name))
    def forward(self, *args, **kwargs):
        self.call(hook, *args, **kwargs)

    return forward


_NAMES = [(hook, hook) for hook in HOOKS]
_NAMES += [(f"on_batch_{edge}", f"on_train_batch_{edge}") for edge in ("begin", "end")]
for _name, _hook in _NAMES:
    setattr(CallbackList, _name, _forward(_name, _hook))
    getattr(Callback, _name).says_nothing = True


class History(Callback):
    """What `fit` returns: `history[name]` lists the value of each epoch, `epoch` the epochs."""

    resumed, comes_last = ("history", "epoch"), 1

    def __init__(self):
        super().__init__()
        self.history, self.epoch = {}, []

    def set_model(self, model):
        super().set_model(model)
        model.history = self

    def on_train_begin(self, logs=None):
        self.epoch = []

    def on_epoch_end(self, epoch, logs=None):
        self.epoch.append(epoch)
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(value)

    def plot(self):
        """Return a matplotlib figure: the curve of each quantity, and of its `val_...` with it."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError("History.plot() needs matplotlib: pip install khub[plot]") from None
        names = list(dict.fromkeys(name.removeprefix("val_") for name in self.history)) or ["loss"]
        figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for label in {name, f"val_{name}"} & self.history.keys():
                values = self.history[label]
                axes.plot([epoch + 1 for epoch in self.epoch[-len(values) :]], values, label=label)
            axes.set(xlabel="epoch", title=name)
            axes.legend()
        return figure


class LambdaCallback(Callback):
    """Calls the functions it is given: `on_epoch_end=lambda epoch, logs: ...`."""

    def __init__(
        self, on_epoch_begin=None, on_epoch_end=None, on_train_begin=None, on_train_end=None,
        on_train_batch_begin=None, on_train_batch_end=None, **kwargs,
    ):  # fmt: skip
        super().__init__()
        given = {k: v for k, v in locals().items() if k in HOOKS and v is not None} | kwargs
        self.__class__ = type("LambdaCallback", (LambdaCallback,), {})
        for hook, function in given.items():
            setattr(type(self), hook, staticmethod(function))
