"""ResNet of the hub against timm, transformers and torchvision: small models, random weights."""

import os

import pytest
from parity import conv_models, image_models

from khub import applications, cv
from khub.applications.resnet import VARIANTS, ResNetBackbone

TIMM = {  # name -> slow: what one of a kind shows is not repeated in every run
    "resnet18": False,
    "resnet14t": False,
    "resnet26d": False,
    "seresnext26t_32x4d": False,
    "resnet50": True,
    "resnet50d": True,
    "resnet50s": True,
    "resnext50_32x4d": True,
    "wide_resnet50_2": True,
    "seresnet50": True,
    "resnetrs50": True,
}
SMALL = dict(embedding_size=16, hidden_sizes=[16, 32, 48], depths=[1, 2, 1])
CONFIGS = {
    "bottleneck": dict(SMALL),
    "basic": dict(SMALL, layer_type="basic", embedding_size=8),
    "early strides": dict(SMALL, downsample_in_bottleneck=True, downsample_in_first_stage=True),
}


@pytest.fixture(autouse=True, scope="module")
def site():
    image_models.site()


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if slow else n for n, slow in TIMM.items()],
)
def test_timm(name, tmp_path):
    conv_models.check_timm(name, tmp_path, back=name in ("resnet18", "resnetrs50"))


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers(name, tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(**CONFIGS[name])
    conv_models.check_transformers(ResNetForImageClassification, config, tmp_path)


def test_torchvision(tmp_path):
    from torchvision.models import resnet18

    backbone = ResNetBackbone.variant("resnet18", reference="torchvision")
    conv_models.check_torchvision(resnet18, backbone, tmp_path)


def test_a_repository_with_pytorch_model_bin_alone(tmp_path):
    import torch

    theirs = conv_models.timm_model("resnet10t")
    image_models.save_timm(theirs, "resnet10t", tmp_path / "theirs")
    os.remove(tmp_path / "theirs" / "model.safetensors")
    torch.save(theirs.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    ours = applications.ResNetImageClassifier.from_preset(str(tmp_path / "theirs"))
    x = image_models.images((33, 47))
    conv_models.compare(image_models.call(ours, x), image_models.outputs(theirs, x), "resnet10t")


def test_channels_first(tmp_path):
    conv_models.check_channels_first("resnet10t", tmp_path)


@image_models.TRAINED
def test_gradient(tmp_path):
    conv_models.check_gradient("resnet10t", "conv1.0", tmp_path)


def test_feature_pyramid():
    levels = ResNetBackbone.variant("resnet10t", image_shape=(64, 96, 3)).feature_pyramid()
    assert {n: tuple(s[1:]) for n, s in levels.compute_output_shape((1, 64, 96, 3)).items()} == {
        "P1": (32, 48, 64),
        "P2": (16, 24, 64),
        "P3": (8, 12, 128),
        "P4": (4, 6, 256),
        "P5": (2, 3, 512),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@image_models.ON_TORCH
def test_size(name):
    conv_models.check_size(name, ResNetBackbone)


@image_models.ON_TORCH
def test_names_of_variants():
    with pytest.raises(ValueError, match="resnet18"):
        cv.ImageClassifier.from_variant("resnet19")
