"""Where Variables take their values from: their own storage, or the innermost Scope of this thread."""

import threading


class _Local(threading.local):
    scope = None  # the innermost Scope
    autocast = None  # dtype that float Variables are read in
    special = False  # scope or autocast is set: the only thing a plain read looks at
    call = None  # the outermost layer call's state (khub/layers/layer.py)


local = _Local()


class Scope:
    """Maps Variables to values while a function is traced or called without side effects.

    Reads of Variables that have no value here go to the scope outside, then to the Variable's storage;
    assignments stay here. `abstract` gives placeholders instead of storage, so nothing is initialized.
    """

    def __init__(self, values=(), abstract=None):
        self.values = dict(values)
        self.read = {}  # Variable -> None, in the order of first read from outside
        self.written = {}  # Variable -> None, in the order of first assignment
        self.abstract = abstract
        self.outer = None

    def __enter__(self):
        self.outer, self._special = local.scope, local.special
        local.scope, local.special = self, True
        return self

    def __exit__(self, *_):
        local.scope, local.special = self.outer, self._special

    def get(self, variable):
        """Return the value of a Variable as seen from here."""
        if variable in self.values:
            return self.values[variable]
        self.read[variable] = None
        if self.abstract is not None:
            value = self.abstract(variable)
        elif self.outer is not None:
            value = self.outer.get(variable)
        else:
            value = variable.storage_value()
        return self.values.setdefault(variable, value)

    def set(self, variable, value):
        """Assign within this scope."""
        self.written[variable] = None
        self.values[variable] = value


class Autocast:
    """Reads float Variables as `dtype` inside a `with` block; None switches it off."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        self._before = local.autocast, local.special
        local.autocast = self.dtype
        local.special = self.dtype is not None or local.scope is not None

    def __exit__(self, *_):
        local.autocast, local.special = self._before
