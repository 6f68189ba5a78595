"""Where Variables take their values from: their own storage, or this thread's innermost Scope."""

import threading


class _Local(threading.local):
    scope = None  # the innermost Scope
    autocast = None  # dtype that float Variables are read in
    special = False  # scope or autocast is set: the only thing a plain read looks at
    call = None  # the outermost layer call's state (khub/layers/layer.py)
    sparse_gradients = False  # whether a gradient may be of the rows that were read
    remat = None  # the innermost RematScope (khub/layers/remat.py)
    device = None  # where new tensors lie, if the backend is told so
    shapes = False  # whether shapes alone are computed, on torch's device without memory
    host = False  # whether NumPy arrays are computed with NumPy (khub/backend/host.py)


local = _Local()


class Scope:
    """Maps Variables to values while a function is traced or called without side effects.

    Reads of Variables that have no value here go to the scope outside, then to the storage;
    assignments stay here. `abstract` gives placeholders for storage, so nothing is initialized.
    `seal` is applied to what is assigned (a gradient takes it for a constant).
    """

    def __init__(self, values=(), abstract=None, seal=None):
        self.values = dict(values)
        self.seal = seal
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

    def is_abstract(self):
        """Say whether values are placeholders here or in a scope around."""
        return self.abstract is not None or self.outer is not None and self.outer.is_abstract()

    def gives(self, variable):
        """Say whether a call was given this Variable's value, here or in a scope around."""
        given = self.abstract is None and variable in self.values
        return given or self.outer is not None and self.outer.gives(variable)

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
        self.values[variable] = value if self.seal is None else self.seal(value)


def within(scope, function, args, kwargs):
    """Call `function` in a scope, if there is one; what it assigns goes to the scope outside."""
    if scope is None:
        return function(*args, **kwargs)
    with scope:
        result = function(*args, **kwargs)
    for variable in scope.written:
        scope.outer.set(variable, scope.values[variable])
    return result


class Resumed:
    """Puts a thread's state back to what it was when this was made, inside a `with` block."""

    NAMES = ("scope", "autocast", "special", "call", "device")

    def __init__(self):
        self.state = [getattr(local, name) for name in self.NAMES]

    def _swap(self, *_):
        now = [getattr(local, name) for name in self.NAMES]
        for name, value in zip(self.NAMES, self.state, strict=True):
            setattr(local, name, value)
        self.state = now

    __enter__ = __exit__ = _swap


class Setting:
    """Gives a name of this thread's state another value inside a `with` block."""

    def __init__(self, name, value):
        self.setting = name, value

    def __enter__(self):
        name, value = self.setting
        self._before = getattr(local, name)
        setattr(local, name, value)
        return self

    def __exit__(self, *_):
        setattr(local, self.setting[0], self._before)


def sparse_gradients(allowed):
    """Say inside a `with` block whether gradients of tables may hold only the rows read."""
    return Setting("sparse_gradients", allowed)


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
