"""What a model exports computes what the model computes, at sizes it was not exported with."""

import subprocess
import sys

import numpy as np
import pytest

import khub
from khub import layers, ops, tree

RANDOM = np.random.default_rng(0)


def tokens(batch, length):
    found = RANDOM.integers(1, 20, (batch, length)).astype("int32")
    found[:, -1] = 0
    return found


def features():
    model = khub.Sequential(
        [
            khub.Input((6,), name="features"),
            layers.Dense(8, activation="gelu"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax"),
        ]
    )
    return model, lambda batch, size: RANDOM.normal(size=(batch, 6)).astype("float32")


def image():
    x = given = khub.Input((None, None, 3), name="image")
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu6")(x)
    x = layers.MaxPooling2D(2, padding="same")(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(layers.DepthwiseConv2D(3, padding="same")(x))
    shape = lambda batch, size: (batch, 9 + size, 12 + size, 3)  # noqa: E731
    return khub.Model(given, x), lambda *sizes: RANDOM.random(shape(*sizes)).astype("float32")


def sequence():
    x = given = khub.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(20, 8, mask_zero=True)(x)
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True))(x)
    return khub.Model(given, layers.GRU(4)(x)), tokens


def embedding():
    x = given = khub.Input((None,), dtype="int32", name="tokens")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(20, 8, mask_zero=True)(x))
    return khub.Model(given, ops.normalize(x)), tokens


def transformer():
    ids = khub.Input((None,), dtype="int32", name="token_ids")
    mask = khub.Input((None,), dtype="int32", name="padding_mask")
    x = layers.Embedding(20, 8)(ids)
    seen = layers.MultiHeadAttention(2, 4)(x, x, attention_mask=ops.cast(mask, "bool")[:, None])
    x = layers.LayerNormalization()(x + seen)
    x = layers.LayerNormalization()(x + layers.Dense(8, activation="gelu")(x))
    outputs = {"states": x, "pooled": layers.Dense(3, activation="tanh")(x[:, 0])}

    def data(batch, length):
        ids = tokens(batch, length)
        return {"token_ids": ids, "padding_mask": (ids > 0).astype("int32")}

    return khub.Model({"token_ids": ids, "padding_mask": mask}, outputs), data


class Looped(layers.Layer):
    """Ops whose sizes stay open, loops and a branch that values decide on."""

    def call(self, x):
        best, places = ops.top_k(x, 2)
        found = ops.take_along_axis(x, places, -1)
        halved = ops.while_loop(lambda y: ops.sum(y * y) > 0.5, lambda y: (y * 0.5,), (x,))[0]
        counted = ops.fori_loop(0, 3, lambda i, y: y + x, x)
        signed = ops.cond(ops.sum(x) > 0, lambda: x, lambda: -x)
        mapped = ops.map(lambda row: row * 2, x)
        median = ops.median(ops.sort(x, -1), axis=1)
        return [best + found, halved + counted + signed + mapped, median, ops.argsort(x, -1)]


def looped():
    x = given = khub.Input((None, 6), name="x")
    state = khub.Input((3,), name="state")
    y = layers.LSTM(3, return_sequences=True)(layers.Masking()(x), initial_state=[state, state])
    nested = {
        "all": Looped()(x),
        "causal": layers.MultiHeadAttention(2, 3)(y, y, use_causal_mask=True),
    }

    def data(batch, length):
        shapes = (batch, length, 6), (batch, 3)
        return [RANDOM.normal(size=shape).astype("float32") for shape in shapes]

    return khub.Model([given, state], nested), data


def enlarged():
    x = given = khub.Input((None, None, 3), name="image")
    for name in ("bilinear", "bicubic"):
        x = layers.UpSampling2D(2, interpolation=name)(x)
    x = layers.Conv2DTranspose(2, 3, strides=2, padding="same")(layers.AveragePooling2D(2)(x))
    shape = lambda batch, size: (batch, 3 + size, 4 + size, 3)  # noqa: E731
    return khub.Model(given, x), lambda *sizes: RANDOM.random(shape(*sizes)).astype("float32")


def few_bits(mode):
    def make():
        x = given = khub.Input((None,), dtype="int32", name="tokens")
        x = layers.Dense(3)(
            layers.EinsumDense("abc,cd->abd", (None, 6))(layers.Embedding(20, 8)(x))
        )
        model = khub.Model(given, x)
        model.quantize(mode)
        model.enable_lora(2)
        for variable in model.trainable_variables:
            variable.assign(RANDOM.normal(size=variable.shape).astype("float32"))
        return model, tokens

    return make


def mobilenet():
    from khub import applications

    model = applications.MobileNetV2(weights=None, input_shape=(64, 64, 3), alpha=0.35, classes=5)
    return model, lambda batch, size: RANDOM.random((batch, 64, 64, 3)).astype("float32")


MODELS = [features, image, sequence, embedding, transformer, mobilenet, looped, enlarged]
MODELS.append(few_bits("int4"))
LACKS = {  # format -> models with an operation that it does not have
    "litert": {looped, enlarged, MODELS[-1]},  # Case, ScaleAndTranslate, BitwiseAnd
    "tf_saved_model": {looped}
    if khub.backend.name == "jax"
    else set(),  # top_k, of newer StableHLO
}
SLOW = pytest.mark.slow


def named(model, x):
    """Inputs by the names of the Input layers."""
    return {k.name: value for k, value in zip(tree.flatten(model.input), tree.flatten(x))}


def run_onnx(path, model, x):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, named(model, x))))


def run_torch(path, model, x):
    import torch

    return torch.export.load(path).module()(tree.map_structure(torch.from_numpy, x))


def run_tf_saved_model(path, model, x):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    serving = loaded.signatures["serving_default"]
    found = serving(**{name: tf.constant(value) for name, value in named(model, x).items()})
    given = loaded.serve(x)
    assert len(tree.flatten(found)) == len(tree.flatten(given))
    return given


def run_stablehlo(path, model, x):
    import jax

    return jax.export.deserialize(path.read_bytes()).call(x)


def run_litert(path, model, x):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(path))
    return interpreter.get_signature_runner()(**named(model, x))


RUN = {name[4:]: function for name, function in globals().items() if name.startswith("run_")}
SUFFIX = {"torch": "pt2", "litert": "tflite", "tf_saved_model": "folder"}
HERE = {
    "torch": ["onnx", "torch"],
    "tensorflow": ["tf_saved_model", "litert"],
    "jax": ["stablehlo", "tf_saved_model"],
}.get(khub.backend.name, [])
ELSEWHERE = {"torch": "stablehlo", "jax": "onnx", "tensorflow": "onnx", "numpy": "litert"}
FRAMEWORK = {"stablehlo": "jax", "onnx": "torch", "litert": "tensorflow"}


def check(model, data, format, folder, sizes=((1, 3), (4, 9), (2, 17)), **options):
    path = folder / f"model.{SUFFIX.get(format, format)}"
    model.export(path, format=format, **options)
    for size in sizes:
        x = data(*size)
        want = tree.flatten(model(x, training=False))
        found = tree.flatten(RUN[format](path, model, x))
        assert len(found) == len(want)
        for one, other in zip(found, want):
            one = one if isinstance(one, np.ndarray) else ops.convert_to_numpy(one)
            np.testing.assert_allclose(one, ops.convert_to_numpy(other), atol=1e-5)


@pytest.mark.parametrize("format", HERE)
@pytest.mark.parametrize(
    "make", [pytest.param(m, marks=SLOW) if m is mobilenet else m for m in MODELS]
)
def test_an_export_computes_what_the_model_does(make, format, tmp_path):
    if format == "tf_saved_model":
        pytest.importorskip("tensorflow")
    if make in LACKS.get(format, ()):
        pytest.skip(f"{format} lacks an operation of it")
    model, data = make()
    if format == "litert" and make is sequence:
        spec = khub.InputSpec(shape=(2, None), dtype="int32", name="tokens")
        return check(model, data, format, tmp_path, [(2, 3), (2, 9)], input_signature=[spec])
    check(model, data, format, tmp_path)


@pytest.mark.skipif(khub.backend.name != "torch", reason="once is enough")
def test_a_preset_exports_its_tensors_part(tmp_path):
    from khub import nlp

    task = nlp.TextClassifier.from_preset("bert_micro_en_uncased", num_classes=2)
    x = {
        key: np.asarray(value) for key, value in task.preprocessor(["good", "not so good"]).items()
    }
    spec = {key: khub.InputSpec(shape=(None, None), dtype="int32") for key in x}
    task.export(tmp_path / "bert.onnx", format="onnx", input_signature=[spec])
    session = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / "bert.onnx"))
    for rows, length in ((1, 5), (2, 9), (2, 16)):
        cut = {key: value[:rows, :length].astype("int32") for key, value in x.items()}
        want = ops.convert_to_numpy(task(cut, training=False))
        np.testing.assert_allclose(session.run(None, cut)[0], want, atol=1e-5)


def test_another_backend_makes_what_this_one_cannot(tmp_path):
    format = ELSEWHERE[khub.backend.name]
    pytest.importorskip(FRAMEWORK[format])
    check(*(transformer if khub.backend.name == "numpy" else few_bits("int8"))(), format, tmp_path)


@pytest.mark.skipif(khub.backend.name != "jax", reason="JAX's format")
def test_stablehlo_runs_without_khub(tmp_path):
    model, data = features()
    model.export(tmp_path / "model", format="stablehlo")
    np.save(tmp_path / "x.npy", data(5, 0))
    program = (
        "import sys, jax, numpy as np\n"
        "run = jax.export.deserialize(open('model', 'rb').read()).call\n"
        "np.save('y.npy', run(np.load('x.npy')))\n"
        "assert 'khub' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    want = model(np.load(tmp_path / "x.npy"), training=False)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), want, atol=1e-6)


class Doubled(khub.Model):
    def build(self, shape):
        self.dense = layers.Dense(2)
        self.dense.build(shape)

    def call(self, x):
        return {"doubled": 2 * self.dense(x)}


@pytest.mark.parametrize("format", HERE[:1])
def test_a_subclass_exports_what_it_was_built_for(format, tmp_path):
    if format == "tf_saved_model":
        pytest.importorskip("tensorflow")
    model = Doubled()
    with pytest.raises(ValueError, match="does not know its inputs.*input_signature"):
        model.export(tmp_path / "model", format=format)
    model.build((None, 3))
    path = tmp_path / f"model.{SUFFIX.get(format, format)}"
    model.export(path, format=format)
    assert path.exists() and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_exported_leaves_the_old_file(tmp_path, monkeypatch):
    model, _ = features()
    path = tmp_path / "model"
    path.write_text("old")
    with pytest.raises(ValueError, match="format must be one of.*'onx'.*onnx"):
        model.export(path, format="onx")
    with pytest.raises(NotImplementedError, match="OpenVINO reads ONNX"):
        model.export(path, format="openvino")
    monkeypatch.setattr("khub.export.signature.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"is made by torch: pip install khub\[torch\]"):
        model.export(path, format="onnx")
    with pytest.raises(ImportError, match=r"made by tensorflow: pip install khub\[tensorflow\]"):
        model.export(path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(khub.backend.name not in ("tensorflow", "jax"), reason="no functions to save")
def test_an_archive_has_endpoints_and_variables(tmp_path):
    tf = pytest.importorskip("tensorflow")
    model, data = features()
    archive = khub.export.ExportArchive()
    spec = khub.InputSpec(shape=(None, 6), dtype="float32")
    archive.track_and_add_endpoint("call", model, [spec])
    archive.add_endpoint("best", lambda x: ops.argmax(model(x, training=False), -1), [spec])
    archive.add_variable_collection("kernels", [v for v in model.weights if v.name == "kernel"])
    with pytest.raises(ValueError, match="has 'best' already"):
        archive.add_endpoint("best", model, [spec])
    with pytest.raises(ValueError, match="needs input_signature"):
        archive.add_endpoint("other", lambda x: x)
    archive.write_out(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    x = data(5, 0)
    want = np.asarray(model(x, training=False))
    np.testing.assert_allclose(loaded.call(x), want, atol=1e-6)
    np.testing.assert_array_equal(loaded.best(x), want.argmax(-1))
    assert len(loaded.kernels) == 2 and len(loaded.variables) == len(model.variables)
    assert {"serving_default", "call", "best"} == set(loaded.signatures)


@pytest.mark.skipif(khub.backend.name in ("tensorflow", "jax"), reason="they have it")
def test_an_archive_says_which_backends_have_it():
    with pytest.raises(NotImplementedError, match="of TensorFlow and JAX, not of"):
        khub.export.ExportArchive()
