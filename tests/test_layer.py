"""Layers: fields, building, weights, losses, masks, dtypes, and what they are to each framework."""

import copy
import json
import pickle

import numpy as np
import pytest
from layer_samples import (
    CASES,
    IDS,
    SAMPLES,
    Several,
    array,
    call,
    core_layers,
    inputs,
    untested,
)

import khub
from khub import layers, ops
from khub.backend.scope import local
from khub.layers.masks import MASKS, get_mask, set_mask

BACKEND = khub.backend.name
cases = pytest.mark.parametrize(("name", "options", "shapes", "expected"), CASES, ids=IDS)


def numpy(structure):
    return khub.tree.map_structure(ops.convert_to_numpy, structure)


def close(found, expected, rtol=1e-5):
    np.testing.assert_allclose(numpy(found), numpy(expected), rtol=rtol, atol=1e-6)


def X(*shape):
    return array(shape)


class Linear(layers.Layer):
    """As users of Keras write them: an own __init__, build, call and get_config."""

    def __init__(self, units=32, activation=None, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.activation = khub.activations.get(activation)

    def build(self, input_shape):
        self.w = self.add_weight(
            shape=(input_shape[-1], self.units),
            initializer="random_normal",
            trainable=True,
            name="w",
        )
        self.b = self.add_weight(shape=(self.units,), initializer="zeros", name="b")

    def call(self, inputs):
        return self.activation(ops.matmul(inputs, self.w) + self.b)

    def get_config(self):
        config = super().get_config()
        config.update({"units": self.units})
        return config


class Block(layers.Layer):
    """Sub-layers as attributes, in lists and dicts, weights in another order than trained first."""

    def __init__(self, width, rate=0.0, **kwargs):
        super().__init__(**kwargs)
        self.count = self.add_weight((), "zeros", trainable=False, name="count")
        self.stack = [layers.Dense(width, "relu", name="up"), layers.Dense(width, name="down")]
        self.named = {"norm": layers.LayerNormalization(name="norm")}
        self.drop = layers.Dropout(rate, seed=1)
        self.again = self.stack[0]  # the same layer under a second name

    def build(self, shape):
        self.scale = self.add_weight((shape[-1],), "ones", name="scale")
        for layer in self.stack:
            layer.build(shape)
        self.named["norm"].build(shape)

    def call(self, x, training=False):
        self.count.assign_add(1.0)
        for layer in self.stack:
            x = self.drop(layer(x))
        return self.named["norm"](x) * self.scale


# --- every layer of the table --------------------------------------------------------------------
def test_every_layer_has_a_sample():
    assert untested() == set() and SAMPLES.keys() <= core_layers()


@cases
def test_shapes_config_and_symbolic_call(name, options, shapes, expected):
    layer, x = getattr(layers, name)(**options), inputs(shapes)
    assert not layer.built or "Dropout" in name or name == "GaussianNoise"
    y = call(layer, x)
    assert tuple(y.shape) == expected and layer.built
    dtype = ops.dtype(y)
    assert dtype == ("int32" if name == "Identity" and x.dtype == "int32" else "float32")
    shape = shapes if isinstance(shapes, list) else tuple(shapes)
    assert call(layer.compute_output_shape, shape) == expected
    assert not any(isinstance(loss, khub.KerasTensor) for loss in layer.losses)

    config = layer.get_config()
    again = type(layer).from_config(json.loads(json.dumps(config)))
    assert again.get_config() == json.loads(json.dumps(config)) or again.get_config() == config
    size = shapes[0] if options.get("stateful") else None  # the states have a size of their own
    batch = (size, *shapes[1:])
    if isinstance(shapes, list):
        batch = type(shapes)((None, *s[1:]) for s in shapes)
    dtypes = "float32" if isinstance(x, list) else str(x.dtype)
    spec = call(again, _symbols(batch, dtypes))
    assert spec.shape == (size, *expected[1:]) and spec.dtype == dtype
    assert repr(layer) == f"<{name} name={layer.name}, built=True>"
    again.set_weights(layer.get_weights())
    close(call(again, x), y)


def _symbols(shapes, dtype):
    if isinstance(shapes, list):
        return type(shapes)(khub.KerasTensor(shape, dtype) for shape in shapes)
    return khub.KerasTensor(shapes, dtype)


@cases
def test_mixed_precision_and_gradients(name, options, shapes, expected):
    x, several = inputs(shapes), isinstance(shapes, Several)
    x = list(x) if several else x  # a list of one's own is a leaf to transforms
    integer = not isinstance(x, list) and x.dtype == "int32"
    kept = name == "Identity" and integer
    layer = getattr(layers, name)(**options, dtype="mixed_bfloat16")
    full = getattr(layers, name)(**options)
    call(full.build, shapes if isinstance(shapes, list) else tuple(shapes))
    fixed = [v.value for v in full.non_trainable_variables]
    given = {"weights": [v.value for v in full.trainable_variables]} | ({} if integer else {"x": x})

    def loss(given, x):
        x = given.get("x", x)
        y, _ = full.stateless_call(given["weights"], fixed, *(x if several else [x]))
        return ops.sum(y * y)

    @khub.jit  # one compilation for both
    def run(given, x):
        differentiable = BACKEND != "numpy" and khub.tree.flatten(given)
        return layer(*x) if several else layer(x), khub.grad(loss)(
            given, x
        ) if differentiable else {"weights": []}

    y, gradients = run(given, x)
    assert ops.dtype(y) == ("int32" if kept else "bfloat16") and tuple(y.shape) == expected
    assert all(v.dtype == "float32" for v in layer.weights)
    assert np.isfinite(numpy(y).astype("float32")).all()
    for gradient, value in zip(*map(khub.tree.flatten, (gradients, given))):
        found = ops.convert_to_numpy(gradient)
        assert found.shape == tuple(value.shape) and np.isfinite(found).all()
    assert BACKEND == "numpy" or len(khub.tree.flatten(gradients)) == len(khub.tree.flatten(given))


# --- fields --------------------------------------------------------------------------------------
WRONG = [  # what is done, kind of error, words of the message
    (lambda: layers.Dense(0), ValueError, ["units", "positive integer", "0"]),
    (lambda: layers.Dense("8"), ValueError, ["units", "'8'"]),
    (lambda: layers.Dense(), TypeError, ["Dense", "units"]),
    (lambda: layers.Dense(3, unitz=4), TypeError, ["Dense", "'unitz'", "did you mean 'units'"]),
    (lambda: layers.Dense(3, use_bais=False), TypeError, ["'use_bais'", "'use_bias'"]),
    (lambda: layers.Dense(3, quux=1), TypeError, ["'quux'", "units", "name", "dtype"]),
    (lambda: layers.Dense(3, units=4), TypeError, ["Dense", "units"]),
    (lambda: layers.Dense(3, activation="rellu"), ValueError, ["'rellu'", "did you mean", "relu"]),
    (lambda: layers.Dense(3, kernel_initializer="he_nromal"), ValueError, ["he_normal"]),
    (lambda: layers.Dense(3, kernel_regularizer="l3"), ValueError, ["'l3'", "l2"]),
    (lambda: layers.Dense(3, name="a/b"), ValueError, ["'a/b'", "'/'"]),
    (lambda: layers.Dense(3, dtype="float33"), ValueError, ["float33"]),
    (lambda: layers.Dense(3, dtype="mixed_int8"), ValueError, ["mixed_int8", "mixed_bfloat16"]),
    (lambda: layers.Dense(3, quantization_config={"a": 1}), ValueError, ["quantization_config"]),
    (lambda: layers.Dropout(1.5), ValueError, ["rate", "between 0 and 1", "1.5"]),
    (lambda: layers.Conv2D(4, (3, 3, 3)), ValueError, ["kernel_size", "(3, 3, 3)"]),
    (lambda: layers.Conv2D(4, 3, padding="smae"), ValueError, ["padding", "'smae'"]),
    (lambda: layers.Conv2D(4, 3, data_format="last"), ValueError, ["data_format", "'last'"]),
    (
        lambda: layers.Conv2D(4, 3, strides=2, dilation_rate=2),
        ValueError,
        ["strides", "dilation_rate"],
    ),
    (lambda: layers.Conv2D(4, 3, groups=3), ValueError, ["4 filters", "3 groups"]),
    (lambda: layers.Permute((1, 3)), ValueError, ["Permute", "(1, 3)"]),
    (lambda: Linear(3, units=4), TypeError, ["Linear", "units"]),
    (lambda: Linear(3, trainble=False), TypeError, ["Linear", "'trainble'", "'trainable'"]),
]


@pytest.mark.parametrize(("act", "kind", "words"), WRONG)
def test_wrong_arguments(act, kind, words):
    with pytest.raises(kind) as caught:
        act()
    assert [word for word in words if word not in str(caught.value)] == []


def test_fields_by_position_and_by_name():
    a = layers.Dense(4, "relu", False, name="one")
    b = layers.Dense(use_bias=False, activation=khub.activations.relu, units=4.0, name="one")
    assert a.get_config() == b.get_config() and b.units == 4 and type(b.units) is int

    class Head(layers.Layer):
        units: khub.fields.PositiveInt
        rate: khub.fields.Rate = 0.5
        label: str = "x"

        def setup(self):
            self.derived = self.units * 2

    head = Head(3, label="y", name="head", trainable=False)
    assert (head.units, head.rate, head.label, head.derived) == (3, 0.5, "y", 6)
    assert {
        "units": 3,
        "rate": 0.5,
        "label": "y",
        "trainable": False,
    }.items() <= head.get_config().items()
    again = Head.from_config(head.get_config())
    assert again.get_config() == head.get_config() and not again.trainable

    class Wider(Head):
        label = "z"  # a new default of an inherited field
        depth: int = 1

    assert [f[0] for f in Wider._fields] == ["units", "depth", "rate", "label"]
    assert Wider(2).label == "z" and Wider(5, 2).depth == 2


def test_names_are_unique_and_follow_the_class():
    class LSTMCell2D(layers.Layer):
        pass

    names = [LSTMCell2D().name for _ in range(3)]
    assert names[0].startswith("lstm_cell2d") and len(set(names)) == 3


# --- building ------------------------------------------------------------------------------------
def test_building_waits_for_the_first_call():
    layer = layers.Dense(3)
    assert not layer.built and layer.weights == [] and layer.get_build_config() is None
    with pytest.raises(ValueError, match="no weights yet"):
        layer.count_params()
    layer(X(2, 4))
    kernel = layer.kernel
    layer(X(5, 4))
    assert layer.kernel is kernel and layer.count_params() == 15
    assert layer.get_build_config() == {"input_shape": (2, 4)}
    fresh = layers.Dense(3)
    fresh.build_from_config(layer.get_build_config())
    assert [v.shape for v in fresh.weights] == [(4, 3), (3,)]


def test_build_gets_the_shapes_it_names():
    class Attend(layers.Layer):
        def build(self, query_shape, value_shape):
            self.shapes = query_shape, value_shape
            self.w = self.add_weight((query_shape[-1], value_shape[-1]), name="w")

        def call(self, query, value, training=False):
            return ops.matmul(query, self.w) * ops.sum(value)

    layer = Attend()
    layer(X(2, 3), value=X(2, 5))
    assert layer.shapes == ((2, 3), (2, 5)) and layer.w.shape == (3, 5)

    class Nested(layers.Layer):
        def build(self, input_shape):
            self.shapes = input_shape

        def call(self, inputs):
            return inputs["a"] + inputs["b"][0]

    nested = Nested()
    close(nested({"a": X(2, 3), "b": [X(2, 3), X(1, 1)]}), 2 * X(2, 3))
    assert nested.shapes == {"a": (2, 3), "b": [(2, 3), (1, 1)]}


def test_build_runs_once_however_it_is_inherited():
    runs = []

    class Base(layers.Layer):
        def build(self, shape):
            runs.append("base")
            self.w = self.add_weight((shape[-1],), "ones", name="w")

        def call(self, x):
            return x * self.w

    class Derived(Base):
        def build(self, shape):
            runs.append("derived")
            super().build(shape)
            self.v = self.add_weight((2,), name="v")

    layer = Derived(name="derived")
    layer(X(2, 4)), layer(X(2, 4))
    assert runs == ["derived", "base"]
    assert [v.path for v in layer.weights] == ["derived/w", "derived/v"]


def test_weights_without_a_build():
    class Scale(layers.Layer):
        def __init__(self):
            super().__init__()
            self.w = self.add_weight(shape=(), initializer="ones")
            self.own = khub.Variable([2.0, 3.0], name="own")

        def call(self, x):
            return x * self.w * self.own

    layer = Scale()
    close(layer(X(4, 2)), X(4, 2) * [2, 3])
    assert list(layer.named_variables()) == ["w", "own"] and layer.count_params() == 3


# --- weights -------------------------------------------------------------------------------------
def test_order_and_paths_of_weights():
    block = Block(4, rate=0.5, name="block")
    block.build((None, 4))
    names = [
        "scale", "count", "stack.0.kernel", "stack.0.bias", "stack.1.kernel", "stack.1.bias",
        "named.norm.gamma", "named.norm.beta", "drop.seed_generator.state",
    ]  # fmt: skip
    assert list(block.named_variables()) == names
    assert block.weights == list(block.named_variables().values())[:-1]
    assert [v.path for v in block.weights] == [
        "block/scale", "block/count", "block/up/kernel", "block/up/bias", "block/down/kernel",
        "block/down/bias", "block/norm/gamma", "block/norm/beta",
    ]  # fmt: skip
    assert block.trainable_weights == [v for v in block.weights if v is not block.count]
    assert block.non_trainable_weights == [block.count]
    assert block.non_trainable_variables == [block.count, block.drop.seed_generator.state]
    assert list(block.named_layers()) == ["", "stack.0", "stack.1", "named.norm", "drop"]


def test_set_and_get_weights():
    layer = layers.Dense(2)
    layer.build((None, 3))
    weights = [np.ones((3, 2), "float32"), np.float32([1, 2])]
    layer.set_weights(weights)
    for found, expected in zip(layer.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(found, expected)
    for wrong, words in (
        (weights[:1], "2 weights, got 1"),
        (weights[::-1], r"kernel has shape \(3, 2\), got an array of \(2,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            layer.set_weights(wrong)
    np.testing.assert_array_equal(layer.get_weights()[0], weights[0])


def test_trainable_reaches_down_and_back():
    block = Block(4)
    block.build((None, 4))
    inner = block.stack[1]
    inner.trainable = False
    assert inner.kernel not in block.trainable_weights and block.scale in block.trainable_weights
    assert inner.kernel in block.non_trainable_weights
    block.trainable = False
    assert block.trainable_weights == [] and not block.named["norm"].trainable
    assert len(block.non_trainable_weights) == len(block.weights)
    inner.trainable = True  # the layer around it stays frozen
    assert block.trainable_weights == [] and inner.trainable_weights == [inner.kernel, inner.bias]
    block.trainable = True
    assert len(block.trainable_weights) == 7 and not block.count.trainable
    frozen = layers.Dense(2, trainable=False)
    frozen.build((None, 2))
    assert frozen.trainable_weights == []
    frozen.trainable = True
    assert frozen.trainable_weights == [frozen.kernel, frozen.bias]


def test_a_frozen_batch_normalization_uses_its_averages():
    layer, x = layers.BatchNormalization(), X(6, 3) * 5
    layer.build((None, 3))
    layer.trainable = False
    close(layer(x, training=True), layer(x, training=False))
    close(layer.moving_mean, np.zeros(3))


# --- losses and metrics --------------------------------------------------------------------------
class Penalized(layers.Layer):
    def build(self, shape):
        self.dense = layers.Dense(
            2, kernel_initializer="ones", kernel_regularizer=khub.regularizers.L2(0.1)
        )
        self.dense.build(shape)

    def call(self, x):
        self.add_loss(ops.sum(x))
        self.add_loss([ops.mean(x), ops.max(x)])
        return self.dense(x)


def test_losses_are_those_of_the_latest_call():
    layer = Penalized()
    for x in (X(3, 2), X(5, 2)):
        layer(x)
        found = [float(loss) for loss in layer.losses]
        np.testing.assert_allclose(found, [x.sum(), x.mean(), x.max(), 0.4], rtol=1e-4, atol=1e-6)
    layer.dense.trainable = False
    assert len(layer.losses) == 3  # nothing to regularize

    class Twice(layers.Layer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, x):
            return self.inner(x) + self.inner(2 * x)

    outer = Twice(layer)
    outer(X(3, 2)), outer(X(4, 2))
    assert len(outer.losses) == 6


def test_symbolic_calls_leave_no_losses():
    layer = Penalized()
    layer(khub.Input((2,)))
    layer.compute_output_shape((3, 2))
    assert [round(float(loss), 5) for loss in layer.losses] == [0.4]


def test_activity_regularizers():
    layer = layers.Dense(
        2, kernel_initializer="ones", activity_regularizer=khub.regularizers.L1(0.5)
    )
    x = np.abs(X(4, 3))
    layer(x)
    np.testing.assert_allclose(float(layer.losses[0]), 0.5 * 2 * x.sum() / 4, rtol=1e-5)
    assert layer.get_config()["activity_regularizer"]["config"] == {"l1": 0.5}


def test_losses_inside_jit_and_a_gradient():
    layer = Penalized()
    layer.build((None, 2))

    def total(x):
        layer(x)
        return sum(layer.losses[1:], layer.losses[0])

    x = X(3, 2)
    expected = x.sum() + x.mean() + x.max() + 0.4
    np.testing.assert_allclose(float(khub.jit(total)(x)), expected, rtol=1e-5)
    if BACKEND != "numpy":
        _, (gradient,) = khub.value_and_grad(total, [layer.dense.kernel])(x)
        close(gradient, 0.2 * np.ones((2, 2)))


def test_metrics_of_a_layer():
    class Watched(layers.Layer):
        def __init__(self):
            super().__init__()
            self.size = khub.metrics.Mean(name="size")
            self.inner = layers.Dense(2)

        def call(self, x):
            self.size.update_state(ops.mean(x))
            return self.inner(x)

    layer = Watched()
    layer(np.ones((2, 3), "float32")), layer(3 * np.ones((2, 3), "float32"))
    assert layer.metrics == [layer.size] and float(layer.size.result()) == 2
    assert layer.metrics_variables == layer.size.variables
    assert len(layer.variables) == 2  # the metric's own are not among them


# --- masks ---------------------------------------------------------------------------------------
TOKENS = np.array([[1, 2, 0, 0], [3, 0, 4, 0]])


def test_an_embeddings_mask_travels():
    seen = {}

    class Last(layers.Layer):
        def call(self, x, mask=None):
            seen["mask"] = mask
            return x + 0

    before = len(MASKS)
    embedding = layers.Embedding(5, 3, mask_zero=True)
    x = embedding(TOKENS)
    np.testing.assert_array_equal(numpy(get_mask(x)), TOKENS != 0)
    y = layers.Dense(2)(x)  # supports masking
    np.testing.assert_array_equal(numpy(get_mask(y)), TOKENS != 0)
    assert get_mask(Last()(y)) is None  # takes the mask, and lets none out
    np.testing.assert_array_equal(numpy(seen["mask"]), TOKENS != 0)
    Last()(layers.Flatten()(y))
    assert seen["mask"] is None
    own = np.ones((2, 4), bool)
    Last()(y, mask=own)
    np.testing.assert_array_equal(numpy(seen["mask"]), own)
    assert get_mask(layers.Embedding(5, 3)(TOKENS)) is None
    del x, y
    embedding(TOKENS)
    import gc

    gc.collect()
    assert len(MASKS) <= before + 1  # masks die with their tensors


def test_masks_change_results():
    x = layers.Embedding(5, 3, mask_zero=True)
    pooled = layers.GlobalAveragePooling1D()(x(TOKENS))
    values = numpy(x.embeddings.value)[TOKENS]
    weights = (TOKENS != 0)[..., None]
    close(pooled, (values * weights).sum(1) / weights.sum(1))
    masked = X(2, 3, 2)
    masked[0, 1] = 0
    y = layers.Masking()(masked)
    np.testing.assert_array_equal(numpy(get_mask(y)), [[True, False, True], [True] * 3])


def test_masks_of_merged_tensors():
    x, y, z = (ops.convert_to_tensor(X(2, 4, 3)) for _ in range(3))
    a, b = TOKENS != 0, np.array([[1, 0, 1, 1], [1, 1, 1, 0]], bool)
    set_mask(x, ops.convert_to_tensor(a)), set_mask(y, ops.convert_to_tensor(b))
    np.testing.assert_array_equal(numpy(get_mask(layers.Add()([x, y, z]))), a & b)
    joined = layers.Concatenate(axis=1)([x, y])
    np.testing.assert_array_equal(numpy(get_mask(joined)), np.concatenate([a, b], 1))
    joined = layers.Concatenate()([x, y])
    np.testing.assert_array_equal(numpy(get_mask(joined)), a | b)
    assert get_mask(layers.Concatenate()([z, z])) is None


def test_a_lambda_sees_mask_and_training():
    def pooled(x, mask=None, training=None):
        return ops.sum(x * ops.cast(mask, "float32")[..., None]) if training else ops.sum(x)

    x, layer = ops.convert_to_tensor(X(2, 4, 3)), layers.Lambda(pooled)
    set_mask(x, ops.convert_to_tensor(TOKENS != 0))
    close(layer(x, training=True), (numpy(x) * (TOKENS != 0)[..., None]).sum(), 1e-4)
    close(layer(x), numpy(x).sum(), 1e-4)
    scaled = layers.Lambda(lambda x, by: x * by, arguments={"by": 3.0})
    close(scaled(X(2, 2)), 3 * X(2, 2))


# --- training ------------------------------------------------------------------------------------
class Asking(layers.Layer):
    def __init__(self, *inner, default=None):
        super().__init__()
        self.inner = inner
        self.seen = []

    def call(self, x, training=None):
        self.seen.append(training)
        for layer in self.inner:
            x = layer(x)
        return x


def test_training_reaches_the_layers_inside():
    class Silent(layers.Layer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, x):
            return self.inner(x)

    class Stubborn(Silent):
        def call(self, x):
            return self.inner(x, training=True)

    deep, forced = Asking(), Asking()
    outer = Asking(Silent(deep), Stubborn(forced), layers.Dropout(0.5))
    x = np.ones((8, 8), "float32")
    for given, dropped in ((True, True), (False, False), (None, False)):
        y = numpy(outer(x, training=given) if given is not None else outer(x))
        assert bool((y == 0).any()) is dropped
        assert bool(deep.seen[-1]) is bool(given) and forced.seen[-1] is True
    Silent(deep)(x, training=True)  # a layer that does not take the argument passes it on
    assert deep.seen[-1] is True and local.call is None


def test_the_default_of_training_counts_at_the_outermost_call():
    class Training(layers.Layer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, x, training=True):
            return self.inner(x)

    inner = Asking()
    Training(inner)(X(2, 2))
    assert inner.seen == [True]


# --- dtypes --------------------------------------------------------------------------------------
POLICIES = [  # policy, dtype of the result, of the weights
    ("float32", "float32", "float32"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("float16", "float16", "float16"),
    ("mixed_bfloat16", "bfloat16", "float32"),
    ("mixed_float16", "float16", "float32"),
]


@pytest.mark.parametrize(("policy", "compute", "variable"), POLICIES)
def test_policies(policy, compute, variable):
    seen = {}

    class Seeing(layers.Layer):
        def build(self, shape):
            self.w = self.add_weight((3,), "ones", name="w")
            self.steps = self.add_weight((), dtype="int32", name="steps")
            self.exact = self.add_weight((3,), "ones", autocast=False, name="exact")

        def call(self, inputs, other=None):
            seen.update(x=inputs[0].dtype, ids=inputs[1].dtype, w=self.w.value.dtype)
            seen.update(exact=self.exact.value.dtype, steps=self.steps.value.dtype)
            seen.update(other=other.dtype)
            return inputs[0] * self.w

    layer = Seeing(dtype=policy)
    y = layer([X(2, 3), np.array([1, 2])], ops.convert_to_tensor(X(2)))
    seen = {name: khub.dtypes.standardize(dtype) for name, dtype in seen.items()}
    assert (seen["x"], seen["w"], seen["other"], ops.dtype(y)) == (compute,) * 4
    assert seen["ids"] in ("int32", "int64") and seen["steps"] == "int32"
    assert (seen["exact"], layer.w.dtype, layer.dtype, layer.variable_dtype) == (variable,) * 4
    assert layer.compute_dtype == compute and layer.dtype_policy.name == policy
    assert layer.steps.dtype == "int32" and not layer.steps.trainable
    assert ops.dtype(layer.w.value) == variable  # outside of a call
    again = Seeing.from_config(layer.get_config())
    assert again.dtype_policy == layer.dtype_policy
    assert layers.Dense(2, dtype=khub.DTypePolicy(policy)).compute_dtype == compute


def test_each_layer_casts_for_itself():
    model = khub.Sequential(
        [layers.Dense(3, dtype="mixed_bfloat16"), layers.Dense(2), layers.Dense(2, dtype="float16")]
    )
    assert ops.dtype(model(X(2, 4))) == "float16"
    plain = layers.Dense(2)
    for dtype in ("float16", "bfloat16", "float64", "int32"):
        if dtype == "float64" and BACKEND == "jax":
            continue
        assert ops.dtype(plain(ops.cast(ops.convert_to_tensor(X(2, 4)), dtype))) == "float32"


@pytest.mark.parametrize("kind", ["functional", "subclass"])
def test_a_layer_of_full_precision_computes_in_it_inside_a_mixed_model(kind):
    dense = layers.Dense(3, dtype="float32")

    class Subclass(khub.Model):
        def __init__(self):
            super().__init__(dtype="mixed_bfloat16")
            self.dense = dense

        def call(self, x):
            return self.dense(ops.cast(x, "float32"))

    x = symbol = khub.Input((4,), dtype="float32")
    model = {
        "functional": lambda: khub.Model(x, dense(symbol), dtype="mixed_bfloat16"),
        "subclass": Subclass,
    }[kind]()
    model(np.eye(4, dtype="float32"))
    kernel = np.random.default_rng(0).standard_normal((4, 3)).astype("float32")
    dense.set_weights([kernel, np.zeros(3, "float32")])
    for _ in range(2):  # the second call is a layer's short way
        y = model(np.eye(4, dtype="float32"), training=False)
        assert ops.dtype(y) == "float32"
        np.testing.assert_array_equal(ops.convert_to_numpy(y), kernel)


def test_autocast_can_be_switched_off():
    class Keeping(layers.Layer):
        def call(self, x):
            return x

    assert ops.dtype(Keeping(dtype="float16", autocast=False)(X(2))) == "float32"
    assert ops.dtype(Keeping(dtype="float16")(X(2))) == "float16"
    assert ops.dtype(Keeping(dtype="float16")(np.array([1]))) in ("int32", "int64")


def test_the_global_policy_is_for_layers_made_later():
    before = layers.Dense(2)
    khub.dtype_policies.set_dtype_policy("mixed_bfloat16")
    try:
        after = layers.Dense(2)
    finally:
        khub.dtype_policies.set_dtype_policy("float32")
    assert before.compute_dtype == "float32" == layers.Dense(2).compute_dtype
    assert after.compute_dtype == "bfloat16" and ops.dtype(after(X(1, 2))) == "bfloat16"
    after.dtype_policy = "float32"
    assert ops.dtype(after(X(1, 2))) == "float32"


# --- calls without side effects ------------------------------------------------------------------
def test_stateless_call_leaves_the_layer_alone():
    block = Block(4, rate=0.5)
    block.build((None, 4))
    x = X(3, 4)
    before = [numpy(v.value).copy() for v in block.variables]
    given = [np.float32(v.numpy()) + 1 for v in block.trainable_variables]
    rest = [v.value for v in block.non_trainable_variables]
    y, state = block.stateless_call(given, rest, x, training=True)
    for variable, value in zip(block.variables, before, strict=True):
        np.testing.assert_array_equal(numpy(variable.value), value)
    assert float(state[0]) == 1 and float(block.count) == 0
    if BACKEND in ("jax", "tensorflow"):  # the others keep the framework's own generator
        assert not (numpy(state[1]) == numpy(rest[1])).all()
    for variable, value in zip(block.trainable_variables, given, strict=True):
        variable.assign(value)
    if BACKEND in ("jax", "tensorflow"):
        close(block(x, training=True), y)
        again, _ = block.stateless_call(given, rest, x, training=True)
        close(again, y)
    penalized, zeros = built(Penalized(), None, 2), [np.zeros(s, "float32") for s in ((2, 2), 2)]
    _, _, losses = penalized.stateless_call(zeros, [], X(3, 2), return_losses=True)
    assert len(losses) == 4 and float(losses[3]) == 0
    with pytest.raises(ValueError, match="7 trainable variables, got 6"):
        block.stateless_call(given[1:], rest, x)
    with pytest.raises(ValueError, match="2 non-trainable variables, got 0"):
        block.stateless_call(given, [], x)


def test_stateless_call_that_fails_leaves_the_layer_alone():
    class Failing(Block):
        def call(self, x):
            self.count.assign_add(5.0)
            raise RuntimeError("stop")

    layer = Failing(4)
    layer.build((None, 4))
    values = [v.value for v in layer.trainable_variables]
    with pytest.raises(RuntimeError, match="stop"):
        layer.stateless_call(values, [np.float32(0)], X(2, 4))
    assert float(layer.count) == 0 and local.scope is None and local.call is None


# --- errors of a call ----------------------------------------------------------------------------
def built(layer, *shape):
    layer.build(shape)
    return layer


BAD_CALLS = [  # layer, input, words
    (
        lambda: built(layers.Dense(2, name="d"), None, 4),
        (2, 3),
        ["Dense", "'d'", "size 4", "(2, 3)"],
    ),
    (lambda: layers.Dense(2), (3,), ["Dense", "at least 2 axes", "(3,)"]),
    (lambda: layers.Conv2D(2, 3), (2, 8, 3), ["Conv2D", "4 axes", "(2, 8, 3)"]),
    (lambda: built(layers.Conv2D(2, 3), None, 8, 8, 3), (1, 8, 8, 4), ["size 3", "(1, 8, 8, 4)"]),
    (lambda: built(layers.Conv2D(2, 3), None, 8, 8, 3), (1, 8, 8, 6), ["size 3", "(1, 8, 8, 6)"]),
    (lambda: layers.MaxPooling1D(2), (2, 8), ["MaxPooling1D", "3 axes", "(2, 8)"]),
    (lambda: layers.RepeatVector(2), (2, 8, 1), ["RepeatVector", "2 axes", "(2, 8, 1)"]),
    (lambda: built(layers.BatchNormalization(), None, 3), (2, 4), ["size 3", "(2, 4)"]),
    (lambda: layers.GroupNormalization(3), (2, 4), ["4 channels", "3 groups"]),
    (lambda: layers.Add(), (2, 4), ["Add", "list of tensors", "(2, 4)"]),
    (lambda: layers.Conv1D(4, 2, groups=2), (2, 5, 3), ["Conv1D", "3 input channels", "2 groups"]),
]


@pytest.mark.parametrize("symbolic", [False, True], ids=["tensor", "symbol"])
@pytest.mark.parametrize(("make", "shape", "words"), BAD_CALLS)
def test_wrong_inputs_are_explained(make, shape, words, symbolic):
    x = khub.KerasTensor((None, *shape[1:])) if symbolic else X(*shape)
    if symbolic:
        words = [word.replace(f"({shape[0]},", "(None,") for word in words]
    with pytest.raises(ValueError) as caught:
        make()(x)
    assert [word for word in words if word not in str(caught.value)] == []
    assert local.scope is None and local.call is None


def test_errors_inside_name_the_layers():
    class Outer(layers.Layer):
        def __init__(self):
            super().__init__(name="outer")
            self.inner = layers.Lambda(lambda x: ops.reshape(x, (7, 7)), name="inner")

        def call(self, x):
            return self.inner(x)

    with pytest.raises(Exception) as caught:
        Outer()(X(2, 3))
    notes = "\n".join(caught.value.__notes__)
    assert notes.index("'inner'") < notes.index("'outer'") and "(2, 3)" in notes
    with pytest.raises(NotImplementedError, match=r"Layer does not define call\(\)"):
        layers.Layer()(X(2))


# --- layers written by users ---------------------------------------------------------------------
def test_a_layer_with_an_own_constructor():
    layer = Linear(4, activation="relu", name="mine", dtype="float32")
    y = layer(X(3, 5))
    close(y, np.maximum(X(3, 5) @ layer.w.numpy(), 0))
    config = layer.get_config()
    assert config["units"] == 4 and config["name"] == "mine" and config["activation"] == "relu"
    again = Linear.from_config(config)
    again.build((None, 5))
    again.set_weights(layer.get_weights())
    close(again(X(3, 5)), y)
    model = khub.Sequential([khub.Input((5,)), layer, Linear(2)])
    assert model.output_shape == (None, 2) and model.count_params() == 24 + 10


def test_a_layer_that_calls_ops_and_functions_of_numpy_arrays():
    class Table(layers.Layer):
        def call(self, x):
            return ops.take(np.arange(10.0, dtype="float32"), x) + 1

    close(Table()(np.array([3, 4])), [4, 5])
    assert Table()(khub.KerasTensor((None,), "int32")).shape == (None,)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent(way):
    for layer in (Linear(3, "relu"), Block(4, 0.5), layers.Conv2D(2, 3), layers.Embedding(5, 2)):
        shape = {"Conv2D": (2, 5, 5, 1), "Embedding": (2, 3)}.get(type(layer).__name__, (2, 4))
        x = TOKENS if isinstance(layer, layers.Embedding) else X(*shape)
        y = layer(x)
        twin = way(layer)
        assert type(twin) is type(layer) and twin.get_config() == layer.get_config()
        close(twin(x), y)
        assert list(twin.named_variables()) == list(layer.named_variables())
        twin.weights[0].assign(twin.weights[0].numpy() * 0 + 9)
        close(layer(x), y)
    lazy = way(layers.Dense(2))
    assert lazy(X(1, 3)).shape == (1, 2)


# --- what a layer is to its framework ------------------------------------------------------------
@pytest.mark.skipif(BACKEND != "torch", reason="about torch")
class TestModule:
    def test_parameters_and_state(self):
        import torch

        block = Block(4, 0.5)
        block.build((None, 4))
        assert isinstance(block, torch.nn.Module)
        names = [n for n, _ in block.named_parameters()]
        assert names == [
            "scale", "stack_0.kernel", "stack_0.bias", "stack_1.kernel", "stack_1.bias",
            "named_norm.gamma", "named_norm.beta",
        ]  # fmt: skip
        assert block.get_submodule("stack_1") is block.stack[1]
        state = block.state_dict()
        assert len(state) == len(block.named_variables())
        other = Block(4, 0.5)
        other.build((None, 4))
        other.load_state_dict(state)
        close(other.stack[1].kernel, block.stack[1].kernel)
        block.stack[0].trainable = False
        assert not dict(block.named_parameters())["stack_0.kernel"].requires_grad

    def test_inside_another_module_trained_by_torch(self):
        import torch

        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), built(layers.Dense(2), None, 4))
        assert len(list(net.parameters())) == 4 and "1.kernel" in net.state_dict()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        before = net[1].kernel.numpy().copy()
        net(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
        assert not (net[1].kernel.numpy() == before).all()

        class Holder(layers.Layer):
            def __init__(self):
                super().__init__()
                self.native = torch.nn.Linear(3, 2)
                self.dense = built(layers.Dense(2), None, 2)

            def call(self, x):
                return self.dense(self.native(x))

        holder = Holder()
        assert set(dict(holder.named_parameters())) == {
            "native.weight", "native.bias", "dense.kernel", "dense.bias",
        }  # fmt: skip
        assert holder(X(2, 3)).shape == (2, 2)

    def test_hooks_run_and_can_be_removed(self):
        seen = []
        layer = built(layers.Dense(2), None, 3)
        outer = khub.Sequential([layer])
        handle = layer.register_forward_hook(lambda module, args, out: seen.append(out.shape))
        before = layer.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
        close(outer(X(4, 3)), np.zeros((4, 2)))
        assert seen == [(4, 2)]
        handle.remove(), before.remove()
        assert not (numpy(outer(X(4, 3))) == 0).all() and len(seen) == 1

    def test_modes_and_conversions(self):
        import torch

        layer = layers.Dropout(0.5)
        x = np.ones((8, 8), "float32")
        assert (numpy(layer(x)) == 1).all()
        assert (numpy(layer.train()(x)) == 0).any() and layer.training
        assert (numpy(layer.eval()(x)) == 1).all()
        dense = built(layers.Dense(2), None, 3)
        dense.to(torch.float64)
        assert dense.kernel.value.dtype == torch.float64
        for parameter in dense.parameters():
            torch.nn.init.zeros_(parameter)
        assert not dense.kernel.numpy().any()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="about TensorFlow")
class TestTrackable:
    def test_checkpoint(self, tmp_path):
        import tensorflow as tf

        block = Block(4, 0.5)
        block.build((None, 4))
        path = tf.train.Checkpoint(block=block).save(str(tmp_path / "saved"))
        other = Block(4, 0.5)
        other.build((None, 4))
        for variable in other.weights:
            variable.assign(variable.numpy() * 0 + 7)
        tf.train.Checkpoint(block=other).restore(path).assert_consumed()
        for mine, saved in zip(other.variables, block.variables, strict=True):
            np.testing.assert_array_equal(mine.numpy(), saved.numpy())

    def test_a_checkpoint_holds_the_optimizer(self, tmp_path):
        import tensorflow as tf

        found = []
        for rate in (0.5, 0.1):
            layer, optimizer = built(layers.Dense(2), None, 3), khub.optimizers.Adam(rate)
            optimizer.build(layer.trainable_variables)
            optimizer.apply([v.value for v in layer.trainable_variables])
            found.append(tf.train.Checkpoint(layer=layer, optimizer=optimizer))
        path = found[0].save(str(tmp_path / "checkpoint"))
        found[1].restore(path).assert_consumed()
        assert float(optimizer.learning_rate) == 0.5 and int(optimizer.iterations) == 1

    def test_autograph_leaves_khub_alone(self, caplog):
        import tensorflow as tf

        model = khub.Sequential([khub.Input((3,)), layers.Dense(2), layers.BatchNormalization()])

        @tf.function
        def call(x):
            return model(x, training=True)

        tf.get_logger().propagate = True
        assert call(X(4, 3)).shape == (4, 2) and "AutoGraph" not in caplog.text

    def test_inside_a_module_and_a_tape(self):
        import tensorflow as tf

        class Holder(tf.Module):
            def __init__(self):
                super().__init__()
                self.dense = built(layers.Dense(2), None, 3)

            @tf.function
            def __call__(self, x):
                return self.dense(x)

        holder = Holder()
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(holder(tf.ones((2, 3))))
        (gradient,) = tape.gradient(loss, [holder.dense.kernel.materialize()])
        close(gradient, 2 * np.ones((3, 2)))

    def test_saved_model(self, tmp_path):
        import tensorflow as tf

        layer = built(layers.Dense(2), None, 3)
        layer.serve = tf.function(lambda x: layer(x), input_signature=[tf.TensorSpec((None, 3))])
        tf.saved_model.save(layer, str(tmp_path / "model"))
        again = tf.saved_model.load(str(tmp_path / "model"))
        close(again.serve(X(4, 3)), layer(X(4, 3)))


@pytest.mark.skipif(BACKEND != "jax", reason="about JAX")
def test_layers_inside_jax_own_transforms():
    import jax

    layer = built(layers.Dense(2, "tanh"), None, 3)
    weights = [v.value for v in layer.trainable_variables]

    @jax.jit
    @jax.grad
    def gradient(weights, x):
        return layer.stateless_call(weights, [], x)[0].sum()

    found = gradient(weights, X(4, 3))
    assert found[0].shape == (3, 2) and isinstance(layer.kernel.value, jax.Array)
    close(jax.vmap(lambda x: layer(x[None])[0])(X(4, 3)), layer(X(4, 3)))
    norm = built(layers.BatchNormalization(), None, 3)
    with pytest.raises(RuntimeError, match="stateless_call"):
        jax.jit(lambda x: norm(x, training=True))(X(4, 3))
    assert isinstance(norm.moving_mean.numpy(), np.ndarray)
