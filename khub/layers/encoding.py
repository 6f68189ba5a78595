"""What preprocessing layers share: data to adapt to, and indices as vectors."""

import sys
from itertools import islice
from typing import Annotated

import numpy as np

from khub import ops
from khub.backend import name as backend
from khub.layers.data_layer import DataLayer, _to_host
from khub.ops.symbolic import KerasTensor, any_symbolic


def array(x):
    """Python values as a NumPy array, strings as objects (of any length); all else as it is."""
    if hasattr(x, "to_list"):  # ragged
        x = x.to_list()
    if not isinstance(x, (list, tuple, str, bytes, bool, int, float)):
        return x
    first = x
    while isinstance(first, (list, tuple)) and len(first):
        first = first[0]
    if hasattr(first, "shape") and not isinstance(first, np.generic):
        return np.stack([_to_host(part) for part in x])
    return np.array(x, object if isinstance(first, (str, bytes)) else None)


def host_array(x):
    """Anything as a NumPy array."""
    return np.asarray(_to_host(array(x)))


def batches(data, steps=None):
    """Yield the batches of `adapt`'s data as NumPy arrays, at most `steps` of them.

    data: an array, list or tensor, which is one batch, or any iterable of batches x or (x, y)
    """
    if isinstance(data, (list, tuple, str, bytes)) or hasattr(data, "shape"):
        yield host_array(data)
        return
    if not hasattr(data, "__iter__"):
        if not hasattr(data, "__getitem__"):
            raise ValueError(f"adapt: data must be an array or an iterable of them, got {data!r}.")
        data = map(data.__getitem__, range(len(data)))
    for batch in islice(data, steps):
        if isinstance(batch, (list, tuple)) and batch and len(getattr(batch[0], "shape", ())):
            batch = batch[0]
        yield host_array(batch)


def encode(indices, count, mode, dtype, weights=None):
    """Indices as vectors of `count` numbers; an index outside [0, count) adds nothing.

    one_hot: (...) or (..., 1) -> (..., count); multi_hot, else counts: (..., n) -> (..., count)
    """
    if len(indices.shape) == 0:
        indices = ops.reshape(indices, (1,))
    if mode == "one_hot":
        if len(indices.shape) > 1 and indices.shape[-1] == 1:
            indices = ops.squeeze(indices, -1)
        return ops.one_hot(indices, count, dtype=dtype)
    *batch, length = ops.shape(indices)
    rows = ops.reshape(ops.cast(indices, "int32"), (-1, length))
    number = ops.shape(rows)[0]
    inside = ops.logical_and(rows >= 0, rows < count)
    starts = ops.expand_dims(ops.arange(number, dtype="int32") * (count + 1), -1)
    places = ops.reshape(ops.where(inside, rows, count) + starts, (-1, 1))
    weights = ops.ones_like(rows) if weights is None else weights
    values = ops.reshape(ops.cast(weights, dtype), (-1,))
    total = ops.scatter(places, values, (number * (count + 1),))
    total = ops.reshape(total, (number, count + 1))[:, :count]
    if mode == "multi_hot":
        total = ops.cast(total > 0, dtype)
    return ops.reshape(total, (*batch, count))


def _salt(name, value):
    """A salt as SipHash's key: None, or two integers of one or two."""
    if value is None or isinstance(value, int):
        return value if value is None else (value, value)
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"{name} must be an integer or a pair of integers, got {value!r}.")
    return tuple(map(int, value))


Salt = Annotated[object, _salt]


class _ListLayer(DataLayer):
    """A layer that takes lists of numbers and strings too."""

    _array = staticmethod(array)  # what becomes of an input

    def __call__(self, *args, **kwargs):
        if not any_symbolic((args, kwargs)):
            args = tuple(map(self._array, args))
            kwargs = {name: self._array(x) for name, x in kwargs.items()}
        return super().__call__(*args, **kwargs)


class _Adaptive:
    """A layer that finds its state in data, one batch after another."""

    def adapt(self, data, steps=None):
        """Find the state in the data, in place of what was found before.

        data: an array, a list or an iterable of batches, of which at most `steps` are read
        """
        self.reset_state()
        for batch in batches(data, steps):
            self.update_state(batch)
        self.finalize_state()


class _Encoder(_ListLayer):
    """A layer that gives indices, or vectors made of them: `output_mode`, `sparse`.

    A subclass has `_count()`: how many numbers a vector has.
    """

    def setup(self):
        if self.sparse and self.output_mode == "int":
            raise ValueError("sparse=True needs an output_mode other than 'int', which is dense.")
        if self.sparse and backend != "tensorflow":
            raise ValueError(
                f"sparse=True needs the TensorFlow backend, this is {backend}; leave it False for "
                "a dense tensor of the same values."
            )
        self.built = True
        self._prepare()

    def __call__(self, *args, **kwargs):
        return self._sparse(super().__call__(*args, **kwargs))

    def _sparse(self, found):
        """Return the result as a sparse tensor, where that is wanted."""
        if not self.sparse or isinstance(found, (np.ndarray, KerasTensor)):
            return found
        return sys.modules["tensorflow"].sparse.from_dense(found)

    def _result_dtype(self):
        return self.dtype

    def _encoded(self, indices, weights=None):
        """Return indices as `output_mode` says."""
        if self.output_mode == "int":
            return ops.cast(indices, self._result_dtype())
        return encode(indices, self._count(), self.output_mode, self._result_dtype(), weights)

    def compute_output_spec(self, inputs, count_weights=None):
        shape = inputs.shape
        if self.output_mode == "int":
            return KerasTensor(shape, self._result_dtype())
        if self.output_mode != "one_hot" or len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
        return KerasTensor((*shape, self._count()), self._result_dtype(), sparse=self.sparse)
