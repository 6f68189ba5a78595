"""RegNet of the hub against timm, transformers and torchvision: small models, random weights."""

import pytest
from parity import conv_models, image_models

from khub.applications.regnet import RegNetBackbone

TIMM = {  # name -> slow
    "regnetx_002": False,
    "regnety_002": False,
    "regnetx_006": True,
    "regnety_008_tv": True,
    "regnety_032": True,
}
SMALL = dict(embedding_size=12, hidden_sizes=[16, 24, 32], depths=[1, 2, 1], groups_width=8)
CONFIGS = {
    "y": dict(SMALL),
    "x, silu": dict(SMALL, layer_type="x", hidden_act="silu"),
    "y, wide groups, first stage without a stride": dict(
        SMALL, groups_width=24, hidden_sizes=[12, 24, 48], downsample_in_first_stage=False
    ),
}


@pytest.fixture(autouse=True, scope="module")
def site():
    image_models.site()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if slow else n for n, slow in TIMM.items()],
)
def test_timm(name, tmp_path):
    conv_models.check_timm(name, tmp_path, back=name in ("regnetx_002", "regnety_032"))


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers(name, tmp_path):
    from transformers import RegNetConfig, RegNetForImageClassification

    config = RegNetConfig(**CONFIGS[name])
    conv_models.check_transformers(RegNetForImageClassification, config, tmp_path)


@pytest.mark.parametrize("theirs, name", [("x", "regnetx_004_tv"), ("y", "regnety_004")])
def test_torchvision(theirs, name, tmp_path):
    from torchvision import models

    backbone = RegNetBackbone.variant(name, reference="torchvision")
    conv_models.check_torchvision(getattr(models, f"regnet_{theirs}_400mf"), backbone, tmp_path)


def test_channels_first(tmp_path):
    conv_models.check_channels_first("regnety_002", tmp_path)


@image_models.TRAINED
def test_gradient(tmp_path):
    conv_models.check_gradient("regnety_002", "stem.conv", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", RegNetBackbone.VARIANTS)
@image_models.ON_TORCH
def test_size(name):
    conv_models.check_size(name, RegNetBackbone)
