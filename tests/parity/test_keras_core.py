"""The same code builds the same model in khub and in Keras: outputs, weights, counts, configs."""

import json
import os
import re

import numpy as np
import pytest

KERAS = os.environ["KERAS_BACKEND"]
keras = pytest.importorskip("keras")

import khub  # noqa: E402


def X(*shape, seed=0):
    return np.random.RandomState(seed).randn(*shape).astype("float32")


def mlp(k):
    return k.Sequential(
        [
            k.Input((6,), name="x"),
            k.layers.Dense(8, "relu", name="one"),
            k.layers.LayerNormalization(name="two"),
            k.layers.Dropout(0.5, name="three"),
            k.layers.Dense(3, "softmax", kernel_regularizer="l2", name="four"),
        ],
        name="mlp",
    )


def cnn(k):
    x = image = k.Input((8, 8, 3), name="image")
    for i, width in enumerate((4, 6)):
        x = k.layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv{i}")(x)
        x = k.layers.BatchNormalization(name=f"norm{i}")(x)
        x = k.layers.ReLU(name=f"relu{i}")(x)
        x = k.layers.MaxPooling2D(2, name=f"pool{i}")(x)
    x = k.layers.Flatten(name="flat")(x)
    return k.Model(image, k.layers.Dense(2, name="head")(x), name="cnn")


def residual(k):
    x = inputs = k.Input((5,), name="x")
    block = k.layers.Dense(5, "tanh", name="block")
    for i in range(3):
        x = k.layers.Add(name=f"add{i}")([x, block(x)])
    return k.Model(inputs, [x, block(inputs)], name="residual")


def operators(k):
    a, b = k.Input((4,), name="a"), k.Input((None, 4), name="b")
    mean = k.ops.mean(b, axis=1)
    h = (a + 2.0) * mean - mean / 3.0
    h = k.ops.concatenate([h[:, :2], k.ops.relu(-h)], axis=-1)
    scores = k.ops.softmax(k.ops.matmul(b, k.ops.expand_dims(a, -1)), axis=1)
    return k.Model(
        {"a": a, "b": b},
        [
            k.layers.Dense(2, name="d")(h),
            {"s": k.ops.reshape(k.ops.sum(b * scores, axis=1), (-1, 2, 2))},
        ],
        name="operators",
    )


def nested(k):
    inner = k.Sequential(
        [
            k.Input((4,), name="in"),
            k.layers.Dense(4, name="p"),
            k.layers.BatchNormalization(name="q"),
        ],
        name="inner",
    )
    y = k.Input((4,), name="y")
    middle = k.Model(y, inner(y) + inner(y * 2.0), name="middle")
    x = k.Input((4,), name="x")
    return k.Model(x, k.layers.Dense(2, name="top")(middle(x)), name="outer")


def text(k):
    tokens = k.Input((None,), dtype="int32", name="tokens")
    x = k.layers.Embedding(9, 4, mask_zero=True, name="table")(tokens)
    x = k.layers.Dense(3, "gelu", name="up")(x)
    both = k.layers.Concatenate(name="both")([x, k.layers.Dense(2, name="side")(x)])
    return k.Model(tokens, k.layers.GlobalAveragePooling1D(name="mean")(both), name="text")


def joined(k):
    """A mask through a concatenation in time with a tensor that has none."""
    tokens, rows = k.Input((3,), dtype="int32", name="tokens"), k.Input((2, 4), name="rows")
    x = k.layers.Embedding(9, 4, mask_zero=True, name="table")(tokens)
    x = k.layers.Concatenate(axis=1, name="both")([x, rows])
    return k.Model([tokens, rows], k.layers.GlobalAveragePooling1D(name="mean")(x), name="joined")


def mixed(k):
    x = k.Input((6,), name="x")
    h = k.layers.Dense(8, "relu", dtype="mixed_bfloat16", name="one")(x)
    return k.Model(x, k.layers.Dense(2, dtype="float32", name="two")(h), name="mixed")


def branches(k):
    x = image = k.Input((6, 6, 3), name="image")
    for i in range(2):
        side = k.layers.Conv2D(4, 1, name=f"side{i}")(x)
        side = k.layers.BatchNormalization(name=f"side_norm{i}")(side)
        y = k.layers.Conv2D(5, 1, activation="relu", name=f"narrow{i}")(x)
        y = k.layers.BatchNormalization(name=f"norm{i}")(y)
        y = k.layers.Conv2D(4, 3, padding="same", name=f"wide{i}")(y)
        x = k.layers.Add(name=f"add{i}")([side, y])
    pools = k.layers.MaxPooling2D(2, name="most")(x), k.layers.AveragePooling2D(2, name="mean")(x)
    return k.Model(image, k.layers.Concatenate(name="both")(list(pools)), name="branches")


def inputs(k):
    """Inputs that join at several depths, one of them unused by an output's walk for long."""
    a, b, c = (k.Input((n,), name=name) for n, name in ((4, "a"), (3, "b"), (5, "c")))
    shared = k.layers.Dense(6, name="shared")
    x = shared(k.layers.Dense(4, name="second")(k.layers.Dense(4, name="first")(a)))
    y = shared(k.layers.Dense(4, name="other")(b))
    z = k.layers.Concatenate(name="join")([y, x, k.layers.Dense(2, name="third")(c)])
    last = k.layers.Dense(1, name="last")(z)
    side = k.layers.Dense(2, name="out")(k.layers.Dense(3, name="hidden")(y))
    return k.Model([b, a, c], [last, side, k.ops.relu(last)], name="inputs")


TOKENS = np.array([[1, 2, 0], [3, 0, 4]], "int32")
MODELS = {  # function -> its input
    mlp: X(4, 6),
    cnn: X(2, 8, 8, 3),
    residual: X(3, 5),
    operators: {"a": X(2, 4), "b": X(2, 3, 4)},
    nested: X(3, 4),
    text: TOKENS,
    joined: [TOKENS, X(2, 2, 4)],
    mixed: X(4, 6),
    branches: X(2, 6, 6, 3),
    inputs: [X(2, 3), X(2, 4), X(2, 5)],
}
models = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


def give_weights(ours, theirs):
    random = np.random.RandomState(2)
    weights = [random.uniform(0.1, 0.9, v.shape).astype("float32") for v in theirs.weights]
    ours.set_weights(weights), theirs.set_weights(weights)


def agree(ours, theirs, tolerance=1e-5):
    ours, theirs = khub.tree.flatten(ours), keras.tree.flatten(theirs)
    for a, b in zip(ours, theirs, strict=True):
        a, b = khub.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b)
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@models
def test_outputs_weights_and_counts(make):
    ours, theirs = make(khub), make(keras)
    operations = {"add", "concatenate", "relu", "softmax"}  # in Keras layers of their own, unnamed
    names = [[layer.name for layer in model.layers] for model in (ours, theirs)]
    assert names[0] == [name for name in names[1] if name in names[0] or name not in operations]
    assert [(v.path, v.shape, v.trainable) for v in ours.weights] == [
        (v.path, tuple(v.shape), v.trainable) for v in theirs.weights
    ]
    for of in ("trainable_weights", "non_trainable_weights"):
        assert [v.path for v in getattr(ours, of)] == [v.path for v in getattr(theirs, of)]
    assert ours.count_params() == theirs.count_params()
    assert khub.tree.flatten(ours.output_shape) == keras.tree.flatten(theirs.output_shape)
    give_weights(ours, theirs)
    x = MODELS[make]
    tolerance = 2e-2 if make is mixed else 1e-5  # bfloat16 has 8 bits
    agree(ours(x), theirs(x), tolerance)
    agree(ours.predict(x, verbose=0), theirs.predict(x, verbose=0), tolerance)
    np.testing.assert_allclose(
        sorted(float(loss) for loss in ours.losses),
        sorted(float(loss) for loss in theirs.losses),
        1e-5,
    )
    if make is not mlp:  # whose dropout draws its own numbers
        agree(ours(x, training=True), theirs(x, training=True), tolerance)
        for mine, other in zip(ours.weights, theirs.weights, strict=True):
            agree(mine, other.value)


def counts(model):
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    text = re.sub("[│┃]", " ", "\n".join(map(str, lines)))
    totals = dict(
        re.findall(r"(Total|Trainable|Non-trainable) params: ([\d,]+ \([\d.]+ \w+\))", text)
    )
    rows = re.findall(r"^ *(\w+) \((\w+)\) +(\([^)]*\)|\?) +([\d,]+)", text, re.M)
    return totals, rows


@models
def test_summaries_count_alike(make):
    model = make(keras)
    ours, theirs = counts(make(khub)), counts(model)
    assert ours[0] == theirs[0] and len(ours[0]) == 3
    rows = {name: (kind, count) for name, kind, _, count in theirs[1]}
    found = {name: (kind, count) for name, kind, _, count in ours[1]}
    layers = {x.name for x in model.layers if isinstance(x, keras.layers.Layer)}  # not operations
    assert found.keys() == layers and len(found) >= 2
    for name in layers & rows.keys():  # Keras cuts long names
        assert found[name] == rows[name]


@models
def test_configs_are_read_by_the_other(make):
    ours, theirs, x = make(khub), make(keras), MODELS[make]
    give_weights(ours, theirs)
    read = khub.models.model_from_json(theirs.to_json())
    read.set_weights(theirs.get_weights())
    agree(read(x), theirs(x), 2e-2 if make is mixed else 1e-5)
    assert [v.path for v in read.weights] == [v.path for v in theirs.weights]
    written = keras.models.model_from_json(ours.to_json())
    written.set_weights(ours.get_weights())
    agree(ours(x), written(x), 2e-2 if make is mixed else 1e-5)
    # and once more through the other side
    assert (
        json.loads(khub.models.model_from_json(written.to_json()).to_json())["config"]["name"]
        == theirs.name
    )


@models
def test_configs_have_the_same_form(make):
    ours, theirs = (plain(make(k)) for k in (khub, keras))
    assert ours["class_name"] == theirs["class_name"] and ours["module"] == theirs["module"]
    for key in ("name", "trainable", "input_layers", "output_layers", "build_input_shape"):
        assert ours["config"].get(key) == theirs["config"].get(key), key
    mine, other = (layers_of(config) for config in (ours, theirs))
    assert mine.keys() == other.keys()
    for name, entry in mine.items():
        assert (entry["class_name"], entry["module"]) == (
            other[name]["class_name"],
            other[name]["module"],
        )
        nested = {"layers", "dtype", "output_layers", "input_layers", "build_input_shape"}
        assert entry["config"].keys() - nested == other[name]["config"].keys() - nested
        calls = [
            [call["args"] for call in e.get("inbound_nodes", ())] for e in (entry, other[name])
        ]
        assert (
            calls[0] == calls[1]
        )  # Keras' keyword arguments are masks, which khub finds by itself


def plain(model):
    """The config, without the numbers that Keras gives operations over the whole process."""
    return json.loads(re.sub(r'_\d+"', '"', model.to_json()))


def layers_of(config):
    entries = config["config"]["layers"]
    return {e["config"]["name"]: e for e in entries if not e["module"].startswith("keras.src.ops")}


class Plain:
    """The same user's layer, written for either."""

    def __new__(cls, k):
        class Counted(k.layers.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.count = self.add_weight(
                    shape=(), initializer="zeros", trainable=False, name="count"
                )
                self.first = self.add_weight(shape=(3,), initializer="ones", name="first")
                self.inner = k.layers.Dense(3, name="inner")
                self.drop = k.layers.Dropout(0.5, name="drop")
                self.seen = k.metrics.Mean(name="seen")

            def build(self, shape):
                self.late = self.add_weight(shape=(shape[-1],), name="late")
                self.inner.build(shape)

            def call(self, x):
                self.count.assign_add(1.0)
                self.seen.update_state(k.ops.mean(x))
                return self.inner(x * self.late) + self.first

        return Counted(name="own")


def test_a_users_layer():
    ours, theirs = Plain(khub), Plain(keras)
    ours.build((None, 3)), theirs.build((None, 3))
    for of in (
        "weights",
        "trainable_weights",
        "non_trainable_weights",
        "trainable_variables",
        "metrics_variables",
    ):
        assert [v.path for v in getattr(ours, of)] == [v.path for v in getattr(theirs, of)], of
    give_weights(ours, theirs)
    agree(ours(X(2, 3)), theirs(X(2, 3)))
    assert float(ours.count) == float(theirs.count)
    for frozen in ("drop", "inner"):
        getattr(ours, frozen).trainable = getattr(theirs, frozen).trainable = False
        for of in ("trainable_weights", "non_trainable_weights"):
            assert [v.path for v in getattr(ours, of)] == [v.path for v in getattr(theirs, of)]
    ours.trainable = theirs.trainable = False
    ours.inner.trainable = theirs.inner.trainable = True
    assert ours.trainable_weights == theirs.trainable_weights == []
    assert [v.trainable for v in ours.weights] == [v.trainable for v in theirs.weights]
    states = [v.value for v in theirs.non_trainable_variables]
    _, new = theirs.stateless_call([], states, X(2, 3))
    _, own = ours.stateless_call(
        [], [np.asarray(v.numpy()) for v in ours.non_trainable_variables], X(2, 3)
    )
    assert len(own) == len(new)


def test_a_subclassed_model():
    def make(k):
        class Net(k.Model):
            def __init__(self):
                super().__init__(name="net")
                self.stack = [k.layers.Dense(4, "relu", name=f"d{i}") for i in range(2)]
                self.norm = k.layers.BatchNormalization(name="norm")
                self.head = k.Sequential([k.layers.Dense(2, name="h")], name="head")

            def call(self, x, training=False):
                for layer in self.stack:
                    x = layer(x)
                return self.head(self.norm(x, training=training))

        return Net()

    ours, theirs = make(khub), make(keras)
    ours(X(3, 4)), theirs(X(3, 4))
    assert [(v.name, v.shape) for v in ours.weights] == [
        (v.name, tuple(v.shape)) for v in theirs.weights
    ]
    give_weights(ours, theirs)
    for training in (True, False):
        agree(ours(X(3, 4), training=training), theirs(X(3, 4), training=training))
    assert ours.count_params() == theirs.count_params()
    assert [layer.name for layer in ours.layers] == [layer.name for layer in theirs.layers]
