"""Tabular, text and audio layers give Keras' numbers, configs and files."""

import os

import numpy as np
import pytest

# Keras' own NumPy backend imports JAX anyway.
KERAS = os.environ["KERAS_BACKEND"]
keras = pytest.importorskip("keras")
tensorflow = pytest.importorskip("tensorflow")  # Keras' lookups and hashes are TensorFlow's

import khub  # noqa: E402
from khub.saving import registry  # noqa: E402
from khub.utils import hashing  # noqa: E402

RANDOM = np.random.RandomState(0)
FLOATS = RANDOM.randn(40, 3).astype("float32")
INTS = RANDOM.randint(0, 6, (5, 3))
WORDS = np.array([["a", "x", "c"], ["c", "c", "m"]], object)
VOCABULARY = ["a", "b", "c"]
TEXTS = [
    "The cat. sat on the mat!",
    "a cat's\tÉTÉ \u00a0x\u3000y  dog",
    "foo-bar_baz (the) q",
    "The THE mat",
]
SOUND = RANDOM.randn(2, 1200, 3).astype("float32")
BOUNDS = dict(bin_boundaries=[0.0, 1.0, 2.0])
MODES = ["one_hot", "multi_hot", "count"]


def host(x):
    """A result of either library as a NumPy array."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().numpy()
    x = np.asarray(x)
    return (
        np.array([t.decode() for t in x.ravel()]).reshape(x.shape)
        if x.dtype == object and (x.size and isinstance(x.flat[0], bytes))
        else x
    )


def agree(ours, theirs, tolerance=1e-5, same_dtype=True):
    ours, theirs = host(ours), host(theirs)
    assert ours.shape == theirs.shape
    if theirs.dtype.kind in "OUS":
        assert ours.tolist() == theirs.tolist()
        return
    if same_dtype and os.environ["KHUB_BACKEND"] != "numpy":  # Keras ran on JAX, in 32 bits
        assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


# --- layers: name, options, inputs ---------------------------------------------------------------
CASES = [
    ("Normalization", dict(mean=3.0, variance=2.0), FLOATS),
    ("Normalization", dict(mean=[1.0, 2.0, 3.0], variance=[1.0, 0.0, 2.0]), INTS),
    ("Normalization", dict(mean=[1.0, 2.0, 3.0], variance=[1.0, 0.0, 2.0], invert=True), FLOATS),
    ("Normalization", dict(axis=None, mean=0.5, variance=4.0), FLOATS[:, 0]),
    ("Discretization", BOUNDS, FLOATS),
    ("Discretization", BOUNDS, INTS),
    *[("Discretization", dict(BOUNDS, output_mode=mode), FLOATS) for mode in MODES],
    *[("Discretization", dict(BOUNDS, output_mode=mode), FLOATS[:, :1]) for mode in MODES],
    *[("Discretization", dict(BOUNDS, output_mode=mode), FLOATS[:, 0]) for mode in MODES],
    *[("CategoryEncoding", dict(num_tokens=6, output_mode=mode), INTS) for mode in MODES],
    *[("CategoryEncoding", dict(num_tokens=6, output_mode=mode), INTS[:, :1]) for mode in MODES],
    *[("CategoryEncoding", dict(num_tokens=6, output_mode=mode), INTS[0]) for mode in MODES],
    ("CategoryEncoding", dict(num_tokens=6, dtype="float16"), INTS),
    ("Hashing", dict(num_bins=5), WORDS),
    ("Hashing", dict(num_bins=5), INTS),
    ("Hashing", dict(num_bins=5, dtype="int32"), INTS),
    ("Hashing", dict(num_bins=5, salt=133), WORDS),
    ("Hashing", dict(num_bins=5, salt=[133, 137]), INTS),
    ("Hashing", dict(num_bins=5, mask_value="c"), WORDS),
    ("Hashing", dict(num_bins=5, mask_value=3, salt=1), INTS),
    ("Hashing", dict(num_bins=1), WORDS),
    *[("Hashing", dict(num_bins=5, output_mode=mode), WORDS) for mode in MODES],
    *[("StringLookup", dict(vocabulary=VOCABULARY, output_mode=mode), WORDS) for mode in MODES],
    *[
        ("StringLookup", dict(vocabulary=VOCABULARY, output_mode=mode), WORDS[:, :1])
        for mode in MODES
    ],
    ("StringLookup", dict(vocabulary=VOCABULARY), WORDS),
    ("StringLookup", dict(vocabulary=VOCABULARY, mask_token="m", num_oov_indices=3), WORDS),
    ("StringLookup", dict(vocabulary=VOCABULARY, num_oov_indices=3, salt=4), WORDS),
    (
        "StringLookup",
        dict(vocabulary=VOCABULARY, mask_token="m", output_mode="count", num_oov_indices=2),
        WORDS,
    ),
    (
        "StringLookup",
        dict(vocabulary=VOCABULARY, output_mode="multi_hot", max_tokens=9, pad_to_max_tokens=True),
        WORDS,
    ),
    (
        "StringLookup",
        dict(vocabulary=VOCABULARY, output_mode="tf_idf", idf_weights=[0.1, 0.2, 0.3]),
        WORDS,
    ),
    ("StringLookup", dict(vocabulary=["", "[UNK]", "a"], mask_token=""), WORDS),
    ("IntegerLookup", dict(vocabulary=[5, 3, 2]), INTS),
    ("IntegerLookup", dict(vocabulary=[5, 3, 2], mask_token=0, num_oov_indices=3), INTS - 3),
    (
        "IntegerLookup",
        dict(vocabulary=[5, 3], num_oov_indices=3, oov_method="farmhash"),
        INTS - 3,
    ),
    (
        "IntegerLookup",
        dict(vocabulary=[5, 3], num_oov_indices=3, oov_method="farmhash", salt=(1, 2)),
        INTS,
    ),
    ("IntegerLookup", dict(vocabulary=[5, 3, 2], invert=True), INTS),
    ("IntegerLookup", dict(vocabulary=[5, 3], invert=True, mask_token=0, oov_token=-7), INTS),
    *[("IntegerLookup", dict(vocabulary=[5, 3], output_mode=mode), INTS) for mode in MODES],
    (
        "IntegerLookup",
        dict(vocabulary=[5, 3], output_mode="tf_idf", idf_weights=[0.1, 0.2], mask_token=2),
        INTS,
    ),
    ("TextVectorization", dict(vocabulary=["the", "cat", "mat"]), TEXTS),
    ("TextVectorization", dict(vocabulary=["the", "cat"], output_sequence_length=3), TEXTS),
    ("TextVectorization", dict(vocabulary=["the", "cat"], output_sequence_length=9), TEXTS),
    ("TextVectorization", dict(vocabulary=["t", " "], split="character"), TEXTS),
    ("TextVectorization", dict(vocabulary=["The", "cat"], standardize=None), TEXTS),
    ("TextVectorization", dict(vocabulary=["the", "cat."], standardize="lower"), TEXTS),
    ("TextVectorization", dict(vocabulary=["The"], standardize="strip_punctuation"), TEXTS),
    ("TextVectorization", dict(vocabulary=["the", "the cat", "the mat"], ngrams=2), TEXTS),
    ("TextVectorization", dict(vocabulary=["the", "cat sat on"], ngrams=(1, 3)), TEXTS),
    ("TextVectorization", dict(vocabulary=["a", "c"], split=None), WORDS),
    ("TextVectorization", dict(vocabulary=["a", "c"], split=None), WORDS[0]),
    ("TextVectorization", dict(vocabulary=["the"], output_mode="multi_hot"), TEXTS),
    ("TextVectorization", dict(vocabulary=["the"], output_mode="count"), np.array(TEXTS)[:, None]),
    (
        "TextVectorization",
        dict(vocabulary=["the"], output_mode="count", max_tokens=7, pad_to_max_tokens=True),
        TEXTS,
    ),
    (
        "TextVectorization",
        dict(vocabulary=["the", "mat"], output_mode="tf_idf", idf_weights=[0.5, 0.2]),
        TEXTS,
    ),
    ("MelSpectrogram", dict(fft_length=256, sequence_stride=64, num_mel_bins=16), SOUND[0, :, 0]),
    (
        "MelSpectrogram",
        dict(fft_length=256, sequence_stride=64, num_mel_bins=16, power_to_db=False, mag_exp=1.0),
        SOUND.swapaxes(1, 2).copy(),
    ),
    (
        "MelSpectrogram",
        dict(
            fft_length=256,
            sequence_length=200,
            sequence_stride=50,
            window="hamming",
            sampling_rate=8000,
            max_freq=3000.0,
            top_db=20.0,
            ref_power=2.0,
        ),
        SOUND[:, :, 0].copy(),
    ),
    *[
        ("STFTSpectrogram", dict(mode=mode), SOUND)
        for mode in ("log", "magnitude", "psd", "real", "imag", "stft")
    ],
    ("STFTSpectrogram", dict(mode="stft", padding="same", frame_length=100, frame_step=30), SOUND),
    ("STFTSpectrogram", dict(mode="real", expand_dims=True, scaling="spectrum"), SOUND),
    (
        "STFTSpectrogram",
        dict(mode="stft", data_format="channels_first", fft_length=512, window="hamming"),
        SOUND.swapaxes(1, 2).copy(),
    ),
    (
        "STFTSpectrogram",
        dict(mode="psd", data_format="channels_first", expand_dims=True, scaling=None),
        SOUND.swapaxes(1, 2).copy(),
    ),
    ("STFTSpectrogram", dict(window=None, periodic=True, mode="magnitude"), SOUND),
]
IDS = [f"{name}-{i}" for i, (name, *_) in enumerate(CASES)]


@pytest.mark.parametrize(("name", "options", "x"), CASES, ids=IDS)
def test_outputs_and_configs(name, options, x):
    if KERAS == "tensorflow" and {"float16", "channels_first"} & set(map(str, options.values())):
        pytest.skip("Keras fails on TensorFlow's CPU")
    ours, theirs = (getattr(k.layers, name)(**options, name="given") for k in (khub, keras))
    found, wanted = ours(x), theirs(x)
    agree(found, wanted, 1e-3 if "Spectrogram" in name else 1e-5)
    assert [(v.path, v.shape, v.trainable) for v in ours.weights] == [
        (v.path, tuple(v.shape), v.trainable) for v in theirs.weights
    ]
    for mine, other in zip(ours.weights, theirs.weights, strict=True):
        agree(mine.value, other.value, 1e-4)  # Keras' kernels are rounded
    assert plain(ours.get_config()) == plain(theirs.get_config())
    again = registry.deserialize(registry.serialize(ours))
    agree(again(x), found)
    assert plain(again.get_config()) == plain(ours.get_config())
    read = registry.deserialize(keras.layers.serialize(theirs))
    assert plain(read.get_config()) == plain(ours.get_config())


def test_fingerprints():
    random = np.random.RandomState(0)
    texts = [random.bytes(n) for n in [*range(200), 255, 256, 640, 1000]]
    count, key = 2**62 + 12345, (133, 2**64 - 1)
    fast = tensorflow.strings.to_hash_bucket_fast(texts, count).numpy()
    assert [hashing.farmhash64(text) % count for text in texts] == fast.tolist()
    strong = tensorflow.strings.to_hash_bucket_strong(texts, count, [133, -1]).numpy()
    assert [hashing.siphash64(text, key) % count for text in texts] == strong.tolist()


@pytest.mark.parametrize("options", [{}, {"output_mode": "one_hot"}, {"dtype": "int32"}])
@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_crosses(options, shape):
    words = np.array(["a", "long word of more than sixteen bytes", "é", ""], object)
    columns = [words.reshape(shape), np.array([1, -2, 3, 2**31 - 1]).reshape(shape)]
    columns.append(words[::-1].reshape(shape))
    for some in (columns, columns[:2]):
        ours, theirs = (k.layers.HashedCrossing(7, **options, name="x") for k in (khub, keras))
        agree(ours(some), theirs(some))
        assert ours.get_config() == theirs.get_config()


NUMBERS = RANDOM.randn(101, 4, 3).astype("float32")
ADAPTED = [
    ("Normalization", dict(), NUMBERS),
    ("Normalization", dict(axis=None), NUMBERS),
    ("Normalization", dict(axis=1), NUMBERS),
    ("Normalization", dict(axis=(1, 2), invert=True), NUMBERS),
    ("Discretization", dict(num_bins=4), NUMBERS),
    ("Discretization", dict(num_bins=7, epsilon=0.1), NUMBERS),
    ("Discretization", dict(num_bins=9, epsilon=0.3), NUMBERS),
    ("Discretization", dict(num_bins=9), NUMBERS[:1, :2]),
    ("StringLookup", dict(), WORDS),
    ("StringLookup", dict(max_tokens=3, mask_token="a", output_mode="count"), WORDS),
    ("StringLookup", dict(output_mode="tf_idf", num_oov_indices=2), WORDS),
    ("IntegerLookup", dict(), INTS),
    ("IntegerLookup", dict(max_tokens=4, mask_token=0), INTS),
    ("IntegerLookup", dict(output_mode="tf_idf", max_tokens=9, pad_to_max_tokens=True), INTS),
    ("TextVectorization", dict(), TEXTS),
    ("TextVectorization", dict(max_tokens=5, ngrams=2), TEXTS),
    ("TextVectorization", dict(max_tokens=5, split="character", output_mode="count"), TEXTS),
    ("TextVectorization", dict(output_mode="tf_idf"), TEXTS),
    ("TextVectorization", dict(split=None, standardize="lower"), WORDS),
]


def state(layer):
    for name in ("get_vocabulary", "bin_boundaries", "mean"):
        if hasattr(layer, name):
            found = getattr(layer, name)
            return [str(t) for t in found()] if callable(found) else found
    return None


ADAPTED_IDS = [f"{name}-{i}" for i, (name, *_) in enumerate(ADAPTED)]


@pytest.mark.parametrize("kind", ["array", "dataset"])
@pytest.mark.parametrize(
    ("name", "options", "data"),
    ADAPTED,
    ids=lambda x: str(x)[:40] if isinstance(x, (str, dict)) else "",
)
def test_adapt(name, options, data, kind, tmp_path):
    ours, theirs = (getattr(k.layers, name)(**options, name="given") for k in (khub, keras))
    given = np.asarray(data)
    if kind == "dataset":
        given = tensorflow.data.Dataset.from_tensor_slices(data).batch(2)
    ours.adapt(given), theirs.adapt(given)
    if isinstance(state(ours), np.ndarray):
        agree(state(ours), state(theirs))
    else:
        assert state(ours) == pytest.approx(state(theirs), abs=1e-6)
    agree(ours(data), theirs(data))
    assert plain(ours.get_config()) == plain(theirs.get_config())
    assert [(v.path, v.shape) for v in ours.weights] == [
        (v.path, tuple(v.shape)) for v in theirs.weights
    ]
    # Keras' files of it are read, by a layer made from the config
    again, store = registry.deserialize(keras.layers.serialize(theirs)), {}
    if ours.get_build_config():
        again.build_from_config(theirs.get_build_config())
    theirs.save_own_variables(store)
    if store:
        again.load_own_variables(store)
    if hasattr(theirs, "save_assets"):
        theirs.save_assets(str(tmp_path))
        again.load_assets(str(tmp_path))
    agree(again(data), theirs(data))


def test_callables_of_tensorflow():
    """The functions of Keras' guides, which call tf.strings, run on every backend."""
    options = dict(
        standardize=lambda x: tensorflow.strings.regex_replace(
            tensorflow.strings.lower(x), "t", ""
        ),
        split=lambda x: tensorflow.strings.split(x, "a"),
    )
    ours, theirs = (k.layers.TextVectorization(**options) for k in (khub, keras))
    ours.adapt(TEXTS), theirs.adapt(TEXTS)
    assert ours.get_vocabulary() == theirs.get_vocabulary()
    agree(ours(TEXTS), theirs(TEXTS))


def plain(config):
    """A config with lists for tuples, as JSON has them, and rounded numbers."""
    if isinstance(config, float):
        return float(f"{config:.5g}")
    if isinstance(config, dict):
        return {k: plain(v) for k, v in config.items()}
    return [plain(v) for v in config] if isinstance(config, (list, tuple)) else config


COLUMNS = {
    "f": [0.0, 0.1, 0.2, 0.3],
    "word": ["zero", "one", "two", "three"],
    "int": [0, 1, 2, 3],
    "bins": [0.5, 0.1, 0.2, 0.3],
    "hash": ["a", "b", "c", "d"],
    "number": [5, 6, 7, 8],
}


@pytest.mark.parametrize("mode", ["concat", "dict"])
def test_feature_space(mode):
    made = []
    for k in (khub, keras):
        space = k.utils.FeatureSpace
        features = {
            "f": "float_normalized",
            "word": "string_categorical",
            "int": space.integer_categorical(num_oov_indices=2),
            "bins": space.float_discretized(3),
            "hash": space.string_hashed(4),
            "number": "integer_hashed",
        }
        crosses = [("word", "int"), space.cross(("hash", "bins"), 5)]
        made.append(space(features, mode, crosses, crossing_dim=6, hashing_dim=3))
        made[-1].adapt(tensorflow.data.Dataset.from_tensor_slices(COLUMNS))
    ours, theirs = (space(COLUMNS) for space in made)
    assert khub.tree.assert_same_structure(ours, theirs) is None
    for mine, other in zip(khub.tree.flatten(ours), keras.tree.flatten(theirs), strict=True):
        agree(mine, other)
    ours, theirs = made
    assert ours.get_inputs().keys() == theirs.get_inputs().keys()
    assert plain(ours.get_config()["crosses"][0]["config"]) == plain(
        theirs.get_config()["crosses"][0]["config"]
    )
    read = khub.utils.FeatureSpace.from_config(theirs.get_config())
    assert read.get_config()["crosses"] == ours.get_config()["crosses"]
    assert {k: f.output_mode for k, f in read.features.items()} == {
        k: f.output_mode for k, f in ours.features.items()
    }
