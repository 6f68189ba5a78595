"""MobileNetV4 against timm's."""

import pytest
from parity import image_checks as checks
from parity import image_models

from khub.applications.mobilenet_v4 import VARIANTS, MobileNetV4Backbone

OPENED = {  # variant -> size of the images
    "mobilenetv4_conv_small_035": (64, 33),
    "mobilenetv4_conv_medium": (32, 64),
    "mobilenetv4_hybrid_medium_075": (64, 96),
}


@pytest.mark.parametrize("name", OPENED)
def test_opens_from_timm_and_saves_back(name, tmp_path):
    assert checks.timm_opens(name, tmp_path, OPENED[name]) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv4_conv_large", "mobilenetv4_hybrid_large"])
def test_large_opens_from_timm(name, tmp_path):
    assert checks.timm_opens(name, tmp_path, (64, 64)) <= 1e-4


@image_models.TRAINED
def test_gradient_is_torchs(tmp_path):
    assert checks.gradient("mobilenetv4_conv_small_035", tmp_path, (32, 32)) <= 1e-3


@pytest.mark.parametrize("name", VARIANTS)
@image_models.ON_TORCH
def test_parameters_are_as_many_as_timms(name):
    ours, theirs = checks.parameters(MobileNetV4Backbone, name)
    assert ours == theirs


def test_channels_first(tmp_path):
    assert checks.timm_opens_channels_first("mobilenetv4_hybrid_medium_075", tmp_path) <= 1e-4


def test_pyramid_has_the_levels():
    backbone = MobileNetV4Backbone.variant("mobilenetv4_conv_small_035")
    channels = {level: x.shape[-1] for level, x in backbone.feature_pyramid().output.items()}
    assert channels == {
        "P1": 32,
        "P2": 16,
        "P3": 72,
        "P4": 192,
        "P5": 336,
    }  # expanded by stage 3, 4
