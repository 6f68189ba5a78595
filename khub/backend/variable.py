"""Variable: a named tensor with an initializer, materialised when it is first read."""

import threading
from functools import partial

import numpy as np

from khub import dtypes, tree
from khub.backend import active
from khub.backend.scope import local

_name_scopes = []  # names of the layers being built, outermost first
_counters = {}
_first_use = threading.RLock()  # threads may predict with a model whose values nobody has read


def unique_name(base):
    """Return `base`, then `base_1`, `base_2`, ... in this process, until `clear_session`."""
    number = _counters[base] = _counters.get(base, -1) + 1
    return base if number == 0 else f"{base}_{number}"


def _given(value, shape, dtype=None):
    return value


class name_scope:
    """Puts `name/` before the paths of Variables made inside a `with` block."""

    def __init__(self, name, **kwargs):
        if not isinstance(name, str) or "/" in name:
            raise ValueError(f"name_scope needs a string without '/', got {name!r}.")
        self.name = name

    def __enter__(self):
        _name_scopes.append(self.name)
        return self

    def __exit__(self, *_):
        _name_scopes.pop()


class Variable(getattr(active, "VariableBase", object)):
    """A tensor with a name that layers and optimizers read and assign.

    initializer: a function of (shape, dtype), an `Initializer`, or the initial value itself
    shape: without None, needed with a function   dtype: None means the value's, else `floatx()`

    layout: how the value lies on several devices (`khub.distribution.TensorLayout`)

    The value appears at the first read; an assignment before it means the initializer never runs.
    Raises ValueError for an unknown or missing shape, and for an assigned value of another shape.
    """

    def __init__(
        self,
        initializer,
        shape=None,
        dtype=None,
        trainable=True,
        autocast=True,
        aggregation="none",
        synchronization="auto",
        name=None,
        layout=None,
        **kwargs,
    ):
        if isinstance(initializer, (str, dict)):
            from khub.saving import registry

            initializer = registry.get("initializers", initializer)
        if not callable(initializer):
            plain = not hasattr(initializer, "dtype")  # numbers get khub's dtypes, not NumPy's
            value = active.convert_to_tensor(initializer) if plain else initializer
            value = active.convert_to_numpy(value)
            if dtype is None and value.dtype == np.float64:
                dtype = dtypes.standardize(None)
            dtype = dtype or dtypes.standardize(value.dtype)
            shape, initializer = value.shape, partial(_given, value.copy())
        elif shape is None:
            raise ValueError(
                f"Variable {name!r} needs a shape beside its initializer {initializer!r}."
            )
        if None in tuple(shape):
            raise ValueError(f"Variable {name!r} needs a known shape, got {tuple(shape)}.")
        self.name = name or unique_name("variable")
        self.path = "/".join([*_name_scopes, self.name])
        self.shape = tuple(int(size) for size in shape)
        self.dtype = dtypes.standardize(dtype)
        self.initializer = initializer
        self.autocast = autocast and dtypes.is_float(self.dtype)
        self.aggregation = aggregation
        self.synchronization = synchronization
        self.regularizer = self.constraint = None
        self.layout = layout
        self._trainable = self.made_trainable = trainable
        self._storage = self._later = None
        self._device = local.device  # its value, made later, lies where it would lie now
        # drawn now, so that values depend on the order of creation and never on the order of reads
        self._seed = initializer.draw_seed() if hasattr(initializer, "draw_seed") else None

    @property
    def value(self):
        """The native tensor: the storage's, or the innermost scope's."""
        if local.special:
            return self._special_value()
        storage = self._storage
        return active.read(self.materialize() if storage is None else storage)

    def _special_value(self):
        value = self.storage_value() if local.scope is None else local.scope.get(self)
        if self.autocast and local.autocast is not None and local.autocast != self.dtype:
            return active.cast(value, local.autocast)
        return value

    def storage_value(self):
        """The native tensor kept by the Variable itself, whatever the scope."""
        return active.read(self.materialize())

    @property
    def is_materialized(self):
        """Whether the Variable has storage yet."""
        return self._storage is not None

    def materialize(self):
        """Run the initializer unless there is storage already, and return the storage."""
        if self._storage is None:
            with _first_use, active.untraced():  # whatever reads it first
                if self._storage is None:
                    with active.device_scope(self._device):
                        self._store(self._first(), own=self._later is not None)
        return self._storage

    def _first(self):
        if self._later is not None:
            return self._later()
        if self._seed is None:
            return self.initializer(self.shape, dtype=self.dtype)
        return self.initializer.sample(self.shape, self.dtype, self._seed)

    def _store(self, value, own=False):
        value = np.asarray(active.convert_to_numpy(value), dtypes.numpy_dtype(self.dtype))
        if value.shape != self.shape:
            raise ValueError(f"{self.path} has shape {self.shape}, got a value of {value.shape}.")
        self._storage = active.new_storage(value, self._trainable, self.name, own)
        if self.layout is not None:
            from khub.distribution import engine

            layout = getattr(self.layout, "backend_layout", self.layout)
            self._storage = engine().lay_out(self, layout)
        self._later = None  # whoever set the value: it held the file open

    def assign_later(self, read):
        """Assign what `read()` returns at the first use: an array in memory of nobody else."""
        if local.scope is None and self._storage is None:
            self._later = read
        else:
            self.assign(read())

    def __getstate__(self):
        self.materialize()  # a copy has the value, not the file that it would come from
        return self.__dict__

    def assign(self, value):
        """Set the value (any array of the Variable's shape) and return it."""
        if local.scope is None and self._storage is None:
            if not active.is_traced(value):
                self._store(value)
                return self._storage
            self.materialize()
        if type(value) not in active.TENSORS:
            value = active.convert_to_tensor(value, self.dtype)
        shape = tuple(value.shape)
        if shape != self.shape:
            raise ValueError(f"{self.path} has shape {self.shape}, got a value of {shape}.")
        value = active.cast(value, self.dtype)
        if local.scope is not None:
            local.scope.set(self, value)
        else:
            self._storage = active.write(self._storage, value)
        return value

    def assign_add(self, value):
        """Add `value` in place."""
        return self.assign(active.add(self._uncast(), self._operand(value)))

    def assign_sub(self, value):
        """Subtract `value` in place."""
        return self.assign(active.subtract(self._uncast(), self._operand(value)))

    def _operand(self, value):
        if type(value) is int and active.WEAK_NUMBERS:  # wherever the Variable lies
            return value
        return active.convert_to_tensor(value, self.dtype)

    def _uncast(self):
        return self.storage_value() if local.scope is None else local.scope.get(self)

    @property
    def trainable(self):
        """Whether the optimizer may change the value."""
        return self._trainable

    @trainable.setter
    def trainable(self, value):
        self._trainable = bool(value)
        if self._storage is not None:
            active.set_trainable(self._storage, self._trainable)

    @property
    def ndim(self):
        """The number of axes."""
        return len(self.shape)

    def numpy(self):
        """Return the value as a NumPy array."""
        return active.convert_to_numpy(self.value)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.numpy(), dtype=dtype)

    __array_priority__ = 100  # ndarray + Variable comes here

    def __jax_array__(self):
        return self.value

    def __tf_tensor__(self, dtype=None, name=None):
        return active.convert_to_tensor(self.value, dtype and dtypes.standardize(dtype))

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        values = tree.map_structure(lambda x: x.value if isinstance(x, Variable) else x, args)
        return func(*values, **(kwargs or {}))

    def __len__(self):
        if not self.shape:
            raise TypeError(f"{self.path} is a scalar: it has no length.")
        return self.shape[0]

    def __iter__(self):
        return iter(self.value)

    def __getitem__(self, index):
        return self.value[index]

    def __bool__(self):
        return bool(self.numpy())

    def __float__(self):
        return float(self.numpy())

    def __int__(self):
        return int(self.numpy())

    def __repr__(self):
        value = f", value={self.numpy()}" if self.is_materialized and len(self.shape) < 2 else ""
        return f"<Variable path={self.path}, shape={self.shape}, dtype={self.dtype}{value}>"
