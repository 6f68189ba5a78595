"""Image layers do what Keras' do: the same transformation, drawn by Keras, gives the same data."""

import copy
import inspect
import os

import numpy as np
import pytest
from image_samples import GEOMETRY, data

KERAS = os.environ["KERAS_BACKEND"]
keras = pytest.importorskip("keras")

import khub  # noqa: E402
from khub import ops, tree  # noqa: E402
from khub.saving import registry  # noqa: E402
from khub.utils import bounding_boxes  # noqa: E402

ROWS = [(name, *row) for name, rows in GEOMETRY.items() for row in rows]
IDS = [f"{name}-{i}" for name, rows in GEOMETRY.items() for i in range(len(rows))]
cases = pytest.mark.parametrize(("name", "options", "apart"), ROWS, ids=IDS)
FORMS = ("xyxy", "yxyx", "xywh", "rel_xyxy")


def pair(name, options):
    return tuple(
        getattr(library.layers, name)(**options, name="given") for library in (khub, keras)
    )


def arrays(structure):
    """A structure of Keras' tensors as NumPy arrays of its own: some backends write into them."""
    if isinstance(structure, dict):
        return {key: arrays(value) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return tuple(map(arrays, structure))
    return (
        np.array(keras.ops.convert_to_numpy(structure))
        if keras.ops.is_tensor(structure)
        else structure
    )


def given(structure, library):
    """The structure with arrays as tensors of a library."""
    if isinstance(structure, dict):
        return {key: given(value, library) for key, value in structure.items()}
    if isinstance(structure, tuple) and any(isinstance(x, np.ndarray) for x in structure):
        return tuple(given(value, library) for value in structure)
    return (
        library.ops.convert_to_tensor(structure.copy())
        if isinstance(structure, np.ndarray)
        else structure
    )


def close(ours, theirs, tolerance=1e-4, share=1.0):
    ours, theirs = np.asarray(ours, "float64"), np.asarray(theirs, "float64")
    assert ours.shape == theirs.shape
    same = np.isclose(ours, theirs, rtol=tolerance, atol=tolerance * max(1, np.abs(theirs).max()))
    assert same.mean() >= share, (same.mean(), np.abs(ours - theirs).max())


PARTS = ("images", "labels", "segmentation_masks", "bounding_boxes")


def transformed(layer, library, batch, transformation):
    results = {}
    for part in PARTS:
        method = getattr(layer, f"transform_{part}")
        x = given(batch[part], library)
        results[part] = method(x, given(transformation, library), training=True)
    return results


@pytest.mark.parametrize("form", FORMS)
@cases
def test_a_transformation_gives_the_same_data(name, options, apart, form):
    if apart == "all":
        pytest.skip("drawn in another way, see docs/deviations.md")
    options = dict(options)
    if KERAS == "torch" and "fill_mode" not in options and "fill_mode" in khub_fields(name):
        options["fill_mode"] = "constant"  # there it has no reflection at the edge
    ours, theirs = pair(name, {**options, "bounding_box_format": form})
    batch = data(form, seed=len(name))
    transformation = arrays(theirs.get_random_transformation(batch["images"], training=True))
    mine = transformation
    if name == "RandomCrop":
        mine = (*transformation, batch["images"].shape)
    found = transformed(ours, khub, batch, mine)
    for part in PARTS:
        if part in apart or ("forms" in apart and form != "xyxy" and part == "bounding_boxes"):
            continue
        nearest = part == "segmentation_masks" or options.get("interpolation") == "nearest"
        if nearest and KERAS == "torch" and "fill_value" in khub_fields(name):
            continue  # there it rounds places down
        x = given(batch[part], keras)
        wanted = getattr(theirs, f"transform_{part}")(
            x, given(transformation, keras), training=True
        )
        # halves are rounded down by some and up by others
        for one, other in zip(tree.flatten(found[part]), tree.flatten(wanted), strict=True):
            one, other = ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other)
            close(one, other, share=0.9 if nearest else 1.0)


def khub_fields(name):
    return {field[0] for field in getattr(khub.layers, name)._fields}


@cases
def test_what_is_drawn_has_the_same_form(name, options, apart):
    if apart == "all" or name == "RandomCrop":
        pytest.skip("drawn in another way, see docs/deviations.md")
    ours, theirs = pair(name, options)
    for x in (data()["images"], data()["images"][0]):
        found = ours.get_random_transformation(ops.convert_to_tensor(x))
        wanted = theirs.get_random_transformation(x)
        if not isinstance(wanted, dict):
            assert found is wanted or tuple(found) == tuple(wanted)
            continue
        assert found.keys() - wanted.keys() <= {"input_shape"} and wanted.keys() <= found.keys()
        for key in found.keys() - {"input_shape"}:
            if hasattr(found[key], "shape"):
                assert int(np.prod(found[key].shape)) == int(np.prod(wanted[key].shape)), key
                assert ops.dtype(found[key]) == keras.backend.standardize_dtype(wanted[key].dtype)
            else:
                assert found[key] == wanted[key]


LIMITS = [
    ("RandomRotation", dict(factor=(0.1, 0.3)), "angle"),
    ("RandomZoom", dict(height_factor=(0.1, 0.3), width_factor=(-0.2, 0.1)), "height_zoom"),
    ("RandomZoom", dict(height_factor=(0.1, 0.3), width_factor=(-0.2, 0.1)), "width_zoom"),
    ("RandomTranslation", dict(height_factor=(0.1, 0.3), width_factor=-0.2), "translations"),
    ("RandomShear", dict(x_factor=(0.1, 0.3), y_factor=0.1), "shear_factor"),
    ("RandomFlip", {}, "flips"),
]


@pytest.mark.parametrize(("name", "options", "key"), LIMITS)
def test_draws_have_the_same_spread(name, options, key):
    ours, theirs = pair(name, {**options, "seed": 1})
    x = np.zeros((2000, 12, 16, 3), "float32")
    found = ops.convert_to_numpy(ours.get_random_transformation(ops.convert_to_tensor(x))[key])
    wanted = keras.ops.convert_to_numpy(theirs.get_random_transformation(x)[key])
    for statistic in (np.min, np.max, np.mean, np.std):
        one, other = (
            statistic(v.reshape(len(v), -1).astype(float), axis=0) for v in (found, wanted)
        )
        spread = np.ptp(wanted.reshape(len(wanted), -1).astype(float), axis=0)
        np.testing.assert_array_less(np.abs(one - other), 0.05 * spread + 1e-6)


@cases
def test_outside_of_training(name, options, apart):
    if name == "RandomCrop":
        pytest.skip("Keras crops nothing then, against its documentation")
    if apart == "all" or "images" in apart:
        apart = "images bounding_boxes" if name == "Resizing" else "bounding_boxes"
    ours, theirs = pair(name, {**options, "bounding_box_format": "xyxy"})
    batch = data()
    mine = ours(copy.deepcopy(batch), training=False)
    for part in PARTS:
        if part in apart:
            continue
        if part == "bounding_boxes":
            t = theirs.get_random_transformation(batch["images"], training=False)
            wanted = theirs.transform_bounding_boxes(given(batch[part], keras), t, training=False)
        elif name == "RandomElasticTransform":
            wanted = batch[part]
        else:
            t = theirs.get_random_transformation(batch["images"], training=False)
            x = given(batch[part], keras)
            wanted = getattr(theirs, f"transform_{part}")(x, t, training=False)
        for one, other in zip(tree.flatten(mine[part]), tree.flatten(wanted), strict=True):
            other = keras.ops.convert_to_numpy(other)
            close(ops.convert_to_numpy(one), other, share=0.9 if "masks" in part else 1.0)


@cases
def test_configs_and_signatures(name, options, apart):
    ours, theirs = pair(name, options)
    found, wanted = plain(ours.get_config()), plain(theirs.get_config())
    if name == "RandomCrop":  # Keras draws a seed where none is given
        found["seed"] = wanted["seed"]
    assert found == wanted
    assert plain(registry.deserialize(keras.layers.serialize(theirs)).get_config()) == wanted
    signatures = [
        [
            p.name
            for p in inspect.signature(type(layer).__init__).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        for layer in (ours, theirs)
    ]
    wanted = [n for n in signatures[1] if n != "name"]
    assert signatures[0][: len(wanted)] == wanted


def plain(config):
    """A config with lists for tuples, as JSON has them."""
    if isinstance(config, dict):
        return {k: plain(v) for k, v in config.items()}
    return [plain(v) for v in config] if isinstance(config, (list, tuple)) else config


def test_rescaling_and_pipeline():
    x = data(dtype="uint8")["images"]
    for options in (dict(scale=1 / 255), dict(scale=[1.0, 2.0, 0.5], offset=[3.0, 0.0, -1.0])):
        ours, theirs = pair("Rescaling", options)
        found, wanted = ours(x), theirs(x)
        assert ops.dtype(found) == keras.backend.standardize_dtype(wanted.dtype)
        close(ops.convert_to_numpy(found), keras.ops.convert_to_numpy(wanted))
        assert plain(ours.get_config()) == plain(theirs.get_config())
    ours, theirs = (
        k.layers.Pipeline(
            [k.layers.Rescaling(2.0, name="a"), k.layers.CenterCrop(4, 5, name="b")], name="p"
        )
        for k in (khub, keras)
    )
    assert plain(ours.get_config()) == plain(theirs.get_config())
    close(ops.convert_to_numpy(ours(x)), keras.ops.convert_to_numpy(theirs(x)))
    assert registry.deserialize(keras.layers.serialize(theirs)).layers[1].height == 4


# --- khub.utils.bounding_boxes -------------------------------------------------------------------
ABSOLUTE = ("xyxy", "yxyx", "xywh", "center_xywh", "center_yxhw")
RELATIVE = ("rel_xyxy", "rel_yxyx", "rel_xywh", "rel_center_xywh")


def boxes(*shape, seed=0, relative=False):
    random = np.random.RandomState(seed)
    start = random.uniform(0, 60, (*shape, 2))
    found = np.concatenate([start, start + random.uniform(1, 40, start.shape)], -1)
    return (found / (100 if relative else 1)).astype("float32")


def calls():
    for source in ABSOLUTE + RELATIVE:
        x = boxes(2, 3, relative=source in RELATIVE)
        for target in ABSOLUTE + RELATIVE:
            yield "convert_format", (x, source, target), dict(height=80, width=120)
    one, two = boxes(2, 3, seed=1), boxes(2, 5, seed=2)
    one[0, 0] = two[0, 0] = -1
    for form in ABSOLUTE:
        yield "compute_iou", (one, two, form), {}
        yield "compute_iou", (one, two[0], form), {}
        yield "compute_iou", (one, two, form), dict(use_masking=True, mask_val=-2)
        yield "compute_ciou", (one, two[:, :3], form), {}
    for form in RELATIVE:
        options = dict(image_shape=(80, 120, 3))
        yield "compute_iou", (boxes(3, relative=True), boxes(2, relative=True), form), options
    anchors = boxes(5, seed=3)
    for form in ("center_yxhw", "center_xywh"):
        for variance in (None, [0.1, 0.1, 0.2, 0.2]):
            options = dict(encoding_format=form, variance=variance)
            yield "encode_box_to_deltas", (anchors, boxes(2, 5), "xyxy", "yxyx"), options
            options = dict(encoded_format=form, variance=variance, image_shape=(80, 120, 3))
            deltas = np.random.RandomState(4).randn(2, 5, 4).astype("float32")
            yield "decode_deltas_to_boxes", (anchors, deltas, "xyxy", "rel_xywh"), options
            levels = {"a": anchors, "b": anchors}, {"a": deltas[0], "b": deltas[1]}
            yield "decode_deltas_to_boxes", (*levels, "xyxy", "xywh"), options
    yield "crop", (boxes(2, 3), 10, 20, 40, 30), {}
    yield "pad", (boxes(2, 3), 10, 20), {}
    labeled = {"boxes": boxes(2, 3), "labels": np.zeros((2, 3), "float32")}
    yield "clip_to_image_size", (labeled,), dict(height=60, width=50)
    labeled = {"boxes": boxes(2, 3, relative=True) * 2, "labels": np.zeros((2, 3), "float32")}
    yield "clip_to_image_size", (labeled,), dict(bounding_box_format="rel_xyxy")
    still = dict(angle=0, translate_x=0, translate_y=0, scale=1, shear_x=0, shear_y=0)
    for moves in (
        dict(angle=30),
        dict(angle=-70, scale=2, translate_x=0.1, translate_y=0.2),
        dict(angle=30, center_x=0.2, center_y=0.4),
        dict(shear_x=20),
        dict(shear_y=20, angle=10, scale=0.5),
    ):
        options = {k: np.array([v, v / 2], "float32") for k, v in (still | moves).items()}
        yield "affine_transform", (boxes(2, 3),), dict(**options, height=80, width=120)


@pytest.mark.parametrize(("name", "args", "options"), list(calls()))
def test_functions_of_boxes(name, args, options):
    theirs = [given(x, keras) for x in args]
    wanted = arrays(getattr(keras.utils.bounding_boxes, name)(*theirs, **given(options, keras)))
    found = getattr(bounding_boxes, name)(*args, **options)
    for one, other in zip(tree.flatten(found), tree.flatten(wanted), strict=True):
        close(ops.convert_to_numpy(one), other)
