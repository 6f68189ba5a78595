"""Layers for colours, erasing and mixing on every backend: kinds of data, jit, host, errors."""

import importlib.util

import numpy as np
import pytest
from image_samples import COUNT, HEIGHT, SHAPE, WIDTH, data

import khub
from khub import layers, ops, tree
from khub.backend import name as backend
from khub.backend.host import on_host
from khub.layers import image_color
from khub.saving import registry

COLOURS = {  # class -> arguments
    "AutoContrast": [{}],
    "Equalization": [{}, dict(bins=40)],
    "ContrastLimitedAdaptiveHistogramEqualization": [
        dict(tile_grid_size=(3, 5)),
        dict(clip_limit=0, tile_grid_size=(1, 2)),
    ],
    "RandomBrightness": [dict(factor=0.3), dict(factor=(0.1, 0.2))],
    "RandomContrast": [dict(factor=0.3)],
    "RandomHue": [dict(factor=0.5)],
    "RandomSaturation": [dict(factor=(0.2, 1.0))],
    "RandomColorDegeneration": [dict(factor=0.9)],
    "RandomColorJitter": [
        dict(brightness_factor=0.2, contrast_factor=0.3, saturation_factor=0.6, hue_factor=0.1),
        dict(hue_factor=(0.1, 0.2)),
    ],
    "RandomGrayscale": [{}],
    "RandomInvert": [{}],
    "RandomPosterization": [dict(factor=4)],
    "RandomSharpness": [dict(factor=1.0)],
    "RandomGaussianBlur": [dict(sigma=(0.5, 2.0)), dict(kernel_size=(5, 3))],
    "Solarization": [dict(addition_factor=0.3, threshold_factor=(0.2, 0.8))],
    "RandomErasing": [{}, dict(fill_value=7.0, scale=(0.3, 0.6))],
    "MixUp": [{}],
    "CutMix": [{}, dict(factor=(0.3, 0.6))],
    "RandAugment": [dict(num_ops=2)],
    "AugMix": [dict(num_chains=2, chain_depth=1, all_ops=False)],
}
ROWS = [(name, options) for name, rows in COLOURS.items() for options in rows]
IDS = [f"{name}-{i}" for name, rows in COLOURS.items() for i in range(len(rows))]
cases = pytest.mark.parametrize(("name", "options"), ROWS, ids=IDS)
STILL = {"AutoContrast", "Equalization", "ContrastLimitedAdaptiveHistogramEqualization"}
NO_RANGE = {"RandomGrayscale", "MixUp", "CutMix"}
MIXED = {"MixUp": ("images", "labels", "bounding_boxes", "segmentation_masks")}
MIXED |= {"CutMix": ("images", "labels", "segmentation_masks")}
MOVING = {"RandAugment": ("images", "bounding_boxes", "segmentation_masks")}
SLOW = {"RandAugment", "AugMix"}


def make(layer_name, options, **more):
    return getattr(layers, layer_name)(**{**options, **more})


def batch_for(name, dtype="float32"):
    batch = data(dtype=dtype)
    batch["labels"] = np.eye(COUNT, 5, dtype="float32")
    if name == "CutMix":
        del batch["bounding_boxes"]
    return batch


def tensors(structure):
    return tree.map_structure(
        lambda x: ops.convert_to_tensor(x) if isinstance(x, np.ndarray) else x, structure
    )


def arrays(structure):
    return tree.map_structure(
        lambda x: ops.convert_to_numpy(x) if hasattr(x, "shape") else x, structure
    )


def assert_close(found, wanted, tolerance=1e-3):
    for one, other in zip(tree.flatten(found), tree.flatten(wanted), strict=True):
        one, other = ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def apply(layer, batch, transformation):
    """What a transformation does to all parts of the data."""
    return {
        part: getattr(layer, f"transform_{part}")(value, transformation, training=True)
        for part, value in batch.items()
    }


@cases
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_shapes_dtypes_and_ranges(name, options, dtype):
    layer = make(name, options, bounding_box_format="xyxy")
    batch = batch_for(name, dtype)
    for training in (True, False):
        found = arrays(layer(dict(batch), training=training))
        assert found.keys() == batch.keys()
        images = found["images"]
        assert images.shape == SHAPE and images.dtype == "float32"
        assert images.min() >= -1e-3 and images.max() <= 255 + 1e-3
        if training and name in STILL | {"RandomBrightness"}:
            assert np.abs(images - batch["images"]).max() > 0.5
        changed = {**MIXED, **MOVING}.get(name, ()) if training else ()
        for part in batch.keys() - {"images", *changed}:
            assert_close(tensors(found[part]), tensors(batch[part]), 0)
        if not training and name not in STILL:
            np.testing.assert_array_equal(images, batch["images"].astype("float32"))
    assert layer.compute_output_shape((None, HEIGHT, WIDTH, 3)) == (None, HEIGHT, WIDTH, 3)


@cases
def test_whole_numbers_out(name, options):
    layer = make(name, options, dtype="uint8")
    found = ops.convert_to_numpy(layer(data(dtype="uint8")["images"], training=True))
    assert found.dtype == "uint8" and found.shape == SHAPE


@cases
def test_single_images_channels_first_and_other_ranges(name, options):
    layer = make(name, options)
    x = data()["images"]
    drawn = layer.get_random_transformation(x, training=True)
    wanted = arrays(layer.transform_images(tensors(x), drawn, training=True))
    assert np.shape(layer(x[0], training=True)) == SHAPE[1:]
    single = layer.get_random_transformation(x[0], training=True)
    found = layer.transform_single_image(tensors(x[0]), single, training=True)
    assert_close(found, layer.transform_images(tensors(x[:1]), single, training=True)[0])
    if name in SLOW:  # their transformations hold sizes
        return
    first = make(name, options, data_format="channels_first")
    moved = tree.map_structure(
        lambda t: t if t is None or len(t.shape) != 4 else ops.moveaxis(t, -1, 1), drawn
    )
    found = first.transform_images(tensors(np.moveaxis(x, -1, 1).copy()), moved, training=True)
    assert_close(np.moveaxis(arrays(found), 1, -1), wanted)
    assert np.shape(first(np.moveaxis(x, -1, 1).copy(), training=True)) == (COUNT, 3, HEIGHT, WIDTH)
    if name in NO_RANGE:
        return
    low = 0 if name in ("RandomSharpness", "RandomGaussianBlur") else -1  # 0 lies beyond the border
    unit, width = make(name, options, value_range=(low, 1)), np.float32((1 - low) / 255)
    offset = {"rgb_delta": 0, "fill_value": low}

    def smaller(values):
        if not isinstance(values, dict):
            return values
        return {k: v * width + offset[k] if k in offset else smaller(v) for k, v in values.items()}

    found = arrays(unit.transform_images(tensors(x * width + low), smaller(drawn), training=True))
    levels = "Posteri" in name or "Equal" in name  # numbers between two may fall into either
    far = np.abs((found - low) / width - wanted) > (1.01 if levels else 2e-2)
    assert far.mean() < (0.02 if levels else 1e-6)


@cases
def test_jit_and_host_equal_eager(name, options):
    layer = make(name, options, bounding_box_format="xyxy")
    batch = batch_for(name)
    drawn = layer.get_random_transformation(batch["images"], training=True)
    wanted = apply(layer, tensors(batch), drawn)
    with on_host():
        found = apply(layer, batch, arrays(drawn))
    assert all(isinstance(x, np.ndarray) for x in tree.flatten(found))
    assert_close(found, wanted)
    if name in SLOW:
        leaves = [x if hasattr(x, "dtype") else None for x in tree.flatten(drawn)]
        tensors_only = [x for x in leaves if x is not None]

        def run(batch, given):
            given = iter(given)
            flat = [
                kept if leaf is None else next(given)
                for leaf, kept in zip(leaves, tree.flatten(drawn), strict=True)
            ]
            return apply(layer, batch, tree.pack_sequence_as(drawn, flat))

        found = khub.jit(run)(tensors(batch), tensors_only)
    elif drawn is None:
        found = khub.jit(lambda batch: apply(layer, batch, None))(tensors(batch))
    else:
        found = khub.jit(lambda batch, drawn: apply(layer, batch, drawn))(tensors(batch), drawn)
    assert_close(found, wanted, 2e-3)


@cases
def test_whole_calls_under_jit_on_the_host_and_in_a_model(name, options):
    layer, x = make(name, options), data()["images"]
    if name not in SLOW or backend != "jax":  # compiles for long; the test above has it compiled
        found = ops.convert_to_numpy(khub.jit(lambda x: layer(x, training=True))(x))
        assert found.shape == SHAPE and np.isfinite(found).all()
    found = layer.on_host(x, training=True)
    assert isinstance(found, np.ndarray) and found.shape == SHAPE
    inputs = khub.Input((HEIGHT, WIDTH, 3))
    model = khub.Model(inputs, layer(inputs))
    assert tuple(model(x).shape) == SHAPE
    assert np.shape(model.predict(x, verbose=0)) == SHAPE


@cases
def test_serialization_and_seeds(name, options):
    layer = make(name, options, name="given")
    again = registry.deserialize(registry.serialize(layer))
    assert again.get_config() == layer.get_config()
    if name in STILL:
        return
    one, two = (make(name, {**options, "seed": 7}) for _ in range(2))
    x = data()["images"]
    first = [one(x, training=True) for _ in range(4)]
    assert_close([two(x, training=True) for _ in range(4)], first)
    assert any(not np.array_equal(arrays(first[0]), arrays(other)) for other in first[1:])


@pytest.mark.skipif(not importlib.util.find_spec("tensorflow"), reason="needs TensorFlow")
@pytest.mark.skipif(backend == "jax", reason="the other framework is tried on torch and numpy")
@pytest.mark.parametrize("name", COLOURS)
def test_inside_tf_data(name):
    import tensorflow

    layer = make(name, COLOURS[name][0], bounding_box_format="xyxy")
    dataset = tensorflow.data.Dataset.from_tensor_slices(batch_for(name)).batch(2)
    for found in dataset.map(lambda x: layer(x, training=True)):
        assert tuple(found["images"].shape)[1:] == SHAPE[1:]
        assert np.isfinite(found["images"].numpy()).all()


@pytest.mark.parametrize("name", [name for name in COLOURS if name not in SLOW])
def test_parts_of_a_large_batch_give_what_the_whole_gives(name, monkeypatch):
    layer = make(name, COLOURS[name][-1])
    x = tensors(data()["images"])
    drawn = layer.get_random_transformation(x, training=True)
    wanted = layer.transform_images(x, drawn, training=True)
    monkeypatch.setattr(image_color, "_PART", HEIGHT * WIDTH * 3)
    assert_close(layer.transform_images(x, drawn, training=True), wanted, 1e-5)


# --- what some of them do ------------------------------------------------------------------------
def test_greys_and_flat_images_stay():
    flat = np.full((2, 4, 5, 3), 70, "float32")
    for name in STILL:
        found = arrays(make(name, {})(flat))
        np.testing.assert_allclose(found, flat, atol=4 if name.startswith("Con") else 1e-3)
    for layer in (layers.RandomHue(1.0), layers.RandomSaturation(1.0)):
        np.testing.assert_allclose(arrays(layer(flat, training=True)), flat, atol=1e-3)


def test_colours_by_hand():
    red = np.zeros((1, 2, 2, 3), "float32")
    red[..., 0] = 255
    turned = layers.RandomHue(0.5).transform_images(
        tensors(red), {"factor": tensors(np.array([1 / 3], "float32"))}
    )
    np.testing.assert_allclose(arrays(turned)[0, 0, 0], [0, 255, 0], atol=1e-2)
    dark = arrays(layers.RandomBrightness((-0.5, -0.5))(red, training=True))
    np.testing.assert_allclose(dark[0, 0, 0], [127.5, 0, 0], atol=1e-3)
    negative = arrays(layers.RandomInvert((1, 1), value_range=(-255, 255))(red, training=True))
    np.testing.assert_allclose(negative[0, 0, 0], [-255, 0, 0])
    bits = arrays(layers.RandomPosterization((1, 1))(red, training=True))
    np.testing.assert_allclose(bits[0, 0, 0], [128, 0, 0])
    solar = arrays(layers.Solarization()(red, training=True))
    np.testing.assert_allclose(solar[0, 0, 0], [0, 255, 255])
    grey = arrays(layers.RandomGrayscale(1.0)(red, training=True))
    np.testing.assert_allclose(grey[0, 0, 0], [0.2989 * 255] * 3, rtol=1e-5)
    same = layers.RandomSharpness((0.5, 0.5))(red, training=True)
    np.testing.assert_allclose(arrays(same), red, atol=1e-3)


def test_erased_rectangles():
    x = np.zeros((64, 20, 30, 1), "float32")
    layer = layers.RandomErasing((1, 1), scale=(0.25, 0.25), fill_value=9, seed=1)
    found = arrays(layer(x, training=True))[..., 0]
    assert set(np.unique(found)) == {0, 9}
    assert ((found == 9).sum((1, 2)) == 10 * 15).all()
    places = {tuple(np.argwhere(image)[0]) for image in found}
    assert len(places) > 20 and max(places) <= (10, 15)
    noise = arrays(layers.RandomErasing((1, 1), scale=(1, 1))(x, training=True))
    assert noise.min() == 0 and noise.max() == 255 and 60 < noise.mean() < 100


def test_mixed_labels_and_masks():
    x = np.arange(COUNT, dtype="float32").reshape(-1, 1, 1, 1) * np.ones(SHAPE, "float32")
    labels = np.eye(COUNT, dtype="float32")
    for layer in (layers.MixUp(1.0, seed=2), layers.CutMix((1, 1), seed=2)):
        batch = {"images": x, "labels": labels, "segmentation_masks": x[..., :1]}
        found = arrays(layer(batch, training=True))
        values = np.arange(COUNT)
        np.testing.assert_allclose(
            found["images"].mean((1, 2, 3)), found["labels"] @ values, rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose(found["images"][..., :1], found["segmentation_masks"], atol=1e-4)
        np.testing.assert_allclose(found["labels"].sum(1), 1, rtol=1e-5)
        flat = {"images": x, "segmentation_masks": x[..., 0].astype("int32")}
        mask = arrays(layer(flat, training=True))["segmentation_masks"]
        assert mask.shape == SHAPE[:3]


def test_aug_mix_reads_names_of_layers():
    layer, x = layers.AugMix(num_chains=1), data()["images"]
    drawn = layer.get_random_transformation(x, training=True)
    drawn["chain_transforms"] = [[{"layer_name": "auto_contrast", "transformation": None}]]
    drawn["weight_sample"] = ops.convert_to_tensor(0.25, "float32")
    wanted = 0.25 * x + 0.75 * arrays(layers.AutoContrast()(x))
    assert_close(layer.transform_images(tensors(x), drawn), tensors(wanted.astype("float32")))


X = np.zeros((2, 4, 5, 3), "float32")
ERRORS = [
    (lambda: layers.AutoContrast((1, 0)), r"value_range must be a pair .* got \(1, 0\)"),
    (lambda: layers.AutoContrast(255), "value_range must be a pair"),
    (lambda: layers.Equalization(bins=0), "bins must be a positive integer, got 0"),
    (
        lambda: layers.ContrastLimitedAdaptiveHistogramEqualization(tile_grid_size=(0, 1)),
        "tile_grid_size must be two positive integers",
    ),
    (lambda: layers.RandomBrightness(2), "factor must be a number or a pair"),
    (lambda: layers.RandomContrast("x"), "factor .* got"),
    (lambda: layers.RandomColorJitter(hue_factor=2), "factor .* got 2"),
    (lambda: layers.RandomGrayscale(3), "factor must lie between 0 and 1, got 3"),
    (lambda: layers.RandomPosterization(0), "factor .* got"),
    (lambda: layers.RandomGaussianBlur(kernel_size=4), "kernel_size must be an odd integer"),
    (lambda: layers.MixUp(0), "alpha must be a positive number, got 0"),
    (lambda: layers.AugMix(chain_depth=0), "chain_depth must be a positive integer"),
    (lambda: layers.RandAugment(interpolation="cubic"), "interpolation must be one of"),
    (
        lambda: layers.MixUp()({"images": X, "labels": np.zeros(2, "int32")}, training=True),
        "must be one-hot or floats, got integers",
    ),
    (
        lambda: layers.CutMix(bounding_box_format="xyxy")(
            {"images": X, "bounding_boxes": {"boxes": X[:, :1, :4, 0], "labels": X[:, 0, :1, 0]}},
            training=True,
        ),
        "not defined for bounding boxes; use MixUp",
    ),
]


@pytest.mark.parametrize(("act", "text"), ERRORS)
def test_errors(act, text):
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=text):
        act()
