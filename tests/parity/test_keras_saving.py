"""Files go both ways between khub and Keras: every built-in layer, and whole models."""

import os

import numpy as np
import pytest
from image_samples import GEOMETRY
from layer_samples import CASES, HELD, IDS, Int, Several, Tokens, core_layers

# Keras' own NumPy backend imports JAX anyway.
KERAS = os.environ["KERAS_BACKEND"]
keras = pytest.importorskip("keras")

import khub  # noqa: E402

RANDOM = np.random.RandomState(0)
FLOATS = RANDOM.randn(40, 3).astype("float32")
INTS = RANDOM.randint(0, 6, (5, 3))
WORDS = np.array([["a", "x", "c"], ["c", "c", "m"]], object)

PREPROCESSING = [  # layer, arguments, what it is adapted to
    ("Normalization", {}, FLOATS),
    ("Normalization", dict(mean=[1.0, 2.0, 3.0], variance=[1.0, 1.0, 4.0]), None),
    ("Discretization", dict(num_bins=4), FLOATS),
    ("Discretization", dict(bin_boundaries=[0.0, 1.0]), None),
    ("CategoryEncoding", dict(num_tokens=7), None),
    ("Hashing", dict(num_bins=3, salt=1), None),
    ("HashedCrossing", dict(num_bins=3), None),
    ("IntegerLookup", {}, INTS),
    ("IntegerLookup", dict(vocabulary=[3, 9], num_oov_indices=2, mask_token=0), None),
    ("IntegerLookup", dict(output_mode="tf_idf"), INTS),
    ("StringLookup", {}, WORDS),
    ("StringLookup", dict(vocabulary=["a", "b"]), None),
    ("StringLookup", dict(output_mode="tf_idf", num_oov_indices=2), WORDS),
    ("TextVectorization", dict(output_sequence_length=4), np.array(["a b c", "b b d"])),
    ("TextVectorization", dict(vocabulary=["a", "b"], output_mode="count"), None),
    ("TextVectorization", dict(output_mode="tf_idf"), np.array(["a b c", "b b d"])),
    ("Rescaling", dict(scale=0.5, offset=1.0), None),
    ("MelSpectrogram", {}, None),
    ("STFTSpectrogram", {}, None),
    ("MaxNumBoundingBoxes", dict(max_number=3), None),
    ("RandAugment", dict(seed=1), None),
    ("AugMix", dict(seed=1), None),
    ("CutMix", dict(seed=1), None),
    ("MixUp", dict(seed=1), None),
    ("RandomColorJitter", dict(brightness_factor=0.2, seed=1), None),
    ("RandomBrightness", dict(factor=0.2, seed=1), None),
    ("RandomContrast", dict(factor=0.2, seed=1), None),
    ("RandomHue", dict(factor=0.2, seed=1), None),
    ("RandomSaturation", dict(factor=0.2, seed=1), None),
    ("RandomSharpness", dict(factor=0.2, seed=1), None),
    ("RandomPosterization", dict(factor=4, seed=1), None),
    ("RandomColorDegeneration", dict(factor=0.2, seed=1), None),
    ("RandomErasing", dict(seed=1), None),
    ("RandomGaussianBlur", dict(seed=1), None),
    ("RandomGrayscale", dict(seed=1), None),
    ("RandomInvert", dict(seed=1), None),
    ("Solarization", dict(seed=1), None),
    ("AutoContrast", {}, None),
    ("Equalization", {}, None),
    ("ContrastLimitedAdaptiveHistogramEqualization", {}, None),
]
PREPROCESSING += [
    (name, rows[0][0], None) for name, rows in GEOMETRY.items() if name != "RandomShear"
]
PREPROCESSING += [("RandomShear", dict(x_factor=(0.1, 0.4), seed=1), None)]  # Keras reads no others
FOREIGN = {"FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"}  # of foreign code: no file


VARYING = {"build_config", "registered_name", "seed", "layer", "backward_layer", "function"}
VARYING |= {"activity_regularizer", "attention_axes"}  # Keras has them or not, and resolves them


def plain(config):
    """A config as JSON has it, numbers as exact as float32, without what may differ."""
    if isinstance(config, dict):
        return {k: plain(v) for k, v in config.items() if k not in VARYING}
    if isinstance(config, float):
        return float(f"{config:.6g}")
    if isinstance(config, (list, tuple)):
        return plain(config[0]) if len(config) == 1 else [plain(v) for v in config]
    return config


def inputs_of(library, shapes):
    """Symbolic inputs of these shapes, as `call` takes them."""

    def one(shape):
        kind = "int32" if isinstance(shape, (Int, Tokens)) else "float32"
        return library.Input(batch_shape=shape, dtype=kind)

    return type(shapes)(map(one, shapes)) if isinstance(shapes, list) else one(shapes)


def model_of(library, layer, shapes):
    x = inputs_of(library, shapes)
    y = layer(*x) if isinstance(x, Several) else layer(x)
    return library.Model(list(x) if isinstance(x, list) else x, y)


def randomize(layer):
    values = [RANDOM.uniform(0.2, 1, v.shape).astype("float32") for v in layer.weights]
    layer.set_weights(values)


# Keras resolves these when it builds: axes in order, the number of groups.
RESOLVED = {"LayerNormalization-4": "axis", "GroupNormalization-1": "groups"}
# Symbolic inputs of these widths are an error there.
REFUSED = {"GroupQueryAttention-1"}


def same(ours, theirs, resolved=None):
    """Whether a layer and its twin have the same config and weights."""
    configs = [plain(layer.get_config()) for layer in (ours, theirs)]
    for config in configs:
        config.pop(resolved, None)
    assert configs[0] == configs[1]
    assert len(ours.weights) == len(theirs.weights)
    for mine, other in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(
            khub.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(other)
        )


def exchange(ours, theirs, path, resolved=None):
    """Save each of two models, and open it with the other library."""
    ours.save(path)
    read = keras.saving.load_model(path)
    for mine, other in zip(ours.layers, read.layers, strict=True):
        same(mine, other, resolved)
    theirs.save(path)
    read = khub.saving.load_model(path)
    for mine, other in zip(read.layers, theirs.layers, strict=True):
        same(mine, other, resolved)


HELD_CASES = [(name, *row[:2]) for name, rows in HELD.items() for row in rows]
HELD_IDS = [f"{name}-{i}" for name, rows in HELD.items() for i in range(len(rows))]


@pytest.mark.parametrize(
    ("name", "options", "shapes"),
    [case[:3] for case in CASES] + HELD_CASES,
    ids=IDS + HELD_IDS,
)
def test_layers(name, options, shapes, tmp_path, request):
    case, made = request.node.callspec.id, {}
    if case in REFUSED:
        pytest.skip("Keras makes no model of it")
    for library in (khub, keras):
        own = options(library) if callable(options) else dict(options)
        if name == "Lambda":
            own["function"] = getattr(library.activations, own["function"])
        layer = getattr(library.layers, name)(**own, name="given")
        made[library] = model_of(library, layer, shapes)
        randomize(layer)
    exchange(made[khub], made[keras], tmp_path / "model.keras", RESOLVED.get(case))


@pytest.mark.parametrize(
    ("name", "options", "data"),
    PREPROCESSING,
    ids=[f"{i}-{p[0]}" for i, p in enumerate(PREPROCESSING)],
)
def test_preprocessing_layers(name, options, data, tmp_path):
    made = {}
    for library in (khub, keras):
        layer = getattr(library.layers, name)(**options, name="given")
        if data is not None:
            layer.adapt(data)
        made[library] = library.Sequential([layer])
    exchange(made[khub], made[keras], tmp_path / "model.keras")


def test_every_layer_is_in_a_table():
    known = {case[0] for case in [*CASES, *HELD_CASES, *PREPROCESSING]}
    parts = {"SimpleRNNCell", "LSTMCell", "GRUCell", "StackedRNNCells", "Pipeline"}
    bases = {"Layer", "InputLayer", "Wrapper", "DataLayer"}
    assert core_layers() - known - FOREIGN - parts - bases == set()
