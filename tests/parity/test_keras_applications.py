"""khub's classifiers give the scores and gradients of Keras', from files that Keras wrote."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from parity.keras_applications import options

import khub
from khub import applications, backend

pytest.importorskip("keras")

SMALL = "ResNet50 ResNet50V2 VGG16 Xception InceptionV3 MobileNet MobileNetV2 MobileNetV3Small "
SMALL += "DenseNet121 NASNetMobile EfficientNetB0 EfficientNetV2B0 ConvNeXtTiny"
SMALL = SMALL.split()
LARGE = [name for name in sorted(applications.CONSTRUCTORS) if name not in SMALL]
NAMES = SMALL + [pytest.param(name, marks=pytest.mark.slow) for name in LARGE]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras_applications")

    def find(name):
        if not (folder / f"{name}.npz").exists():
            names = SMALL if name in SMALL else [name]
            script = Path(__file__).with_name("keras_applications.py")
            subprocess.run([sys.executable, script, folder, *names], check=True, cwd=folder)
        weights = folder / f"{name}.h5"
        return (
            weights if weights.exists() else folder / f"{name}.weights.h5",
            folder / f"{name}.npz",
        )

    return find


@pytest.mark.parametrize("name", NAMES)
def test_scores_and_gradients(name, reference):
    path, expected = reference(name)
    expected = np.load(expected)
    model = getattr(applications, name)(**options(name) | {"weights": path})
    images = khub.ops.convert_to_tensor(expected["images"])
    scale = max(1.0, np.abs(expected["outputs"]).max())
    if backend.name == "numpy":
        outputs = model(images, training=False)
        np.testing.assert_allclose(outputs, expected["outputs"], rtol=0, atol=1e-4 * scale)
        return
    kernel = next(v for v in model.trainable_weights if v.path == str(expected["kernel"]))

    def loss(images):
        outputs = model(images, training=False)
        return khub.ops.mean(khub.ops.square(outputs)), outputs

    step = khub.jit(khub.value_and_grad(loss, [kernel], has_aux=True))
    (_, outputs), (gradient,) = step(images)
    outputs, gradient = map(khub.ops.convert_to_numpy, (outputs, gradient))
    np.testing.assert_allclose(outputs, expected["outputs"], rtol=0, atol=1e-4 * scale)
    largest = np.abs(expected["gradient"]).max()
    np.testing.assert_allclose(gradient, expected["gradient"], rtol=0, atol=1e-3 * largest)
