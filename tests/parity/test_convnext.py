"""ConvNeXt of the hub against timm, transformers and torchvision: small models, random weights."""

import pytest
from parity import conv_models, image_models

from khub.applications.convnext import ConvNeXtBackbone

TIMM = {  # name -> slow
    "convnext_atto": False,
    "convnextv2_atto": False,
    "convnext_tiny": True,
    "convnextv2_tiny": True,
    "convnext_large_mlp": True,
}
SMALL = dict(hidden_sizes=[8, 12, 16], depths=[1, 2, 1], num_stages=3, layer_norm_eps=1e-5)
V1 = {
    "plain": dict(SMALL),
    "no layer scale, relu, patches of 2": dict(
        SMALL, layer_scale_init_value=0.0, hidden_act="relu", patch_size=2, drop_path_rate=0.1
    ),
}
V2 = {"plain": dict(SMALL), "silu": dict(SMALL, hidden_sizes=[16, 8, 24], hidden_act="silu")}


@pytest.fixture(autouse=True, scope="module")
def site():
    image_models.site()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if slow else n for n, slow in TIMM.items()],
)
def test_timm(name, tmp_path):
    conv_models.check_timm(name, tmp_path, back=name in ("convnext_atto", "convnextv2_tiny"))


@pytest.mark.parametrize("name", V1)
def test_transformers(name, tmp_path):
    from transformers import ConvNextConfig, ConvNextForImageClassification

    conv_models.check_transformers(
        ConvNextForImageClassification,
        ConvNextConfig(**V1[name]),
        tmp_path,
        head_of_backbone=("layernorm.weight", "layernorm.bias"),
    )


@pytest.mark.parametrize("name", V2)
def test_transformers_v2(name, tmp_path):
    from transformers import ConvNextV2Config, ConvNextV2ForImageClassification

    conv_models.check_transformers(
        ConvNextV2ForImageClassification,
        ConvNextV2Config(**V2[name]),
        tmp_path,
        head_of_backbone=("layernorm.weight", "layernorm.bias"),
    )


def test_torchvision(tmp_path):
    from torchvision.models import convnext_tiny

    backbone = ConvNeXtBackbone.variant("convnext_tiny", reference="torchvision")
    conv_models.check_torchvision(convnext_tiny, backbone, tmp_path)


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_channels_first(name, tmp_path):
    conv_models.check_channels_first(name, tmp_path)


@image_models.TRAINED
def test_gradient(tmp_path):
    conv_models.check_gradient("convnextv2_atto", "stem.0", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ConvNeXtBackbone.VARIANTS)
@image_models.ON_TORCH
def test_size(name):
    conv_models.check_size(name, ConvNeXtBackbone)
