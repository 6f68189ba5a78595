"""What must hold for every layer: unknown sizes, masks, dtypes, files, pure and compiled calls.

The numbers are those of the NumPy backend, which a second process computes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from layer_samples import CASES, HELD, Int, Several, Tokens, call, inputs

import khub
from khub import layers, ops
from khub.layers.masks import get_mask, set_mask
from khub.saving import registry

BACKEND = khub.backend.name
ROWS = [*CASES, *((name, *row) for name, rows in HELD.items() for row in rows)]
COUNT = {}
KEYS = [
    f"{row[0]}-{COUNT.setdefault(row[0], [0]).append(0) or len(COUNT[row[0]]) - 2}" for row in ROWS
]
NOISE = ("Dropout", "GaussianNoise")  # in training


def make(name, options, **more):
    options = options(khub) if callable(options) else options
    return getattr(layers, name)(**options, **more)


def trained(name, options, shapes, **more):
    """The layer, built, with weights that the row determines."""
    layer = make(name, options, **more)
    shapes = shapes if isinstance(shapes, list) else tuple(shapes)
    call(layer, inputs(shapes) if callable(options) else inputs(_typed(name, shapes)))
    random = np.random.RandomState(7)
    weights = [random.uniform(0.2, 1, v.shape).astype("float32") for v in layer.weights]
    layer.set_weights(weights)
    if getattr(layer, "stateful", False):
        layer.reset_state()
    return layer


def _typed(name, shapes):
    return Tokens(shapes) if "Embedding" in name else shapes


def results(name, options, shapes):
    layer = trained(name, options, shapes)
    found = [call(layer, inputs(shapes, 5))]
    if name == "BatchNormalization":
        found += [layer(inputs(shapes, 5), training=True), *layer.get_weights()]
    return [ops.convert_to_numpy(y) for y in khub.tree.flatten(found)]


# --- the same numbers everywhere -----------------------------------------------------------------
@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """Every row's results on NumPy."""
    file = tmp_path_factory.mktemp("layers") / "numpy.npz"
    tests, root = Path(__file__).parents[1], Path(__file__).parents[2]
    path = os.pathsep.join([str(tests), str(root), *sys.path])
    environment = {**os.environ, "KHUB_BACKEND": "numpy", "PYTHONPATH": path}
    program = "import runpy, sys; runpy.run_path(sys.argv[1])['record'](sys.argv[2])"
    command = [sys.executable, "-c", program, __file__, str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(file)


def record(file):
    arrays = {}
    for key, (name, options, shapes, _) in zip(KEYS, ROWS, strict=True):
        arrays |= {f"{key}/{i}": y for i, y in enumerate(results(name, options, shapes))}
    np.savez(file, **arrays)


rows = pytest.mark.parametrize(("key", "row"), list(zip(KEYS, ROWS, strict=True)), ids=KEYS)


@pytest.mark.skipif(BACKEND == "numpy", reason="it would be compared with itself")
@rows
def test_numbers_are_those_of_numpy(key, row, recorded):
    for i, found in enumerate(results(*row[:3])):
        wanted = recorded[f"{key}/{i}"]
        assert found.dtype == wanted.dtype
        scale = max(1, np.abs(wanted.astype("float64")).max())
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * scale)


@rows
def test_pure_compiled_and_saved_copies_agree(key, row):
    """jit, `stateless_call` and a layer made from the saved configuration give the same."""
    name, options, shapes, _ = row
    layer, x = trained(name, options, shapes), inputs(shapes, 5)
    arrays = [ops.convert_to_tensor(each) for each in (x if isinstance(x, list) else [x])]
    values = [[v.value for v in layer.trainable_variables]]
    values.append([v.value for v in layer.non_trainable_variables])

    def pure(*arrays):
        given = [list(arrays)] if isinstance(x, list) and not isinstance(x, Several) else arrays
        return layer.stateless_call(*values, *given, training=False)[0]

    pure = khub.jit(pure)(*arrays)
    assert not getattr(layer, "stateful", False) or all(not np.any(s) for s in layer.states)
    wanted = call(layer, x)
    close(pure, wanted)
    if name == "Lambda":
        return
    saved = registry.serialize(layer)
    again = registry.deserialize(saved)
    assert type(again) is type(layer) and registry.serialize(again) == saved
    call(again, inputs(_typed(name, shapes)))
    again.set_weights(layer.get_weights())
    if getattr(again, "stateful", False):
        again.reset_state()
    close(call(again, x), wanted)


def close(found, wanted):
    found, wanted = khub.tree.flatten(found), khub.tree.flatten(wanted)
    for one, other in zip(found, wanted, strict=True):
        one, other = ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


# --- unknown sizes -------------------------------------------------------------------------------
# rows whose weights or divisions span axes between the batch and the channels
SIZED = {"EinsumDense-2", "EinsumDense-4", "PReLU-2", "BatchNormalization-1", "Dot-1"}
SIZED |= {f"LayerNormalization-{i}" for i in (1, 2, 4)} | {f"RMSNormalization-{i}" for i in (2, 3)}
SIZED |= {f"GroupNormalization-{i}" for i in (1, 3)}


def symbol(shape, axes, dtype):
    return khub.KerasTensor([None if i in axes else n for i, n in enumerate(shape)], dtype)


@pytest.mark.parametrize(
    ("key", "row"),
    [
        pytest.param(key, row, id=key, marks=[] if key.endswith("-0") else pytest.mark.slow)
        for key, row in zip(KEYS, ROWS, strict=True)
    ],
)
def test_unknown_sizes(key, row):
    """Batch, time and space may be unknown; what is known of the output is right."""
    name, options, shapes, expected = row
    layer = trained(name, options, shapes)
    if getattr(layer, "stateful", False):
        return  # its states have the batch's size
    kind = str(inputs(shapes).dtype) if not isinstance(shapes, list) else "float32"
    first = getattr(layer, "data_format", None) == "channels_first"
    channels = 1 + name.startswith("ConvLSTM") if first else -1  # steps come before its channels
    several = isinstance(shapes, list)

    def symbols(free):
        made = [symbol(s, free(len(s)), kind) for s in (shapes if several else [shapes])]
        return type(shapes)(made) if several else made[0]

    spec = call(layer, symbols(lambda rank: {0}))
    assert spec.shape == (None, *expected[1:])
    if key in SIZED or BACKEND == "numpy" and len(expected) > 4:
        return  # NumPy finds shapes by computing, here with large volumes
    spec = call(layer, symbols(lambda rank: set(range(rank)) - {channels % rank}))
    assert len(spec.shape) == len(expected)
    assert all(n in (None, m) for n, m in zip(spec.shape, expected, strict=True))


# --- dtypes --------------------------------------------------------------------------------------
POLICIES = {  # policy -> dtype of outputs, of Variables
    "mixed_bfloat16": ("bfloat16", "float32"),
    "mixed_float16": ("float16", "float32"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "float16": ("float16", "float16"),
    "float64": ("float64", "float64"),
}
if BACKEND == "jax":  # 64 bits are off
    del POLICIES["float64"]


firsts = [(key, row) for key, row in zip(KEYS, ROWS, strict=True) if key.endswith("-0")]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("key", "row"), firsts, ids=[key for key, _ in firsts])
def test_dtype_policies(key, row, policy):
    """The policy says the dtypes of a layer's outputs and Variables, and of the layers inside."""
    name, options, shapes, _ = row
    wide, stored = POLICIES[policy]
    before = khub.dtype_policies.dtype_policy()
    khub.dtype_policies.set_dtype_policy(policy)
    try:
        layer, given = make(name, options), inputs(shapes)
        several = isinstance(given, list)
        arrays = given if several else [given]
        symbols = [khub.KerasTensor(x.shape, str(x.dtype)) for x in arrays]
        spec = call(layer, type(given)(symbols) if several else symbols[0])
        found = call(layer, given) if BACKEND != "jax" else spec  # it compiles each
    finally:
        khub.dtype_policies.set_dtype_policy(before)
    assert spec.dtype == khub.dtypes.standardize(found.dtype) == wide
    assert {v.dtype for v in layer.weights} <= {stored}
    assert layer.dtype_policy.name == policy
    if BACKEND != "jax":
        assert np.isfinite(ops.convert_to_numpy(found).astype("float64")).all()


# --- training, masks, gradients ------------------------------------------------------------------
@rows
def test_training_flag(key, row):
    name, options, shapes, expected = row
    layer, x = trained(name, options, shapes), inputs(shapes, 5)
    quiet, plain = call(layer, x, training=False), None
    if getattr(layer, "stateful", False):
        layer.reset_state()
    plain = call(layer, x)
    close(quiet, plain)
    if getattr(layer, "stateful", False):
        layer.reset_state()
    loud = ops.convert_to_numpy(call(layer, x, training=True))
    assert loud.shape == expected
    noisy = any(word in name for word in NOISE) and layer.rate > 0
    learning = name in ("BatchNormalization", "SpectralNormalization")
    same = np.allclose(loud, ops.convert_to_numpy(plain), rtol=1e-4, atol=1e-5)
    assert same != (noisy or learning)


@rows
def test_masks_travel(key, row):
    """A layer that supports masks hands its input's on, or the one it computes; others drop it."""
    name, options, shapes, _ = row
    layer = trained(name, options, shapes)
    if isinstance(shapes, (list, Int, Tokens)) or len(shapes) < 2:
        pytest.skip("test_layer.py has them")
    x = ops.convert_to_tensor(inputs(shapes, 5))
    if getattr(layer, "data_format", None) == "channels_first":
        pytest.skip("masks are of steps")
    shape = shapes if name == "Softmax" else shapes[: 2 if len(shapes) > 2 else 1]
    mask = ops.convert_to_tensor(np.arange(np.prod(shape)).reshape(shape) % 3 > 0)
    set_mask(x, mask)
    y = layer(x)
    found, wanted = get_mask(y), layer.compute_mask(x, mask)
    assert np.isfinite(ops.convert_to_numpy(y)).all()
    if name != "SpectralNormalization":  # the layer inside handed it on
        assert (found is None) == (wanted is None)
        assert layer.supports_masking or found is None
    if wanted is not None:
        close(found, wanted)


@pytest.mark.skipif(BACKEND == "numpy", reason="no gradients")
@rows
def test_gradients_reach_every_weight(key, row):
    name, options, shapes, _ = row
    layer, x = trained(name, options, shapes), inputs(shapes, 5)
    weights = [v.value for v in layer.trainable_variables]
    if not weights:
        pytest.skip("no weights")
    rest = [v.value for v in layer.non_trainable_variables]
    random = np.random.RandomState(3)
    factor = random.uniform(0.5, 1, row[3]).astype("float32")

    def loss(weights):
        y, _ = layer.stateless_call(weights, rest, *(x if isinstance(x, Several) else [x]))
        return ops.sum(ops.multiply(ops.square(y), factor))

    for gradient, variable in zip(khub.grad(loss)(weights), layer.trainable_variables, strict=True):
        values = np.asarray(ops.convert_to_numpy(gradient))
        assert values.shape == variable.shape and np.isfinite(values).all()
        used = variable.name != "reverse_embeddings"  # by the call with reverse=True alone
        assert not used or np.abs(values).max() > 1e-7, variable.path


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("kind", [layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D])
def test_padding_by_numbers(kind, data_format):
    options = dict(filters=4) if kind is not layers.DepthwiseConv2D else {}
    options |= dict(kernel_size=3, strides=2, data_format=data_format)
    direct = kind(**options, padding=[(2, 1), 1])
    zeros = layers.ZeroPadding2D(((2, 1), (1, 1)), data_format=data_format)
    x = np.random.RandomState(0).rand(2, 6, 6, 6).astype("float32")
    found, valid = direct(x), kind(**options)
    assert direct.compute_output_shape(x.shape) == tuple(found.shape) == valid(zeros(x)).shape
    valid.set_weights(direct.get_weights())
    copy = kind.from_config(json.loads(json.dumps(direct.get_config())))
    copy.build(x.shape)
    copy.set_weights(direct.get_weights())
    for same in (valid(zeros(x)), copy(x)):
        np.testing.assert_allclose(*map(ops.convert_to_numpy, (found, same)), rtol=1e-5, atol=1e-6)
