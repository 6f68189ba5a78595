"""Pictures: pixels have the colour of the class where the box or the mask is."""

import numpy as np
import pytest
from PIL import Image

from khub.cv.draw import color, draw_boxes, draw_mask
from khub.utils import bounding_boxes

pytestmark = pytest.mark.once
BOXES = np.float32([[40, 60, 160, 180], [100, 20, 190, 90], [-1, -1, -1, -1]])
FOUND = {"boxes": BOXES, "classes": np.int32([1, 0, -1]), "confidence": np.float32([0.9, 0.4, -1])}


def blank(height=200, width=240):
    return np.full((height, width, 3), 50, "uint8")


def test_boxes_are_drawn_where_they_are():
    picture = draw_boxes(blank(), FOUND, ["cat", "dog"])
    assert isinstance(picture, Image.Image) and picture.mode == "RGB"
    pixels = np.asarray(picture)
    for (_, _, right, bottom), number in zip(BOXES.astype(int), (1, 0)):
        assert pixels[bottom, right - 20].tolist() == list(color(number))
        assert pixels[bottom - 20, right].tolist() == list(color(number))
        assert pixels[bottom - 10, right - 10].tolist() == [50] * 3
    assert (blank() == 50).all() and (pixels[:10] == 50).all()


@pytest.mark.parametrize("form", bounding_boxes.FORMATS)
def test_every_form_gives_the_same_picture(form):
    boxes = bounding_boxes.convert_format(BOXES, "xyxy", form, 200, 240)
    picture = draw_boxes(blank(), {**FOUND, "boxes": boxes}, bounding_box_format=form)
    assert np.array_equal(picture, draw_boxes(blank(), FOUND))


def test_a_row_of_a_batch_and_a_batch_of_one():
    batch = {name: np.stack([rows, rows[::-1]]) for name, rows in FOUND.items()}
    batch["num_detections"] = np.asarray([2, 2])
    row = {name: rows[1] for name, rows in batch.items()}
    one = {name: rows[:1] for name, rows in batch.items()}
    wanted = np.asarray(draw_boxes(blank(), FOUND))
    assert np.array_equal(draw_boxes(blank(), row), wanted)
    assert np.array_equal(draw_boxes(blank(), one), wanted)
    with pytest.raises(ValueError, match="those of one image"):
        draw_boxes(blank(), batch)


def test_labels_are_written_and_others_are_numbers():
    named = draw_boxes(blank(), FOUND, {1: "dog"})
    assert not np.array_equal(named, draw_boxes(blank(), FOUND, {1: "cat"}))
    assert not np.array_equal(named, draw_boxes(blank(), FOUND))
    without = {name: FOUND[name] for name in ("boxes", "classes")}  # labels of a data set
    assert not np.array_equal(draw_boxes(blank(), without), draw_boxes(blank(), FOUND))


def test_whatever_a_model_gives_is_drawn():
    odd = [[np.nan] * 4, [-50, -50, 900, 900], [90, 90, 20, 20], [3, 3, 3, 3], [np.inf, 0, 1, 1]]
    picture = draw_boxes(blank(9, 12), {"boxes": odd, "classes": range(5)}, ["a", "b"])
    assert picture.size == (12, 9)


def test_masks():
    mask = np.zeros((200, 240), int)
    mask[150:, 200:], mask[150:, :20] = 2, -1
    pixels = np.asarray(draw_mask(blank(), mask, opacity=1.0))
    assert (pixels[150:, 200:] == color(2)).all()
    assert (pixels[:150] == 50).all() and (pixels[:, :200] == 50).all()
    half = np.asarray(draw_mask(blank(), mask))[199, 239]
    np.testing.assert_allclose(half, (np.asarray(color(2)) + 50) / 2, atol=1)
    assert not np.array_equal(draw_mask(blank(), mask, ["", "", "sky"]), draw_mask(blank(), mask))
    with pytest.raises(ValueError, match=r"\(200, 240\), got \(3, 3\)"):
        draw_mask(blank(), np.zeros((3, 3)))
