"""EfficientNet and EfficientNetV2 against timm's, torchvision's and transformers'."""

import pytest
from parity import image_checks as checks
from parity import image_models

from khub.applications.efficientnet import EfficientNetBackbone

CONFIGS = {
    "all stages": dict(width_coefficient=0.25, depth_coefficient=1.0, hidden_dim=320),
    "three stages": dict(
        width_coefficient=0.3,
        depth_coefficient=0.5,
        hidden_dim=384,
        hidden_act="relu",
        squeeze_expansion_ratio=0.3,
        batch_norm_eps=1e-4,
        kernel_sizes=[3, 5, 3],
        in_channels=[32, 16, 24],
        out_channels=[16, 24, 24],
        strides=[2, 2, 1],
        num_block_repeats=[1, 2, 3],
        expand_ratios=[1, 4, 2],
        depthwise_padding=[1],
    ),
}
LARGE = {"b4", "b5", "b6", "b7", "s", "m", "l", "xl", "t"}  # they take seconds to draw


@pytest.mark.parametrize("name", ["test_efficientnet", "tf_efficientnet_b0"])
def test_opens_from_timm_and_saves_back(name, tmp_path):
    assert checks.timm_opens(name, tmp_path, (64, 33)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["efficientnet_b2", "tf_efficientnetv2_b3", "efficientnetv2_rw_s", "efficientnetv2_s"]
)
def test_more_of_timm(name, tmp_path):
    assert checks.timm_opens(name, tmp_path, (64, 33)) <= 1e-4


@pytest.mark.parametrize("case", CONFIGS)
def test_opens_from_transformers_and_saves_back(case, tmp_path):
    from transformers import EfficientNetConfig

    config = EfficientNetConfig(num_labels=7, depth_divisor=4, **CONFIGS[case])
    assert checks.transformers_opens("EfficientNet", config, tmp_path, (64, 33)) <= 1e-4


def test_refuses_what_it_does_not_draw():
    from transformers import EfficientNetConfig

    config = EfficientNetConfig(pooling_type="max", hidden_dim=7).to_dict()
    with pytest.raises(ValueError, match="pooling_type 'max'.*hidden_dim 7"):
        EfficientNetBackbone.config_from_transformers(config)


def test_refuses_to_save_what_transformers_does_not_read(tmp_path):
    backbone = EfficientNetBackbone.variant("efficientnetv2_s", reference="transformers")
    with pytest.raises(ValueError, match="transformers has no"):
        backbone.save_to_preset(str(tmp_path / "ours"))


def test_torchvisions_weights(tmp_path):
    found = checks.torchvision_opens("efficientnet_b0", "efficientnet_b0", tmp_path, (32, 32))
    assert found <= 1e-4


@pytest.mark.slow
def test_torchvisions_second_version(tmp_path):
    names = ("efficientnet_v2_s", "efficientnetv2_s")
    assert checks.torchvision_opens(*names, tmp_path, (32, 32)) <= 1e-4


@image_models.TRAINED
def test_gradient_is_torchs(tmp_path):
    assert checks.gradient("test_efficientnet", tmp_path, (32, 32)) <= 1e-3


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name.split("_")[-1] in LARGE else name
        for name in EfficientNetBackbone.VARIANTS
    ],
)
@image_models.ON_TORCH
def test_parameters_are_as_many_as_timms(name):
    ours, theirs = checks.parameters(EfficientNetBackbone, name)
    assert ours == theirs
