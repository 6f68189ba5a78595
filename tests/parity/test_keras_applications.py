"""khub's classifiers give the scores, features and gradients of Keras', from files it wrote."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from parity.keras_applications import BARE, LEGACY, options

import khub
from khub import applications, backend, config
from khub.presets import keras_h5

pytest.importorskip("keras")
pytest.importorskip("tensorflow")

LARGE = "InceptionResNetV2"  # the first of its family, but 56 million numbers
SMALL = [name for name in BARE if name != LARGE]
NAMES = [
    pytest.param(name, marks=[] if name in SMALL else [pytest.mark.slow])
    for name in sorted(applications.CONSTRUCTORS)
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a function: names -> the folder with what Keras wrote of them, once a session."""
    folder, done = tmp_path_factory.mktemp("keras_applications"), set()

    def write(name):
        names = SMALL if name in SMALL else [name]
        if name not in done:
            script = Path(__file__).with_name("keras_applications.py")
            subprocess.run([sys.executable, script, folder, *names], check=True, cwd=folder)
            done.update(names)
        return folder

    yield write
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture
def channels_first():
    before = config.image_data_format()
    config.set_image_data_format("channels_first")
    yield
    config.set_image_data_format(before)


def numpy_of(x):
    return np.asarray(khub.ops.convert_to_numpy(x))


def assert_equal_weights(model, path):
    """A file of the other format holds the same."""
    before = [numpy_of(v.value) for v in model.weights]
    keras_h5.load(model, path)
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(numpy_of(variable.value), value, err_msg=variable.path)


@pytest.mark.parametrize("name", NAMES)
def test_scores_features_and_gradient(name, written, note):
    folder, make = written(name), getattr(applications, name)
    wanted = dict(np.load(folder / f"{name}.npz"))
    images = wanted.pop("images")
    model = make(**options(name) | {"weights": folder / f"{name}.weights.h5"})
    if name in LEGACY:
        assert_equal_weights(model, folder / f"{name}.h5")
    calls = {"outputs": model}
    if name in BARE:
        bare = {"include_top": False, "pooling": "avg", "weights": folder / f"{name}_no_top.h5"}
        calls["features"] = make(**options(name) | bare)

    def loss(images):
        found = {key: call(images, training=False) for key, call in calls.items()}
        return khub.ops.mean(khub.ops.square(found["outputs"])), found

    if name in BARE and backend.name != "numpy":
        kernel = next(v for v in model.trainable_weights if v.name == "kernel")
        step = khub.jit(khub.value_and_grad(loss, [kernel], has_aux=True))
        (_, found), (gradient,) = step(khub.ops.convert_to_tensor(images))
        largest = np.abs(wanted["gradient"]).max()
        error = np.abs(numpy_of(gradient) - wanted["gradient"]).max() / largest
        assert kernel.path == str(wanted["kernel"])
    else:
        _, found = khub.jit(loss)(khub.ops.convert_to_tensor(images))
        error = 0.0
    errors = {key: np.abs(numpy_of(y) - wanted[key]).max() for key, y in found.items()}
    words = ", ".join(f"{key} {value:.1e}" for key, value in errors.items())
    note(f"{name}: largest difference from Keras: {words}, gradient {error:.1e} of its largest")
    assert max(errors.values()) <= 1e-4 and error <= 1e-3


@pytest.mark.skipif(backend.name not in ("torch", "jax"), reason="tested on torch and JAX")
@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0", "ResNet50V2", "VGG16"])
def test_channels_first_takes_the_same_weights(name, written, channels_first):
    folder = written(name)
    wanted = np.load(folder / f"{name}.npz")
    images = np.moveaxis(wanted["images"], -1, 1)
    shape = {"input_shape": images.shape[1:], "weights": folder / f"{name}.weights.h5"}
    model = getattr(applications, name)(**options(name) | shape)
    found = khub.jit(lambda x: model(x, training=False))(khub.ops.convert_to_tensor(images))
    np.testing.assert_allclose(numpy_of(found), wanted["outputs"], rtol=0, atol=1e-4)
