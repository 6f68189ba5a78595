"""The constructors: names, signatures, counts, shapes and errors, against Keras' as data."""

import importlib
import inspect
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

import khub
from khub import applications, backend, config
from khub.presets import WeightsError

REFERENCE = Path(__file__).parents[3] / "shared/reference/applications.json"
MODELS = json.loads(REFERENCE.read_text())["models"]
SMALL = {"ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionV3"}
SMALL |= {"MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2"}
SMALL |= {"VGG16", "Xception"}
NAMES = [
    pytest.param(name, marks=[] if name in SMALL else [pytest.mark.slow]) for name in sorted(MODELS)
]
small = {"weights": None, "input_shape": (32, 32, 3), "classes": 5}


@pytest.fixture
def channels_first():
    before = config.image_data_format()
    config.set_image_data_format("channels_first")
    yield
    config.set_image_data_format(before)


def test_every_model_of_keras_is_there():
    assert {name: row["module"] for name, row in MODELS.items()} == applications.CONSTRUCTORS
    assert set(applications.CONSTRUCTORS) <= set(dir(applications))
    with pytest.raises(AttributeError, match="ResNet51"):
        applications.ResNet51  # noqa: B018


@pytest.mark.parametrize("name", sorted(MODELS))
def test_signatures(name):
    module = importlib.import_module(f"khub.applications.{MODELS[name]['module']}")
    make = getattr(module, name)
    assert make is getattr(applications, name)
    assert str(inspect.signature(make)) == MODELS[name]["signature"]
    assert make.__doc__ and make.__name__ == name
    assert callable(module.preprocess_input) and callable(module.decode_predictions)


@pytest.mark.once
@pytest.mark.parametrize("name", NAMES)
def test_counts_shapes_and_names(name):
    row, make = MODELS[name], getattr(applications, name)
    for part, options in (("include_top", {}), ("no_top", {"include_top": False})):
        wanted, model = row[part], make(weights=None, **options)
        trained = sum(v.size for v in model.trainable_weights)
        assert (model.count_params(), trained) == (wanted["params"], wanted["trainable_params"])
        assert len(model.weights) == wanted["weight_arrays"]
        if part == "include_top":
            assert model.output_shape == tuple(wanted["output_shape"])
            assert model.name == row["model_name"]
            size = row["default_input_shape"]
            assert list(model.input_shape[1:]) == size
            for weights, place in ((row["first_weights"], 0), (row["last_weights"], -2)):
                end = None if place else len(weights)
                found = [[v.path, list(v.shape)] for v in model.weights[place:end]]
                assert found == weights
        else:
            assert model.output_shape[-1] == wanted["output_shape_at_default"][-1]


@pytest.mark.once
@pytest.mark.parametrize("name", NAMES)
def test_channels_first(name, channels_first):
    row, size = MODELS[name], max(64, MODELS[name]["min_size"])
    model = getattr(applications, name)(weights=None, input_shape=(3, size, size), classes=4)
    other = row["include_top"]["params"] - getattr(applications, name)(weights=None).count_params()
    assert other == 0 and model.output_shape == (None, 4)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"classes": 10}, "1000 classes, got classes=10"),
        ({"weights": "imagnet"}, "'imagenet', None or the path .* got 'imagnet'"),
        ({"weights": None, "input_shape": (31, 64, 3)}, "at least 32 x 32, got .*31, 64, 3"),
        ({"weights": None, "input_shape": (64, 64)}, r"three sizes, .* got \(64, 64\)"),
        ({"input_shape": (64, 64, 4), "include_top": False}, "3 channels, got 4"),
        ({"weights": None, "pooling": "mean"}, "pooling must be None, 'avg' or 'max', got 'mean'"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=f"ResNet50.*{words}"):
        applications.ResNet50(**options)


def test_input_tensor_and_pooling():
    image = khub.Input((40, 40, 3), name="picture")
    double = khub.layers.Rescaling(2.0)(image)
    model = applications.ResNet50(
        weights=None, include_top=False, input_tensor=double, pooling="max"
    )
    assert model.inputs[0] is image and model.output_shape == (None, 2048)


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
    from khub.presets import keras_h5

    write_legacy(tmp_path / "w.h5", {"input": [], **FITTING})
    model = net()
    keras_h5.load(model, tmp_path / "w.h5")
    np.testing.assert_array_equal(khub.ops.convert_to_numpy(model(np.ones((1, 2)))), [[13.0]])


@pytest.mark.parametrize(
    "layers, words",
    [
        ({"one": FITTING["one"]}, "missing +b: the file has 1 layers with weights"),
        (FITTING | {"three": [np.ones(2)]}, "unexpected +three"),
        (
            {"one": [np.ones((2, 4)), np.ones(4)], "two": FITTING["two"]},
            r"misshaped +one is \[\(2, 4",
        ),
        ({}, "names no layers"),
    ],
)
def test_files_that_do_not_fit(layers, words, tmp_path):
    from khub.presets import keras_h5

    write_legacy(tmp_path / "w.h5", layers)
    model = net()
    before = [v.numpy() for v in model.weights]
    with pytest.raises(WeightsError, match=words):
        keras_h5.load(model, tmp_path / "w.h5")
    for value, variable in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())


def test_hostile_files(tmp_path):
    from khub.presets import keras_h5

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
