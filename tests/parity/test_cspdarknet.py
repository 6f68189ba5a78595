"""Darknet and cross stage partial networks of the hub against timm: random weights."""

import pytest
from parity import conv_models, image_models

from khub.applications.cspdarknet import CSPDarkNetBackbone

TIMM = {  # name -> slow
    "darknet17": False,
    "cspresnet50": False,
    "cspdarknet53": True,
    "cspresnet50d": True,
    "cspresnet50w": True,
    "cspresnext50": True,
    "darknet53": True,
}


@pytest.fixture(autouse=True, scope="module")
def site():
    image_models.site()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if slow else n for n, slow in TIMM.items()],
)
def test_timm(name, tmp_path):
    conv_models.check_timm(name, tmp_path, back=name in ("darknet17", "cspresnext50"))


def test_channels_first(tmp_path):
    conv_models.check_channels_first("cspresnet50", tmp_path, 32)


@image_models.TRAINED
def test_gradient(tmp_path):
    conv_models.check_gradient("darknet17", "stem.conv1.conv", tmp_path)


@pytest.mark.slow
@image_models.TRAINED
def test_gradient_of_the_maximum(tmp_path):
    conv_models.check_gradient("cspresnet50", "stem.conv1.conv", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CSPDarkNetBackbone.VARIANTS)
@image_models.ON_TORCH
def test_size(name):
    conv_models.check_size(name, CSPDarkNetBackbone)
