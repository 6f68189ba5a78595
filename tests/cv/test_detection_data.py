"""Letterboxes, augmentation and labels: painted rectangles are found again where the boxes say."""

import numpy as np
import pytest
from PIL import Image

from khub.cv.detection_data import DetectionPreprocessor, letterbox
from khub.presets.images import object_rows
from khub.utils import bounding_boxes

pytestmark = pytest.mark.once

COLORS = np.asarray([[255, 0, 0], [0, 255, 0], [0, 0, 255]])
STILL = dict(mosaic=0, translate=0, zoom=0, hue=0, saturation=0, value=0, flip=0)


def painted(random, height=120, width=90, count=3, left=0.0):
    """A grey image with rectangles of pure colours that do not overlap; their boxes, classes."""
    image = np.full((height, width, 3), 114, "uint8")
    boxes, classes = [], random.permutation(3)[:count]
    for k, number in enumerate(classes):
        bottom = height * (k + 1) // 3
        y1 = int(random.integers(height * k // 3, bottom - 20))
        x1 = int(random.integers(left * width, width - 25))
        x2, y2 = int(random.integers(x1 + 15, width)), int(random.integers(y1 + 15, bottom))
        image[y1:y2, x1:x2] = COLORS[number]
        boxes.append([x1, y1, x2, y2])
    return image, np.float32(boxes).reshape(-1, 4), np.asarray(classes)


def found(image, number):
    """The box around pixels of one colour, nearly pure, in an image of 0..1."""
    near = np.abs(image - COLORS[number] / 255).max(-1) < 0.45
    y, x = np.nonzero(near)
    return np.asarray([x.min(), y.min(), x.max() + 1, y.max() + 1])


def batch(random, count=4, **options):
    rows = [painted(random, **options) for _ in range(count)]
    images, boxes, classes = (object_rows(list(part)) for part in zip(*rows))
    return images, {"boxes": boxes, "classes": classes}


@pytest.mark.parametrize("size", [(64, 64), (100, 40), (480, 640), (33, 57), (120, 90)])
def test_letterbox_there_and_back(size):
    random = np.random.default_rng(1)
    image, boxes, classes = painted(random)
    boxed, scale, (left, top) = letterbox(image, size)
    assert boxed.size == size[::-1] and scale == min(size[0] / 120, size[1] / 90)
    assert np.asarray(boxed)[0, 0].tolist() == [114] * 3
    there = boxes * scale + [left, top, left, top]
    for box, number in zip(there, classes):
        assert np.abs(found(np.asarray(boxed) / 255, number) - box).max() <= 1
    preprocessor = DetectionPreprocessor(size)
    prepared, labels = preprocessor([image], {"boxes": [boxes], "classes": [classes]})
    np.testing.assert_allclose(prepared[0], np.float32(boxed) / 255, atol=1e-6)
    np.testing.assert_allclose(labels["boxes"][0, :3], there, atol=1e-3)
    back = preprocessor.restored(labels, preprocessor.prepare([image])[1])
    np.testing.assert_allclose(back["boxes"][0, :3], boxes, atol=1e-3)
    assert (back["boxes"][0, 3:] == -1).all()


@pytest.mark.parametrize("form", bounding_boxes.FORMATS)
def test_every_form_of_boxes_there_and_back(form):
    random = np.random.default_rng(2)
    image, boxes, classes = painted(random)
    given = np.asarray(bounding_boxes.convert_format(boxes, "xyxy", form, 120, 90))
    plain, ours = DetectionPreprocessor((64, 64)), DetectionPreprocessor((64, 64), form)
    ours.bounding_box_format = form
    _, wanted = plain([image], {"boxes": [boxes], "classes": [classes]})
    _, labels = ours([image], {"boxes": [given], "classes": [classes]})
    np.testing.assert_allclose(labels["boxes"], wanted["boxes"], atol=1e-3)
    back = ours.restored(labels, ours.prepare([image])[1])
    np.testing.assert_allclose(back["boxes"][0, :3], given, atol=1e-3)


AUGMENTATIONS = {
    "none": {},
    "flip": {"flip": 1},
    "zoom": {"zoom": 0.4},
    "move": {"translate": 0.3},
    "turn": {"degrees": 90, "zoom": 0.2},
    "lean": {"shear": 20, "flip": 0.5},
    "mosaic": {"mosaic": 1},
    "far mosaic": {"mosaic": 1, "zoom": 0.5, "translate": 0.3},
    "all": {"mosaic": 0.5, "degrees": 10, "translate": 0.1, "zoom": 0.3, "shear": 5, "flip": 0.5}
    | {"hue": 0.01, "saturation": 0.2, "value": 0.2},
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_boxes_follow_the_image(name):
    random = np.random.default_rng(3)
    preprocessor = DetectionPreprocessor((160, 128), **STILL | AUGMENTATIONS[name])
    upright = not AUGMENTATIONS[name].keys() & {"degrees", "shear"}
    seen = 0
    for _ in range(8):
        # in a mosaic, which may hold one image twice, objects are told apart by where they are
        images, y = batch(random, count=1 if preprocessor.mosaic else 3)
        images, y = images[:3], {key: rows[:3] for key, rows in y.items()}
        area = max(np.prod(b[2:] - b[:2]) for boxes in y["boxes"] for b in boxes)
        prepared, labels = preprocessor.augmented(images, y)
        assert len(y["boxes"]) == len(images) and y["boxes"][0].dtype == "float32"
        assert prepared.shape == (len(images), 160, 128, 3) and prepared.dtype == "float32"
        for image, boxes, classes in zip(prepared, labels["boxes"], labels["classes"]):
            outside = np.ones(image.shape[:2], bool)
            for box, number in zip(boxes, classes):
                if number < 0:
                    continue
                x1, y1, x2, y2 = np.round(box).astype(int) + [-3, -3, 3, 3]
                part = slice(max(y1, 0), y2), slice(max(x1, 0), x2)
                outside[part] = False
                # of what is turned and cut off, a corner may lie outside
                if upright or (box.min() > 0 and (box[2:] < [128, 160]).all()):
                    close = found(image[part], number) + [max(x1, 0), max(y1, 0)] * 2
                    assert np.abs(close - box).max() <= 1.6, (box, close)
                    seen += 1
            colored = np.abs(image - 114 / 255).max(-1) > 0.3
            # of each object that went, less than a tenth is left
            assert (colored & outside).sum() <= 0.2 * area * (160 / 120 * 1.4) ** 2
    assert seen >= 6


def test_what_hardly_remains_goes():
    image = np.zeros((100, 100, 3), "uint8")
    boxes = np.asarray([[0.0, 0, 20, 100], [15, 0, 35, 100], [0, 0, 19, 100], [60, 0, 100, 100]])

    class Draw:  # moves it by 18 to the left, no more
        def uniform(self, low, high, size=None):
            return {3: np.zeros(3), None: 1.0, 2: np.asarray([0.32, 0.5])}[size]

    _, kept, which = DetectionPreprocessor((100, 100))._moved(Image.fromarray(image), boxes, Draw())
    assert which.tolist() == [False, True, False, True]  # 2 pixels are a tenth, no more
    np.testing.assert_allclose(kept, [[0, 0, 17, 100], [42, 0, 82, 100]], atol=1e-9)


def test_seed_decides():
    random = np.random.default_rng(4)
    images, y = batch(random)
    one, two, other = (DetectionPreprocessor((64, 64), seed=seed) for seed in (5, 5, 6))
    for _ in range(2):  # the second call draws something else
        (a, la), (b, lb) = one.augmented(images, y), two.augmented(images, y)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(la["boxes"], lb["boxes"])
    assert not np.array_equal(a, one.augmented(images, y)[0])
    assert not np.array_equal(a, other.augmented(images, y)[0])


def test_ragged_objects_are_padded_and_more_is_kept():
    images = object_rows([np.zeros((20, 30, 3), "uint8")] * 3)
    boxes = [[[0, 0, 9, 9]] * 5, [], [[-5, 2, 9, 99], [-1, -1, -1, -1]]]
    y = {"boxes": boxes, "classes": [range(5), [], [7, -1]], "crowd": [[1] * 5, [], [0, 0]]}
    x, labels = DetectionPreprocessor((20, 30), max_boxes=2)(images, y)
    assert labels["boxes"].shape == (3, 6, 4) and labels["classes"].dtype == "int32"
    assert labels["classes"].tolist()[1:] == [[-1] * 6, [7] + [-1] * 5]
    assert labels["crowd"].tolist()[0] == [1] * 5 + [-1]
    assert labels["boxes"][2, 0].tolist() == [0, 2, 9, 20]
    _, labels = DetectionPreprocessor((20, 30), mosaic=0, zoom=0, flip=0).augmented(images, y)
    assert (labels["classes"] == -1).all(1).tolist() == [True, True, False]  # no crowds
    x, labels = DetectionPreprocessor((20, 30), mosaic=0)(
        [images[0]], {"boxes": [[]], "classes": [[]]}
    )
    assert (labels["classes"] == -1).all()
    x, labels = DetectionPreprocessor((20, 30)).augmented(
        images, {"boxes": [[]] * 3, "classes": [[]] * 3}
    )
    assert x.shape == (3, 20, 30, 3) and (labels["classes"] == -1).all()


BAD = {
    "box 1 is not finite": ([[0, 0, 9, 9], [0, 0, float("nan"), 9]], [0, 0]),
    "box 0 is not finite": ([[0, 0, float("inf"), 9]], [0]),
    "box 0 has no area: [9.0, 0.0, 3.0, 9.0] in xyxy": ([[9, 0, 3, 9]], [0]),
    "box 0 lies outside of height 20, width 30": ([[31, 0, 35, 9]], [0]),
    "2 boxes but {'classes': 1}": ([[0, 0, 9, 9]] * 2, [0]),
    "classes must be whole numbers from 0": ([[0, 0, 9, 9]], [0.5]),
    "classes must be whole numbers from 0, got [-2]": ([[0, 0, 9, 9]], [-2]),
}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.parametrize("method", ["__call__", "augmented"])
def test_bad_boxes_name_the_image(message, method, tmp_path):
    image = np.zeros((20, 30, 3), "uint8")
    Image.fromarray(image).save(tmp_path / "cat.png")
    boxes, classes = BAD[message]
    run = getattr(DetectionPreprocessor((20, 20)), method)
    for source, name in ((image, "image 1 of the batch"), (str(tmp_path / "cat.png"), "cat.png")):
        with pytest.raises(ValueError) as error:
            run([image, source], {"boxes": [[], boxes], "classes": [[], classes]})
        assert message in str(error.value) and name in str(error.value)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="bounding_box_format"):
        DetectionPreprocessor((20, 20), "corners")
    with pytest.raises(ValueError, match="mosaic must lie between 0 and 1"):
        DetectionPreprocessor((20, 20), mosaic=2)
    with pytest.raises(ValueError, match="Labels must be"):
        DetectionPreprocessor((20, 20))([np.zeros((9, 9, 3), "uint8")], {"boxes": [[]]})
    with pytest.raises(ValueError, match="x is empty"):
        DetectionPreprocessor((20, 20))([])
