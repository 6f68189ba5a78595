"""TextVectorization: without TensorFlow, in every pipeline and inside of models."""

import json
import time

import numpy as np
import pytest

import khub
from khub import layers, ops
from khub.saving import registry

BACKEND = khub.backend.name
TEXTS = ["The cat. sat on the mat!", "a CAT's\tmat", ""]
Text = layers.TextVectorization


def host(x):
    return x if isinstance(x, np.ndarray) else ops.convert_to_numpy(x)


def adapted(data=TEXTS, **options):
    layer = Text(**options)
    layer.adapt(data)
    return layer


def test_tokens_and_indices():
    layer = adapted()
    assert layer.get_vocabulary() == ["", "[UNK]", "the", "mat", "sat", "on", "cats", "cat", "a"]
    assert layer.vocabulary_size() == 9
    expected = [[2, 7, 4, 5, 2, 3], [8, 6, 3, 0, 0, 0], [0] * 6]
    for x in (TEXTS, np.array(TEXTS), np.array(TEXTS)[:, None], np.array(TEXTS, "S"), tuple(TEXTS)):
        assert host(layer(x)).tolist() == expected
    assert host(layer(TEXTS[0])).tolist() == expected[0]
    assert host(layer(["new cat"])).tolist() == [[1, 7]]
    counts = adapted(output_mode="count", max_tokens=4)
    assert counts.get_vocabulary() == ["[UNK]", "the", "mat", "sat"]
    assert host(counts(TEXTS)).tolist() == [[2, 2, 1, 1], [2, 0, 1, 0], [0, 0, 0, 0]]


def test_strings_and_bytes_are_the_same_tokens():
    lookup = layers.StringLookup(vocabulary=["a", "é"])
    for words in (
        ["é", "x", "a"],
        ["é".encode(), b"x", b"a"],
        ["é", b"x", b"a"],
        [b"\xc3\xa9", "x", "a"],
    ):
        assert host(lookup(np.array(words, object))).tolist() == [2, 0, 1]
    characters = Text(vocabulary=["é", "b"], split="character")
    for text in ("Éé b", "Éé b".encode()):
        assert host(characters([text])).tolist() == [[1, 2, 1, 3]]


MODES = [{}, {"output_sequence_length": 4}, {"output_mode": "tf_idf"}, {"ngrams": 2}]


@pytest.mark.parametrize("options", MODES)
def test_in_models(options):
    layer = adapted(**options)
    expected = host(layer(TEXTS))
    x = np.array(TEXTS, object)[:, None]
    inputs = khub.Input((1,), dtype="string")
    outputs = layer(inputs)
    assert outputs.ndim == 2 and outputs.shape[1] in (None, expected.shape[1])
    model = khub.Model(inputs, outputs)
    np.testing.assert_array_equal(host(model(x)), expected)
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)
    np.testing.assert_array_equal(model.predict(x.astype("U"), verbose=0, batch_size=3), expected)


@pytest.mark.skipif(BACKEND == "numpy", reason="it does not train")
def test_a_model_of_texts_trains():
    model = khub.Sequential(
        [
            khub.Input((1,), dtype="string"),
            adapted(output_sequence_length=5),
            layers.Embedding(9, 4),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1),
        ]
    )
    model.compile(khub.optimizers.Adam(0.1), "mse")
    x, y = np.array(TEXTS, object)[:, None], np.array([[1.0], [-1.0], [0.0]], "float32")
    losses = model.fit(x, y, epochs=30, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 10
    assert model.evaluate(x, y, verbose=0) < losses[0] / 10


@pytest.mark.parametrize("options", MODES)
def test_in_a_tf_data_pipeline(options):
    tensorflow = pytest.importorskip("tensorflow")
    data = tensorflow.data.Dataset.from_tensor_slices(TEXTS).batch(3)
    layer = adapted(data, **options)
    assert layer.get_vocabulary() == adapted(**options).get_vocabulary()
    (found,) = data.map(layer)
    np.testing.assert_array_equal(found.numpy(), host(layer(TEXTS)))
    (found,) = data.map(lambda x: layer(x))
    np.testing.assert_array_equal(found.numpy(), host(layer(TEXTS)))


def test_in_workers_of_a_data_loader():
    data = pytest.importorskip("torch.utils.data")
    layer = adapted(data.DataLoader(TEXTS, batch_size=2), output_sequence_length=5)
    assert layer.get_vocabulary() == adapted().get_vocabulary()

    def collate(texts):
        found = layer(texts)
        assert isinstance(found, np.ndarray)
        return found

    loader = data.DataLoader(TEXTS, batch_size=2, num_workers=2, collate_fn=collate)
    np.testing.assert_array_equal(np.concatenate(list(loader)), host(layer(TEXTS)))


@registry.register_keras_serializable("tests", "halves")
def halves(texts):
    return [[str(t)[: len(t) // 2], str(t)[len(t) // 2 :]] for t in texts]


def test_functions_and_configs():
    layer = adapted(["abcd", "abxy"], standardize=None, split=halves)
    assert layer.get_vocabulary() == ["", "[UNK]", "ab", "xy", "cd"]
    config = json.loads(json.dumps(layer.get_config()))
    again = Text.from_config(config)
    again.set_vocabulary(layer.get_vocabulary())
    assert host(again(["abzz", "cdxy"])).tolist() == [[2, 1], [4, 3]]
    stripped = adapted(["a1b"], standardize=lambda x: [t.replace("1", " ") for t in x])
    assert stripped.get_vocabulary() == ["", "[UNK]", "b", "a"]


@pytest.mark.parametrize("mode", ["int", "tf_idf"])
def test_files(mode, tmp_path):
    layer, store = adapted(output_mode=mode), {}
    layer.save_assets(tmp_path)
    layer.save_own_variables(store)
    again = Text.from_config(layer.get_config())
    assert again.vocabulary_size() == layer.vocabulary_size()
    again.load_assets(tmp_path), again.load_own_variables(store)
    np.testing.assert_array_equal(host(again(TEXTS)), host(layer(TEXTS)))
    given = Text(vocabulary=["b", "a"])
    assert given.get_config()["vocabulary"] == ["b", "a"]
    given.save_assets(tmp_path / "none")  # its config has it
    path = tmp_path / "tokens.txt"
    path.write_text("b\na\n")
    assert Text(vocabulary=str(path)).get_vocabulary() == given.get_vocabulary()
    line = adapted(["a\n"], split="character", standardize=None)
    with pytest.raises(ValueError, match="line break"):
        line.save_assets(tmp_path)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="ragged tensors of TensorFlow")
def test_ragged():
    import tensorflow

    layer = adapted(ragged=True)
    assert layer(TEXTS).to_list() == [[2, 7, 4, 5, 2, 3], [8, 6, 3], []]
    (found,) = tensorflow.data.Dataset.from_tensor_slices(TEXTS).batch(3).map(layer)
    assert found.to_list() == layer(TEXTS).to_list()


WRONG = [
    (lambda: Text(standardize="upper"), "standardize must be None, one of lower_and_strip"),
    (lambda: Text(split="words"), "split must be None, one of whitespace, character"),
    (lambda: Text(output_mode="one_hot"), "output_mode must be one of int, multi_hot"),
    (lambda: Text(ngrams="two"), "ngrams must be None, a positive integer or a tuple"),
    (lambda: Text(ngrams=0), "ngrams must be None"),
    (lambda: Text(output_sequence_length=0), "output_sequence_length must be None"),
    (lambda: Text(output_mode="count", output_sequence_length=3), "with output_mode='int'"),
    (lambda: Text(max_tokens=1), "max_tokens must be at least 2"),
    (lambda: Text(name="t")(TEXTS), "t has no vocabulary yet"),
    (lambda: adapted()([["a", "b"]]), r"shape \(batch,\) or \(batch, 1\), got \(1, 2\)"),
    (lambda: Text(output_mode="count", ragged=True), "ragged=True needs the TensorFlow backend"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_speed(note):
    random = np.random.RandomState(0)
    words = np.array([f"word{i}" for i in range(20_000)])
    rows = random.zipf(1.3, (2000, 200)) % 20_000
    texts = [" ".join(row) for row in words[rows]]
    layer = Text(max_tokens=10_000, output_sequence_length=200)
    start = time.perf_counter()
    layer.adapt(texts)
    middle = time.perf_counter()
    layer(texts)
    adapt, call = middle - start, time.perf_counter() - middle
    note(f"TextVectorization, 2000 texts of 200 words: adapt {adapt:.2f} s, call {call:.2f} s")
    assert adapt < 3 and call < 3
