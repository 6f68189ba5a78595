"""Swin transformers of timm, torchvision and transformers: same logits, both ways."""

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
from khub import applications, cv
from khub.applications.swin import VARIANTS, SwinBackbone
from khub.presets import weights
from khub.presets.tensors import Checkpoint

site()
timm = pytest.importorskip("timm")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = "swin_tiny_patch4_window7_224"
SMALL = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 3)}
OURS = {"hidden_dim": 12, "num_blocks": (2, 2), "num_heads": (2, 3)}


def close(found, want, tolerance=1e-4):
    assert found.shape == want.shape
    assert np.abs(want).max() > 0.1
    assert np.abs(found - want).max() <= tolerance


@pytest.mark.parametrize("size, window", [((56, 56), 7), ((64, 36), 4), ((32, 80), 5)])
def test_timm(size, window, tmp_path):
    options = SMALL | {"img_size": size, "window_size": window}
    theirs = spread(timm.create_model(TINY, num_classes=7, **options))
    save_timm(theirs, TINY, tmp_path / "model")
    own = OURS | {"image_shape": (*size, 3), "window": window}
    model = cv.ImageClassifier.from_preset(tmp_path / "model", **own)
    x = images(size)
    close(call(model, x), outputs(theirs, x))


def test_channels_first():
    x = images((40, 56))
    model = SwinBackbone(12, (2, 2), (2, 3), 4, image_shape=(40, 56, 3))
    levels = model.feature_pyramid()
    want, last = call(lambda x, **options: (levels(x, **options), model(x, **options)), x)
    assert want["P3"].shape == (2, 5, 7, 24)
    np.testing.assert_array_equal(want["P3"], last)
    khub.config.set_image_data_format("channels_first")
    try:
        other = SwinBackbone(12, (2, 2), (2, 3), 4, image_shape=(40, 56, 3))
        other.set_weights(model.get_weights())
        found = call(other.feature_pyramid(), x.transpose(0, 3, 1, 2))
    finally:
        khub.config.set_image_data_format("channels_last")
    for name in want:
        np.testing.assert_allclose(found[name].transpose(0, 2, 3, 1), want[name], atol=1e-4)


def test_timm_opens_what_khub_saves(tmp_path):
    theirs = spread(timm.create_model(TINY, num_classes=7, img_size=64))
    save_timm(theirs, TINY, tmp_path / "model")
    sizes = dict(image_shape=(64, 64, 3), image_size=(64, 64))
    model = cv.ImageClassifier.from_preset(tmp_path / "model", **sizes)
    x = images((64, 64))
    model.save_to_preset(tmp_path / "saved")
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    np.testing.assert_array_equal(outputs(again, x), outputs(theirs, x))
    shapes = {name: y.shape for name, y in model.feature_pyramid().output.items()}
    sizes = {"P2": 16, "P3": 8, "P4": 4, "P5": 2}
    assert shapes == {p: (None, n, n, 1536 // n) for p, n in sizes.items()}


CONFIGS = [
    dict(image_size=56, window_size=7, qkv_bias=False),
    dict(image_size=72, window_size=4, hidden_act="relu", layer_norm_eps=1e-6, mlp_ratio=2.0),
    dict(image_size=[42, 64], window_size=3, depths=[1, 2, 3], num_heads=[1, 2, 4]),
]


def reference(options):
    sizes = dict(embed_dim=12, depths=[2, 2], num_heads=[2, 3], num_labels=7)
    config = transformers.SwinConfig(**{**sizes, **options})
    return spread(transformers.SwinForImageClassification(config)), config


@pytest.mark.parametrize("options", CONFIGS)
def test_transformers(options, tmp_path):
    theirs, config = reference(options)
    theirs.save_pretrained(tmp_path / "model")
    model = cv.ImageClassifier.from_preset(tmp_path / "model")
    size = config.image_size
    x = images((size, size) if isinstance(size, int) else size)
    want = outputs(theirs, x)
    close(call(model, x), want)
    model.save_to_preset(tmp_path / "saved")
    again, report = type(theirs).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    np.testing.assert_array_equal(outputs(again.eval(), x), want)


def test_transformers_backbone(tmp_path):
    theirs, _ = reference(CONFIGS[0])
    theirs.base_model.save_pretrained(tmp_path / "model")
    backbone = SwinBackbone.from_preset(tmp_path / "model")
    x = images((56, 72))  # another size than the config's
    with torch.no_grad():
        want = theirs.base_model(torch.tensor(x).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    close(call(backbone, x).reshape(want.shape), want)
    backbone.save_to_preset(tmp_path / "saved")
    _, report = type(theirs.base_model).from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not any(report[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_torchvision(size, tmp_path):
    from torchvision.models import swin_transformer

    sizes = ([4, 4], 12, [2, 2], [2, 3], [4, 4])
    theirs = swin_transformer.SwinTransformer(*sizes, num_classes=7)
    torch.save(spread(theirs).state_dict(), tmp_path / "model.pth")
    body = SwinBackbone(12, (2, 2), (2, 3), 4, image_shape=(*size, 3), reference="torchvision")
    model = applications.SwinImageClassifier(body, 7)
    weights.load(model, Checkpoint(tmp_path / "model.pth"))
    x = images(size)
    close(call(model, x), outputs(theirs, x))


@pytest.mark.slow
@pytest.mark.parametrize("name", [TINY, "swin_base_patch4_window12_384"])
def test_timm_in_full(name, tmp_path):
    theirs = spread(timm.create_model(name, num_classes=7))
    save_timm(theirs, name, tmp_path / "model")
    model = cv.ImageClassifier.from_preset(tmp_path / "model")
    x = images(model.backbone.image_shape[:2], batch=1)
    close(call(model, x), outputs(theirs, x))


@pytest.mark.slow
def test_torchvision_in_full(tmp_path):
    from torchvision.models import swin_t

    theirs = spread(swin_t(num_classes=7))
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    model = applications.SwinImageClassifier(SwinBackbone.variant(TINY, reference="torchvision"), 7)
    weights.load(model, Checkpoint(tmp_path / "model.pth"))
    x = images((224, 200), batch=1)
    close(call(model, x), outputs(theirs, x))


@TRAINED
def test_gradient(tmp_path):
    options = SMALL | {"img_size": 32, "window_size": 4}
    theirs = spread(timm.create_model(TINY, num_classes=7, **options))
    save_timm(theirs, TINY, tmp_path / "model")
    own = OURS | {"image_shape": (32, 32, 3), "window": 4}
    model = cv.ImageClassifier.from_preset(tmp_path / "model", **own)
    x = images((32, 32))
    kernel = model.backbone.get_layer("patch_embed.proj").kernel
    assert gradient_error(theirs, theirs.patch_embed.proj.weight, model, kernel, x) <= 1e-3


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@ON_TORCH
def test_variants_are_timms(step):
    for name in list(VARIANTS)[::step]:
        with torch.device("meta"):
            theirs = timm.create_model(name, weight_init="skip")
        count = sum(p.numel() for n, p in theirs.named_parameters() if not n.startswith("head"))
        assert SwinBackbone.variant(name).count_params() == count, name
