"""Batches from whatever the user has: arrays, generators, data sets of any framework.

Every source gives (x, y, sample_weight) tuples of host arrays; a thread prepares them ahead when
there is real work to do (a preprocessor, a generator).
"""

import itertools
import math
import queue
import threading

import numpy as np

from khub import config, dtypes, tree
from khub.backend import active
from khub.ops.op import has_sparse, native_sparse


class PyDataset:
    """A data set that gives batch `i` by `__getitem__` and their number by `__len__`.

    workers, use_multiprocessing, max_queue_size: how many batches are prepared ahead
    """

    def __init__(self, workers=1, use_multiprocessing=False, max_queue_size=10):
        self.workers, self.use_multiprocessing = workers, use_multiprocessing
        self.max_queue_size = max_queue_size

    def __getitem__(self, index):
        raise NotImplementedError(f"{type(self).__name__} does not define __getitem__.")

    def __len__(self):
        return self.num_batches

    @property
    def num_batches(self):
        """The number of batches, None when unknown."""
        raise NotImplementedError(f"{type(self).__name__} does not define __len__ or num_batches.")

    def on_epoch_begin(self):
        """Called before each epoch."""

    def on_epoch_end(self):
        """Called after each epoch."""


def unpack_x_y_sample_weight(data):
    """Return (x, y, sample_weight) of a batch, None for what is missing."""
    if isinstance(data, list):
        data = tuple(data)
    if not isinstance(data, tuple):
        return data, None, None
    if len(data) > 3:
        raise ValueError(f"A batch is x, (x, y) or (x, y, sample_weight); got {len(data)} parts.")
    return (*data, *(None,) * (3 - len(data)))


def pack_x_y_sample_weight(x, y=None, sample_weight=None):
    """Return the shortest tuple that `unpack_x_y_sample_weight` gives back."""
    if y is None:
        return (x,) if isinstance(x, (list, tuple)) else x
    return (x, y) if sample_weight is None else (x, y, sample_weight)


def _is_array(x):
    return _is_scipy(x) or hasattr(x, "shape") and hasattr(x, "__getitem__") and len(x.shape) > 0


def _is_scipy(x):
    return type(x).__module__.startswith("scipy.sparse")


def _rows(x, index):
    """Rows of one leaf; those of a scipy matrix as the backend's sparse tensor."""
    if x is None or not _is_scipy(x):
        return None if x is None else x[index]
    rows, dtype = x[index], config.floatx() if x.dtype.kind == "f" else x.dtype.name
    if native_sparse is None:  # NumPy has no sparse arrays
        return rows.toarray().astype(dtype)
    return native_sparse.from_scipy(rows, dtype)


def _as_array(x, where):
    """Return one leaf as something to slice: any framework's array stays, a list becomes NumPy."""
    if _is_scipy(x):
        return x.tocsr()  # whose rows can be taken
    if x is None or _is_array(x):
        if type(x).__module__.startswith("pandas"):
            x = x.to_numpy()
        if isinstance(x, np.ndarray) and x.dtype == np.float64:
            return x.astype(dtypes.numpy_dtype(config.floatx()))
        return x
    if hasattr(x, "__array__"):
        return np.asarray(x)
    raise ValueError(f"{where}: expected arrays, got {type(x).__name__}.")


def is_raw_texts(x):
    """Say whether `x` is an array or list of strings, a list of pairs, or a tuple of lists."""
    if isinstance(x, tuple):
        return bool(x) and all(map(is_raw_texts, x))
    if isinstance(x, np.ndarray):
        return x.dtype.kind in "OUS"
    first = x[0] if isinstance(x, list) and x else None
    return isinstance(first, (str, bytes)) or (
        isinstance(first, (tuple, list)) and len(first) == 2 and _all_strings(first)
    )


def _all_strings(x):
    return isinstance(x, (tuple, list)) and bool(x) and all(isinstance(i, (str, bytes)) for i in x)


def _take(x, index):
    """Rows `index` (a slice or int array) of one leaf."""
    if isinstance(x, list):
        return x[index] if isinstance(index, slice) else [x[i] for i in index]
    if isinstance(x, tuple):
        return tuple(_take(part, index) for part in x)
    return x[index]


class ArraySource:
    """Slices of arrays (or lists of raw texts), shuffled by permuting indices once an epoch."""

    def __init__(self, x, y, sample_weight, batch_size, shuffle, seed, class_weight=None):
        self.raw = is_raw_texts(x)
        if isinstance(x, list) and not self.raw and x and isinstance(x[0], (int, float)):
            x = np.asarray(x)
        if isinstance(y, list) and not (y and _is_array(y[0])):
            y = np.asarray(y)
        self.x = x if self.raw else tree.map_structure(lambda leaf: _as_array(leaf, "x"), x)
        self.y = tree.map_structure(lambda leaf: _as_array(leaf, "y"), y)
        if isinstance(sample_weight, list):
            sample_weight = np.asarray(sample_weight, "float32")
        self.sample_weight = tree.map_structure(
            lambda leaf: _as_array(leaf, "sample_weight"), sample_weight
        )
        lengths = {
            self._length(leaf)
            for leaf in tree.flatten((self.y, self.sample_weight))
            if leaf is not None
        }
        lengths |= (
            {self._length(self.x)}
            if self.raw
            else {self._length(leaf) for leaf in tree.flatten(self.x) if leaf is not None}
        )
        if len(lengths) != 1:
            raise ValueError(
                f"x, y and sample_weight must have equal lengths, got {sorted(lengths)}."
            )
        self.size = lengths.pop()
        if self.size == 0:
            raise ValueError("The data is empty: x has no rows.")
        self.batch_size = batch_size or 32
        self.shuffle, self.class_weight = shuffle, class_weight
        self.seed, self.epoch = seed, 0
        self.simple = not isinstance(self.x, (list, tuple, dict))

    @staticmethod
    def _length(x):
        if _is_scipy(x):
            return x.shape[0]
        return len(x[0]) if isinstance(x, tuple) else len(x)

    @property
    def num_batches(self):
        return math.ceil(self.size / self.batch_size)

    def __iter__(self):
        order = None
        if self.shuffle:
            order = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch])).permutation(
                self.size
            )
        self.epoch += 1
        for start in range(0, self.size, self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.batch(rows if order is None else order[rows])

    def batch(self, index):
        """Return (x, y, sample_weight) of these rows."""

        def take(structure):
            if structure is None:
                return None
            if type(structure) in (list, tuple, dict):
                return tree.map_structure(lambda leaf: _rows(leaf, index), structure)
            return _rows(structure, index)

        x = _take(self.x, index) if self.raw else take(self.x)
        y, weight = take(self.y), take(self.sample_weight)
        if self.class_weight is not None:
            weight = class_weights(self.class_weight, y, weight)
        return x, y, weight

    def split(self, share):
        """Return (source of the first rows, (x, y, sample_weight) of the last `share` of them)."""
        if not 0 < share < 1:
            raise ValueError(f"validation_split must lie between 0 and 1, got {share!r}.")
        cut = int(math.floor(self.size * (1 - share)))
        if cut in (0, self.size):
            raise ValueError(f"validation_split={share} leaves one part of {self.size} rows empty.")
        first = ArraySource(
            *self.batch(slice(0, cut)), self.batch_size, self.shuffle, self.seed, self.class_weight
        )
        return first, self.batch(slice(cut, None))


def class_weights(weights, y, sample_weight=None):
    """Return a weight for each row by its class; `y` holds classes or one-hot rows."""
    labels = np.asarray(y)
    if labels.ndim > 1:
        labels = labels[..., 0] if labels.shape[-1] == 1 else labels.argmax(-1)
    table = np.ones(max(int(labels.max()), *weights) + 1, "float32")
    for label, weight in weights.items():
        table[label] = weight
    by_class = table[labels.astype(int)]
    return by_class if sample_weight is None else by_class * np.asarray(sample_weight)


class IterableSource:
    """Batches of any iterable: generators, `PyDataset`, `tf.data.Dataset`, torch's `DataLoader`."""

    def __init__(self, data, steps=None, class_weight=None):
        self.data, self.class_weight, self.raw = data, class_weight, None
        self.indexed = isinstance(data, PyDataset)
        self.once = hasattr(data, "__next__")
        self.num_batches = steps
        if steps is None and not self.once:
            try:
                self.num_batches = len(data)
            except TypeError:  # a data set of unknown length says so by raising it
                self.num_batches = None
        self.batch_size = None

    def __iter__(self):
        if self.indexed:
            self.data.on_epoch_begin()
            numbers = itertools.count() if self.num_batches is None else range(self.num_batches)
            batches = map(self.data.__getitem__, numbers)
        else:
            batches = iter(self.data)
        for data in batches:
            x, y, weight = unpack_x_y_sample_weight(data)
            if isinstance(x, tuple) and _all_strings(x):  # so torch's DataLoader collates them
                x = list(x)
            if not is_raw_texts(x):
                x, y, weight = tree.map_structure(_host, (x, y, weight))
            if self.class_weight is not None:
                weight = class_weights(self.class_weight, y, weight)
            yield x, y, weight
        if self.indexed:
            self.data.on_epoch_end()


def _host(x):
    """Tensors of another framework come in as NumPy, as do strings; the backend's own stay."""
    if getattr(getattr(x, "dtype", None), "name", None) == "string" and hasattr(x, "numpy"):
        return x.numpy()
    if _is_scipy(x):
        return _rows(x.tocsr(), slice(None))
    if x is None or active.is_tensor(x) or isinstance(x, (str, bytes)) or has_sparse((x,)):
        return x
    if type(x).__module__.startswith("torch") and hasattr(x, "detach"):
        return x.detach().cpu().numpy()
    x = np.asarray(x)
    return x.astype(dtypes.numpy_dtype(config.floatx())) if x.dtype == np.float64 else x


def source(
    x,
    y=None,
    sample_weight=None,
    batch_size=None,
    shuffle=False,
    seed=0,
    steps=None,
    class_weight=None,
):
    """Return the source of batches for a user's data."""
    if isinstance(x, (str, bytes)) or (isinstance(x, tuple) and _all_strings(x)):
        raise ValueError(
            f"x is {'one text' if isinstance(x, (str, bytes)) else 'a tuple of texts'}; expected a "
            "list of texts, or of pairs of texts, or a tuple of two lists (first, second texts)."
        )
    if isinstance(x, list) and not x:
        raise ValueError("The data is empty: x has no rows.")
    leaves = [leaf for leaf in tree.flatten(x) if leaf is not None]
    arrays = is_raw_texts(x) or (bool(leaves) and all(map(_is_array, leaves)))
    if isinstance(x, list) and leaves and isinstance(leaves[0], (int, float)):
        arrays = True
    if type(x).__module__.startswith("pandas"):
        arrays = True
    if arrays:
        return ArraySource(x, y, sample_weight, batch_size, shuffle, seed, class_weight)
    if not hasattr(x, "__iter__") and not isinstance(x, PyDataset):
        raise ValueError(f"x must be arrays or an iterable of batches, got {type(x).__name__}.")
    if y is not None:
        raise ValueError(f"A {type(x).__name__} gives (x, y) batches itself: pass no y beside it.")
    return IterableSource(x, steps, class_weight)


def prefetch(batches, prepare, ahead=4):
    """Yield `prepare(batch)` of each batch, computed in a thread up to `ahead` batches early.

    An exception in the thread is raised here; leaving the loop ends the thread.
    """
    line, stop = queue.Queue(ahead), threading.Event()

    def put(item):
        while not stop.is_set():
            try:
                line.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work():
        try:
            for batch in batches:
                put(("batch", prepare(batch)))
                if stop.is_set():
                    return
            put(("end", None))
        except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
            put(("error", error))

    threading.Thread(target=work, daemon=True, name="khub-prefetch").start()
    try:
        while True:
            kind, value = line.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
