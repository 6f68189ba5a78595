"""MobileNetV3 against timm's and torchvision's."""

import pytest
from parity import image_checks as checks
from parity import image_models

from khub.applications.mobilenet_v3 import MobileNetV3Backbone


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "mobilenetv3_large_075"])
def test_opens_from_timm_and_saves_back(name, tmp_path):
    assert checks.timm_opens(name, tmp_path, (64, 33)) <= 1e-4


def test_torchvisions_weights(tmp_path):
    names = ("mobilenet_v3_small", "mobilenetv3_small_100")
    assert checks.torchvision_opens(*names, tmp_path, (32, 32)) <= 1e-4


@image_models.TRAINED
def test_gradient_is_torchs(tmp_path):
    assert checks.gradient("mobilenetv3_small_050", tmp_path, (32, 32)) <= 1e-3


@pytest.mark.parametrize("name", MobileNetV3Backbone.VARIANTS)
@image_models.ON_TORCH
def test_parameters_are_as_many_as_timms(name):
    ours, theirs = checks.parameters(MobileNetV3Backbone, name)
    assert ours == theirs
