"""The constructors: names, signatures, counts, shapes and errors, against Keras' as data."""

import hashlib
import importlib
import inspect
import json
import math
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest

import khub
from khub import applications, backend, config
from khub.applications import imagenet
from khub.presets import WeightsError, keras_h5
from khub.presets.download import DownloadError, fetch

REFERENCE = Path(__file__).parents[3] / "shared/reference/applications.json"
MODELS = json.loads(REFERENCE.read_text())["models"] if REFERENCE.exists() else {}
needs_reference = pytest.mark.skipif(not MODELS, reason="needs ../shared/reference")
SMALL = {"ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionV3"}
SMALL |= {"MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2"}
SMALL |= {"VGG16", "Xception"}
CHEAP = backend.name == "torch"  # shapes of convolutions without computing them
NAMES = [
    pytest.param(name, marks=[] if CHEAP or name in SMALL else [pytest.mark.slow])
    for name in sorted(applications.CONSTRUCTORS)
]
small = {"weights": None, "input_shape": (32, 32, 3), "classes": 5}


@pytest.fixture
def channels_first():
    before = config.image_data_format()
    config.set_image_data_format("channels_first")
    yield
    config.set_image_data_format(before)


@needs_reference
def test_every_model_of_keras_is_there():
    assert {name: row["module"] for name, row in MODELS.items()} == applications.CONSTRUCTORS
    assert set(applications.CONSTRUCTORS) <= set(dir(applications))


def test_unknown_names():
    with pytest.raises(AttributeError, match="ResNet51"):
        applications.ResNet51  # noqa: B018


@needs_reference
@pytest.mark.parametrize("name", sorted(applications.CONSTRUCTORS))
def test_signatures_and_sizes(name):
    row, make = MODELS[name], getattr(applications, name)
    module = importlib.import_module(f"khub.applications.{row['module']}")
    assert make is getattr(module, name)
    assert str(inspect.signature(make)) == row["signature"]
    assert make.__doc__ and make.__name__ == name
    assert callable(module.preprocess_input) and callable(module.decode_predictions)
    variant, mode = make.variant, row["preprocess_mode"]
    assert (variant.name, variant.least) == (name, row["min_size"])
    assert variant.size == row["default_input_shape"][0]
    assert variant.preprocessing == (None if mode == "none" else mode)
    assert variant.options["name"] == row["model_name"] and variant.options["weights"] is None
    files = imagenet.entries()[name]
    for part in ("include_top", "no_top"):
        wanted, key = row[part]["weights"], part.removeprefix("include_")
        found = imagenet.address(variant, key == "top", variant.options, (224, 224))
        assert found == (imagenet.HOST + wanted["url_path"], wanted["hash"])
        assert files[key]["parameters"] == row[part]["params"]


@needs_reference
@pytest.mark.parametrize("name", NAMES)
def test_counts_shapes_and_names(name, monkeypatch):
    monkeypatch.setattr("khub.backend.variable._counters", {})  # layers' names as in a new process
    row, make = MODELS[name], getattr(applications, name)
    size = row["default_size"] if CHEAP else max(64, row["min_size"])
    whole = CHEAP or name.startswith("VGG")  # whose dense layers take the image whole
    model = make(weights=None) if whole else make(**of_size(size, 1000))
    bare = make(**of_size(size, 1000), include_top=False)
    for part, wanted in ((model, row["include_top"]), (bare, row["no_top"])):
        assert part.count_params() == wanted["params"]
        assert len(part.weights) == wanted["weight_arrays"]
    trained = sum(math.prod(v.shape) for v in model.trainable_weights)
    assert trained == row["include_top"]["trainable_params"]
    assert model.output_shape == tuple(row["include_top"]["output_shape"])
    assert bare.output_shape[-1] == row["no_top"]["output_shape_at_default"][-1]
    if CHEAP:
        assert model.name == row["model_name"]
        assert list(model.input_shape[1:]) == row["default_input_shape"]
        assert bare.output_shape == tuple(row["no_top"]["output_shape_at_default"])
    first, last = row["first_weights"], row["last_weights"]
    found = [[v.path, list(v.shape)] for v in model.weights]
    assert found[: len(first)] == first and found[-len(last) :] == last


def of_size(size, classes=5):
    return {"weights": None, "input_shape": (size, size, 3), "classes": classes}


@pytest.mark.parametrize("name", NAMES)
def test_the_least_size_is_enough_and_less_is_refused(name):
    make = getattr(applications, name)
    least = make.variant.least
    options = {"include_top": False, "pooling": "avg"}
    assert make(**of_size(least), **options).output_shape[0] is None
    for part in ({}, options):
        words = rf"{name}: images must be at least {least} x {least}, got .*\({least - 1}, "
        with pytest.raises(ValueError, match=words):
            make(**of_size(least - 1), **part)


@needs_reference
@pytest.mark.parametrize("name", [n for n in NAMES if "ConvNeXt" not in str(n)])
def test_channels_first(name, channels_first):
    row, size = MODELS[name], max(64, MODELS[name]["min_size"])
    make = getattr(applications, name)
    bare = make(weights=None, input_shape=(3, size, size), include_top=False)
    assert bare.count_params() == row["no_top"]["params"]
    assert bare.output_shape[1] == row["no_top"]["output_shape_at_default"][-1]
    with pytest.raises(ValueError, match=r"least .*\(3, 31, 64\) \(channels_first\)"):
        make(weights=None, input_shape=(3, 31, 64))


def test_convnext_takes_channels_last_only(channels_first):
    with pytest.raises(ValueError, match="channels last, got the format 'channels_first'"):
        applications.ConvNeXtTiny(weights=None, input_shape=(3, 32, 32))


IMAGE = {"input_shape": (64, 64, 3)}
BARE = {"include_top": False}
REFUSED = [
    ("ResNet50", {"classes": 10}, "1000 classes, got classes=10"),
    ("ResNet50", {"weights": "imagnet"}, "'imagenet', None, the path .* got 'imagnet'"),
    ("ResNet50", {"weights": 5}, "'imagenet', None, the path .* got 5"),
    ("ResNet50", {"weights": None, "input_shape": (31, 64, 3)}, "at least 32 x 32, got .*31, 64"),
    ("ResNet50", {"weights": None, "input_shape": (64, 64)}, r"three sizes, .* got .*\(64, 64\)"),
    ("ResNet50", {"input_shape": (64, 64, 4), **BARE}, r"3 channels, got .*\(64, 64, 4\)"),
    ("ResNet50", {"weights": None, "pooling": "mean"}, "None, 'avg' or 'max', got 'mean'"),
    ("ResNet50", IMAGE, r"'imagenet' .*images of 224 x 224, got .*\(64, 64, 3\)"),
    ("MobileNet", IMAGE, r"of 128 x 128 or 160 x 160 or 192 x 192 or 224 x 224, got .*\(64, 64"),
    ("VGG16", {"weights": None, "input_shape": (None, 64, 3)}, r"be known, .* got .*\(None, 64"),
    ("NASNetMobile", {"weights": None, "input_shape": (None, 64, 3), **BARE}, "must be known"),
    ("ResNet50", {"input_tensor": (32, 32, 3), "input_shape": (64, 64, 3), **BARE}, "input_tensor"),
    ("ResNet50", {"input_tensor": (32, 32, 1), **BARE}, "are for 3 channels"),
    ("MobileNet", {"weights": None, "alpha": 0}, "alpha multiplies the widths and must be over 0"),
    ("MobileNetV2", {"alpha": 0.4}, r"alpha in \(0.35, .* got alpha=0.4"),
    ("MobileNetV3Small", {"alpha": 0.75, "minimalistic": True}, "got alpha=0.75, minimalistic=Tr"),
]


@pytest.mark.parametrize("name, options, words", REFUSED)
def test_bad_arguments(name, options, words):
    options = dict(options)
    if "input_tensor" in options:
        options["input_tensor"] = khub.Input(options["input_tensor"])
    with pytest.raises(ValueError, match=f"{name}: .*{words}"):
        getattr(applications, name)(**options)


def test_input_tensor_and_pooling():
    image = khub.Input((40, 40, 3), name="picture")
    double = khub.layers.Rescaling(2.0)(image)
    model = applications.ResNet50(
        weights=None, include_top=False, input_tensor=double, pooling="max"
    )
    assert model.inputs[0] is image and model.output_shape == (None, 2048)


def test_input_tensor_of_many_ways_from_two_images():
    one, two = (khub.Input((40, 40, 3), name=name) for name in ("one", "two"))
    x = khub.layers.Add()([khub.layers.Rescaling(0.5)(one), two])
    for _ in range(60):  # 2 ** 60 ways
        x = khub.layers.Average()([x, khub.layers.ReLU()(x)])
    model = applications.MobileNet(**small | {"input_shape": None}, input_tensor=x)
    assert [image.name for image in model.inputs] == ["one", "two"]


def test_a_variant_draws_its_body_and_top():
    variant = applications.MobileNet.variant
    options = variant.options | {"alpha": 0.25}
    image = khub.Input((32, 32, 3))
    features = variant.body(image, **options)
    model = khub.Model(image, variant.top(features, 4, None, **options))
    whole = applications.MobileNet(**small | {"alpha": 0.25, "classes": 4})
    assert [v.path for v in model.weights] == [v.path for v in whole.weights]


@pytest.mark.parametrize(
    "name, options, file",
    [
        ("MobileNet", {"alpha": 0.25, "input_shape": (128, 128, 3)}, "mobilenet_2_5_128_tf"),
        ("MobileNet", {"input_shape": (100, 100, 3), **BARE}, "mobilenet_1_0_224_tf_no_top"),
        ("MobileNet", {"alpha": 1, "input_shape": (160, 192, 3), **BARE}, "1_0_224_tf_no_top"),
        ("MobileNetV2", {"alpha": 1.4, "input_shape": (96, 96, 3)}, "tf_kernels_1.4_96"),
        ("MobileNetV2", {"alpha": 1, **BARE}, "tf_kernels_1.0_224_no_top"),
        ("MobileNetV3Large", {"alpha": 0.75, **BARE}, "v3_large_224_0.75_float_no_top_v2"),
        ("MobileNetV3Small", {"minimalistic": True}, "v3_small_minimalistic_224_1.0_float"),
    ],
)
def test_files_of_other_widths_and_sizes(name, options, file, monkeypatch):
    def fetch(address, digest):
        assert address.endswith(f"{file}.h5") and (digest is not None) == ("V3" in name)
        raise InterruptedError

    monkeypatch.setattr(imagenet, "fetch", fetch)
    with pytest.raises(InterruptedError):
        getattr(applications, name)(**options)


# --- files ---------------------------------------------------------------------------------------
def write_legacy(path, layers):
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{i}".encode() for i in range(len(arrays))]
            for i, array in enumerate(arrays):
                group[f"{name}/{i}"] = array


def net(width=3):
    x = khub.Input((2,))
    return khub.Model(x, khub.layers.Dense(1, name="b")(khub.layers.Dense(width, name="a")(x)))


FITTING = {"one": [np.full((2, 3), 2.0), np.zeros(3)], "two": [np.ones((3, 1)), np.ones(1)]}


def test_legacy_files_are_matched_by_order(tmp_path):
    write_legacy(tmp_path / "w.h5", {"input": [], **FITTING})
    model = net()
    keras_h5.load(model, tmp_path / "w.h5")
    np.testing.assert_array_equal(khub.ops.convert_to_numpy(model(np.ones((1, 2)))), [[13.0]])


@pytest.mark.parametrize(
    "layers, words",
    [
        ({"one": FITTING["one"]}, "missing +b "),
        (FITTING | {"three": [np.ones(2)]}, "unexpected +three"),
        (
            {"one": [np.ones((2, 4)), np.ones(4)], "two": FITTING["two"]},
            r"misshaped +a is \[\(2, 4",
        ),
        ({}, "missing +layers/dense "),
    ],
)
def test_files_that_do_not_fit(layers, words, tmp_path):
    write_legacy(tmp_path / "w.h5", layers)
    model = net()
    before = [v.numpy() for v in model.weights]
    with pytest.raises(WeightsError, match=words):
        keras_h5.load(model, tmp_path / "w.h5")
    for value, variable in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())


def test_hostile_files(tmp_path):
    path, secret = tmp_path / "w.h5", tmp_path / "secret.bin"
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(WeightsError, match="no HDF5 file"):
        keras_h5.load(net(), tmp_path / "text.h5")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        keras_h5.load(net(), tmp_path / "none.h5")
    secret.write_bytes(bytes(24))
    write_legacy(tmp_path / "other.h5", FITTING)
    for trick in ("external link", "external data"):
        write_legacy(path, FITTING)
        with h5py.File(path, "a") as file:
            del file["one/one/0"]
            if trick == "external link":
                file["one/one/0"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "one/one/0")
            else:
                place = [(str(secret), 0, 24)]
                file.create_dataset("one/one/0", (2, 3), "float32", external=place)
        with pytest.raises(WeightsError, match="refused"):
            keras_h5.load(net(), path)


def test_damaged_files(tmp_path):
    """Whatever byte is wrong: the weights are read, or WeightsError says that they are not."""
    write_legacy(tmp_path / "w.h5", FITTING)
    data, random = (tmp_path / "w.h5").read_bytes(), np.random.default_rng(0)
    damaged, refused = tmp_path / "damaged.h5", 0
    for i in range(100):
        place = int(random.integers(len(data)))
        cut = data[:place] if i % 10 == 0 else data[:place] + b"\xff\xff" + data[place + 2 :]
        damaged.write_bytes(cut)
        try:
            keras_h5.load(net(), damaged)
        except WeightsError:
            refused += 1
    assert refused >= 10


def test_a_file_of_another_variant_is_recognised(tmp_path):
    other = applications.MobileNetV3Small(**small)
    arrays = {x.name: [v.numpy() for v in x.weights] for x in other.layers if x.weights}
    write_legacy(tmp_path / "w.h5", arrays)
    assert applications.MobileNetV3Small(**small | {"weights": tmp_path / "w.h5"})
    with pytest.raises(WeightsError, match=r"(?s)does not fit mobilenet_.*MobileNetV3Small with"):
        applications.MobileNet(**small | {"weights": tmp_path / "w.h5"})
    bare = applications.MobileNetV2(**small, include_top=False)
    arrays = {x.name: [v.numpy() for v in x.weights] for x in bare.layers if x.weights}
    write_legacy(tmp_path / "w.h5", arrays)
    with pytest.raises(WeightsError, match="of MobileNetV2 with include_top=False"):
        applications.MobileNet(**small | {"weights": tmp_path / "w.h5"})


# --- downloads -----------------------------------------------------------------------------------
@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a server on the loopback interface for the files in a folder, that folder."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Handler, directory=folder)
    monkeypatch.setenv("KHUB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/", folder
        running.shutdown()


def of_home(tmp_path):
    return [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


@pytest.mark.once
@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_corrupt_download_leaves_no_file(kind, server, tmp_path):
    address, folder = server
    (folder / "w.h5").write_bytes(b"damaged on the way")
    digest = hashlib.new(kind, b"the weights").hexdigest()
    with pytest.raises(DownloadError, match=rf"w.h5 has the {kind} .*, expected {digest}\.$"):
        fetch(address + "w.h5", digest)
    assert not of_home(tmp_path)
    with pytest.raises(DownloadError, match="could not be fetched: .*404"):
        fetch(address + "none.h5", digest)
    assert not of_home(tmp_path)
    (folder / "w.h5").write_bytes(b"the weights")
    assert fetch(address + "w.h5", digest).read_bytes() == b"the weights"
    (folder / "w.h5").unlink()  # what was fetched once is not asked for again
    assert fetch(address + "w.h5", digest).read_bytes() == b"the weights"


@pytest.mark.once
def test_imagenet_weights_are_fetched_checked_and_loaded(server, tmp_path, monkeypatch):
    address, folder = server
    monkeypatch.setattr(imagenet, "HOST", address)
    bare = {"include_top": False, "input_shape": (32, 32, 3)}
    model = applications.MobileNetV3Small(**bare, weights=None)
    row = imagenet.address(applications.MobileNetV3Small.variant, False, {}, ())
    path = folder / row[0].removeprefix(address)
    path.parent.mkdir(parents=True)
    write_legacy(path, {x.name: [v.numpy() for v in x.weights] for x in model.layers if x.weights})
    with pytest.raises(DownloadError, match="expected d3e8ec80"):
        applications.MobileNetV3Small(**bare)
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    rows = imagenet.entries()["MobileNetV3Small"]["hashes"]
    monkeypatch.setitem(rows, path.name, digest)
    loaded = applications.MobileNetV3Small(**bare)
    for one, two in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


# --- images --------------------------------------------------------------------------------------
MODES = {"tf": "mobilenet", "torch": "densenet", "caffe": "resnet50", None: "efficientnet"}


@pytest.mark.parametrize("mode", MODES)
def test_preprocess_input(mode):
    module = getattr(applications, MODES[mode])
    image = np.array([[[[0, 127.5, 255.0]]]], "float32")
    wanted = {
        "tf": [-1, 0, 1],
        "torch": [-0.485 / 0.229, (0.5 - 0.456) / 0.224, (1 - 0.406) / 0.225],
        "caffe": [255 - 103.939, 127.5 - 116.779, -123.68],
        None: [0, 127.5, 255],
    }[mode]
    found = module.preprocess_input(image)
    assert isinstance(found, np.ndarray) and found.dtype == "float32"
    np.testing.assert_allclose(found[0, 0, 0], wanted, rtol=1e-5, atol=1e-6)
    first = np.moveaxis(image, -1, 1)
    found = module.preprocess_input(first, data_format="channels_first")
    np.testing.assert_allclose(found[0, :, 0, 0], wanted, rtol=1e-5, atol=1e-6)
    tensor = khub.ops.convert_to_tensor(image)
    found = khub.ops.convert_to_numpy(module.preprocess_input(tensor))
    np.testing.assert_allclose(found[0, 0, 0], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(image[0, 0, 0], [0, 127.5, 255])


def test_decode_predictions_takes_scores_of_imagenet():
    with pytest.raises(ValueError, match=r"\(batch, 1000\), got the shape \(2, 10\)"):
        applications.resnet.decode_predictions(np.ones((2, 10)))


def test_gradients_reach_every_weight():
    if backend.name == "numpy":
        pytest.skip("NumPy has no gradients")
    model = applications.MobileNet(**small | {"alpha": 0.25, "include_top": True})
    images = khub.ops.convert_to_tensor(np.random.default_rng(0).normal(size=(2, 32, 32, 3)))
    loss = lambda x: khub.ops.mean(khub.ops.square(model(x, training=True)))  # noqa: E731
    _, gradients = khub.jit(khub.value_and_grad(loss, model.trainable_variables))(images)
    assert len(gradients) == len(model.trainable_variables) > 50
    assert all(g is not None for g in gradients)
