"""Normalization, Discretization, encodings, hashes and lookups, on the device and on the host."""

import numpy as np
import pytest

import khub
from khub import layers, ops

BACKEND = khub.backend.name
X = np.random.RandomState(0).randn(50, 3).astype("float32") * 3 + 1
INTS = np.array([[5, 3, 9], [0, 3, 3]])
WORDS = np.array([["a", "x"], ["c", "a"]], object)


def host(x):
    return x if isinstance(x, np.ndarray) else ops.convert_to_numpy(x)


def adapted(name, data, **options):
    layer = getattr(layers, name)(**options)
    layer.adapt(data)
    return layer


# name, options, data to adapt to (or None), an input
NUMERIC = [
    ("Normalization", {}, X, X[:5]),
    ("Normalization", dict(axis=None, invert=True), X, X[:5]),
    ("Normalization", dict(mean=[1, 2, 3], variance=[1, 1, 4]), None, X[:5]),
    ("Discretization", dict(num_bins=4), X, X[:5]),
    ("Discretization", dict(bin_boundaries=[0.0, 1.0], output_mode="count"), None, X[:5]),
    ("Discretization", dict(bin_boundaries=[0.0, 1.0], output_mode="one_hot"), None, X[:5, :1]),
    ("CategoryEncoding", dict(num_tokens=7), None, INTS),
    ("CategoryEncoding", dict(num_tokens=7, output_mode="one_hot"), None, INTS[:, :1]),
    ("CategoryEncoding", dict(num_tokens=10, output_mode="count"), None, INTS),
    ("IntegerLookup", {}, INTS, INTS[:, ::-1].copy()),
    ("IntegerLookup", dict(vocabulary=[3, 9], num_oov_indices=2, mask_token=0), None, INTS),
    ("IntegerLookup", dict(vocabulary=[3, 9], output_mode="multi_hot"), None, INTS),
    ("IntegerLookup", dict(vocabulary=[3, 9], invert=True), None, INTS),
    ("IntegerLookup", dict(output_mode="tf_idf", max_tokens=6), INTS, INTS),
]
STRINGS = [
    ("StringLookup", dict(vocabulary=["a", "b"]), None, WORDS),
    ("StringLookup", dict(vocabulary=["a", "b"], output_mode="one_hot"), None, WORDS),
    ("StringLookup", dict(num_oov_indices=3, max_tokens=4), WORDS, WORDS),
    ("Hashing", dict(num_bins=3), None, WORDS),
    ("Hashing", dict(num_bins=3, salt=1, mask_value="a", output_mode="count"), None, WORDS),
    ("Hashing", dict(num_bins=3), None, INTS),
    ("IntegerLookup", dict(vocabulary=[3], num_oov_indices=4, oov_method="farmhash"), None, INTS),
]


def made(name, options, data):
    return getattr(layers, name)(**options) if data is None else adapted(name, data, **options)


@pytest.mark.parametrize(("name", "options", "data", "x"), NUMERIC)
def test_numeric_layers_agree_everywhere(name, options, data, x):
    layer = made(name, options, data)
    expected = host(layer(x))
    np.testing.assert_allclose(host(layer(ops.convert_to_tensor(x))), expected, rtol=1e-5)
    np.testing.assert_allclose(host(layer(x.tolist())), expected, rtol=1e-5)
    on_host = layer.on_host(x)
    assert isinstance(on_host, np.ndarray)
    np.testing.assert_allclose(on_host, expected, rtol=1e-5, atol=1e-6)
    inputs = khub.Input(x.shape[1:], dtype=x.dtype.name)
    outputs = layer(inputs)
    assert (None, *expected.shape[1:]) == outputs.shape
    model = khub.Model(inputs, outputs)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
    if name != "IntegerLookup":  # in a compiled function
        run = khub.jit(lambda x: layer(x))
        np.testing.assert_allclose(host(run(ops.convert_to_tensor(x))), expected, rtol=1e-5)


@pytest.mark.parametrize(("name", "options", "data", "x"), STRINGS)
def test_host_layers_in_models(name, options, data, x):
    layer = made(name, options, data)
    expected = host(layer(x))
    if x.dtype == object:
        for same in (x.astype("U"), x.astype("S"), x.tolist(), np.char.encode(x.astype("U"))):
            np.testing.assert_array_equal(host(layer(same)), expected)
    inputs = khub.Input(x.shape[1:], dtype="string" if x.dtype == object else "int64")
    outputs = layer(inputs)
    assert (None, *expected.shape[1:]) == outputs.shape
    model = khub.Model(inputs, outputs)
    np.testing.assert_array_equal(host(model(x)), expected)
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)


@pytest.mark.parametrize(("name", "options", "data", "x"), NUMERIC + STRINGS)
def test_layers_in_a_tf_data_pipeline(name, options, data, x):
    tensorflow = pytest.importorskip("tensorflow")
    layer = made(name, options, data)
    (found,) = tensorflow.data.Dataset.from_tensor_slices(x).batch(len(x)).map(layer)
    dtype = "string" if x.dtype == object else x.dtype.name
    assert found.shape == layer(khub.Input(x.shape[1:], len(x), dtype=dtype)).shape
    np.testing.assert_allclose(found.numpy(), host(layer(x)), rtol=1e-5, atol=1e-6)


class Rows:
    """A data set for torch's DataLoader whose workers run a layer."""

    def __init__(self, layer, x):
        self.layer, self.x = layer, x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return np.asarray(self.layer(self.x[i : i + 1])[0])


@pytest.mark.parametrize("name", ["Normalization", "StringLookup", "IntegerLookup", "Hashing"])
def test_layers_in_workers_of_a_data_loader(name):
    data = pytest.importorskip("torch.utils.data")
    name, options, given, x = next(row for row in NUMERIC + STRINGS if row[0] == name)
    layer = made(name, options, given)
    expected = host(layer(x))
    loader = data.DataLoader(Rows(layer, x), batch_size=2, num_workers=2)
    found = np.concatenate([batch.numpy() for batch in loader])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_adapt_reads_any_data():
    expected = adapted("Normalization", X).mean
    lists = [X[:20], X[20:]]
    pairs = ((x, x[:, 0]) for x in lists)
    for data in (X.tolist(), iter(lists), pairs, ops.convert_to_tensor(X)):
        np.testing.assert_allclose(adapted("Normalization", data).mean, expected, rtol=1e-5)
    np.testing.assert_allclose(expected, X.mean(0)[None], rtol=1e-5)
    assert adapted("IntegerLookup", iter([[3, 3], [1]]), max_tokens=3).get_vocabulary() == [
        -1,
        3,
        1,
    ]
    steps = adapted("StringLookup", WORDS)
    steps.adapt(iter([["q"], ["r"]]), steps=1)
    assert steps.get_vocabulary() == ["[UNK]", "q"]


def test_adapt_to_a_data_loader():
    data = pytest.importorskip("torch.utils.data")
    loader = data.DataLoader(data.TensorDataset(*map(_tensor, (X, X[:, 0]))), batch_size=7)
    layer = adapted("Normalization", loader)
    np.testing.assert_allclose(layer.variance[0], X.var(0), rtol=1e-4)
    words = data.DataLoader(["b", "a", "b"], batch_size=2)
    assert adapted("StringLookup", words).get_vocabulary() == ["[UNK]", "b", "a"]


def _tensor(x):
    import torch

    return torch.tensor(x)


def test_state_survives_saving():
    layer, store = adapted("Normalization", X), {}
    layer.save_own_variables(store)
    assert list(store) == ["0", "1", "2"]
    again = layers.Normalization.from_config(layer.get_config())
    again.build_from_config(layer.get_build_config())
    again.load_own_variables(store)
    np.testing.assert_array_equal(host(again(X)), host(layer(X)))
    np.testing.assert_array_equal(again.on_host(X), layer.on_host(X))
    bins = adapted("Discretization", X, num_bins=3)
    again = layers.Discretization.from_config(bins.get_config())
    assert again.bin_boundaries == bins.bin_boundaries
    again.adapt(X[:5])
    assert again.bin_boundaries != bins.bin_boundaries


@pytest.mark.parametrize("name", ["StringLookup", "IntegerLookup"])
def test_vocabularies_survive_saving(name, tmp_path):
    data = WORDS if name == "StringLookup" else INTS
    layer, store = adapted(name, data, output_mode="tf_idf", num_oov_indices=2), {}
    layer.save_assets(tmp_path)
    layer.save_own_variables(store)
    again = getattr(layers, name).from_config(layer.get_config())
    assert again.vocabulary_size() == layer.vocabulary_size()
    again.load_assets(tmp_path), again.load_own_variables(store)
    assert again.get_vocabulary() == layer.get_vocabulary()
    np.testing.assert_array_equal(host(again(data)), host(layer(data)))
    path = str(tmp_path / "vocabulary.txt")
    assert getattr(layers, name)(vocabulary=path, num_oov_indices=2).get_vocabulary() == (
        layer.get_vocabulary()
    )


def test_large_integers_are_exact():
    layer = layers.IntegerLookup(vocabulary=[2**40, 5])
    assert host(layer(np.array([2**40, 0, 5]))).tolist() == [1, 0, 2]


def test_indices_outside_add_nothing():
    layer = layers.CategoryEncoding(3, output_mode="count")
    assert host(layer([[1, 7, -1, 1]])).tolist() == [[0, 2, 0]]
    weighted = layer([[1, 2, 2]], count_weights=[[0.5, 1.0, 1.5]])
    assert host(weighted).tolist() == [[0, 0.5, 2.5]]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="sparse tensors of TensorFlow")
def test_sparse_results():
    import tensorflow

    for name, options, x in (
        ("CategoryEncoding", dict(num_tokens=7, output_mode="count"), INTS),
        ("StringLookup", dict(vocabulary=["a"], output_mode="multi_hot"), WORDS),
    ):
        dense, sparse = (getattr(layers, name)(**options, sparse=s)(x) for s in (False, True))
        np.testing.assert_array_equal(tensorflow.sparse.to_dense(sparse), dense)


WRONG = [
    (lambda: layers.Normalization(mean=1.0), "variance must be given together"),
    (lambda: layers.Normalization(axis=3)(X), r"axis must lie in \[-2, 2\)"),
    (lambda: layers.Normalization(axis=1).build((2, None)), "must have known sizes"),
    (lambda: layers.Normalization(mean=[1, 2], variance=1)(X), "mean must be a number or 3"),
    (lambda: layers.Normalization(mean=1, variance=1).adapt(X), "leave them out to adapt"),
    (lambda: adapted("Normalization", iter([X, X[:, :2]])), "was built for an input of shape"),
    (lambda: layers.Normalization().adapt(3), "data must be an array"),
    (lambda: layers.Discretization(), "either bin_boundaries or num_bins"),
    (lambda: layers.Discretization(num_bins=-1), "num_bins must be a positive integer, got -1"),
    (lambda: layers.Discretization([2.0, 1.0]), "increasing numbers"),
    (lambda: layers.Discretization(num_bins=2)(X), r"call adapt\(data\)"),
    (lambda: layers.Discretization([1.0]).adapt(X), "give num_bins instead"),
    (lambda: layers.Discretization([1.0], output_mode="q"), "output_mode must be one of int"),
    (lambda: layers.CategoryEncoding(), "num_tokens must be a positive integer, got None"),
    (lambda: layers.CategoryEncoding(3)([1], count_weights=[1.0]), "count_weights needs"),
    (lambda: layers.Hashing(0), "num_bins must be a positive integer, got 0"),
    (lambda: layers.Hashing(3, salt="x"), "salt must be an integer or a pair"),
    (lambda: layers.Hashing(3, dtype="float16"), "dtype must be int32 or int64"),
    (lambda: layers.Hashing(3, sparse=True), "sparse=True needs an output_mode other than"),
    (lambda: layers.HashedCrossing(3)("a"), "a list of two or more features"),
    (lambda: layers.HashedCrossing(3)((["a"], [1, 2])), "features of one shape"),
    (lambda: layers.HashedCrossing(3)((["a"], [1.5])), "put floats into bins"),
    (lambda: layers.StringLookup()(["a"]), r"call adapt\(data\) or set_vocabulary"),
    (lambda: layers.StringLookup(vocabulary=["a", "a"]), r"each token once, got repeated \['a'\]"),
    (lambda: layers.StringLookup(vocabulary=[]), "vocabulary must hold tokens"),
    (lambda: layers.StringLookup(vocabulary=["a", "m"], mask_token="m"), "at its beginning"),
    (lambda: layers.StringLookup(vocabulary=["a", "b"], max_tokens=2), "at most max_tokens=2"),
    (lambda: layers.StringLookup(vocabulary="/no/file"), "'/no/file' does not exist"),
    (lambda: layers.StringLookup(vocabulary=["a"], output_mode="tf_idf"), "needs idf_weights"),
    (lambda: layers.StringLookup(idf_weights=[1.0]), "need output_mode='tf_idf'"),
    (lambda: layers.StringLookup(max_tokens=1), "max_tokens must be at least 2, got 1"),
    (lambda: layers.StringLookup(num_oov_indices=-1), "must not be negative, got -1"),
    (lambda: layers.StringLookup(invert=True, output_mode="count"), "invert=True needs"),
    (lambda: layers.StringLookup(pad_to_max_tokens=True), "needs max_tokens"),
    (lambda: layers.StringLookup(vocabulary=["a"]).adapt(["b"]), "has a given vocabulary"),
    (lambda: layers.StringLookup(vocabulary=["a"], num_oov_indices=0)(["b"]), "'b' is not in"),
    (lambda: layers.IntegerLookup(oov_method="x"), "floormod or farmhash, got 'x'"),
    (lambda: layers.IntegerLookup(salt=3), "salt needs oov_method='farmhash'"),
    (lambda: layers.IntegerLookup(vocabulary_dtype="int32"), "vocabulary_dtype must be 'int64'"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.skipif(BACKEND == "tensorflow", reason="it has sparse tensors")
def test_sparse_needs_tensorflow():
    with pytest.raises(ValueError, match="sparse=True needs the TensorFlow backend"):
        layers.CategoryEncoding(3, sparse=True)
