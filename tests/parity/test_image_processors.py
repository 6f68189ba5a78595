"""Images are prepared as timm and transformers prepare them for the same checkpoint."""

import numpy as np
import pytest
from parity.image_models import site
from PIL import Image
from sources import ROOT

from khub.presets.images import ImagePreprocessor, from_timm, from_transformers

pytestmark = pytest.mark.once
transformers = pytest.importorskip("transformers")

PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "images" / "cc-by"
TIMM = [  # variants of resizing, cutting and interpolation
    "resnet50.tv_in1k",
    "resnet50.a1_in1k",
    "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit_base_patch16_clip_224.openai",
    "vit_base_patch16_siglip_gap_224.webli",
    "swin_base_patch4_window12_384.ms_in1k",
    "vit_small_patch14_dinov2.lvd142m",
    "mobilenetv4_conv_small.e2400_r224_in1k",
    "tf_efficientnet_b4.ns_jft_in1k",
    "convnext_xxlarge.clip_laion2b_soup_ft_in1k",
]
TRANSFORMERS = {  # processor -> arguments
    "ViTImageProcessorPil": [{}, {"size": {"height": 40, "width": 56}, "resample": 3}],
    "DeiTImageProcessorPil": [{}],
    "BitImageProcessorPil": [{}, {"size": {"shortest_edge": 64}, "crop_size": 48}],
    "ConvNextImageProcessorPil": [{}, {"size": {"shortest_edge": 224}, "crop_pct": 0.9}],
    "EfficientNetImageProcessorPil": [{}, {"include_top": False, "rescale_offset": True}],
    "MobileNetV2ImageProcessorPil": [{}],
}


@pytest.fixture(scope="module")
def photographs():
    """A wide and a tall one."""
    wide = Image.open(PHOTOGRAPHS / "owl.jpg").convert("RGB")
    return [wide, wide.resize((150, 401)), Image.open(PHOTOGRAPHS / "cat.bmp").convert("RGB")]


@pytest.mark.parametrize("name", TIMM)
def test_timm(name, photographs):
    site()
    import timm
    from timm.data import create_transform, resolve_data_config

    given = timm.models.get_pretrained_cfg(name).to_dict()
    config = resolve_data_config({}, pretrained_cfg=given)
    theirs, ours = create_transform(**config), ImagePreprocessor(**from_timm(given))
    for image in photographs:
        want = theirs(image).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(ours(image), want, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    "name, options", [(name, one) for name, rows in TRANSFORMERS.items() for one in rows]
)
def test_transformers(name, options, photographs):
    theirs = getattr(transformers, name)(**options)
    given = {key: value for key, value in theirs.to_dict().items() if value is not None}
    ours = ImagePreprocessor(**from_transformers(given))
    for image in photographs:
        want = np.asarray(theirs(image, return_tensors="np")["pixel_values"][0])
        np.testing.assert_allclose(ours(image), want.transpose(1, 2, 0), rtol=0, atol=5e-6)
