"""Image layers on every backend: forms of data, boxes and masks, jit, host, pipelines, errors."""

import copy
import importlib.util

import numpy as np
import pytest
from image_samples import COUNT, GEOMETRY, HEIGHT, WIDTH, data

import khub
from khub import config, layers, ops, tree
from khub.saving import registry
from khub.utils import bounding_boxes

ROWS = [(name, options) for name, rows in GEOMETRY.items() for options, _ in rows]
IDS = [f"{name}-{i}" for name, rows in GEOMETRY.items() for i in range(len(rows))]
cases = pytest.mark.parametrize(("name", "options"), ROWS, ids=IDS)
BOXES = dict(bounding_box_format="xyxy")


def make(layer_name, options, **more):
    return getattr(layers, layer_name)(**{**options, **more})


def numpy(structure):
    return tree.map_structure(lambda x: ops.convert_to_numpy(x), structure)


def assert_close(found, wanted, tolerance=1e-3):
    for one, other in zip(tree.flatten(found), tree.flatten(wanted), strict=True):
        one, other = ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def apply(layer, batch, transformation):
    """What a transformation does to all parts of the data."""
    batch = tree.map_structure(ops.convert_to_tensor, batch)
    return {
        part: getattr(layer, f"transform_{part}")(batch[part], transformation, training=True)
        for part in batch
    }


def size_of(name, options):
    return (options.get("height", HEIGHT), options.get("width", WIDTH))


@cases
def test_shapes_and_dtypes(name, options):
    layer = make(name, options, **BOXES)
    for training in (True, False):
        batch = data(dtype="uint8")
        found = numpy(layer(copy.deepcopy(batch), training=training))
        assert found["images"].shape == (COUNT, *size_of(name, options), 3)
        kept = name in ("Resizing", "MaxNumBoundingBoxes")
        assert found["images"].dtype == ("uint8" if kept else "float32")
        assert found["segmentation_masks"].shape == (COUNT, *size_of(name, options), 1)
        assert found["segmentation_masks"].dtype == "int32"
        allowed = {*np.unique(batch["segmentation_masks"]), 0, options.get("fill_value", 0)}
        assert {*np.unique(found["segmentation_masks"])} <= allowed
        count = options.get("max_number", 2)
        assert found["bounding_boxes"]["boxes"].shape == (COUNT, count, 4)
        assert found["bounding_boxes"]["labels"].shape == (COUNT, count)
        np.testing.assert_array_equal(found["labels"], batch["labels"])
    assert layer.compute_output_shape((None, HEIGHT, WIDTH, 3)) == (
        None,
        *size_of(name, options),
        3,
    )


@cases
def test_single_images_and_channels_first(name, options):
    batch = data()
    batch["segmentation_masks"] = batch["segmentation_masks"][..., 0]
    one = {k: tree.map_structure(lambda x: x[:1], v) for k, v in batch.items()}
    layer = make(name, options, seed=3) if "seed" in fields(name) else make(name, options)
    layer.bounding_box_format = "xyxy"
    transformation = layer.get_random_transformation(one["images"], training=True)
    wanted = numpy(apply(layer, one, transformation))
    single = {k: tree.map_structure(lambda x: x[0], v) for k, v in one.items()}
    for part, singular in zip(PARTS, SINGULAR, strict=True):
        x = tree.map_structure(ops.convert_to_tensor, single[part])
        found = getattr(layer, f"transform_single_{singular}")(x, transformation, training=True)
        assert_close(found, tree.map_structure(lambda x: x[0], wanted[part]))
    assert layer(single, training=True)["images"].shape == wanted["images"].shape[1:]
    if name == "MaxNumBoundingBoxes":
        return
    first = make(name, options, data_format="channels_first", **BOXES)
    moved = dict(one, images=np.moveaxis(one["images"], -1, 1))
    if isinstance(transformation, dict):
        shape = {"input_shape": (1, 3, HEIGHT, WIDTH)}
        transformation = {k: shape.get(k, v) for k, v in transformation.items()}
    if name == "RandomCrop":
        transformation = (*transformation[:2], (1, 3, HEIGHT, WIDTH))
    del moved["segmentation_masks"], wanted["segmentation_masks"]
    found = numpy(apply(first, moved, transformation))
    found["images"] = np.moveaxis(found["images"], 1, -1)
    assert_close(found, wanted)


PARTS = ("images", "labels", "bounding_boxes", "segmentation_masks")
SINGULAR = ("image", "label", "bounding_box", "segmentation_mask")


def fields(name):
    return {field[0] for field in getattr(layers, name)._fields}


@cases
def test_boxes_of_every_form_and_masks_follow_the_images(name, options):
    found = []
    for form in ("xyxy", "yxyx", "xywh", "rel_xyxy"):
        layer = make(name, options, bounding_box_format=form)
        batch = data(form)
        if not found:
            drawn = layer.get_random_transformation(batch["images"], training=True)
        boxes = tree.map_structure(ops.convert_to_tensor, batch["bounding_boxes"])
        result = numpy(layer.transform_bounding_boxes(boxes, drawn, training=True))
        size = size_of(name, options)
        if name != "MaxNumBoundingBoxes":
            result = numpy(bounding_boxes.convert_format(result, form, "xyxy", *size))
        found.append(result)
    if name != "MaxNumBoundingBoxes":
        for other in found[1:]:
            assert_close(other, found[0])
        assert found[0]["boxes"].min() >= 0 and found[0]["boxes"].max() <= max(size)


MOVED = [n for n in GEOMETRY if n not in ("MaxNumBoundingBoxes", "RandomElasticTransform")]
WITH = {"RandomRotation": dict(factor=0.08), "RandomPerspective": dict(scale=0.2)}


@pytest.mark.parametrize("name", MOVED)
def test_boxes_lie_where_the_pixels_went(name):
    image = np.zeros((1, 40, 60, 1), "float32")
    image[0, 12:24, 20:36] = 1
    boxes = {"boxes": np.array([[[20, 12, 36, 24]]], "float32"), "labels": np.ones((1, 1), "int32")}
    size = {"height": 36, "width": 48} if "height" in fields(name) else {}
    near = {k: 0.2 for k in ("height_factor", "width_factor", "x_factor", "y_factor")}
    own = {k: v for k, v in near.items() if k in fields(name)}
    constant = {"fill_mode": "constant"} if "fill_mode" in fields(name) else {}
    layer = make(name, {**size, **own, **WITH.get(name, {}), **constant}, **BOXES)
    for _ in range(4):
        found = numpy(layer({"images": image, "bounding_boxes": boxes}, training=True))
        rows, columns = np.nonzero(found["images"][0, ..., 0] > 0.5)
        left, top, right, bottom = found["bounding_boxes"]["boxes"][0, 0]
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose([left, top, right, bottom], seen, atol=1.6)


@cases
def test_jit_and_host_equal_eager(name, options):
    layer = make(name, options, **BOXES)
    batch = data()
    drawn = layer.get_random_transformation(batch["images"], training=True)
    wanted = apply(layer, batch, drawn)
    static = {}

    def run(batch, drawn):
        drawn = tree.map_structure(lambda x, keep: x if keep is None else keep, drawn, static)
        return apply(layer, batch, drawn)

    if isinstance(drawn, (dict, tuple)):
        static = tree.map_structure(lambda x: None if hasattr(x, "dtype") else x, drawn)
        tensors = tree.map_structure(lambda x: x if hasattr(x, "dtype") else 0, drawn)
        found = khub.jit(run)(tree.map_structure(ops.convert_to_tensor, batch), tensors)
    else:
        found = khub.jit(lambda batch: apply(layer, batch, None))(batch)
    assert_close(found, wanted)
    from khub.backend.host import on_host

    host = tree.map_structure(
        lambda x: ops.convert_to_numpy(x) if hasattr(x, "dtype") else x, drawn
    )
    with on_host():
        found = apply(layer, batch, host)
    assert all(isinstance(x, np.ndarray) for x in tree.flatten(found))
    assert_close(found, wanted)


@cases
def test_whole_calls_under_jit_on_the_host_and_in_a_model(name, options):
    layer, batch = make(name, options), data()
    shape = (COUNT, *size_of(name, options), 3)
    found = ops.convert_to_numpy(khub.jit(lambda x: layer(x, training=True))(batch["images"]))
    assert found.shape == shape and np.isfinite(found).all()
    found = layer.on_host(batch["images"], training=True)
    assert isinstance(found, np.ndarray) and found.shape == shape
    inputs = khub.Input((HEIGHT, WIDTH, 3))
    model = khub.Model(inputs, layer(inputs))
    assert tuple(model(batch["images"]).shape) == shape
    assert np.shape(model.predict(batch["images"], verbose=0)) == shape


@cases
def test_serialization_and_seeds(name, options):
    layer = make(name, options, name="given", **BOXES)
    again = registry.deserialize(registry.serialize(layer))
    assert again.get_config() == layer.get_config()
    if "seed" not in fields(name):
        return
    one, two = (make(name, {**options, "seed": 7}) for _ in range(2))
    x = data()["images"]
    first = [one(x, training=True), one(x, training=True)]
    assert_close([two(x, training=True), two(x, training=True)], first)
    assert "generator" in {path.split(".")[0] for path in one.named_variables()}
    if name != "RandomCrop" or options["height"] < HEIGHT:
        changed = [ops.convert_to_numpy(one(x, training=True)) for _ in range(20)]
        assert any(not np.array_equal(changed[0], other) for other in changed)


@pytest.mark.parametrize("name", [n for n in GEOMETRY if n.startswith("Random")])
def test_nothing_happens_outside_of_training(name):
    layer = make(name, GEOMETRY[name][0][0], **BOXES)
    batch = data()
    found = layer(copy.deepcopy(batch), training=False)
    if name != "RandomCrop":
        assert_close(
            found, {k: tree.map_structure(ops.convert_to_tensor, v) for k, v in batch.items()}
        )
    still = make(name, {**GEOMETRY[name][0][0], "dtype": "uint8"})
    image = data(dtype="uint8")["images"]
    assert ops.dtype(still(image, training=True)) == "uint8"


def test_crops_outside_of_training_show_what_fits():
    x = np.arange(5 * 7, dtype="float32").reshape(1, 5, 7, 1)
    wanted = layers.Resizing(4, 4, crop_to_aspect_ratio=True)(x)
    assert_close(layers.RandomCrop(4, 4)(x, training=False), wanted)
    for layer in (layers.RandomCrop(8, 4), layers.CenterCrop(8, 4)):
        assert_close(layer(x), layers.Resizing(8, 4, crop_to_aspect_ratio=True)(x))


@pytest.mark.skipif(not importlib.util.find_spec("tensorflow"), reason="needs TensorFlow")
@pytest.mark.parametrize("name", GEOMETRY)
def test_inside_tf_data(name):
    import tensorflow

    layer = make(name, GEOMETRY[name][0][0], **BOXES)
    batch = data()
    dataset = tensorflow.data.Dataset.from_tensor_slices(batch).batch(2)
    sizes = []
    for found in dataset.map(lambda x: layer(x, training=True)):
        sizes.append(tuple(found["images"].shape))
        assert np.isfinite(found["images"].numpy()).all()
    shape = (*size_of(name, GEOMETRY[name][0][0]), 3)
    assert sizes == [(2, *shape), (1, *shape)]


def test_pipeline_passes_dicts_on():
    pipeline = layers.Pipeline(
        [
            layers.RandomFlip("horizontal", seed=1, **BOXES),
            layers.RandomZoom(0.2, seed=1, **BOXES),
            layers.Resizing(6, 8, **BOXES),
        ]
    )
    found = pipeline(data(), training=True)
    assert found["images"].shape == (COUNT, 6, 8, 3)
    assert found["bounding_boxes"]["boxes"].shape == (COUNT, 2, 4)
    host = pipeline.on_host(data(), training=True)
    assert isinstance(host["images"], np.ndarray)
    assert len(pipeline.variables) == 2
    again = registry.deserialize(registry.serialize(pipeline))
    assert [type(x) for x in again.layers] == [type(x) for x in pipeline.layers]
    still = layers.Pipeline([layers.RandomFlip(), layers.Rescaling(1 / 255)])
    x = data(dtype="uint8")["images"]
    assert_close(still(x, training=False), ops.convert_to_tensor(x.astype("float32") / 255), 1e-5)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_rescaling_has_numbers_for_each_channel(data_format, monkeypatch):
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype("float32")
    layer = layers.Rescaling([1.0, 2.0, 3.0], offset=[0.0, 0.5, -1.0])
    wanted = x * np.float32([1, 2, 3]) + np.float32([0, 0.5, -1])
    if data_format == "channels_first":
        monkeypatch.setattr(config, "image_data_format", lambda: data_format)
        x, wanted = np.moveaxis(x, -1, 1), np.moveaxis(wanted, -1, 1)
    assert_close(layer(x), wanted)
    assert_close(layer(x[0]), wanted[0])
    np.testing.assert_allclose(layer.on_host(x), wanted, rtol=1e-6)


X = np.zeros((2, 4, 5, 3), "float32")
BOXED = {"images": X, "bounding_boxes": {"boxes": np.zeros((2, 1, 4)), "labels": np.zeros((2, 1))}}
ERRORS = [
    (lambda: layers.Resizing(0, 5), "height must be a positive integer, got 0"),
    (lambda: layers.Resizing(4, 5, interpolation="linear"), "interpolation must be one of"),
    (
        lambda: layers.Resizing(4, 5, crop_to_aspect_ratio=True, pad_to_aspect_ratio=True),
        "Only one",
    ),
    (lambda: layers.RandomFlip("sideways"), "mode must be one of horizontal, vertical"),
    (lambda: layers.RandomRotation(2), "factor must be a number or a pair"),
    (lambda: layers.RandomRotation((1, 2, 3)), r"factor .* got \(1, 2, 3\)"),
    (lambda: layers.RandomRotation(0.1, fill_mode="mirror"), "fill_mode must be one of"),
    (lambda: layers.RandomZoom("big"), "height_factor .* got 'big'"),
    (lambda: layers.RandomTranslation(0.1, 3), "width_factor .* got 3"),
    (lambda: layers.RandomPerspective(scale=2), "scale must lie between 0 and 1"),
    (lambda: layers.CenterCrop(4, 5, bounding_box_format="corners"), "bounding_box_format must be"),
    (lambda: layers.CenterCrop(4, 5)(X[0, 0]), "needs images of 4 axes, or 3"),
    (lambda: layers.CenterCrop(4, 5)({"image": X}), "got the keys 'image'"),
    (lambda: layers.CenterCrop(4, 5)(BOXED), "give the layer bounding_box_format"),
    (
        lambda: layers.CenterCrop(4, 5, **BOXES)({"images": X, "bounding_boxes": X}),
        'must be a dict of "boxes" and "labels"',
    ),
    (lambda: bounding_boxes.convert_format(X, "xyxy", "xywh"), r"must have the shape \(..., 4\)"),
    (lambda: bounding_boxes.convert_format(X, "xyxy", "foo"), "target must be one of"),
    (
        lambda: bounding_boxes.convert_format(X[0, :, :4, 0], "xyxy", "rel_xyxy"),
        "height and width are needed",
    ),
    (lambda: bounding_boxes.clip_to_image_size(BOXED), "height and width are needed"),
    (lambda: bounding_boxes.crop(X, 0, 0, 1, 1, "rel_xyxy"), "must be a form in pixels"),
    (lambda: bounding_boxes.encode_box_to_deltas(X, X, "xyxy", "xyxy", "xyxy"), "encoding_format"),
    (
        lambda: bounding_boxes.decode_deltas_to_boxes(X, X, "xyxy", "xyxy", variance=[1.0]),
        "variance must have 4 numbers",
    ),
]


@pytest.mark.parametrize(("act", "text"), ERRORS)
def test_errors(act, text):
    with pytest.raises((ValueError, TypeError), match=text):
        act()
