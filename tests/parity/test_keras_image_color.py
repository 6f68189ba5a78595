"""Layers for colours, erasing and mixing give Keras' numbers, for a given transformation."""

import os

import numpy as np
import pytest

# Keras' own NumPy backend imports JAX anyway.
KERAS = os.environ["KERAS_BACKEND"]
keras = pytest.importorskip("keras")

import khub  # noqa: E402
from khub import ops  # noqa: E402
from khub.saving import registry  # noqa: E402

RANDOM = np.random.RandomState(0)
UNIT = RANDOM.uniform(0, 1, (2, 10, 12, 3)).astype("float32")
WHOLE = RANDOM.randint(0, 256, (2, 10, 12, 3)).astype("uint8")
FIRST, SECOND = np.array([True, False]), np.array([1, 0], "int32")
INSIDE = np.zeros((2, 10, 12, 3), bool)
INSIDE[0, 2:6, 3:9] = INSIDE[1, 1:4] = True


def numbers(*values, dtype="float32"):
    return np.array(values, dtype)


def each(*values):
    return numbers(*values).reshape(-1, 1, 1, 1)


ROWS = [  # layer, options, transformation of two images of 0 to 1
    ("AutoContrast", {}, None),
    ("RandomBrightness", {"factor": 0.3}, {"rgb_delta": each(-0.2, 0.4)}),
    ("RandomContrast", {"factor": 0.3}, {"contrast_factor": each(0.6, 1.3)}),
    ("RandomHue", {"factor": 0.3}, {"factor": numbers(-0.2, 0.4)}),
    ("RandomSaturation", {"factor": 0.3}, {"factor": numbers(0.4, 1.9)}),
    ("RandomColorDegeneration", {"factor": 0.3}, {"factor": each(0.2, 0.9)}),
    ("RandomGrayscale", {}, FIRST.reshape(2, 1, 1, 1)),
    ("RandomInvert", {}, {"apply_inversion": FIRST}),
    ("RandomPosterization", {"factor": 3}, {"shift_factor": numbers(5, 7, dtype="uint8")}),
    ("RandomSharpness", {"factor": 0.3}, {"factor": numbers(0.2, 0.9)}),
    (
        "RandomGaussianBlur",
        {"kernel_size": 3},
        {"should_apply_blur": FIRST, "blur_factor": numbers(0.7, 1.2)},
    ),
    (
        "RandomGaussianBlur",
        {"kernel_size": 5, "sigma": (0.5, 2.5)},
        {"should_apply_blur": FIRST, "blur_factor": numbers(1.7, 0.6)},
    ),
    ("Solarization", {}, {"additions": each(30, 60), "thresholds": each(128, 90)}),
    (
        "RandomErasing",
        {},
        {"apply_erasing": FIRST, "batch_masks": INSIDE, "fill_value": UNIT[::-1].copy()},
    ),
    ("MixUp", {}, {"mix_weight": numbers(0.3, 0.9), "permutation_order": SECOND}),
    (
        "CutMix",
        {},
        {"permutation_order": SECOND, "batch_masks": INSIDE, "mix_weight": each(0.3, 0.9)},
    ),
]
IDS = [row[0] for row in ROWS]
NO_RANGE = {"RandomGrayscale", "MixUp", "CutMix"}
ALONE = {"AutoContrast": {}, "Equalization": {}, "Equalization ": {"bins": 40}}
ALONE |= {
    f"ContrastLimitedAdaptiveHistogramEqualization{' ' * i}": options
    for i, options in enumerate(
        [
            {"tile_grid_size": (2, 3)},
            {"tile_grid_size": (3, 2), "clip_limit": 1.5},
            {"tile_grid_size": (1, 1), "clip_limit": 0.5},
        ]
    )
}
CONFIGS = [
    ("AutoContrast", {"value_range": (0, 1)}),
    ("ContrastLimitedAdaptiveHistogramEqualization", {"clip_limit": 2.0}),
    ("Equalization", {"bins": 64}),
    ("RandomBrightness", {"factor": (-0.1, 0.3)}),
    ("RandomBrightness", {"factor": 0.3}),
    ("RandomContrast", {"factor": (0.2, 0.4)}),
    ("RandomHue", {"factor": 0.2, "seed": 3}),
    ("RandomSaturation", {"factor": (0.2, 0.4)}),
    ("RandomColorDegeneration", {"factor": (0.2, 0.4)}),
    ("RandomColorJitter", {"brightness_factor": 0.2, "hue_factor": (0.1, 0.2)}),
    ("RandomGrayscale", {"factor": 0.2}),
    ("RandomInvert", {"factor": 0.2}),
    ("RandomPosterization", {"factor": 4}),
    ("RandomSharpness", {"factor": 0.2}),
    ("RandomGaussianBlur", {"kernel_size": 5, "sigma": 0.5}),
    ("Solarization", {"addition_factor": 0.2, "threshold_factor": (0.1, 0.3)}),
    ("RandomErasing", {"fill_value": 3, "data_format": "channels_first"}),
    ("MixUp", {"alpha": 0.3}),
    ("CutMix", {"factor": 0.3}),
    ("RandAugment", {"num_ops": 3, "interpolation": "nearest"}),
    ("AugMix", {"num_chains": 2, "all_ops": False}),
]


def theirs_of(value):
    """A transformation as Keras' tensors."""
    return converted(value, keras.ops.convert_to_tensor)


def ours_of(value):
    return converted(value, ops.convert_to_tensor)


def converted(value, convert):
    """With tensors for the arrays; the order of dicts, on which Keras relies, stays."""
    if isinstance(value, dict):
        return {k: converted(v, convert) for k, v in value.items()}
    if isinstance(value, list):
        return [converted(v, convert) for v in value]
    return convert(value) if isinstance(value, np.ndarray) else value


def agree(ours, theirs, tolerance=1e-5):
    ours, theirs = ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def pair(layer, **options):
    return (getattr(library.layers, layer)(**options) for library in (khub, keras))


@pytest.mark.parametrize(("name", "options", "transformation"), ROWS, ids=IDS)
@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
def test_images_under_a_transformation(name, options, transformation, first):
    given = {} if name in NO_RANGE else {"value_range": (0, 1)}
    images = UNIT
    if first and name == "AutoContrast":
        pytest.skip("Keras takes the extremes over the wrong axes")
    if first:
        given["data_format"] = "channels_first"
        images = UNIT.transpose(0, 3, 1, 2).copy()
        transformation = khub.tree.map_structure(
            lambda x: x.transpose(0, 3, 1, 2).copy() if np.shape(x) == UNIT.shape else x,
            transformation,
        )
    ours, theirs = pair(name, **options, **given)
    wanted = theirs.transform_images(
        keras.ops.convert_to_tensor(images.copy()), theirs_of(transformation), training=True
    )
    found = ours.transform_images(
        ops.convert_to_tensor(images), ours_of(transformation), training=True
    )
    agree(found, wanted)


@pytest.mark.parametrize(("name", "options", "transformation"), ROWS, ids=IDS)
def test_values_up_to_255(name, options, transformation):
    """The transformation is the same one, for images 255 times as large."""
    ours, theirs = pair(name, **options)
    larger = transformation
    if isinstance(larger, dict):
        larger = {k: v * 255 if k in ("rgb_delta", "fill_value") else v for k, v in larger.items()}
    images = UNIT * 255
    found = ours.transform_images(ops.convert_to_tensor(images), ours_of(larger), training=True)
    if name == "RandomSaturation":  # Keras leaves the range: docs/deviations.md
        theirs = keras.layers.RandomSaturation(**options, value_range=(0, 1))
        wanted = theirs.transform_images(
            keras.ops.convert_to_tensor(UNIT), theirs_of(transformation), training=True
        )
        wanted = wanted * 255
    else:
        wanted = theirs.transform_images(
            keras.ops.convert_to_tensor(images), theirs_of(larger), training=True
        )
    agree(found, wanted, 1e-4)


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("limits", [(0, 255), (0, 1), (-1, 1)])
def test_layers_that_draw_nothing(name, limits):
    low, high = limits
    images = WHOLE.astype("float32") * np.float32((high - low) / 255) + np.float32(low)
    if limits != (0, 255):  # not on the borders between levels, where rounding decides
        images = np.clip(images + np.float32(0.3 / 255), low, high)
    name, options = name.strip(), ALONE[name]
    if name.startswith("Contrast") and KERAS == "torch":
        pytest.skip("Keras on torch mixes up the channels")
    ours, theirs = pair(name, value_range=limits, **options)
    for i in range(2):  # Keras' Equalization counts all images of a batch together
        agree(ours(images[i]), theirs(images[i]), 2e-5 * (high - low))
    assert ops.dtype(ours(WHOLE)) == "float32"


def test_labels_and_masks():
    masks = RANDOM.randint(0, 5, (2, 10, 12, 1)).astype("float32")
    for name in ("MixUp", "CutMix"):
        transformation = ROWS[IDS.index(name)][2]
        ours, theirs = pair(name)
        for labels in (np.eye(2, 5), np.eye(2, 3, dtype="int32"), RANDOM.rand(2, 3, 4)):
            labels = labels.astype("float32") if labels.dtype == "float64" else labels
            found = ours.transform_labels(
                ops.convert_to_tensor(labels), ours_of(transformation), training=True
            )
            if labels.ndim == 2 and (labels.dtype, KERAS) != ("int32", "tensorflow"):
                wanted = theirs.transform_labels(
                    keras.ops.convert_to_tensor(labels), theirs_of(transformation), training=True
                )
                agree(found, wanted)
        found = ours.transform_segmentation_masks(
            ops.convert_to_tensor(masks), ours_of(transformation), training=True
        )
        if name == "CutMix":  # Keras makes three channels of the one; its MixUp blends with nothing
            wanted = theirs.transform_segmentation_masks(
                keras.ops.convert_to_tensor(masks), theirs_of(transformation), training=True
            )
            agree(found, wanted[..., :1])


def test_boxes_of_mixed_images():
    boxes = {"boxes": RANDOM.uniform(0, 9, (2, 3, 4)).astype("float32")}
    boxes["labels"] = np.arange(6, dtype="int32").reshape(2, 3)
    transformation = ROWS[IDS.index("MixUp")][2]
    ours, theirs = pair("MixUp", bounding_box_format="xyxy")
    wanted = theirs.transform_bounding_boxes(theirs_of(boxes), theirs_of(transformation))
    found = ours.transform_bounding_boxes(ours_of(boxes), ours_of(transformation))
    agree(found["boxes"], wanted["boxes"])
    assert ops.convert_to_numpy(found["labels"]).tolist() == [
        [0, 1, 2, 3, 4, 5],
        [3, 4, 5, 0, 1, 2],
    ]


@pytest.mark.parametrize(("name", "options"), CONFIGS)
def test_configs_are_equal(name, options):
    ours, theirs = pair(name, **options, name="given")
    found, wanted = plain(ours.get_config()), plain(theirs.get_config())
    missing = {"seed"} if name == "RandomGrayscale" else set()  # Keras forgets it
    assert found.keys() == wanted.keys() | missing
    assert {k: found[k] for k in wanted} == wanted
    again = registry.deserialize(keras.layers.serialize(theirs))
    assert type(again) is type(ours) and plain(again.get_config()) == found


def plain(config):
    if isinstance(config, dict):
        return {k: plain(v) for k, v in config.items()}
    return [plain(v) for v in config] if isinstance(config, (list, tuple)) else config


def drawn(layer, data):
    """A transformation of Keras' layer, as arrays."""
    seed = layer._get_seed_generator(layer.backend._backend)
    found = layer.get_random_transformation(data, training=True, seed=seed)

    def array(x):
        return keras.ops.convert_to_numpy(x) if keras.ops.is_tensor(x) else x

    return keras.tree.map_structure(array, found)


DRAWN = [row for row in CONFIGS if row[0] not in {*ALONE, "RandomColorJitter", "AugMix"}]
DRAWN = [row for row in DRAWN if row[1].get("data_format") is None]


@pytest.mark.parametrize(("name", "options"), DRAWN)
def test_transformations_have_keras_keys(name, options):
    ours, theirs = pair(name, **options)
    data = {"images": UNIT} if name in ("MixUp", "CutMix") else UNIT
    wanted = drawn(theirs, data)
    found = ours.get_random_transformation(ours_of(data), training=True)
    if not isinstance(wanted, dict):
        return
    assert found.keys() == wanted.keys()
    for key in wanted.keys() - {"transforms", "fill_value", "batch_masks", "blur_factor"}:
        assert tuple(found[key].shape) == wanted[key].shape, key
    if name == "RandAugment":
        assert found["transforms"].keys() == wanted["transforms"].keys()


COLOURS = ["random_brightness", "random_color_degeneration", "random_contrast", "solarization"]
COLOURS += ["random_sharpness", "random_posterization", "auto_contrast"]


@pytest.mark.skipif(KERAS == "torch", reason="Keras' RandAugment gives what none of its layers do")
def test_rand_augment_applies_what_was_drawn():
    ours, theirs = pair("RandAugment")
    images = WHOLE.astype("float32")
    transformation = drawn(theirs, images)
    names = list(ours.get_random_transformation(images, training=True)["transforms"])
    for one, two in zip(COLOURS, COLOURS[1:], strict=False):
        transformation["layer_idxes"] = np.array([names.index(one), names.index(two)], "int32")
        wanted = theirs.transform_images(
            keras.ops.convert_to_tensor(images.copy()), theirs_of(transformation)
        )
        found = ours.transform_images(ops.convert_to_tensor(images), ours_of(transformation))
        agree(found, wanted, 1e-4)


def test_aug_mix_applies_what_was_drawn():
    ours, theirs = pair("AugMix")
    images = WHOLE.astype("float32")
    transformation = drawn(theirs, images)
    single = drawn(keras.layers.RandAugment(factor=0.3), images)["transforms"]
    chains = [COLOURS[:3], COLOURS[3:5], COLOURS[5:]]
    transformation["chain_transforms"] = [
        [{"layer_name": name, "transformation": single[name]} for name in chain] for chain in chains
    ]
    wanted = theirs.transform_images(
        keras.ops.convert_to_tensor(images.copy()), theirs_of(transformation)
    )
    found = ours.transform_images(ops.convert_to_tensor(images), ours_of(transformation))
    agree(found, wanted, 1e-4)
