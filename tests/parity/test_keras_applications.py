"""khub's classifiers give the scores, features and gradients of Keras', from files it wrote."""

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from parity.image_models import call, whole
from parity.keras_applications import BARE, LEGACY, options

import khub
from khub import applications, backend, config
from khub.presets import keras_h5

for package in ("keras", "tensorflow"):  # of the program that writes the files, not of this one
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

LARGE = "InceptionResNetV2"  # the first of its family, but 56 million numbers
SMALL = [name for name in BARE if name != LARGE]
NAMES = [
    pytest.param(name, marks=[] if name in SMALL else [pytest.mark.slow])
    for name in sorted(applications.CONSTRUCTORS)
]


def claim(path):
    """Whether this session is the first to ask."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a function: name -> the folder with what Keras wrote of it, once a session.

    All of SMALL is asked for at once, and written while the first of them are tested already. The
    folder KHUB_KERAS_FILES, if set, is shared with the sessions of other backends.
    """
    shared = os.environ.get("KHUB_KERAS_FILES")
    folder, running = Path(shared or tmp_path_factory.mktemp("keras_applications")), {}
    folder.mkdir(exist_ok=True)

    def write(name):
        if not (folder / f"{name}.npz").exists() and name not in running:
            names = [
                n for n in (SMALL if name in SMALL else [name]) if claim(folder / f"{n}.claim")
            ]
            command = [sys.executable, Path(__file__).with_name("keras_applications.py"), folder]
            process = subprocess.Popen([*command, *names], cwd=folder) if names else None
            running.update(dict.fromkeys(names, process))
        give_up = time.monotonic() + 500
        while not (folder / f"{name}.npz").exists():
            own = running.get(name)
            assert own is None or own.poll() is None, "the program that writes Keras' files failed"
            assert time.monotonic() < give_up, f"nobody wrote {name} into {folder}; remove it"
            time.sleep(0.1)
        return folder

    yield write
    for process in {*running.values()} - {None}:
        if shared:  # another session may wait for what it has claimed
            process.wait()
        process.kill()
        process.wait()
    for path in () if shared else folder.iterdir():
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
def test_scores_features_and_gradient(name, written, note, monkeypatch):
    monkeypatch.setattr("khub.backend.variable._counters", {})  # layers' names as in a new process
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
        step = whole(khub.value_and_grad(loss, [kernel], has_aux=True))
        (_, found), (gradient,) = step(khub.ops.convert_to_tensor(images))
        largest = np.abs(wanted["gradient"]).max()
        error = np.abs(numpy_of(gradient) - wanted["gradient"]).max() / largest
        assert kernel.path == str(wanted["kernel"])
    else:
        _, found = whole(loss)(khub.ops.convert_to_tensor(images))
        error = 0.0
    errors = {key: np.abs(numpy_of(y) - wanted[key]).max() for key, y in found.items()}
    words = ", ".join(f"{key} {value:.1e}" for key, value in errors.items())
    note(f"{name}: largest difference from Keras: {words}, gradient {error:.1e} of its largest")
    assert max(errors.values()) <= 1e-4 and error <= 1e-3
    if name not in SMALL and "KHUB_KERAS_FILES" not in os.environ:  # up to 1.4 GB each
        for path in folder.glob(f"{name}[._]*"):
            path.unlink()


@pytest.mark.skipif(backend.name not in ("torch", "jax"), reason="tested on torch and JAX")
@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0", "ResNet50V2", "VGG16"])
def test_channels_first_takes_the_same_weights(name, written, channels_first):
    folder = written(name)
    wanted = np.load(folder / f"{name}.npz")
    images = np.moveaxis(wanted["images"], -1, 1)
    shape = {"input_shape": images.shape[1:], "weights": folder / f"{name}.weights.h5"}
    model = getattr(applications, name)(**options(name) | shape)
    np.testing.assert_allclose(call(model, images), wanted["outputs"], rtol=0, atol=1e-4)
