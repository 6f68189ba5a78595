"""Layers give Keras' numbers: same weights, same inputs, every configuration of the table."""

import os

import numpy as np
import pytest
from layer_samples import CASES, ELSEWHERE, IDS, SAMPLES, array, core_layers, inputs

# Keras' own NumPy backend imports JAX anyway.
KERAS = os.environ["KERAS_BACKEND"] = os.environ["KHUB_BACKEND"].replace("numpy", "jax")
keras = pytest.importorskip("keras")

import khub  # noqa: E402
from khub import ops  # noqa: E402
from khub.saving import registry  # noqa: E402

cases = pytest.mark.parametrize(("name", "options", "shapes", "expected"), CASES, ids=IDS)


def unbuilt(name, options):
    theirs = options
    if name == "Lambda":
        theirs = {**options, "function": getattr(keras.activations, options["function"])}
    ours = getattr(khub.layers, name)(**options, name="given")
    return ours, getattr(keras.layers, name)(**theirs, name="given")


def pair(name, options, shapes):
    """The layer in khub and in Keras, built for these inputs, with the same random weights."""
    ours, theirs = unbuilt(name, options)
    ours(inputs(shapes)), theirs(inputs(shapes))
    random = np.random.RandomState(1)
    weights = [random.uniform(0.2, 1, v.shape).astype("float32") for v in theirs.weights]
    ours.set_weights(weights), theirs.set_weights(weights)
    return ours, theirs


def agree(ours, theirs, tolerance=1e-5):
    ours, theirs = ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_every_layer_has_a_sample():
    assert core_layers() - ELSEWHERE == SAMPLES.keys()


# Where Keras itself fails: averages that count the border on torch, norms over inner axes.
FAULTS = {"RMSNormalization-2"}
if KERAS == "torch":
    FAULTS |= {f"AveragePooling{n}D-1" for n in (2, 3)} | {"LayerNormalization-2"}


@cases
def test_outputs_weights_and_losses(name, options, shapes, expected, request):
    if request.node.callspec.id in FAULTS:
        pytest.skip(f"Keras is at fault on {KERAS}")
    compare(name, options, shapes)


def compare(name, options, shapes):
    ours, theirs = pair(name, options, shapes)
    assert [(v.name, v.shape, v.dtype, v.trainable) for v in ours.weights] == [
        (v.name, tuple(v.shape), v.dtype, v.trainable) for v in theirs.weights
    ]
    assert [v.path for v in ours.weights] == [v.path for v in theirs.weights]
    assert ours.count_params() == theirs.count_params()
    x = inputs(shapes, 5)
    agree(ours(x), theirs(x))
    found, wanted = ([float(v) for v in layer.losses] for layer in (ours, theirs))
    np.testing.assert_allclose(sorted(found), sorted(wanted), rtol=1e-5)
    if name == "BatchNormalization":
        agree(ours(x, training=True), theirs(x, training=True))
        for mine, other in zip(ours.weights, theirs.weights, strict=True):
            agree(mine, other.value)


@cases
def test_configs_are_equal(name, options, shapes, expected):
    ours, theirs = unbuilt(name, options)
    found, wanted = ours.get_config(), theirs.get_config()
    assert found.keys() == wanted.keys()
    for key in found.keys() - {"function"}:
        assert plain(found[key]) == plain(wanted[key]), key
    if name == "Lambda":  # Keras wraps functions; registered ones are read from its form by khub
        return
    read = getattr(keras.layers, name).from_config(found)
    assert plain(read.get_config()) == plain(wanted)
    again = registry.deserialize(keras.layers.serialize(theirs))
    assert type(again) is type(ours) and plain(again.get_config()) == plain(found)


def plain(config):
    """A config with lists for tuples, as JSON has them, and numbers as exact as float32."""
    if isinstance(config, dict):
        return {k: plain(v) for k, v in config.items()}
    if isinstance(config, float):
        return float(f"{config:.6g}")
    return [plain(v) for v in config] if isinstance(config, (list, tuple)) else config


@pytest.mark.parametrize("name", SAMPLES)
def test_positional_arguments_are_keras_own(name):
    import inspect

    theirs = list(inspect.signature(getattr(keras.layers, name).__init__).parameters.values())[1:]
    wanted = [p.name for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    known = list(inspect.signature(getattr(khub.layers, name).__init__).parameters)[1:]
    wanted = [n for n in wanted if n in known]
    assert [n for n in known if n in wanted][: len(wanted)] == wanted
    defaults = {p.name: p.default for p in theirs}
    for parameter in inspect.signature(getattr(khub.layers, name).__init__).parameters.values():
        default = defaults.get(parameter.name, inspect.Parameter.empty)
        if default is not inspect.Parameter.empty:
            same = str(parameter.default).lower(), str(default).lower()
            assert same[0] == same[1], parameter.name


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float16"])
@pytest.mark.parametrize("name", ["Dense", "Conv2D", "LayerNormalization", "Embedding", "Softmax"])
def test_dtypes_under_a_policy(name, policy):
    options, shapes, _ = SAMPLES[name][0]
    x = inputs(shapes)
    ours = getattr(khub.layers, name)(**options, dtype=policy)
    theirs = getattr(keras.layers, name)(**options, dtype=policy)
    found = ops.dtype(ours(x))
    assert found == keras.backend.standardize_dtype(theirs(x).dtype)
    for key in ("dtype", "compute_dtype", "variable_dtype"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert [v.dtype for v in ours.weights] == [v.dtype for v in theirs.weights]
    assert ours.get_config()["dtype"] == theirs.get_config()["dtype"]


MASKED = [  # layers that look at a mask: options, shape
    ("GlobalAveragePooling1D", {}, (3, 4, 2)),
    ("GlobalAveragePooling1D", {"keepdims": True}, (3, 4, 2)),
    ("BatchNormalization", {"momentum": 0.5}, (3, 4, 2)),
    ("Softmax", {}, (3, 4)),
    ("Lambda", {}, (3, 4)),
]


@pytest.mark.parametrize(("name", "options", "shape"), MASKED[:-1])
def test_layers_that_look_at_a_mask(name, options, shape):
    ours, theirs = pair(name, options, shape)
    x, mask = array(shape, 3), np.array([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 1]], bool)
    training = {"training": True} if name == "BatchNormalization" else {}
    agree(ours(x, mask=ops.convert_to_tensor(mask), **training), theirs(x, mask=mask, **training))
    for mine, other in zip(ours.weights, theirs.weights, strict=True):
        agree(mine, other.value)


def test_computed_masks():
    tokens, x = array(SAMPLES["Embedding"][0][1]), array((2, 3, 4))
    x[0, 1] = 0
    for name, options, given in (
        ("Embedding", dict(input_dim=5, output_dim=2, mask_zero=True), tokens),
        ("Masking", {}, x),
    ):
        ours, theirs = pair(name, options, given.shape if name == "Masking" else tokens_shape())
        found = ours.compute_mask(ops.convert_to_tensor(given), None)
        agree(found, theirs.compute_mask(keras.ops.convert_to_tensor(given), None))


def tokens_shape():
    return SAMPLES["Embedding"][0][1]
