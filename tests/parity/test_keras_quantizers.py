"""khub.quantizers, quantized layers, distillation: Keras' numbers, files and configurations."""

import json

import numpy as np
import pytest

keras = pytest.importorskip("keras")

import khub  # noqa: E402
from khub import ops, quantizers  # noqa: E402

RANDOM = np.random.default_rng(0)
ROWS = np.array([[1, -2, 3], [0, 0, 0], [0.5, 0.25, -8], [1e-9, 2e-9, -3e-9]], "float32")
KERNEL = RANDOM.standard_normal((10, 3)).astype("float32")
KERNEL[:, 1], KERNEL[4:, 2] = 0, np.abs(KERNEL[4:, 2])
WHOLE = RANDOM.integers(-8, 8, (5, 3)).astype("int8")
POINTS = np.array([-10, -1.1, -0.51, 0, 0.31, 0.72, 1.23, 6.0, 7.0], "float32")  # no ties
CALLS = [  # function, arguments
    *[("abs_max_quantize", (ROWS, axis)) for axis in (0, 1, -1, (0, 1))],
    ("abs_max_quantize", (ROWS, 0, (-7, 7), "int8", 1e-3, True)),
    *[("abs_max_quantize_grouped_with_zero_point", (KERNEL, n)) for n in (1, 4, 5, 100)],
    ("abs_max_quantize_grouped_with_zero_point", (KERNEL[:, ::2], 4, (-8, 7), "int8", 1e-7, True)),
    *[("pack_int4", (WHOLE, axis)) for axis in (0, 1, -1)],
    ("pack_int4", ((WHOLE + 8).astype("uint8"), 0, "uint8")),
    ("compute_float8_amax_history", (ROWS, np.array([1.0, 2.0, 3.0], "float32"))),
    ("compute_float8_amax_history", (ROWS, np.array([1.0], "float32"))),
    *[
        ("compute_float8_scale", (np.float32(amax), np.float32(0.7), 448.0, margin))
        for amax in (0, 2, 448, np.inf, np.nan, 1e-20)
        for margin in (0, 2)
    ],
    *[
        ("quantize_and_dequantize", (POINTS * 400, np.float32(0.5), dtype, "float32"))
        for dtype in ("float8_e4m3fn", "float8_e5m2")
    ],
    *[
        ("fake_quant_with_min_max_vars", (POINTS, *ends, bits, narrow))
        for ends in ((-1.0, 6.0), (0.5, 6.0), (-6.0, -1.0))
        for bits, narrow in ((8, False), (8, True), (4, False))
    ],
    (
        "fake_quant_with_min_max_vars",
        (np.stack([POINTS, 2 * POINTS], 1), np.array([-1, -2.0]), np.array([6, 3.0]), 4, False, 1),
    ),
]


def arrays(found):
    found = found if isinstance(found, tuple) else (found,)
    return [np.asarray(x if isinstance(x, (int, tuple)) else to_numpy(x)) for x in found]


def to_numpy(x):
    mine = ops.is_tensor(x) and not hasattr(x, "_keras_mask")
    return ops.convert_to_numpy(x) if mine else keras.ops.convert_to_numpy(x)


@pytest.mark.parametrize(
    ("name", "args"), CALLS, ids=[f"{i}-{n}" for i, (n, _) in enumerate(CALLS)]
)
def test_functions(name, args):
    found = arrays(getattr(quantizers, name)(*args))
    expected = arrays(getattr(keras.quantizers, name)(*args))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    if name == "pack_int4":
        packed, _, length = getattr(quantizers, name)(*args)
        back = quantizers.unpack_int4(packed, length, *args[1:])
        np.testing.assert_array_equal(arrays(back)[0], args[0])


@pytest.mark.parametrize("name", ["pack_int4", "unpack_int4"])
def test_wrong_dtypes(name):
    more = (5,) if name == "unpack_int4" else ()
    for module in (quantizers, keras.quantizers):
        with pytest.raises(TypeError, match="float32"):
            getattr(module, name)(ROWS, *more)
        with pytest.raises(ValueError, match="int16"):
            getattr(module, name)(WHOLE, *more, dtype="int16")


CONFIGS = [
    ("AbsMaxQuantizer", dict(axis=0)),
    ("AbsMaxQuantizer", dict(axis=(0, 1), value_range=(-7, 7), epsilon=1e-3)),
    ("QuantizationConfig", {}),
    ("Int8QuantizationConfig", {}),
    ("Int8QuantizationConfig", dict(activation_quantizer=None)),
    ("Int4QuantizationConfig", dict(block_size=64)),
    ("Float8QuantizationConfig", {}),
    ("GPTQConfig", dict(dataset=["a"], tokenizer=None, weight_bits=3, group_size=-1)),
    ("AWQConfig", dict(dataset=["a"], tokenizer=None, num_grid_points=5)),
]


@pytest.mark.once
@pytest.mark.parametrize(("name", "options"), CONFIGS, ids=[f"{n}-{o}" for n, o in CONFIGS])
def test_serialized_forms(name, options):
    ours = getattr(quantizers, name)(**options)
    theirs = getattr(keras.quantizers, name)(**options)
    forms = [
        json.loads(json.dumps(m.serialize(q)))
        for m, q in ((quantizers, ours), (keras.quantizers, theirs))
    ]
    for form in forms:  # an axis that is not given: Keras leaves it out
        inner = form["config"].get("activation_quantizer")
        if inner and inner["config"].get("axis", 0) is None:
            del inner["config"]["axis"]
    assert forms[0] == forms[1]
    again = quantizers.deserialize(quantizers.serialize(ours))
    assert type(again) is type(ours) and again.get_config() == ours.get_config()
    for fact in ("mode", "dtype_policy_string"):
        if name != "QuantizationConfig" and hasattr(theirs, fact):
            found = [getattr(q, fact) for q in (ours, theirs)]
            assert found[0] == found[1] if fact == "mode" else found[0]() == found[1]()


WRONG = [
    ("GPTQConfig", dict(weight_bits=5)),
    ("GPTQConfig", dict(num_samples=0)),
    ("GPTQConfig", dict(group_size=0)),
    ("GPTQConfig", dict(hessian_damping=2.0)),
    ("AWQConfig", dict(weight_bits=8)),
    ("AWQConfig", dict(num_grid_points=0)),
]


@pytest.mark.once
@pytest.mark.parametrize(("name", "options"), WRONG, ids=[f"{n}-{o}" for n, o in WRONG])
def test_wrong_configurations(name, options):
    for module in (quantizers, keras.quantizers):
        with pytest.raises(ValueError, match=next(iter(options))):
            getattr(module, name)(["a"], None, **options)


@pytest.mark.once
def test_quantizers_by_name():
    assert quantizers.get(None) is None and quantizers.get(len) is len
    assert quantizers.get("abs_max_quantizer").axis is None
    assert quantizers.get("AbsMaxQuantizer", axis=0).axis == (0,)
    with pytest.raises(ValueError, match="foo"):
        quantizers.get("foo")


# --- layers and files ----------------------------------------------------------------------------
def dense(library):
    made = [library.layers.Dense(8, activation="relu"), library.layers.Dense(3, use_bias=False)]
    return library.Sequential([library.Input((40,)), *made])


def words(library):
    x = library.Input((7,), dtype="int32")
    y = library.layers.Embedding(9, 6)(x)
    y = library.layers.EinsumDense("abc,cde->abde", (None, 2, 4), bias_axes="de")(y)
    return library.Model(x, library.layers.EinsumDense("abcd,cde->abe", (None, 5))(y))


DATA = RANDOM.standard_normal((6, 40)).astype("float32")
IDS = RANDOM.integers(0, 9, (3, 7)).astype("int32")


@pytest.mark.parametrize("rounded_inputs", [True, False])
@pytest.mark.parametrize(("model", "x"), [(dense, DATA), (words, IDS)], ids=["dense", "words"])
def test_int8_outputs_and_files_both_ways(tmp_path, model, x, rounded_inputs):
    """What Keras quantizes khub loads, and the other way round."""

    def config(library):
        more = {} if rounded_inputs else dict(activation_quantizer=None)
        return library.quantizers.Int8QuantizationConfig(**more)

    theirs, ours = model(keras), model(khub)
    theirs.quantize(config=config(keras))
    theirs.save(tmp_path / "theirs.keras")
    expected = theirs.predict(x, verbose=0)
    loaded = khub.saving.load_model(tmp_path / "theirs.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-5)

    ours.quantize(config=config(khub))
    ours.save(tmp_path / "ours.keras")
    expected = ours.predict(x, verbose=0)
    for library in (keras, khub):
        again = library.saving.load_model(tmp_path / "ours.keras")
        np.testing.assert_allclose(again.predict(x, verbose=0), expected, atol=1e-5)


@pytest.mark.once
def test_filters():
    cases = [
        ("dense_a", [1, 0]),
        (["^x", "b$"], [0, 1]),
        (lambda layer: layer.name == "dense_a", [1, 0]),
    ]
    for filters, expected in cases:
        found = []
        for library in (keras, khub):
            made = [library.layers.Dense(3, name=name) for name in ("dense_a", "dense_b")]
            model = library.Sequential([library.Input((4,)), *made])
            model.quantize("int8", filters=filters)
            found.append([x.dtype_policy.quantization_mode == "int8" for x in model.layers])
        assert found[0] == found[1] == expected


# --- distillation --------------------------------------------------------------------------------
LOSSES = [
    ("LogitsDistillation", dict(loss=loss, temperature=t))
    for loss in ("kl_divergence", "categorical_crossentropy", "mse")
    for t in (1.0, 3.0)
]
LOSSES += [("FeatureDistillation", dict(loss=loss)) for loss in ("mse", "cosine_similarity")]


@pytest.mark.parametrize(("name", "options"), LOSSES, ids=[f"{n}-{o}" for n, o in LOSSES])
def test_distillation_losses(name, options):
    pair = RANDOM.standard_normal((2, 4, 3)).astype("float32")
    ours = getattr(khub.distillation, name)(**options).compute_loss(*pair)
    theirs = getattr(keras.distillation, name)(**options).compute_loss(*pair)
    np.testing.assert_allclose(to_numpy(ours), to_numpy(theirs), rtol=1e-5)


@pytest.mark.parametrize("features", [False, True])
def test_distiller(features):
    x, y = DATA[:, :5], np.array([0, 1, 2, 0, 1, 2])
    weights, results = None, []
    for library in (keras, khub):
        both = []
        for name in ("teacher", "student"):
            made = library.layers.Dense(8, activation="relu", name="h"), library.layers.Dense(3)
            both.append(library.Sequential([library.Input((5,)), *made], name=name))
        weights = weights or [model.get_weights() for model in both]
        for model, values in zip(both, weights):
            model.set_weights(values)
        kinds = library.distillation
        losses = [kinds.LogitsDistillation()]
        losses += [kinds.FeatureDistillation("mse", "h", "h")] if features else []
        more = dict(distillation_loss_weights=[1.0, 0.5] if features else None)
        model = kinds.Distiller(*both, losses, student_loss_weight=0.3, **more)
        loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(library.optimizers.SGD(0.1), loss, metrics=["accuracy"])
        results.append(model.evaluate(x, y, verbose=0, return_dict=True))
        if khub.backend.name != "numpy":
            options = dict(epochs=2, batch_size=6, shuffle=False, verbose=0)
            results[-1]["fit"] = model.fit(x, y, **options).history["loss"]
    theirs, ours = results
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, err_msg=name)
