"""What data may be, what is said of data that cannot be, and what it costs."""

import itertools
import os
import time

import numpy as np
import pytest

import khub
from khub.training import data

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((22, 3)).astype("float32")
Y = X.sum(1, keepdims=True)
SIZE = 8
once = pytest.mark.once
trains = pytest.mark.skipif(khub.backend.name == "numpy", reason="no gradients")


class Rows(khub.utils.PyDataset):
    """Three batches; batch 1 is made by `act`."""

    def __init__(self, act=None, count=3, **options):
        super().__init__(**options)
        self.act, self.count, self.log = act, count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == 1 and self.act is not None:
            return self.act()
        time.sleep(0.01 * ((7 * index) % 3))  # so that later ones may be ready first
        return np.full((2, 3), index, "float32"), np.full((2, 1), index, "float32")

    def on_epoch_begin(self):
        self.log.append("begin")

    def on_epoch_end(self):
        self.log.append("end")


def broken():
    raise KeyError("a broken file")


def dying():
    os._exit(3)


def model(outputs=1, **options):
    network = khub.Sequential([khub.Input((3,)), khub.layers.Dense(outputs)])
    network.compile("sgd", "mse", **options)
    return network


def numbers(source):
    return [int(x[0, 0]) for x, _, _ in source]


# --- PyDataset -----------------------------------------------------------------------------------
WORKERS = {
    "one": {},
    "threads": {"workers": 3, "max_queue_size": 2},
    "processes": {"workers": 2, "use_multiprocessing": True},
}


@once
@pytest.mark.parametrize("name", WORKERS)
def test_batches_come_in_order(name):
    rows = Rows(count=9, **WORKERS[name])
    source = data.source(rows)
    assert numbers(source) == numbers(source) == list(range(9))
    assert rows.log == ["begin", "end"] * 2
    source.skip(6)
    assert numbers(source) == [6, 7, 8] and numbers(source) == list(range(9))


@once
def test_threads_work_side_by_side_and_not_too_far_ahead():
    begun = []

    class Slow(Rows):
        def __getitem__(self, index):
            begun.append(index)
            time.sleep(0.05)
            return X, Y

    source = iter(data.source(Slow(count=40, workers=4, max_queue_size=6)))
    start = time.perf_counter()
    for _ in range(8):
        next(source)
    assert time.perf_counter() - start < 0.3  # one after the other: 0.4 s
    assert max(begun) <= 8 + 6
    source.close()


@once
def test_without_super_init_and_without_end():
    class Bare(khub.utils.PyDataset):
        num_batches = None

        def __init__(self):
            pass

        def __getitem__(self, index):
            return X, Y

    assert len(list(itertools.islice(data.source(Bare()), 5))) == 5


@trains
def test_epochs_of_some_steps_go_on_in_the_data():
    seen = []

    class Seen(Rows):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    model().fit(Seen(count=9), steps_per_epoch=3, epochs=3, shuffle=False, verbose=0)
    assert seen == list(range(9))


@pytest.mark.parametrize("name", WORKERS)
def test_an_error_of_a_worker_comes_out_of_evaluate(name):
    with pytest.raises(KeyError, match="a broken file") as found:
        model().evaluate(Rows(broken, **WORKERS[name]), verbose=0)
    assert "batch 1 of x, a Rows" in found.value.__notes__[0]
    said = "".join(map(str, (found.getrepr(style="native"), found.value.__cause__)))
    assert "in broken" in said  # the worker's own traceback


@once
def test_a_worker_that_dies():
    with pytest.raises(Exception, match="terminated abruptly") as found:
        model().evaluate(Rows(dying, workers=2, use_multiprocessing=True), verbose=0)
    assert "of x, a Rows" in found.value.__notes__[0]


# --- what is said --------------------------------------------------------------------------------
def batches(*given):
    return iter([(X, Y), *given])


def frame(**columns):
    return pytest.importorskip("pandas").DataFrame(columns)


def loader():
    torch = pytest.importorskip("torch")
    rows = [(1.0, 2.0, 3.0, 4.0)] * 8
    return torch.utils.data.DataLoader(rows, batch_size=4)


def table():
    return pytest.importorskip("datasets").Dataset.from_dict({"x": X, "y": Y})


NAN = float("nan")
ERRORS = {  # name -> x, y, the words
    "lengths": (X, Y[:5], r"equal lengths, got \[5, 22\]: x \[22\], y \[5\]"),
    "inputs": ([X, X[:4]], Y, r"got \[4, 22\]: x \[4, 22\], y \[22\]"),
    "no rows": (X[:0], Y[:0], "no rows"),
    "no list": ([], None, "no rows"),
    "no batch": (iter(()), None, "gave no batch"),
    "no PyDataset": (Rows(count=0), None, "gave no batch"),
    "four parts": (batches((X, Y, Y, Y)), None, "Batch 1 of x, a list_iterator: .* got 4 parts"),
    "four parts of a loader": (loader, None, "Batch 0 of x, a DataLoader: .* got 4 parts"),
    "rows of a batch": (batches((X, Y[:9])), None, r"Batch 1 of x.*x \[22\], y \[9\]"),
    "ragged batch": (batches(([[1, 2], [3]], Y)), None, "Batch 1 of x.*inhomogeneous"),
    "objects": (np.array([{}, {}], object), Y[:2], "x: expected numbers or texts.*dict objects"),
    "text columns": (lambda: frame(a=[1, 2], b=["u", "v"]), Y[:2], r"x: the columns \['b'\]"),
    "no such column": (lambda: frame(a=[1, 2]), "c", r"no columns \['c'\]; it has \['a'\]"),
    "no such column, either": (table, "c", r"no columns \['c'\]; it has \['x', 'y'\]"),
    "arrays beside a table": (table, Y, "y must name columns"),
    "y twice": (batches(), Y, "pass no y beside it"),
    "a number": (5, None, "iterable of batches, got int"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_data_cannot_be(name):
    x, y, words = ERRORS[name]
    x = x() if callable(x) else x
    with pytest.raises(ValueError, match=f"(?s){words}"):
        model().evaluate(x, y, verbose=0)


# --- weights -------------------------------------------------------------------------------------
def heads():
    given = khub.Input((3,))
    parts = {name: khub.layers.Dense(1, name=name)(given) for name in "ab"}
    network = khub.Model(given, parts)
    network.compile("sgd", {"a": "mse", "b": "mse"})
    return network


def test_weights_of_each_output():
    network, targets = heads(), {"a": Y, "b": 2 * Y}
    weights = {"a": np.linspace(0, 1, 22, dtype="float32"), "b": np.zeros(22, "float32")}
    found = network.evaluate(
        X, targets, sample_weight=weights, batch_size=22, verbose=0, return_dict=True
    )
    error = (np.asarray(network.predict(X, verbose=0)["a"]) - Y)[:, 0] ** 2
    np.testing.assert_allclose(found["loss"], np.mean(error * weights["a"]), rtol=1e-5)


@once
def test_weights_of_classes():
    labels, table = np.array([0, 2, 1, 2]), {0: 1.0, 1: 5.0, 2: 3.0}
    for y in (labels, labels[:, None], np.eye(3)[labels]):
        assert data.class_weights(table, y).tolist() == [1, 3, 5, 3]
        source = data.ArraySource(X[:4], y, [1, 1, 2, 2], 2, False, 0, table)
        assert np.concatenate([w for _, _, w in source]).tolist() == [1, 3, 10, 6]
        first, last = source.split(0.5)
        assert [w.tolist() for _, _, w in first] == [[1, 3]]  # once, and not for validation
        assert [w.tolist() for _, _, w in last] == [[2, 2]]
    for y in ({"a": labels}, [labels, labels], None):
        with pytest.raises(ValueError, match="class_weight needs one array y"):
            next(iter(data.ArraySource(X[:4], y, None, 2, False, 0, table)))


# --- order ---------------------------------------------------------------------------------------
@once
def test_order_follows_from_seed_and_epoch():
    source = data.ArraySource(X, Y, None, 4, True, 5)
    epochs = [[x for x, _, _ in source] for _ in range(2)]
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    other = data.ArraySource(X, Y, None, 4, True, 0)
    other.seed, other.epoch = 5, 1
    other.skip(2)
    for found, wanted in zip(other, epochs[1][2:], strict=True):
        np.testing.assert_array_equal(found[0], wanted)


def graining():
    grain = pytest.importorskip("grain")
    return grain.MapDataset.source(list(X)).seed(3).shuffle().batch(4).to_iter_dataset()


def streaming():
    rows = pytest.importorskip("datasets").Dataset.from_dict({"x": X})
    return rows.to_iterable_dataset().shuffle(seed=3, buffer_size=8)


class Stateful:
    """What torchdata's StatefulDataLoader has: the state of the iteration under way."""

    at = 0

    def __iter__(self):
        while self.at < 6:
            self.at += 1
            yield np.full((4, 3), self.at - 1.0, "float32")
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


@once
@pytest.mark.parametrize("make", [graining, streaming, lambda: Rows(count=6), Stateful])
def test_iterables_go_on_where_they_were(make):
    source = data.source(make(), batch_size=4)
    batches, states = [], []
    for i, (x, _, _) in enumerate(source):
        batches.append(x)
        states.append(source.state(i))
    for at in (0, 2, 4):
        other = data.source(make(), batch_size=4)
        other.restore(states[at])
        for (x, _, _), wanted in zip(other, batches[at:], strict=True):
            np.testing.assert_array_equal(x, wanted)
        assert len(list(other)) == len(batches)  # the next epoch is whole


@once
def test_rows_of_a_table_are_shuffled_and_split():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"x": X, "label": np.arange(22)})
    source = data.source(rows, shuffle=True, batch_size=4)
    first, last = source.split(0.25)
    labels = np.concatenate([y for _, y, _ in first])
    assert sorted(labels) == list(range(16)) and labels.tolist() != list(range(16))
    assert np.concatenate([y for _, y, _ in last]).tolist() == list(range(16, 22))
    x, y, _ = next(iter(first))
    np.testing.assert_array_equal(x, X[y])


# --- memory and compilations ---------------------------------------------------------------------
@once
def test_splits_and_files_are_not_copied(tmp_path):
    rows = np.memmap(tmp_path / "rows", "float64", "w+", shape=(64, 4))
    rows[:] = np.arange(64)[:, None]
    source = data.ArraySource(rows, Y.repeat(3, 0)[:64], None, 8, True, 0)
    assert source.x is rows
    for part, low, high in zip(source.split(0.25), (0, 48), (48, 64)):
        found = [x for x, _, _ in part]
        assert part.x is rows and found[0].dtype == "float32"
        assert sorted(np.concatenate(found)[:, 0]) == list(range(low, high))


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch(khub.callbacks.Callback):
    peak = 0

    def on_train_batch_end(self, batch, logs=None):
        self.peak = max(self.peak, resident()) if batch % 16 == 0 else self.peak


@pytest.mark.slow
@trains
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
def test_fit_on_four_gigabytes(tmp_path, dtype, note):
    path, width = tmp_path / "rows", 8192
    count = 2**32 // (width * np.dtype(dtype).itemsize)
    with open(path, "wb") as file:
        file.truncate(2**32)  # sparse: it takes no place on the disk
    rows = np.memmap(path, dtype, "r", shape=(count, width))
    network = khub.Sequential([khub.Input((width,)), khub.layers.Dense(1)])
    network.compile("sgd", "mse")
    network.fit(np.zeros((64, width), "float32"), np.zeros(64), batch_size=64, verbose=0)
    before, watch = resident(), Watch()
    network.fit(
        rows, np.zeros(count, "float32"), batch_size=64, validation_split=0.1, verbose=0,
        callbacks=[watch],
    )  # fmt: skip
    extra = max(watch.peak, resident()) - before
    note(f"fit on 4 GB of {dtype} on {khub.backend.name}: {extra / 1e6:.0f} MB more memory")
    assert extra < 5e8


@pytest.mark.parametrize("kind", ["arrays", "iterable"])
def test_a_short_last_batch_costs_one_more_compilation(kind):
    traced = []

    class Counting(khub.layers.Dense):
        def call(self, x):
            traced.append(x.shape)
            return super().call(x)

    network = khub.Sequential([khub.Input((3,)), Counting(1)])
    network.compile("sgd", "mse")
    rows = [(X[i : i + SIZE], Y[i : i + SIZE]) for i in range(0, 22, SIZE)]

    def given():
        return (X, Y) if kind == "arrays" else (iter(rows), None)

    for act in ("fit", "evaluate"):
        if act == "fit" and khub.backend.name == "numpy":
            continue
        getattr(network, act)(*given(), batch_size=SIZE, verbose=0)
        traced.clear()
        getattr(network, act)(*given(), batch_size=SIZE, verbose=0)
        compiled = khub.backend.name in ("jax", "tensorflow")
        assert len(traced) == (0 if compiled else 3)  # two were made, none is made again
