"""Batches from whatever the user has: arrays, generators, data sets of any framework.

Every source gives (x, y, sample_weight) tuples of host arrays; a thread prepares them ahead, and
brings them to the device, when there is real work to do (a preprocessor, a generator).
"""

import copy
import itertools
import math
import mmap
import queue
import threading
from collections import deque

import numpy as np

from khub import config, dtypes, tree
from khub.backend import active
from khub.ops.op import has_sparse, native_sparse


class PyDataset:
    """A data set that gives batch `i` by `__getitem__` and their number by `__len__`.

    workers: threads, or with use_multiprocessing processes, that prepare batches; they come in
    order.  max_queue_size: how many batches are prepared ahead
    """

    workers, use_multiprocessing, max_queue_size = 1, False, 10  # without super().__init__()

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
    if type(x) is np.ndarray and x.dtype.char != "d":
        return x[index]
    if x is None or not _is_scipy(x):
        return None if x is None else _narrow(x[index])
    rows, dtype = x[index], config.floatx() if x.dtype.kind == "f" else x.dtype.name
    if native_sparse is None:  # NumPy has no sparse arrays
        return rows.toarray().astype(dtype)
    return native_sparse.from_scipy(rows, dtype)


def _narrow(x):
    """NumPy's float64 becomes `floatx()`."""
    if isinstance(x, np.ndarray) and x.dtype.char == "d":
        return x.astype(dtypes.numpy_dtype(config.floatx()))
    return x


def _is_frame(x):
    """Whether `x` is a table of pandas or polars."""
    return hasattr(x, "columns") and hasattr(x, "to_numpy")


def _from_table(x, where):
    """A table or column of pandas or polars as an array, everything else as it is."""
    if not _is_frame(x):
        return x.to_numpy() if hasattr(x, "to_numpy") and hasattr(x, "dtype") else x
    columns = {name: x[name].to_numpy() for name in x.columns}
    others = [name for name, column in columns.items() if column.dtype.kind not in "biuf"]
    if others or not columns:
        raise ValueError(
            f"{where}: the columns {others} of the {type(x).__name__} are no numbers; encode them, "
            "or pass a dict of columns to a model with an input for each."
        )
    return np.stack(list(columns.values()), axis=1)


def _as_array(x, where):
    """Return one leaf as something to slice: any framework's array stays, a list becomes NumPy."""
    if _is_scipy(x):
        return x.tocsr()  # whose rows can be taken
    if x is None:
        return x
    if not _is_array(x):
        if not hasattr(x, "__array__"):
            raise ValueError(f"{where}: expected arrays, got {type(x).__name__}.")
        x = np.asarray(x)
    small = type(x) is np.ndarray and x.nbytes < _AT_ONCE
    return _narrow(x) if small else x


def refuse_objects(source):
    """Raise ValueError for arrays of objects but texts, which only a preprocessor takes."""
    parts = {"x": () if isinstance(source.x, list) else source.x, "y": source.y}
    for name, part in parts.items():
        for x in tree.flatten(part):
            if isinstance(x, np.ndarray) and x.dtype.kind == "O":
                first = x.flat[0]
                if not isinstance(first, (str, bytes)):
                    kind = f"an array of {type(first).__name__} objects"
                    raise ValueError(f"{name}: expected numbers or texts, got {kind}.")


def _as_arrays(x, where):
    """Return a structure of arrays."""
    return tree.map_structure(lambda leaf: _as_array(_from_table(leaf, where), where), _dense(x))


def _dense(x):
    """A nested list of numbers or texts as one array, everything else as it is."""
    if not isinstance(x, list):
        return x
    plain = int, float, str, bytes, np.generic
    return np.asarray(x) if all(isinstance(v, plain) for v in tree.flatten(x[:1])[:1]) else x


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


class Source:
    """Batches (x, y, sample_weight), epoch after epoch.

    epoch: number of the next iteration, seed: of its random order; both may be set
    again: whether there is a next one
    """

    again = True
    raw, epoch, seed, batch_size, num_batches, _first = False, 0, 0, None, None, 0

    def skip(self, batches):
        """Start the next iteration so many batches in."""
        self._first = batches

    def state(self, batches=0):
        """Return where the data stands after so many batches of the iteration under way."""
        return {"epoch": max(self.epoch - 1, 0), "seed": self.seed, "batches": batches}

    def restore(self, state):
        """Let the next iteration go on from there."""
        self.epoch, self.seed, self._first = state["epoch"], state["seed"], state["batches"]

    def _begin(self):
        """Count an iteration and return (its number, its first batch)."""
        first, self._first = self._first, 0
        self.epoch += 1
        return self.epoch - 1, first


_AT_ONCE = 2**28  # bytes: smaller arrays are cast at once; of mapped files so much stays in memory
_FAULT = 2**16  # bytes that are mapped around a row of a file


def _shuffle(numbers, seed, epoch):
    np.random.Generator(np.random.Philox(key=[seed, epoch])).shuffle(numbers)


class ArraySource(Source):
    """Slices of arrays (or lists of raw texts), shuffled by permuting indices once an epoch."""

    def __init__(self, x, y, sample_weight, batch_size, shuffle, seed, class_weight=None):
        x = _from_table(x, "x")
        self.raw = is_raw_texts(x)
        self.x = x if self.raw else _as_arrays(x, "x")
        self.y, self.sample_weight = _as_arrays(y, "y"), _as_arrays(sample_weight, "sample_weight")
        parts = self.x, self.y, self.sample_weight
        self._set(_count(*parts), batch_size, shuffle, seed, class_weight)
        files = [leaf for leaf in tree.flatten(parts) if isinstance(leaf, np.memmap)]
        self.files = [leaf for leaf in files if leaf.mode != "c" and hasattr(mmap, "MADV_DONTNEED")]

    def _set(self, size, batch_size, shuffle, seed, class_weight):
        if size == 0:
            raise ValueError("The data is empty: x has no rows.")
        self.start, self.size, self.batch_size = 0, size, batch_size or 32
        self.shuffle, self.seed, self.class_weight = shuffle, seed, class_weight
        self.files = []

    @property
    def num_batches(self):
        return math.ceil(self.size / self.batch_size)

    def __iter__(self):
        (epoch, first), size, order = self._begin(), self.batch_size, None
        if self.shuffle:
            ends = self.start, self.start + self.size
            order = np.arange(*ends, dtype="int32" if 2**26 < ends[1] < 2**31 else "int64")
            _shuffle(order, self.seed, epoch)
        touched = sum(max(f.nbytes // len(f), _FAULT) for f in self.files) * size
        every = max(_AT_ONCE // touched, 1) if touched else 0
        end = self.start + self.size
        for number in range(first, self.num_batches):
            row = self.start + number * size
            rows = slice(row, min(row + size, end))
            yield self.batch(rows if order is None else order[number * size : (number + 1) * size])
            if every and number % every == 0:
                for file in self.files:  # else all of it would come to count as memory in use
                    file._mmap.madvise(mmap.MADV_DONTNEED)

    def batch(self, index):
        """Return (x, y, sample_weight) of these rows."""

        def take(structure):
            if type(structure) in (list, tuple, dict):
                return tree.map_structure(lambda leaf: _rows(leaf, index), structure)
            return _rows(structure, index)

        x = _take(self.x, index) if self.raw else take(self.x)
        y, weight = take(self.y), take(self.sample_weight)
        if self.class_weight is not None:
            weight = class_weights(self.class_weight, y, weight)
        return x, y, weight

    def split(self, share):
        """Return sources of the first rows and of the last `share` of them."""
        if not 0 < share < 1:
            raise ValueError(f"validation_split must lie between 0 and 1, got {share!r}.")
        cut = int(math.floor(self.size * (1 - share)))
        if cut in (0, self.size):
            raise ValueError(f"validation_split={share} leaves one part of {self.size} rows empty.")
        first, last = copy.copy(self), copy.copy(self)
        first.size, last.start, last.size = cut, cut, self.size - cut
        last.shuffle, last.class_weight = False, None
        return first, last


def _count(x, y, weight):
    """Return the number of rows, which must be that of each part."""
    raw = is_raw_texts(x)
    parts = {"x": () if raw else tree.flatten(x)}
    parts |= {"y": tree.flatten(y), "sample_weight": tree.flatten(weight)}
    sizes = {
        name: {v.shape[0] if hasattr(v, "shape") else len(v) for v in leaves if np.ndim(v)}
        for name, leaves in parts.items()
    }
    if raw:
        sizes["x"] = {*map(len, x)} if isinstance(x, tuple) else {len(x)}
        if len(sizes["x"]) > 1:
            raise ValueError(f"The lists of a pair must be equally long, got {[*map(len, x)]}.")
    found = sorted(set().union(*sizes.values()))
    if len(found) != 1:
        each = ", ".join(f"{name} {sorted(has)}" for name, has in sizes.items() if has)
        raise ValueError(f"x, y and sample_weight must have equal lengths, got {found}: {each}.")
    return found[0]


class Columns:
    """Which columns of a row, or of a batch of rows, are x, which y, which the weights.

    y: name or names; without one "label" or "labels" is y, "sample_weight" the weights
    """

    def __init__(self, names, y, sample_weight):
        y = [n for n in ("label", "labels") if n in names][:1] if y is None else y
        self.y = [y] if isinstance(y, str) else list(y)
        self.weight = [sample_weight or "sample_weight"]
        self.x = [name for name in names if name not in (*self.y, *self.weight)]
        if unknown := [name for name in self.y if name not in names]:
            raise ValueError(f"y: the data has no columns {unknown}; it has {list(names)}.")

    def __call__(self, row):
        def pick(names):
            found = {name: np.asarray(row[name]) for name in names if name in row}
            return next(iter(found.values()), None) if len(found) < 2 else found

        return pick(self.x), pick(self.y), pick(self.weight)


class TableSource(ArraySource):
    """Rows of a Hugging Face `datasets.Dataset`, read a batch at a time."""

    x = y = None

    def __init__(self, table, columns, *options):
        self.table, self.columns = table.with_format("numpy"), columns
        self._set(len(table), *options)

    def batch(self, index):
        """Return (x, y, sample_weight) of these rows."""
        x, y, weight = tree.map_structure(_host, self.columns(self.table[index]))
        if self.class_weight is not None:
            weight = class_weights(self.class_weight, y, weight)
        return x, y, weight


def class_weights(weights, y, sample_weight=None):
    """Return a weight for each row by its class; `y` holds classes or one-hot rows."""
    if isinstance(y, (dict, list, tuple)) or y is None:
        raise ValueError(
            "class_weight needs one array y of classes; weigh several outputs by sample_weight, "
            "with an array for each output."
        )
    labels = np.asarray(y)
    if labels.ndim > 1:
        labels = labels[..., 0] if labels.shape[-1] == 1 else labels.argmax(-1)
    table = np.ones(max(int(labels.max()), *weights) + 1, "float32")
    for label, weight in weights.items():
        table[label] = weight
    by_class = table[labels.astype(int)]
    return by_class if sample_weight is None else by_class * np.asarray(sample_weight)


_END = object()
_KEPT = 128  # batches whose state is known: more than are prepared ahead of the model


class IterableSource(Source):
    """Batches of any iterable: generators, `PyDataset`, `tf.data`, torch's `DataLoader`, grain."""

    def __init__(
        self, data, steps=None, class_weight=None, columns=None, batch_size=None, shuffle=False,
        seed=0,
    ):  # fmt: skip
        self.data, self.class_weight, self.columns = data, class_weight, columns
        self.shuffle, self.seed, self.again = shuffle, seed, not hasattr(data, "__next__")
        if columns is not None:  # a Hugging Face IterableDataset, which gives single rows
            self.data = data.with_format("numpy")
            self._open = lambda: self.data.iter(batch_size or 32)
        try:
            self._length = len(data) if self.again else None
        except TypeError:  # a data set of unknown length says so by raising it
            self._length = None
        self.num_batches = self._length if steps is None else steps
        self._states, self._restored = {}, None

    def _open(self):
        return iter(self.data)

    def state(self, batches=0):
        state = super().state(batches)
        return state | {"data": self._states[batches]} if batches in self._states else state

    def restore(self, state):
        super().restore(state)
        self._restored = state.get("data")

    def __iter__(self):
        epoch, first = self._begin()
        for part in (self.data, getattr(self.data, "sampler", None)):
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        batches, get_state = self._draw(epoch, first)
        for index in itertools.count(first):
            if get_state is not None:
                self._states[index] = get_state()
                self._states.pop(index - _KEPT, None)
            try:
                data = next(batches, _END)
            except Exception as error:
                error.add_note(f"This came from batch {index} of x, a {type(self.data).__name__}.")
                raise
            if data is _END:
                return
            yield self._checked(data, f"Batch {index} of x, a {type(self.data).__name__}")

    def _draw(self, epoch, first):
        """Return the batches from the `first` on, and what gives their state if anything does."""
        data, state, self._restored = self.data, self._restored, None
        if isinstance(data, PyDataset):
            numbers = itertools.count() if self._length is None else np.arange(self._length)
            if self.shuffle and self._length and not hasattr(data, "set_epoch"):
                _shuffle(numbers, self.seed, epoch)
            return from_workers(data, itertools.islice(numbers, first, None)), None
        batches = self._open()
        if self.columns is not None:  # the state of `datasets` leaves a shuffle's buffer out
            return itertools.islice(batches, first, None), None
        if state is None:
            batches = itertools.islice(batches, first, None) if first else batches
        elif hasattr(batches, "set_state"):
            batches.set_state(state)
        else:
            data.load_state_dict(state)
            batches = self._open()
        return batches, getattr(batches, "get_state", getattr(data, "state_dict", None))

    def _checked(self, data, where):
        """Return a batch as host arrays with equally many rows."""
        try:
            data = data if self.columns is None else self.columns(data)
            x, y, weight = unpack_x_y_sample_weight(data)
            if isinstance(x, tuple) and _all_strings(x):  # so torch's DataLoader collates them
                x = list(x)
            raw = is_raw_texts(x)
            if not raw:
                parts = tuple(_dense(part) for part in (x, y, weight))
                x, y, weight = tree.map_structure(_host, parts)
            if self.class_weight is not None:
                weight = class_weights(self.class_weight, y, weight)
            sizes = {v.shape[0] for v in tree.flatten((x, y, weight)) if getattr(v, "shape", ())}
            if len(sizes) > 1 or raw:
                _count(x, y, weight)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
        return x, y, weight


def from_workers(data, numbers):
    """Yield these batches of a `PyDataset` in order, prepared by its workers."""
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor  # slow to import

    data.on_epoch_begin()
    workers = max(data.workers, int(data.use_multiprocessing))
    if workers < 2 and not data.use_multiprocessing:
        yield from map(data.__getitem__, map(int, numbers))
    else:
        ahead, waiting, item = max(data.max_queue_size, workers), deque(), data.__getitem__
        pool = ThreadPoolExecutor(workers)
        if data.use_multiprocessing:
            pool, item = ProcessPoolExecutor(workers, None, _adopt, (data,)), _item
        try:
            for number in map(int, numbers):
                waiting.append(pool.submit(item, number))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    data.on_epoch_end()


def _adopt(data):
    _item.data = data  # in a worker process


def _item(number):
    return _item.data[number]


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
    return _narrow(np.asarray(x))


def source(
    x, y=None, sample_weight=None, batch_size=None, shuffle=False, seed=0, steps=None,
    class_weight=None,
):  # fmt: skip
    """Return the source of batches for a user's data."""
    for name, number in (("batch_size", batch_size), ("the number of steps", steps)):
        if number and (not hasattr(number, "__index__") or number < 0):
            raise ValueError(f"{name} must be a positive integer, got {number!r}.")
    if isinstance(x, (str, bytes)) or (isinstance(x, tuple) and _all_strings(x)):
        raise ValueError(
            f"x is {'one text' if isinstance(x, (str, bytes)) else 'a tuple of texts'}; expected a "
            "list of texts, or of pairs of texts, or a tuple of two lists (first, second texts)."
        )
    if isinstance(x, Source):
        x.batch_size = batch_size or x.batch_size
        return x
    if isinstance(x, list) and not x:
        raise ValueError("The data is empty: x has no rows.")
    if _is_frame(x) and _names(y):
        columns = Columns(list(x.columns), y, sample_weight)
        x, y = x[columns.x], x[columns.y] if len(columns.y) > 1 else x[columns.y[0]]
    if hasattr(x, "column_names") and hasattr(x, "with_format"):
        if y is not None and not _names(y):
            raise ValueError(f"y must name columns of the {type(x).__name__}, got {y!r}.")
        names = x.column_names or list(next(iter(x)))
        columns = Columns(names, y, sample_weight)
        if hasattr(x, "__len__"):
            return TableSource(x, columns, batch_size, shuffle, seed, class_weight)
        return IterableSource(x, steps, class_weight, columns, batch_size)
    x = x if is_raw_texts(x) else _dense(x)
    leaves = [leaf for leaf in tree.flatten(x) if leaf is not None]
    if is_raw_texts(x) or (leaves and all(map(_is_array, leaves))):
        return ArraySource(x, y, sample_weight, batch_size, shuffle, seed, class_weight)
    if not hasattr(x, "__iter__") and not isinstance(x, PyDataset):
        raise ValueError(f"x must be arrays or an iterable of batches, got {type(x).__name__}.")
    for name, part in (("y", y), ("sample_weight", sample_weight)):
        if part is not None:
            what = f"A {type(x).__name__} gives (x, y[, sample_weight]) batches itself"
            raise ValueError(f"{what}: pass no {name} beside it.")
    return IterableSource(x, steps, class_weight, shuffle=shuffle, seed=seed)


def capped(steps, source):
    """Return how many batches are taken, by `config.max_steps_per_epoch()` at most."""
    limit = config.max_steps_per_epoch()
    return min(filter(None, (steps, limit, source.num_batches))) if limit else steps


def _names(y):
    return isinstance(y, str) or isinstance(y, list) and _all_strings(y)


def _to_device(x):
    """A NumPy array of numbers as a tensor of the backend, everything else as it is."""
    numbers = isinstance(x, np.ndarray) and x.dtype.kind in "biuf"
    return active.convert_to_tensor(x) if numbers else x


def prefetch(batches, prepare, ahead=4):
    """Yield `prepare(batch)` of each batch, on the device, up to `ahead` batches early.

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
                put(("batch", tree.map_structure(_to_device, prepare(batch))))
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
