"""YOLOv8 beside PyTorch's own modules: same outputs, from a state dict and from a whole module."""

import importlib
import logging
import sys

import numpy as np
import pytest
from parity.image_models import ON_TORCH, call, images, spread
from sources import ROOT

from khub import cv
from khub.presets.tensors import WeightsError

sys.path.insert(0, str(ROOT))  # benchmarks/ does not ship: no package installs it
native = importlib.import_module("benchmarks.yolo_v8").native
torch = pytest.importorskip("torch")

WIDTHS, BLOCKS, NECK = (8, 8, 16, 24, 32), (1, 1, 2, 1), (16, 24, 32)


@pytest.fixture(scope="module")
def theirs():
    return spread(native(WIDTHS, BLOCKS, NECK, 3))


def saved(theirs, how, path):
    """Write the file as training scripts do; of whole modules the classes are gone afterwards."""
    if how == "state dict":
        torch.save(theirs.state_dict(), path)
        return
    names = {type(m) for m in theirs.modules() if type(m).__module__ == "benchmarks.yolo_v8"}
    here = sys.modules["benchmarks.yolo_v8"]
    for cls in names:  # a pickle names a class by its module and name
        cls.__qualname__ = cls.__name__
        setattr(here, cls.__name__, cls)
    try:
        content = {"epoch": 3, "model": theirs.half(), "ema": None, "best": np.float64(0.5)}
        torch.save(content if how == "training's" else theirs, path)
    finally:
        theirs.float()  # rounded, as in the file
        for cls in names:
            delattr(here, cls.__name__)


@pytest.mark.parametrize(
    "how",
    [
        "state dict",
        pytest.param("whole module", marks=ON_TORCH),
        pytest.param("training's", marks=ON_TORCH),
    ],
)
def test_a_file_of_pytorchs(theirs, how, tmp_path, caplog):
    path = tmp_path / "yolo.pt"
    saved(theirs, how, path)
    model = cv.YOLOV8Detector(cv.YOLOV8Backbone(WIDTHS, BLOCKS), 3)
    with caplog.at_level(logging.WARNING, "khub"):
        model.load_weights(path)
    assert "AGPL-3.0" in caplog.text
    x = images((64, 96))
    found = call(model, x)
    with torch.no_grad():
        want = theirs(torch.tensor(x).permute(0, 3, 1, 2))
    for name, value in want.items():
        assert value.numpy().std() > 0.1
        np.testing.assert_allclose(found[name], value.numpy(), atol=1e-4)


def test_a_file_of_another_size(theirs, tmp_path):
    torch.save(theirs.state_dict(), tmp_path / "yolo.pt")
    model = cv.YOLOV8Detector(cv.YOLOV8Backbone((8, 8, 16, 24, 40), BLOCKS), 3)
    with pytest.raises(WeightsError, match="misshaped   model.9.cv1.conv.weight is"):
        model.load_weights(tmp_path / "yolo.pt")
