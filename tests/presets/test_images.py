"""Images of every kind that users have, as a network takes them; and what is no image."""

import json

import numpy as np
import pytest
from PIL import Image
from sources import ROOT

from khub import config
from khub.presets.images import (
    ImagePreprocessor,
    from_timm,
    from_transformers,
    image_files,
    read_image,
)

pytestmark = pytest.mark.once

PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "images" / "cc-by"
RANDOM = np.random.default_rng(0)
COLOURS = RANDOM.integers(0, 256, (6, 9, 3)).astype("uint8")  # height 6, width 9


def near(image, expected, tolerance=1):
    return np.abs(np.asarray(image).astype(int) - expected.astype(int)).max() <= tolerance


# --- reading --------------------------------------------------------------------------------------
def test_files_images_and_arrays_are_the_same(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(COLOURS), COLOURS):
        image = read_image(source)
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), COLOURS)
    assert np.array_equal(np.asarray(read_image(COLOURS.astype("float32") + 0.2)), COLOURS)


GRAY = COLOURS[..., 0]
CONVERTED = {  # mode -> (image, what it is in RGB)
    "L": (Image.fromarray(GRAY), np.repeat(GRAY[..., None], 3, -1)),
    "1": (Image.fromarray(GRAY > 127), np.repeat((GRAY > 127)[..., None], 3, -1) * 255),
    "RGBA": (Image.fromarray(np.dstack([COLOURS, GRAY])), COLOURS),
    "LA": (Image.fromarray(GRAY).convert("LA"), np.repeat(GRAY[..., None], 3, -1)),
    "CMYK": (Image.fromarray(COLOURS).convert("CMYK"), COLOURS),
    "YCbCr": (Image.fromarray(COLOURS).convert("YCbCr"), COLOURS),
    "I;16": (
        Image.fromarray(GRAY.astype("uint16") * 257),
        np.repeat(GRAY[..., None], 3, -1),
    ),
    "F": (Image.fromarray(GRAY.astype("float32")), np.repeat(GRAY[..., None], 3, -1)),
}


@pytest.mark.parametrize("mode", CONVERTED)
def test_every_mode_becomes_rgb(mode):
    image, expected = CONVERTED[mode]
    assert near(read_image(image), expected, 3 if mode == "YCbCr" else 1)


def test_files_of_16_bits_and_of_cmyk(tmp_path):
    Image.fromarray(GRAY.astype("uint16") * 257).save(tmp_path / "deep.png")
    assert near(read_image(tmp_path / "deep.png"), np.repeat(GRAY[..., None], 3, -1))
    photograph = Image.open(PHOTOGRAPHS / "owl.jpg").resize((64, 48))
    photograph.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    found = np.asarray(read_image(tmp_path / "print.jpg"), int)
    assert np.abs(found - np.asarray(photograph, int)).mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_an_image_upright(tmp_path, orientation):
    turned = {  # what a camera stores, so that the orientation brings the photograph back
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }[orientation](COLOURS)
    image = Image.fromarray(np.ascontiguousarray(turned))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), COLOURS)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue")]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert np.asarray(read_image(tmp_path / name))[0, 0].tolist() == [255, 0, 0], name


def _truncated(folder):
    whole = (PHOTOGRAPHS / "owl.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    return folder / "half.jpg"


def _text(folder):
    (folder / "text.jpg").write_text("no image at all")
    return folder / "text.jpg"


def _empty(folder):
    (folder / "empty.png").write_bytes(b"")
    return folder / "empty.png"


BAD = {
    "a text": (_text, "text.jpg is no image that Pillow can read"),
    "half a file": (_truncated, "half.jpg cannot be read as an image: .*truncated"),
    "an empty file": (_empty, "empty.png is no image"),
    "a missing file": (lambda f: f / "none.jpg", "none.jpg does not exist"),
    "a folder": (lambda f: f, "is a folder; expected the file of an image"),
    "no height": (
        lambda f: np.zeros((0, 4, 3), "uint8"),
        r"got ndarray uint8 of shape \(0, 4, 3\)",
    ),
    "no pixels": (lambda f: Image.new("RGB", (0, 5)), r"has no pixels: its size is \(0, 5\)"),
    "five channels": (lambda f: np.zeros((4, 4, 5), "uint8"), r"shape \(4, 4, 5\)"),
    "a vector": (lambda f: np.zeros(4), r"shape \(4,\)"),
    "words": (lambda f: np.asarray([["a"]]), "got ndarray <U1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_image(tmp_path, case):
    make, message = BAD[case]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_image(make(tmp_path))


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("L", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="bomb.png cannot be read as an image"):
        read_image(tmp_path / "bomb.png")


# --- preparing ------------------------------------------------------------------------------------
def test_sizes_and_scales():
    made = ImagePreprocessor((4, 8), mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.1))
    x = made([COLOURS, np.zeros((20, 3, 3), "uint8")])
    assert x.shape == (2, 4, 8, 3) and x.dtype == np.float32
    np.testing.assert_allclose(x[1], np.broadcast_to([-1, -2, -3], (4, 8, 3)), atol=1e-6)
    small = np.asarray(Image.fromarray(COLOURS).resize((8, 4), 2)) / 255
    np.testing.assert_allclose(x[0], (small - made.mean) / made.std, atol=1e-5)
    assert made(COLOURS).shape == (4, 8, 3)
    batch = RANDOM.integers(0, 256, (3, 4, 8, 3)).astype("uint8")
    np.testing.assert_allclose(made(batch), made(list(batch)), atol=1e-6)


def test_reversed_colours_and_channels_first():
    made = ImagePreprocessor((6, 9), scale=1.0, channels="bgr")
    assert np.array_equal(made(COLOURS), COLOURS[..., ::-1])
    config.set_image_data_format("channels_first")
    try:
        assert np.array_equal(made([COLOURS])[0], COLOURS[..., ::-1].transpose(2, 0, 1))
    finally:
        config.set_image_data_format("channels_last")


def test_the_centre_is_cut_out_of_the_resized_image():
    image = Image.fromarray(RANDOM.integers(0, 256, (40, 60, 3)).astype("uint8"))
    made = ImagePreprocessor((16, 16), resize=20, interpolation="bicubic", scale=1.0)
    expected = np.asarray(image.resize((30, 20), 3))[2:18, 7:23]
    assert np.array_equal(made(image), expected)


def test_a_pair_resizes_both_sides_before_the_cut():
    image = Image.fromarray(RANDOM.integers(0, 256, (40, 60, 3)).astype("uint8"))
    made = ImagePreprocessor((16, 16), resize=[20, 24], scale=1.0)
    assert np.array_equal(made(image), np.asarray(image.resize((24, 20), 2))[2:18, 4:20])


def test_efficientnets_processor_divides_twice():
    given = {"size": 8, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_offset": True}
    kind = {"image_processor_type": "EfficientNetImageProcessor"}
    one, two = (ImagePreprocessor(**from_transformers(given | more)) for more in ({}, kind))
    assert (one.mean, one.std) == ((1.5,) * 3, (0.5,) * 3) and two.std == (0.25,) * 3


def test_augmentation_differs_from_call_to_call_and_is_reproducible():
    one, two = ImagePreprocessor((8, 8), seed=3), ImagePreprocessor((8, 8), seed=3)
    images = [Image.open(PHOTOGRAPHS / "owl.jpg")] * 2
    first, second = one.augmented(images), one.augmented(images)
    assert first.shape == (2, 8, 8, 3) and first.min() >= 0 and first.max() <= 1
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first, second)
    assert np.array_equal(first, two.augmented(images))
    assert one.augmented([np.zeros((1, 1, 3), "uint8")]).shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(image_size=(4,)), "image_size must be height and width"),
        (dict(image_size=(0, 4)), "image_size must be height and width"),
        (dict(mean=(1, 2)), "mean and std must have a value for each of three colours"),
        (dict(std=(1, 0, 1)), "std none of 0"),
        (dict(image_size=(8, 8), resize=4), r"resize=4 leaves less than image_size=\(8, 8\)"),
        (dict(interpolation="best"), "interpolation"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ImagePreprocessor(**options)


# --- other libraries' descriptions ----------------------------------------------------------------
def test_timms_description_and_back():
    given = {
        "input_size": [3, 64, 64],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
    }
    made = ImagePreprocessor(**from_timm(given))
    assert (made.image_size, made.resize, made.interpolation) == ((64, 64), 71, "bicubic")
    again = ImagePreprocessor(**from_timm(made.to_timm()))
    assert again.preset_config() == made.preset_config()
    squash = ImagePreprocessor(**from_timm({**given, "crop_mode": "squash"}))
    assert squash.resize == (71, 71) and squash.to_timm()["crop_mode"] == "squash"
    assert (
        ImagePreprocessor(**from_timm({**given, "crop_mode": "squash", "crop_pct": 1})).resize
        is None
    )


TRANSFORMERS = [  # preprocessor_config.json -> image_size, resize
    ({"size": {"height": 32, "width": 48}}, (32, 48), None),
    ({"size": 224}, (224, 224), None),
    (
        {"size": {"height": 40, "width": 48}, "do_center_crop": True, "crop_size": 32},
        (32, 32),
        (40, 48),
    ),
    ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, (224, 224), 256),
    (
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}},
        (224, 224),
        256,
    ),
    (
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
        (384, 384),
        None,
    ),
]


@pytest.mark.parametrize("given, size, resize", TRANSFORMERS)
def test_transformers_descriptions_and_back(tmp_path, given, size, resize):
    given = {**given, "resample": 3, "image_mean": [0.1] * 3, "image_std": [0.5] * 3}
    made = ImagePreprocessor(**from_transformers(given))
    assert (made.image_size, made.resize, made.interpolation) == (size, resize, "bicubic")
    made.save(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert ImagePreprocessor(**from_transformers(saved)).preset_config() == made.preset_config()


# --- folders --------------------------------------------------------------------------------------
def test_a_folder_of_classes(tmp_path):
    for name in ("dog", "cat", ".cache"):
        (tmp_path / name / "more").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "b.PNG")
        Image.new("RGB", (4, 4)).save(tmp_path / name / "more" / "a.jpg")
        (tmp_path / name / "notes.txt").write_text("no image")
    paths, classes, names = image_files(tmp_path)
    assert names == ["cat", "dog"] and classes.tolist() == [0, 0, 1, 1]
    assert [p[len(str(tmp_path)) + 1 :] for p in paths[:2]] == ["cat/b.PNG", "cat/more/a.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no images; expected a folder for each class"):
        image_files(tmp_path / "empty")
