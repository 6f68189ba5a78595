"""ViT, DeiT and DINOv2 of timm, torchvision and transformers: same logits, both ways."""

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
from khub.applications.vit import VARIANTS, ViTBackbone
from khub.presets import weights
from khub.presets.tensors import Checkpoint

site()
timm = pytest.importorskip("timm")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
OURS = {"hidden_dim": 32, "num_layers": 2, "num_heads": 2, "mlp_dim": 128}


def close(found, want, tolerance=1e-4):
    assert found.shape == want.shape
    assert np.abs(want).max() > 0.1
    assert np.abs(found - want).max() <= tolerance


@pytest.mark.parametrize(
    "name, size",
    [
        ("vit_tiny_patch16_224", 48),
        ("deit_tiny_distilled_patch16_224", 32),
        ("deit3_small_patch16_224", 32),
        ("vit_small_patch14_reg4_dinov2", 42),
        ("vit_giant_patch14_dinov2", 28),
        ("vit_base_patch16_reg4_gap_256", 32),
        ("vit_base_patch32_clip_224", 64),
    ],
)
def test_timm(name, size, tmp_path):
    options = SMALL | {"img_size": size, "mlp_ratio": 8 if "giant" in name else 4}
    theirs = spread(timm.create_model(name, num_classes=7, **options))
    save_timm(theirs, name, tmp_path / "model")
    model = cv.ImageClassifier.from_preset(tmp_path / "model", image_shape=(size, size, 3), **OURS)
    x = images((size, size))
    close(call(model, x), outputs(theirs, x))


def test_timm_opens_what_khub_saves(tmp_path):
    theirs = spread(timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=32))
    save_timm(theirs, "vit_tiny_patch16_224", tmp_path / "model")
    sizes = dict(image_shape=(32, 32, 3), image_size=(32, 32))
    model = cv.ImageClassifier.from_preset(tmp_path / "model", **sizes)
    model.save_to_preset(tmp_path / "saved")
    again = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    x = images((32, 32))
    np.testing.assert_array_equal(outputs(again, x), outputs(theirs, x))


@pytest.mark.parametrize("size", [(64, 64), (16, 48)])
def test_positions_of_another_size(size, tmp_path):
    name, options = "vit_tiny_patch16_224", SMALL | {"patch_size": 8}
    theirs = spread(timm.create_model(name, num_classes=7, img_size=32, **options))
    save_timm(theirs, name, tmp_path / "model")
    resized = timm.create_model(name, num_classes=7, img_size=size, **options).eval()
    state = timm.models.vision_transformer.checkpoint_filter_fn(theirs.state_dict(), resized)
    resized.load_state_dict(state)
    x = images(size)
    own = OURS | {"patch_size": 8}
    model = cv.ImageClassifier.from_preset(tmp_path / "model", image_shape=(*size, 3), **own)
    close(call(model, x), outputs(resized, x))  # resampled when it was loaded
    model = cv.ImageClassifier.from_preset(tmp_path / "model", image_shape=(32, 32, 3), **own)
    close(call(model, x), outputs(resized, x))  # resampled when it is called
    pyramid = model.feature_pyramid().output
    assert pyramid["P3"].shape == (None, 4, 4, 32)


def test_channels_first():
    x, sizes = images((32, 48)), dict(patch_size=8, image_shape=(32, 48, 3), drop_path=0.5)
    model = ViTBackbone(2, 2, 32, 64, **sizes)
    want = call(model.feature_pyramid(), x)["P3"]
    assert want.shape == (2, 4, 6, 32)
    trained = call(model, x, training=True)  # without a branch of a sample
    assert np.abs(trained[:, 1:].reshape(want.shape) - want).max() > 0.01
    khub.config.set_image_data_format("channels_first")
    try:
        other = ViTBackbone(2, 2, 32, 64, **sizes)
        other.set_weights(model.get_weights())
        found = call(other.feature_pyramid(), x.transpose(0, 3, 1, 2))["P3"]
    finally:
        khub.config.set_image_data_format("channels_last")
    np.testing.assert_allclose(found.transpose(0, 2, 3, 1), want, atol=1e-4)


CONFIGS = {
    "vit": ("ViT", dict(intermediate_size=48, qkv_bias=False, hidden_act="relu")),
    "vit_wide": ("ViT", dict(intermediate_size=64, image_size=[16, 32], num_attention_heads=4)),
    "deit": ("DeiT", dict(intermediate_size=64)),
    "teacher": ("DeiT", dict(intermediate_size=64, layer_norm_eps=1e-6)),
    "dinov2": ("Dinov2", dict(mlp_ratio=3, layerscale_value=0.5)),
    "swiglu": ("Dinov2", dict(use_swiglu_ffn=True, qkv_bias=False)),
    "registers": ("Dinov2WithRegisters", dict(num_register_tokens=3, num_hidden_layers=1)),
}


def reference(name):
    stem, options = CONFIGS[name]
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=8)
    options = {**sizes, "image_size": 32, "num_labels": 7, **options}
    config = getattr(transformers, f"{stem}Config")(**options)
    task = "ForImageClassification" + ("WithTeacher" if name == "teacher" else "")
    return spread(getattr(transformers, f"{stem}{task}")(config)), config


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers(name, tmp_path):
    theirs, config = reference(name)
    theirs.save_pretrained(tmp_path / "model")
    model = cv.ImageClassifier.from_preset(tmp_path / "model")
    size = config.image_size
    x = images((size, size) if isinstance(size, int) else size)
    want = outputs(theirs, x)
    close(call(model, x), want)
    model.save_to_preset(tmp_path / "saved")
    again, report = type(theirs).from_pretrained(tmp_path / "saved", output_loading_info=True)
    missing = {key for key in report["missing_keys"] if not key.endswith("mask_token")}
    assert not missing and not report["unexpected_keys"] and not report["mismatched_keys"]
    np.testing.assert_array_equal(outputs(again.eval(), x), want)


@pytest.mark.parametrize("name", ["vit", "dinov2", "registers"])
def test_transformers_backbone(name, tmp_path):
    theirs, config = reference(name)
    theirs = theirs.base_model
    theirs.save_pretrained(tmp_path / "model")
    backbone = ViTBackbone.from_preset(tmp_path / "model")
    sizes = [(32, 32)] if name == "vit" else [(32, 32), (16, 40)]  # others resample when called
    for size in sizes:
        x = images(size)
        with torch.no_grad():
            found = theirs(torch.tensor(x).permute(0, 3, 1, 2))
        close(call(backbone, x), found.last_hidden_state.numpy())
    backbone.save_to_preset(tmp_path / "saved")
    again, report = type(theirs).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert {k.partition(".")[0] for k in report["missing_keys"]} <= {"pooler", "embeddings"}
    assert not report["unexpected_keys"]


def test_torchvision(tmp_path):
    from torchvision.models import vision_transformer

    theirs = vision_transformer.VisionTransformer(32, 16, 2, 12, 768, 3072, num_classes=7)
    torch.save(spread(theirs).state_dict(), tmp_path / "model.pth")
    options = dict(reference="torchvision", image_shape=(32, 32, 3), num_layers=2)
    body = ViTBackbone.variant("vit_base_patch16_224", **options)
    model = applications.ViTImageClassifier(body, 7)
    weights.load(model, Checkpoint(tmp_path / "model.pth"))
    x = images((32, 32))
    close(call(model, x), outputs(theirs, x))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch32_384",
        "deit_tiny_distilled_patch16_224",
        "deit3_small_patch16_384",
        "vit_small_patch14_dinov2",
        "vit_small_patch14_reg4_dinov2",
        "vit_base_patch16_siglip_gap_224",
        "vit_base_patch16_clip_224",
        "vit_medium_patch16_reg4_gap_256",
    ],
)
def test_timm_in_full(name, tmp_path):
    theirs = spread(timm.create_model(name, num_classes=7))
    save_timm(theirs, name, tmp_path / "model")
    model = cv.ImageClassifier.from_preset(tmp_path / "model")
    x = images(model.backbone.image_shape[:2], batch=1)
    close(call(model, x), outputs(theirs, x))


@TRAINED
def test_gradient(tmp_path):
    name, options = "deit3_small_patch16_224", SMALL | {"img_size": 32}
    theirs = spread(timm.create_model(name, num_classes=7, **options))
    save_timm(theirs, name, tmp_path / "model")
    model = cv.ImageClassifier.from_preset(tmp_path / "model", image_shape=(32, 32, 3), **OURS)
    x = images((32, 32))
    kernel = model.backbone.get_layer("patch_embed.proj").kernel
    assert gradient_error(theirs, theirs.patch_embed.proj.weight, model, kernel, x) <= 1e-3


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
@ON_TORCH
def test_variants_are_timms(step):
    for name, options in list(VARIANTS.items())[::step]:
        with torch.device("meta"):
            theirs = timm.create_model(name, weight_init="skip")
        block = theirs.blocks[0]
        assert options["image_shape"][:2] == theirs.patch_embed.img_size, name
        assert options.get("epsilon", 1e-6) == block.norm1.eps, name
        assert block.attn.num_heads == options["num_heads"], name
        gated = type(block.mlp).__name__ == "GluMlp"
        assert gated == options.get("gated", False), name
        act = torch.nn.SiLU() if gated else torch.nn.GELU()
        assert repr(block.mlp.act) == repr(act), name
        own = ViTBackbone.variant(name)
        count = sum(p.numel() for n, p in theirs.named_parameters() if not n.startswith("head"))
        fresh = 2 * theirs.embed_dim if options.get("fc_norm") else 0
        assert own.count_params() + fresh == count, name
