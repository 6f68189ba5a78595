"""Every kind of data gives the same batches, on every backend."""

import os

import numpy as np
import pytest

import khub

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((22, 3)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5]], "float32")).astype("float32")
LABELS = (Y[:, 0] > 0).astype("int64")
SIZE, NAMES = 8, ["a", "b", "c"]
trains = pytest.mark.skipif(khub.backend.name == "numpy", reason="no gradients")


def pieces(x=X, y=Y):
    return [(x[i : i + SIZE], y[i : i + SIZE]) for i in range(0, len(x), SIZE)]


class Rows(khub.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return pieces()[index]


class Failing(Rows):
    """Its batch 1 raises, or ends the process that makes it."""

    def __init__(self, act, **options):
        super().__init__(**options)
        self.act = act

    def __getitem__(self, index):
        if index == 1:
            self.act()
        return super().__getitem__(index)


def raise_an_error():
    raise KeyError("a broken file")


def end_the_process():
    os._exit(3)


# --- the sources: name -> (the module it needs, x, y) --------------------------------------------
def of_torch(*_):
    torch = pytest.importorskip("torch")
    rows = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return torch.utils.data.DataLoader(rows, batch_size=SIZE), None


def of_tensorflow():
    tensorflow = pytest.importorskip("tensorflow")
    return tensorflow.data.Dataset.from_tensor_slices((X, Y)).batch(SIZE), None


def of_grain(kind):
    grain = pytest.importorskip("grain")
    rows = grain.MapDataset.source(list(zip(X, Y))).batch(SIZE)
    if kind == "map":
        return rows, None
    if kind == "iter":
        return rows.to_iter_dataset(), None
    sampler = grain.samplers.IndexSampler(22, shuffle=False, num_epochs=1)
    batches = [grain.transforms.Batch(SIZE)]
    rows = list(zip(X, Y))
    return grain.DataLoader(data_source=rows, sampler=sampler, operations=batches), None


def table(x=X, y=Y):
    return {**{name: x[:, i] for i, name in enumerate(NAMES)}, "target": y[:, 0]}


def of_hugging_face(stream):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"x": X, "target": Y})
    return (rows.to_iterable_dataset() if stream else rows), "target"


def frame(package, y):
    package = pytest.importorskip(package)
    columns = package.DataFrame(table())
    return (columns, "target") if y else (columns[NAMES], columns["target"])


def of_scipy():
    return pytest.importorskip("scipy").sparse.csr_matrix(X), Y


SOURCES = {
    "numpy": lambda: (X, Y),
    "float64": lambda: (X.astype("float64"), Y.astype("float64")),
    "lists": lambda: (X.tolist(), Y.tolist()),
    "generator": lambda: (iter(pieces()), None),
    "list of pairs": lambda: (Lists(), None),
    "PyDataset": lambda: (Rows(), None),
    "PyDataset in threads": lambda: (Rows(workers=3), None),
    "PyDataset in processes": lambda: (Rows(workers=2, use_multiprocessing=True), None),
    "DataLoader": of_torch,
    "tf.data": of_tensorflow,
    "grain MapDataset": lambda: of_grain("map"),
    "grain IterDataset": lambda: of_grain("iter"),
    "grain DataLoader": lambda: of_grain("loader"),
    "datasets.Dataset": lambda: of_hugging_face(False),
    "datasets.IterableDataset": lambda: of_hugging_face(True),
    "pandas": lambda: frame("pandas", False),
    "pandas, y by name": lambda: frame("pandas", True),
    "polars": lambda: frame("polars", False),
    "polars, y by name": lambda: frame("polars", True),
    "scipy": of_scipy,
}


class Lists:
    def __iter__(self):
        return iter([[x.tolist(), y.tolist()] for x, y in pieces()])


@pytest.fixture(scope="module")
def model():
    return compiled()


def compiled(**options):
    khub.utils.set_random_seed(1)
    network = khub.Sequential([khub.Input((3,)), khub.layers.Dense(1)])
    network.compile("sgd", "mse", **options)
    return network


@pytest.fixture(scope="module")
def wanted():
    network = compiled()
    rows = pieces()
    if khub.backend.name == "numpy":
        return network.evaluate(X, Y, batch_size=SIZE, verbose=0), network.predict(X, verbose=0)
    losses = [network.train_on_batch(x, y) for x, y in rows]
    loss = sum(a * len(x) for a, (x, _) in zip(losses, rows)) / len(X)
    return loss, network.evaluate(X, Y, batch_size=SIZE, verbose=0)


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_of_batches(name, model, wanted):
    x, y = SOURCES[name]()
    if khub.backend.name == "numpy":
        found = model.evaluate(x, y, batch_size=SIZE, verbose=0)
        np.testing.assert_allclose(found, wanted[0], rtol=1e-5)
        return
    model.set_weights(compiled().get_weights())
    model.optimizer.iterations.assign(0)
    history = model.fit(x, y, batch_size=SIZE, shuffle=False, verbose=0)
    np.testing.assert_allclose(history.history["loss"], [wanted[0]], rtol=1e-5)
    x, y = SOURCES[name]()
    found = model.evaluate(x, y, batch_size=SIZE, verbose=0)
    np.testing.assert_allclose(found, wanted[1], rtol=1e-5)
