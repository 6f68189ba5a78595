"""EfficientFormer of timm: same logits, both ways."""

import numpy as np
import pytest
from parity.image_models import (
    ON_TORCH,
    TRAINED,
    call,
    gradient_error,
    images,
    outputs,
    save_timm,
    site,
    spread,
)

import khub
from khub import cv
from khub.applications.efficientformer import VARIANTS, EfficientFormerBackbone

site()
timm = pytest.importorskip("timm")
torch = pytest.importorskip("torch")

NAME = "efficientformer_l1"


def small(folder):
    """A small one of timm, and khub's of its weights."""
    sizes = dict(depths=(1, 1, 1, 2), embed_dims=(8, 16, 24, 32), num_vit=1)
    theirs = spread(timm.create_model(NAME, num_classes=7, **sizes))
    save_timm(theirs, NAME, folder)
    own = dict(num_blocks=(1, 1, 1, 2), widths=(8, 16, 24, 32))
    return theirs, cv.ImageClassifier.from_preset(folder, **own)


def test_timm(tmp_path):
    theirs, model = small(tmp_path / "model")
    x = images((224, 224))
    want = outputs(theirs, x)
    assert np.abs(want).max() > 0.1
    assert np.abs(call(model, x) - want).max() <= 1e-4
    shapes = {name: y.shape[1:] for name, y in model.feature_pyramid().output.items()}
    assert shapes == {
        "P1": (112, 112, 4),
        "P2": (56, 56, 8),
        "P3": (28, 28, 16),
        "P4": (14, 14, 24),
        "P5": (7, 7, 32),
    }


def test_timm_opens_what_khub_saves(tmp_path):
    theirs = spread(timm.create_model(NAME, num_classes=7))
    save_timm(theirs, NAME, tmp_path / "model")
    model = cv.ImageClassifier.from_preset(tmp_path / "model")
    model.save_to_preset(tmp_path / "saved")
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    x = images((224, 224), batch=1)
    np.testing.assert_array_equal(outputs(again, x), outputs(theirs, x))
    if khub.config.backend() == "torch":
        found = khub.ops.convert_to_numpy(model(x, training=False))
        assert np.abs(found - outputs(theirs, x)).max() <= 1e-4


@TRAINED
def test_gradient(tmp_path):
    theirs, model = small(tmp_path / "model")
    x = images((224, 224))
    kernel = model.backbone.get_layer("stem.conv1").kernel
    assert gradient_error(theirs, theirs.stem.conv1.weight, model, kernel, x) <= 1e-3


def test_channels_first():
    x = images((64, 96))
    options = dict(widths=(8, 16, 24, 32), num_blocks=(1, 1, 1, 2), num_attention=1)
    options |= dict(image_shape=(64, 96, 3), layer_scale=0.5)
    model = EfficientFormerBackbone(**options)
    want = call(model, x)
    khub.config.set_image_data_format("channels_first")
    try:
        other = EfficientFormerBackbone(**options)
        other.set_weights(model.get_weights())
        found = call(other, x.transpose(0, 3, 1, 2))
    finally:
        khub.config.set_image_data_format("channels_last")
    np.testing.assert_allclose(found, want, atol=1e-4)


@ON_TORCH
def test_variants_are_timms():
    for name in VARIANTS:
        with torch.device("meta"):
            theirs = timm.create_model(name)
        count = sum(p.numel() for n, p in theirs.named_parameters() if not n.startswith("head"))
        own = EfficientFormerBackbone.variant(name)
        assert sum(np.prod(v.shape) for v in own.trainable_variables) == count, name
