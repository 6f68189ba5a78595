"""Segmentation: masks follow the image, DeepLabV3+ learns by heart, is saved, refuses bad masks."""

import numpy as np
import pytest
from PIL import Image

import khub
from khub import cv
from khub.applications.resnet import ResNetBackbone

SIZE = (64, 96)
SLOW_ON_JAX = pytest.mark.slow if khub.backend.name == "jax" else lambda test: test


def segmenter(**options):
    backbone = ResNetBackbone(num_blocks=(1, 1, 1, 1), block="basic")
    options = {"preprocessor": cv.SegmentationPreprocessor(SIZE), "width": 32} | options
    return cv.DeepLabV3Plus(backbone, 3, **options)


def scenes(count=3, size=SIZE, seed=0):
    """Grey images with a red (1) and a blue (2) rectangle, and masks."""
    random = np.random.default_rng(seed)
    images, masks = np.full((count, *size, 3), 100, "uint8"), np.zeros((count, *size), "int32")
    for i in range(count):
        for k, color in ((1, [255, 30, 30]), (2, [30, 30, 255])):
            y, x = random.integers(0, size[0] // 2), random.integers(0, size[1] // 2)
            part = slice(y, y + size[0] // 2), slice(x, x + size[1] // 3)
            images[i][part], masks[i][part] = color, k
    return images, masks


@pytest.mark.parametrize("method", ["__call__", "augmented"])
def test_masks_follow_the_image(method):
    images, masks = scenes(4, (90, 70))
    host = cv.SegmentationPreprocessor((60, 60), interpolation="nearest", seed=3)
    x, y = getattr(host, method)([Image.fromarray(i) for i in images], list(masks))
    assert x.shape == (4, 60, 60, 3) and y.shape == (4, 60, 60) and y.dtype == "int32"
    red, blue = x[..., 0] > 0.9, x[..., 2] > 0.9
    assert np.array_equal(y, np.where(red, 1, np.where(blue, 2, 0)))
    if method == "augmented":
        again = cv.SegmentationPreprocessor((60, 60), interpolation="nearest", seed=3)
        np.testing.assert_array_equal(again.augmented(list(images), list(masks))[1], y)
        assert not np.array_equal(again.augmented(list(images), list(masks))[1], y)


def test_masks_of_files(tmp_path):
    images, masks = scenes(1, (20, 30))
    grey = Image.fromarray(masks[0].astype("uint8"))
    grey.save(tmp_path / "grey.png")
    palette = grey.copy()
    palette.putpalette([9, 9, 9, 50, 60, 70, 80, 90, 100])
    palette.save(tmp_path / "palette.png")
    host = cv.SegmentationPreprocessor((20, 30))
    for name in ("grey.png", "palette.png"):
        np.testing.assert_array_equal(host([images[0]], [str(tmp_path / name)])[1], masks)
    Image.fromarray(images[0]).save(tmp_path / "color.png")
    with pytest.raises(ValueError, match=r"color.png must be integers .* \(20, 30\), got .*, 3\)"):
        host([images[0]], [str(tmp_path / "color.png")])
    with pytest.raises(ValueError, match=r"the mask must be integers .* got int64 \(3, 3\)"):
        host([images[0]], [np.zeros((3, 3), int)])


@pytest.mark.skipif(khub.backend.name == "numpy", reason="NumPy computes no gradients")
@SLOW_ON_JAX  # whose convolutions take five times as long as PyTorch's on one core
def test_learns_by_heart():
    images, masks = scenes()
    masks[:, :4] = 255  # which is neither learnt nor counted
    model = segmenter()
    model.compile(khub.optimizers.AdamW(2e-3), metrics=[])
    model.fit(list(images), list(masks), batch_size=3, epochs=70, verbose=0)
    model.compile()
    loss, overlap = model.evaluate(list(images), list(masks), verbose=0)
    assert overlap > 0.9
    found = model.predict(list(images), verbose=0)
    right = [(f == m)[4:].mean() for f, m in zip(found, masks)]
    assert min(right) > 0.9 and found[0].dtype == "int32"


def test_saved_and_opened_and_of_any_size(tmp_path):
    model = segmenter(labels=("ground", "red", "blue"), low="P3", deep="P4")
    model.save_to_preset(str(tmp_path / "saved"))
    again = cv.ImageSegmenter.from_preset(str(tmp_path / "saved"))
    assert type(again) is cv.DeepLabV3Plus and again.labels == model.labels and again.low == "P3"
    assert again.preprocessor.image_size == SIZE
    ours, theirs = model.named_variables(), again.named_variables()
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"network.aspp.dropout.seed_generator.state"}:
        np.testing.assert_array_equal(ours[name].numpy(), theirs[name].numpy())
    images = [scenes(1, size)[0][0] for size in ((50, 40), (30, 90))]
    assert [mask.shape for mask in again.predict(images, verbose=0)] == [(50, 40), (30, 90)]
    picture = cv.draw_mask(images[0], again.predict(images[:1], verbose=0)[0], again.labels)
    assert picture.size == (40, 50)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="no features of level P9; it has P1, P2"):
        segmenter(deep="P9")
    with pytest.raises(ValueError, match="1 labels were given for 3 classes"):
        segmenter(labels=("one",))
    images, masks = scenes()
    masks[1, 0, 0] = 7
    with pytest.raises(ValueError, match=r"classes of 0 .. 2 or ignore_class=255, got \[.*7"):
        segmenter().evaluate(list(images), list(masks), verbose=0)
    with pytest.raises(ValueError, match="no preprocessor"):
        segmenter(preprocessor=None).fit(list(images), masks)
