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


# --- whole models --------------------------------------------------------------------------------
def registered(library):
    """A layer and a model of a user's own, registered in this library."""

    @library.saving.register_keras_serializable("test")
    class Block(library.layers.Layer):
        def __init__(self, units, **kwargs):
            super().__init__(**kwargs)
            self.units = units
            self.dense = library.layers.Dense(units)
            self._norm = library.layers.LayerNormalization()
            self.several = [library.layers.Dense(units), [library.layers.Dense(units)]]
            self.named = {"b": library.layers.Dense(units), "a": library.layers.Dense(units)}

        def build(self, input_shape):
            self.scale = self.add_weight(shape=(self.units,), name="scale")
            inner = (*input_shape[:-1], self.units)
            self.dense.build(input_shape)
            for part in (self._norm, self.several[0], self.several[1][0], *self.named.values()):
                part.build(inner)

        def call(self, x):
            x = self._norm(self.dense(x)) * self.scale
            for part in (self.several[0], self.several[1][0], *self.named.values()):
                x = part(x)
            return x

        def get_config(self):
            return {**super().get_config(), "units": self.units}

    @library.saving.register_keras_serializable("test")
    class Net(library.Model):
        def __init__(self, units=3, **kwargs):
            super().__init__(**kwargs)
            self.units = units
            self.block = Block(units)
            self.head = library.layers.Dense(1)
            self.again = self.head
            self.seen = library.metrics.Mean(name="seen")

        def call(self, x):
            return self.head(self.block(x))

        def get_config(self):
            return {**super().get_config(), "units": self.units}

    return Block, Net


def mlp(k, **options):
    x = k.Input((4,), name="x")
    y = k.layers.Dense(3, activation="relu", **options)(x)
    return k.Model(x, k.layers.Dense(2)(y))


def subclassed(k):
    model = registered(k)[1]()
    model(np.zeros((2, 4), "float32"))
    return model


def nested(k):
    inner = k.Sequential([k.layers.Dense(4, name="one"), k.layers.BatchNormalization()])
    x = k.Input((4,))
    shared = k.layers.Dense(4, activation="tanh")
    y = shared(inner(shared(x)))
    return k.Model(x, k.Sequential([k.Input((4,)), registered(k)[0](3)])(y))


def recurrent(k):
    x = k.Input((5,), dtype="int32")
    y = k.layers.Embedding(7, 4, mask_zero=True)(x)
    y = k.layers.Bidirectional(k.layers.LSTM(3, return_sequences=True))(y)
    y = k.layers.RNN([k.layers.GRUCell(3), k.layers.LSTMCell(2)])(y)
    return k.Model(x, k.layers.Dense(1)(y))


def attention(k):
    x, z = k.Input((5, 4), name="a"), k.Input((5, 4), name="b")
    y = k.layers.MultiHeadAttention(2, 3)(x, z)
    y = k.layers.LayerNormalization()(k.ops.relu(x + y) * 2.0)
    y = k.ops.reshape(y[:, 1:], (-1, 16))
    return k.Model({"a": x, "b": z}, {"p": k.layers.Dense(1, name="p")(y), "q": y})


def convolutional(k):
    return k.Sequential(
        [
            k.Input((8, 8, 3)),
            k.layers.Conv2D(4, 3, padding="same"),
            k.layers.BatchNormalization(),
            k.layers.Activation("relu"),
            k.layers.SeparableConv2D(3, 3),
            k.layers.RandomFlip(seed=1),
            k.layers.Dropout(0.5),
            k.layers.GlobalAveragePooling2D(),
            k.layers.Dense(2, activation="softmax"),
        ]
    )


def preprocessing(k):
    scaled = k.layers.Normalization()
    scaled.adapt(FLOATS)
    found = k.layers.IntegerLookup(output_mode="one_hot")
    found.adapt(INTS)
    x = k.Input((3,))
    n = k.Input((1,), dtype="int64")
    y = k.layers.Concatenate()([scaled(x), k.layers.Rescaling(0.5)(x), k.ops.cast(n, "float32")])
    return k.Model([x, n], k.layers.Dense(2)(y))


def branches(k):
    x = k.Input((4,))
    y = k.layers.Dense(3, name="one")(x)
    return k.Model(x, [y, k.layers.Dense(2, name="two")(y)])


def encoder_decoder(k):
    """It ends in models, one of them called twice and in another model too."""
    x, z = k.Input((4,)), k.Input((4,))
    encoder = k.Model(x, k.layers.Dense(4, activation=k.layers.LeakyReLU())(x), name="encoder")
    decoder = k.Model(z, k.layers.Dense(4)(z), name="decoder")
    k.Model(z, decoder(z))
    y = k.Input((4,))
    once = decoder(encoder(y))
    return k.Model(y, {"once": once, "twice": decoder(once)})


def operations(k):
    """Ops of every module of Keras' and constants, which are plain data in a config."""
    x, o = k.Input((6, 4)), k.ops
    y = o.where(x > 0.3, x, 0.0) * np.arange(1.0, 5, dtype="float32")
    y = o.einsum("bij,bkj->bik", y, o.pad(y, ((0, 0), (1, 1), (0, 0)), constant_values=2.0))
    low, high = o.split(o.clip(abs(y), -1, 1), 2, axis=-1)
    y = o.stack([low, high], axis=1)
    y = o.image.resize(o.moveaxis(y, 1, -1), (4, 4), interpolation="nearest")
    y = o.layer_normalization(o.sum(y, axis=-1), epsilon=0.1)
    parts = [o.max(y, axis=1), o.average(y, axis=1), y[:, 1]]
    found = o.fft((y, o.zeros_like(y)))[0] + o.swapaxes(y, 1, 2) + o.logsumexp(y)
    full = o.full_like(y, 0.5) + o.amax(y, axis=2, keepdims=True)
    full = full + o.linalg.det(y)[:, None, None]
    return k.Model(x, [o.concatenate(parts), found, full, y[:, None, ..., ::2]])


MODELS = {  # name -> (model, shapes of inputs)
    "encoder_decoder": (encoder_decoder, (2, 4)),
    "operations": (operations, (2, 6, 4)),
    "mlp": (mlp, (2, 4)),
    "subclassed": (subclassed, (2, 4)),
    "nested": (nested, (2, 4)),
    "recurrent": (recurrent, Tokens((2, 5))),
    "attention": (attention, {"a": (2, 5, 4), "b": (2, 5, 4)}),
    "convolutional": (convolutional, (2, 8, 8, 3)),
    "preprocessing": (preprocessing, [(2, 3), Int((2, 1))]),
    "branches": (branches, (2, 4)),
    "mixed_bfloat16": (lambda k: mlp(k, dtype="mixed_bfloat16"), (2, 4)),
    "bfloat16": (lambda k: mlp(k, dtype="bfloat16"), (2, 4)),
    "frozen": (lambda k: mlp(k, trainable=False), (2, 4)),
}


def data_of(shapes, kind="float32"):
    if isinstance(shapes, dict):
        return {name: data_of(shape) for name, shape in shapes.items()}
    if isinstance(shapes, list):
        return [data_of(shape) for shape in shapes]
    whole = isinstance(shapes, (Int, Tokens))
    return RANDOM.randint(0, 5, shapes) if whole else RANDOM.randn(*shapes).astype("float32")


def outputs_of(library, model, x):
    y = model(x)
    return [
        library.ops.convert_to_numpy(library.ops.cast(v, "float32")) for v in khub.tree.flatten(y)
    ]


def agree(ours, theirs, x):
    coarse = any("bfloat16" in layer.dtype_policy.name for layer in ours.layers)
    tolerance = 2e-2 if coarse else 1e-5
    for mine, other in zip(outputs_of(khub, ours, x), outputs_of(keras, theirs, x), strict=True):
        np.testing.assert_allclose(mine, other, rtol=tolerance, atol=tolerance)


def same_weights(ours, theirs):
    for mine, other in zip(ours.weights, theirs.weights, strict=True):
        found = [k.ops.convert_to_numpy(v) for k, v in ((khub, mine), (keras, other))]
        np.testing.assert_array_equal(*found, err_msg=mine.path)


@pytest.mark.parametrize("name", MODELS)
def test_models(name, tmp_path):
    make, shapes = MODELS[name]
    path = tmp_path / "model.keras"
    ours, theirs = make(khub), make(keras)
    randomize_model(ours), randomize_model(theirs)
    theirs.save(path)
    read = khub.saving.load_model(path)
    same_weights(read, theirs)
    if name != "recurrent" or KERAS != "jax":  # eager loops take half a minute there
        agree(read, theirs, data_of(shapes))
    ours.save(path)
    same_weights(ours, keras.saving.load_model(path))
    same_weights(khub.saving.load_model(path), keras.saving.load_model(path))
    for file, limit in (("w.weights.h5", None), ("w.weights.json", 1e-6)):
        theirs.save_weights(tmp_path / file.replace("json", "h5"), max_shard_size=limit)
        ours.load_weights(tmp_path / file)
        same_weights(ours, theirs)
    randomize_model(ours)
    for file, limit in (("v.weights.h5", None), ("v.weights.json", 1e-6)):
        ours.save_weights(tmp_path / file, max_shard_size=limit)
        theirs.load_weights(tmp_path / file)
        same_weights(ours, theirs)


@pytest.mark.parametrize("name", ["mlp", "convolutional", "branches", "frozen"])
@pytest.mark.filterwarnings("ignore:.*HDF5 file")
def test_legacy_files(name, tmp_path):
    make, path = MODELS[name][0], tmp_path / "model.h5"
    ours, theirs = make(khub), make(keras)
    randomize_model(theirs)
    theirs.compile("adam", "mse")
    theirs.optimizer.build(theirs.trainable_variables)
    theirs.optimizer.iterations.assign(7)
    theirs.save(path)
    read = khub.saving.load_model(path)
    same_weights(read, theirs)
    assert int(read.optimizer.iterations) == 7 and read.loss == "mse"
    ours.load_weights(path)
    same_weights(ours, theirs)
    assert not khub.saving.load_model(path, compile=False).compiled
    theirs.compile("adam", "mse")  # its optimizer has not begun
    theirs.save(path)
    assert khub.saving.load_model(path).optimizer.built


def randomize_model(model):
    """Give all weights but those of what was adapted: Keras keeps them elsewhere too."""
    adapted = {id(v) for x in model.layers if x.name.startswith("normalization") for v in x.weights}
    for v in model.weights:
        if v.dtype.startswith("float") and id(v) not in adapted:
            v.assign(RANDOM.uniform(0.2, 1, v.shape).astype("float32"))


# --- compiled models -----------------------------------------------------------------------------
def multi(k):
    given = {".*kernel": k.optimizers.SGD(0.1, momentum=0.9)}
    return k.optimizers.MultiOptimizer(k.optimizers.OptimizerMap(k.optimizers.Adam(0.01), given))


OPTIMIZERS = {
    "adam": lambda k: k.optimizers.Adam(k.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)),
    "amsgrad": lambda k: k.optimizers.Adam(amsgrad=True, clipnorm=1.0, weight_decay=0.01),
    "average": lambda k: k.optimizers.SGD(0.1, momentum=0.9, use_ema=True),
    "accumulating": lambda k: k.optimizers.RMSprop(gradient_accumulation_steps=2),
    "scaled": lambda k: k.optimizers.LossScaleOptimizer(k.optimizers.AdamW(0.01)),
    "multi": multi,
    "nadam": lambda k: k.optimizers.Nadam(0.01),
    "muon": lambda k: k.optimizers.Muon(0.01),
    "lion": lambda k: k.optimizers.Lion(0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_compiled_models(name, tmp_path):
    made = {}
    for k in (khub, keras):
        model = made[k] = mlp(k)
        measured = [k.metrics.MeanMetricWrapper(k.losses.mean_absolute_error), "mse"]
        model.compile(OPTIMIZERS[name](k), k.losses.MeanSquaredError("sum"), metrics=measured)
        model.optimizer.build(model.trainable_variables)
        for v in model.optimizer.variables:
            if v.shape and name != "multi":  # there a Variable has a second place in the file
                v.assign(RANDOM.uniform(0.2, 1, v.shape))
        made[k].optimizer.iterations.assign(7) if name != "accumulating" else None
    for k, other in ((khub, keras), (keras, khub)):
        path = tmp_path / f"{k.__name__}.keras"
        made[k].save(path)
        for found in (other.saving.load_model(path), k.saving.load_model(path)):
            states = [found.optimizer.variables, made[k].optimizer.variables]
            for a, b in zip(*states, strict=True):
                np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
            assert len(found.get_compile_config()["metrics"]) == 2


@pytest.mark.skipif(khub.backend.name == "numpy", reason="NumPy has no gradients")
def test_training_goes_on_in_the_other_library(tmp_path):
    x, y = FLOATS[:8, [0, 1, 2, 0]], FLOATS[:8, :2]
    model, path = mlp(khub), tmp_path / "model.keras"
    model.compile(OPTIMIZERS["adam"](khub), "mse", metrics=["mae"])
    model.fit(x, y, verbose=0)
    model.save(path)
    found = [k.saving.load_model(path) for k in (khub, keras)]
    results = [m.fit(x, y, epochs=2, shuffle=False, verbose=0).history for m in (model, *found)]
    for result in results[1:]:
        assert {k: v[-1] for k, v in result.items()} == pytest.approx(
            {k: v[-1] for k, v in results[0].items()}, rel=1e-4
        )
