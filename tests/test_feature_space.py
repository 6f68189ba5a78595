"""FeatureSpace: each kind of column, crosses, and every way to call it."""

import json

import numpy as np
import pytest

import khub
from khub import layers, ops
from khub.saving import registry

BACKEND = khub.backend.name
Space = khub.utils.FeatureSpace
RAW = {
    "f": [0.0, 0.1, 0.2, 0.3],
    "norm": [0.0, 0.1, 0.2, 0.3],
    "scaled": [1.0, 2.0, 3.0, 4.0],
    "bins": [0.0, 0.1, 0.2, 0.3],
    "word": ["zero", "one", "two", "three"],
    "int": [0, 1, 2, 3],
    "hash": ["a", "b", "c", "d"],
    "number": [5, 6, 7, 8],
}
ARRAYS = {k: np.array(v, object if isinstance(v[0], str) else None) for k, v in RAW.items()}


def space(**options):
    features = {
        "f": "float",
        "norm": "float_normalized",
        "scaled": Space.float_rescaled(2.0, 1.0),
        "bins": Space.float_discretized(3),
        "word": "string_categorical",
        "int": Space.integer_categorical(num_oov_indices=2),
        "hash": Space.string_hashed(4),
        "number": "integer_hashed",
    }
    crosses = [("word", "int"), Space.cross(("int", "hash"), crossing_dim=5)]
    return Space(features, crosses=crosses, crossing_dim=6, hashing_dim=4, **options)


def adapted(data=RAW, **options):
    made = space(**options)
    made.adapt(data)
    return made


def host(x):
    return khub.tree.map_structure(
        lambda t: t if isinstance(t, np.ndarray) else ops.convert_to_numpy(t), x
    )


def test_columns_and_order():
    made = adapted()
    found = host(made(RAW))
    assert found.shape == (4, 36) and found.dtype == np.float32
    assert made.get_encoded_features().shape == (None, 36)
    by_name = host(adapted(output_mode="dict")(RAW))
    sizes = {k: v.shape[1] for k, v in by_name.items()}
    assert sizes == dict(
        f=1, norm=1, scaled=1, bins=3, word=5, int=6, hash=4, number=4, word_X_int=6, int_X_hash=5
    )
    names = [*sorted(RAW), "int_X_hash", "word_X_int"]
    np.testing.assert_array_equal(found, np.concatenate([by_name[k] for k in names], 1))
    np.testing.assert_allclose(by_name["scaled"][:, 0], [3, 5, 7, 9])
    np.testing.assert_allclose(by_name["norm"].mean(), 0, atol=1e-6)
    assert (by_name["word"].sum(1) == 1).all()


def test_single_rows_and_shapes():
    made = adapted()
    found = host(made(RAW))
    one = host(made({k: v[1] for k, v in RAW.items()}))
    np.testing.assert_array_equal(one, found[1])
    for data in (ARRAYS, {k: v[:, None] for k, v in ARRAYS.items()}):
        np.testing.assert_array_equal(host(made(data)), found)


def test_adapt_streams():
    batches = [{k: v[i : i + 2] for k, v in ARRAYS.items()} for i in (0, 2)]
    expected = host(adapted()(RAW))
    for data in (batches, iter(batches), ((b, 0) for b in batches)):
        found = host(adapted(data)(RAW))
        bins = slice(0, 3)  # the boundaries of bins are found approximately
        np.testing.assert_allclose(found[:, 3:], expected[:, 3:], atol=1e-5)
        assert found[:, bins].shape == expected[:, bins].shape


def test_in_models():
    made = adapted()
    encoded = made.get_encoded_features()
    outer = khub.Model(made.get_inputs(), encoded)
    expected = host(made(RAW))
    for data in (ARRAYS, {k: v[:, None] for k, v in ARRAYS.items()}):
        np.testing.assert_allclose(host(outer(data)), expected, rtol=1e-5)
        np.testing.assert_allclose(outer.predict(data, verbose=0), expected, rtol=1e-5)
    model = khub.Model(encoded, layers.Dense(1, "sigmoid")(encoded))
    if BACKEND != "numpy":
        model.compile("adam", "binary_crossentropy")
        model.fit(expected, np.array([0, 1, 0, 1]), verbose=0)
    whole = khub.Model(made.get_inputs(), model(encoded))
    wanted = model.predict(expected, verbose=0)
    np.testing.assert_allclose(whole.predict(ARRAYS, verbose=0), wanted, rtol=1e-5)


@pytest.mark.parametrize("mode", ["concat", "dict"])
def test_in_a_tf_data_pipeline(mode):
    tensorflow = pytest.importorskip("tensorflow")
    data = tensorflow.data.Dataset.from_tensor_slices(RAW)
    made = adapted(data, output_mode=mode)
    expected = host(made(RAW))
    (batch,) = data.batch(4).map(made)
    khub.tree.map_structure(lambda a, b: np.testing.assert_allclose(a, b), expected, dict_of(batch))
    rows = [dict_of(row) for row in data.map(made)]
    stacked = khub.tree.map_structure(lambda *parts: np.stack(parts), *rows)
    khub.tree.map_structure(np.testing.assert_allclose, expected, stacked)


def dict_of(tensors):
    return khub.tree.map_structure(lambda t: t.numpy(), tensors)


def test_integers_and_own_layers():
    made = Space(
        {
            "word": Space.string_categorical(output_mode="int"),
            "int": Space.integer_categorical(output_mode="int"),
        },
        crosses=[Space.cross(("word", "int"), 32, output_mode="int")],
        output_mode="dict",
    )
    made.adapt(RAW)
    found = host(made(RAW))
    assert found["word"].tolist() == [[1], [4], [2], [3]]
    assert found["word_X_int"].tolist() == [[21], [18], [27], [20]]  # Keras'
    layer = layers.TextVectorization(output_mode="tf_idf")
    made = Space({"t": Space.feature("string", layer, "float")})
    texts = {"t": ["1st string", "2nd string"]}
    made.adapt(texts)
    expected = [[0, 0.51082563, 0, 0.6931472], [0, 0.51082563, 0.6931472, 0]]
    np.testing.assert_allclose(host(made(texts)), expected, rtol=1e-5)


def test_config():
    made = adapted()
    config = json.loads(json.dumps(registry.serialize(made)))
    again = registry.deserialize(config)
    assert again.get_config() == made.get_config()
    again.build_from_config(made.get_build_config())
    assert again.get_encoded_features().shape == (None, 36)
    assert [v.shape for v in again.weights] == [v.shape for v in made.weights]


WRONG = [
    (lambda: Space({}), "features must be a dict of at least one"),
    (lambda: Space({"a": "flot"}), "'a' must be a FeatureSpace feature or one of float"),
    (lambda: Space({"a": "float"}, output_mode="x"), "output_mode must be one of concat, dict"),
    (lambda: Space({"a": "string_hashed"}, crosses=[("a", "b")]), r"crosses: \['b'\] are not"),
    (lambda: Space.feature("string", None, "one"), "output_mode must be one of int, one_hot"),
    (lambda: space()(RAW), r"call adapt\(dataset\) first"),
    (lambda: adapted()([1]), "takes a dict of columns, got list"),
    (lambda: adapted()({"f": [1.0]}), "lacks the columns"),
    (lambda: adapted({"f": [1.0]}), "lacks the columns"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_integers_cannot_be_joined():
    made = Space({"word": Space.string_categorical(output_mode="int")})
    with pytest.raises(ValueError, match=r"\['word'\] are integers"):
        made.adapt(RAW)
