"""Weights of few bits: how near the outputs are, what is saved, what is reported."""

import numpy as np
import pytest

import khub
from khub import layers, models, quantizers
from khub.models import quantization

X = np.random.default_rng(0).standard_normal((64, 40)).astype("float32")
X *= np.linspace(0.1, 3, 40, dtype="float32")  # some inputs matter more
IDS = np.random.default_rng(1).integers(0, 9, (3, 7)).astype("int32")
needs_gradients = pytest.mark.skipif(khub.backend.name == "numpy", reason="no gradients on NumPy")


def dense():
    khub.utils.set_random_seed(0)
    made = layers.Dense(48, activation="relu"), layers.Dense(6, use_bias=False)
    return models.Sequential([layers.Input((40,)), *made])


def words():
    khub.utils.set_random_seed(0)
    x = layers.Input((7,), dtype="int32")
    y = layers.Embedding(9, 6)(x)
    y = layers.EinsumDense("abc,cde->abde", (None, 2, 4), bias_axes="de")(y)
    return models.Model(x, layers.EinsumDense("abcd,ecd->abe", (None, 5))(y))


def tied():
    khub.utils.set_random_seed(0)
    table, x = layers.ReversibleEmbedding(9, 6), layers.Input((7,), dtype="int32")
    return models.Model(x, table(table(x), reverse=True))


FLOATS = {}  # the outputs of each model's floats


def floats(model, x):
    if model not in FLOATS:
        FLOATS[model] = model().predict(x, verbose=0)
    return FLOATS[model]


def gptq(data=(X[:48], *X[48:]), **options):
    return quantizers.GPTQConfig(data, None, **options)


def once(*case):  # its rounding is done on the host, its floats are those of another case
    return pytest.param(*case, marks=pytest.mark.once)


CASES = [  # model, inputs, what to do, bytes that are left, largest relative error of outputs
    (dense, X, "int8", 0.28, 0.01),
    (dense, X, quantizers.Int8QuantizationConfig(), 0.28, 0.02),
    once(dense, X, quantizers.Int8QuantizationConfig(quantizers.AbsMaxQuantizer(0)), 0.28, 0.02),
    (dense, X, "int4", 0.16, 0.15),
    (dense, X, quantizers.Int4QuantizationConfig(block_size=16), 0.25, 0.12),
    once(dense, X, quantizers.Int4QuantizationConfig(block_size=-1), 0.16, 0.15),
    (dense, X, "float8", 0.28, 0.05),
    once(dense, X, gptq(group_size=16), 0.25, 0.1),
    (dense, X, gptq(weight_bits=8, group_size=-1, symmetric=True), 0.29, 0.01),
    once(dense, X, gptq(weight_bits=3, group_size=-1, activation_order=True), 0.16, 0.2),
    (dense, X, quantizers.AWQConfig([X], None, group_size=16), 0.29, 0.1),
    *((words, IDS, mode, 0.45, near) for mode, near in (("int8", 0.02), ("int4", 0.3))),
    (words, IDS, "float8", 0.45, 0.1),
    *((tied, IDS, mode, 0.45, near) for mode, near in (("int8", 0.02), ("int4", 0.3))),
]


@pytest.mark.parametrize(("model", "x", "how", "share", "near"), CASES)
def test_outputs_bytes_and_files(tmp_path, model, x, how, share, near):
    expected, made = floats(model, x), model()
    report = made.quantize(**({"mode": how} if isinstance(how, str) else {"config": how}))
    found = made.predict(x, verbose=0)
    assert 0 < np.abs(found - expected).max() < near * np.abs(expected).max()
    before, after = (sum(row[f"bytes_{when}"] for row in report) for when in ("before", "after"))
    kept = [v for v in made.variables if v.name != "bias"]
    assert after == sum(v.numpy().nbytes for v in kept) and after < share * before
    assert all(row["relative_error"] < 3 * near for row in report)
    assert report[0]["weight"] in str(report) and f"{before:,} bytes -> {after:,}" in str(report)
    made.save(tmp_path / "model.keras")
    again = khub.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(x, verbose=0), found, atol=1e-5)


@pytest.mark.once
def test_calibration_pays():
    """Of one layer, GPTQ and AWQ leave a smaller error of the output than the nearest numbers."""
    random = np.random.default_rng(0)
    x = random.standard_normal((256, 8)) @ random.standard_normal((8, 40))  # inputs go together
    x = (x * np.linspace(0.1, 3, 40)).astype("float32")

    def error(config):
        made = dense()
        made.quantize(config=config, targets="layers.0")
        outputs = (models.Model(m.inputs, m.layers[0].output) for m in (dense(), made))
        one, other = (output.predict(x, verbose=0) for output in outputs)
        return np.linalg.norm(one - other)

    nearest = error(quantizers.Int4QuantizationConfig(block_size=-1))
    assert error(gptq([x], group_size=-1)) < 0.8 * nearest
    assert error(gptq([x], group_size=-1, activation_order=True)) < 0.5 * nearest
    assert error(quantizers.AWQConfig([x], None, group_size=-1)) < 0.95 * nearest


@pytest.mark.once
def test_blocks_are_calibrated_one_after_the_other():
    made = dense()
    structure = {"pre_block_layers": [], "sequential_blocks": made.layers}
    report = made.quantize(config=gptq(quantization_layer_structure=structure, num_samples=3))
    assert [row["weight"] for row in report] == ["layers.0.kernel", "layers.1.kernel"]
    made = dense()
    lost = {"sequential_blocks": [layers.Identity()]}
    assert not made.quantize(config=gptq(quantization_layer_structure=lost))
    text = quantizers.GPTQConfig(
        ["ab", "c"], lambda text: [ord(c) - 96 for c in text], num_samples=2
    )
    assert len(words().quantize(config=text)) == 2


@pytest.mark.once
def test_a_layer_with_a_quantized_dtype_waits_for_its_file():
    layer = layers.Dense(3, dtype="int8_from_float32")
    layer.build((None, 4))
    assert [(v.name, v.dtype) for v in layer.weights] == [
        ("kernel", "int8"),
        ("bias", "float32"),
        ("kernel_scale", "float32"),
    ]
    assert layers.Dropout(0.5, dtype="int8_from_float32")(X[:2]).shape == (2, 40)


@needs_gradients
def test_biases_learn_and_lora_learns_over_few_bits():
    made = dense()
    made.quantize("int4")
    assert [v.name for v in made.trainable_variables] == ["bias"]
    before = made.layers[0].kernel.numpy()
    made.enable_lora(4)
    assert [v.name[:4] for v in made.trainable_variables] == ["lora"] * 4
    made.compile(khub.optimizers.Adam(0.01), "mse")
    losses = made.fit(X, X[:, :6], epochs=8, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_array_equal(made.layers[0].kernel.numpy(), before)
    found = made.predict(X, verbose=0)
    report = made.merge_lora()
    assert [row["weight"] for row in report] == ["layers.0.kernel", "layers.1.kernel"]
    assert all(0 < row["relative_error"] < 0.15 for row in report) and "merge" not in str(report)
    error = np.abs(made.predict(X, verbose=0) - found).max()
    assert 0 < error < 0.3 * np.abs(found).max()
    assert [v.name for v in made.trainable_variables] == ["bias"]


ORDERS = [
    (model, how, first) for model in (dense, words) for how in ("int8", "int4") for first in (0, 1)
]
ORDERS += [(dense, quantizers.Int8QuantizationConfig(), 0), (dense, None, 0)]


@pytest.mark.parametrize(("model", "how", "first"), ORDERS)
def test_lora_before_and_after_few_bits_in_files(tmp_path, model, how, first):
    """A table too learns in either order; a file says what was done, so that training goes on."""
    made, x = model(), X if model is dense else IDS
    more = {"mode": how} if isinstance(how, str) else {"config": how}
    steps = [lambda: made.enable_lora(2, targets="."), lambda: how and made.quantize(**more)]
    for step in steps[::-1] if first else steps:
        step()
    before = made.predict(x, verbose=0)
    for i, variable in enumerate(made.trainable_variables):
        values = np.random.default_rng(i).standard_normal(variable.shape)
        variable.assign(0.5 * values.astype("float32"))
    expected = made.predict(x, verbose=0)
    assert np.abs(expected - before).max() > 0.1
    made.save(tmp_path / "model.keras")
    again = khub.saving.load_model(tmp_path / "model.keras")
    names = [[v.path for v in m.trainable_variables] for m in (made, again)]
    assert len(names[0]) == len(names[1]) and all("lora_" in name for name in names[1])
    np.testing.assert_allclose(again.predict(x, verbose=0), expected, atol=1e-5)
    again.merge_lora()
    error = np.abs(again.predict(x, verbose=0) - expected).max()
    assert error < (0.3 if how == "int4" else 0.02) * np.abs(expected).max()


@pytest.mark.parametrize("how", ["int8", quantizers.Int8QuantizationConfig(), "int4"])
def test_layers_inside_of_layers_come_back_from_files(tmp_path, how):
    x = layers.Input((4, 8))
    made = models.Model(x, layers.MultiHeadAttention(2, 4)(x, x))
    data = X.reshape(64, 5, 8)[:, :4]
    made.quantize(**({"mode": how} if isinstance(how, str) else {"config": how}))
    made.save(tmp_path / "model.keras")
    again = khub.saving.load_model(tmp_path / "model.keras")
    found, expected = (m.predict(data, verbose=0) for m in (again, made))
    np.testing.assert_allclose(found, expected, atol=1e-5)


ERRORS = [
    (dict(mode="int3"), "int8, int4, float8; got 'int3'"),
    (dict(mode="gptq"), "GPTQConfig"),
    (dict(), "got None"),
    (dict(mode="int8", config=quantizers.Int4QuantizationConfig()), "mode 'int4'"),
    (dict(mode="int8", targets="nowhere"), "targets='nowhere' is found in no path"),
    (dict(mode="int8", filters=["nowhere"]), "nowhere"),
    (dict(config=quantizers.GPTQConfig([], None)), "No input of the calibration reaches layers.0"),
]


@pytest.mark.once
@pytest.mark.parametrize(("options", "match"), ERRORS)
def test_errors(options, match):
    with pytest.raises(ValueError, match=match):
        dense().quantize(**options)


@pytest.mark.once
def test_more_errors():
    made = dense()
    made.quantize("int8")
    with pytest.raises(ValueError, match="in few bits already: int8_from_float32"):
        made.quantize("int4")
    with pytest.raises(ValueError, match="keeps int8, got float32"):
        made.set_weights(dense().get_weights()[:1] + [w * 1.0 for w in made.get_weights()[1:]])
    with pytest.raises(TypeError, match="no weight for few bits"):
        quantization.quantize(layers.Dropout(0.1), "int8")
    with pytest.raises(TypeError, match="unknown"):
        dense().quantize("int8", unknown=1)


@needs_gradients
def test_fake_quantization_passes_gradients_through():
    """Those of x inside of the range, and of its ends what lies beyond them."""
    x = np.array([-10, -1.1, -0.51, 0, 0.31, 1.23, 6.0, 7.0], "float32")
    ends = [khub.Variable(np.float32(end)) for end in (-1, 6)]
    variable = khub.Variable(x)

    def total():
        return khub.ops.sum(quantizers.fake_quant_with_min_max_vars(variable, *ends))

    _, gradients = khub.value_and_grad(total, [variable, *ends])()
    expected = [np.array([0, 0, 1, 1, 1, 1, 1, 0]), 2, 1]
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(khub.ops.convert_to_numpy(found), wanted)
