"""MobileNetV2 against timm's, torchvision's and transformers'."""

import pytest
from parity import image_checks as checks
from parity import image_models

from khub.applications.mobilenet_v2 import MobileNetV2Backbone

CONFIGS = {
    "as TensorFlow": dict(depth_multiplier=0.35),
    "as PyTorch": dict(
        depth_multiplier=0.5,
        tf_padding=False,
        finegrained_output=False,
        hidden_act="relu",
        expand_ratio=3.5,
        layer_norm_eps=1e-4,
    ),
    "of fours": dict(depth_multiplier=0.27, depth_divisible_by=4, min_depth=4),
}


@pytest.mark.parametrize("name", ["mobilenetv2_035", "mobilenetv2_110d"])
def test_opens_from_timm_and_saves_back(name, tmp_path):
    assert checks.timm_opens(name, tmp_path, (64, 33)) <= 1e-4


@pytest.mark.parametrize("case", CONFIGS)
def test_opens_from_transformers_and_saves_back(case, tmp_path):
    from transformers import MobileNetV2Config

    config = MobileNetV2Config(num_labels=7, **CONFIGS[case])
    assert checks.transformers_opens("MobileNetV2", config, tmp_path, (64, 33)) <= 1e-4


@pytest.mark.parametrize("option", [dict(output_stride=16), dict(first_layer_is_expansion=False)])
def test_refuses_what_it_does_not_draw(option):
    from transformers import MobileNetV2Config

    config = MobileNetV2Config(**option).to_dict()
    with pytest.raises(ValueError, match=next(iter(option))):
        MobileNetV2Backbone.config_from_transformers(config)


def test_refuses_to_save_what_transformers_does_not_read(tmp_path):
    backbone = MobileNetV2Backbone.variant("mobilenetv2_110d", reference="transformers")
    with pytest.raises(ValueError, match="transformers has no"):
        backbone.save_to_preset(str(tmp_path / "ours"))


def test_torchvisions_weights(tmp_path):
    found = checks.torchvision_opens("mobilenet_v2", "mobilenetv2_100", tmp_path, (32, 32))
    assert found <= 1e-4


@image_models.TRAINED
def test_gradient_is_torchs(tmp_path):
    assert checks.gradient("mobilenetv2_035", tmp_path, (32, 32)) <= 1e-3


@pytest.mark.parametrize("name", MobileNetV2Backbone.VARIANTS)
@image_models.ON_TORCH
def test_parameters_are_as_many_as_timms(name):
    ours, theirs = checks.parameters(MobileNetV2Backbone, name)
    assert ours == theirs
