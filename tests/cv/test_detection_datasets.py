"""Files of COCO and YOLO: what is read, and that nothing wrong is left out in silence."""

import json

import numpy as np
import pytest
from PIL import Image

from khub.cv.detection_data import DetectionPreprocessor
from khub.cv.detection_datasets import read_coco, read_yolo
from khub.presets.images import object_rows

pytestmark = pytest.mark.once


def image(path, size=(40, 20), orientation=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", size).save(path, exif=exif)


def coco(folder, annotations, **more):
    for name in ("a.png", "b.png", "c.png"):
        image(folder / "images" / name)
    content = {
        "images": [{"id": 10 * i, "file_name": f"{n}.png"} for i, n in enumerate("abc", 1)],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": annotations,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content | more))
    return path, folder / "images"


def row(image_id=10, category_id=7, bbox=(1, 2, 3, 4), **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def test_coco(tmp_path):
    rows = [row(id=1, area=5.5), row(30, 3, (0, 0, 40, 20)), row(10, 3, iscrowd=1)]
    paths, labels, names = read_coco(*coco(tmp_path, rows))
    assert [path[-5:] for path in paths] == ["a.png", "b.png", "c.png"]
    assert names == ["cat", "dog"]
    assert [kinds.tolist() for kinds in labels["classes"]] == [[1, 0], [], [0]]
    assert labels["boxes"][0].tolist() == [[1, 2, 4, 6]] * 2
    assert labels["boxes"][1].shape == (0, 4)  # an image without objects stays
    assert [kinds.tolist() for kinds in labels["crowd"]] == [[0, 1], [], [0]]
    assert labels["area"][0].tolist() == [5.5, 12]
    x, y = object_rows(paths), {name: object_rows(rows) for name, rows in labels.items()}
    prepared, y = DetectionPreprocessor((20, 40), max_boxes=2)(x, y)
    assert prepared.shape == (3, 20, 40, 3) and y["boxes"][2, 0].tolist() == [0, 0, 40, 20]
    assert y["crowd"].tolist() == [[0, 1], [-1, -1], [0, -1]]


BAD_COCO = {
    "annotation 1 (id 5): there is no image_id 11": row(11, id=5),
    "annotation 1 (id None): there is no category_id 4": row(category_id=4),
    "the box must be 4 finite numbers, got [1, 2, 3]": row(bbox=[1, 2, 3]),
    "the box must be 4 finite numbers, got [1, 2, NaN, 4]".replace("NaN", "nan"): row(
        bbox=[1, 2, float("nan"), 4]
    ),
    "the box must be 4 finite numbers, got None": row(bbox=None),
    "width and height must be positive, got [1, 2, -3, 4]": row(bbox=[1, 2, -3, 4]),
}


@pytest.mark.parametrize("message", BAD_COCO)
def test_bad_annotations_are_named(message, tmp_path):
    files = coco(tmp_path, [row(), BAD_COCO[message]])
    with pytest.raises(ValueError, match="instances.json: 1 bad rows") as error:
        read_coco(*files)
    assert message in str(error.value)
    with pytest.warns(UserWarning, match="1 bad rows") as warned:
        _, labels, _ = read_coco(*files, bad_rows="skip")
    assert message in str(warned[0].message)
    assert [len(boxes) for boxes in labels["boxes"]] == [1, 0, 0]


def test_coco_files_that_are_none(tmp_path):
    path, folder = coco(tmp_path, [row()] * 1)
    (folder / "b.png").unlink()
    with pytest.raises(ValueError, match=r"image 20: .*b\.png does not exist"):
        read_coco(path, folder)
    with pytest.raises(ValueError, match="bad_rows"):
        read_coco(path, folder, bad_rows="drop")
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match="row 0 of categories must have"):
        read_coco(path, folder)
    path.write_text('{"images": [{"id": 1}], "categories": [], "annotations": []}')
    with pytest.raises(ValueError, match="row 0 of images must have .*file_name"):
        read_coco(path, folder)
    path.write_text("[1,")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_coco(path, folder)
    same = [{"id": 1, "file_name": name} for name in ("a.png", "c.png")]
    with pytest.raises(ValueError, match="ids of images are not unique"):
        read_coco(*coco(tmp_path, [], images=same))
    with pytest.raises(ValueError, match="annotation 0"):
        read_coco(*coco(tmp_path, [row([1])]))
    many = [row(bbox=[0, 0, 0, 1])] * 25
    with pytest.raises(ValueError, match="25 bad rows(.|\n)*15 more"):
        read_coco(*coco(tmp_path, many))


def yolo(folder, labels, layout="images/train", more=""):
    for name in ("a.png", "b.jpg"):
        image(folder / layout / name)
    place = folder / layout.replace("images", "labels")
    place.mkdir(parents=True, exist_ok=True)
    (place / "a.txt").write_text(labels)
    (folder / "data.yaml").write_text("names: [cat, 'big dog']  # two\n" + more)
    return folder


@pytest.mark.parametrize("layout", ["images/train", "train/images", "train"])
def test_yolo_folders(layout, tmp_path):
    yolo(tmp_path, "1 0.5 0.5 0.5 0.25\n\n0 0.1 0.2 0.2 0.4\n", layout)
    paths, labels, names = read_yolo(tmp_path)
    assert names == ["cat", "big dog"] and [path[-5:] for path in paths] == ["a.png", "b.jpg"]
    assert [kinds.tolist() for kinds in labels["classes"]] == [[1, 0], []]
    np.testing.assert_allclose(labels["boxes"][0], [[10, 7.5, 30, 12.5], [0, 0, 8, 8]], atol=1e-5)
    assert labels["boxes"][1].shape == (0, 4)


@pytest.mark.parametrize(
    "names",
    ["names: [cat, 'big dog']", "names:\n  0: cat\n  1: big dog", "names:\n- cat\n- 'big dog'"]
    + ["names: {0: cat, 1: 'big dog'}"],
)
@pytest.mark.parametrize("place", ["images/train", "list.txt"])
def test_yolo_descriptions(names, place, tmp_path):
    yolo(tmp_path / "data", "1 0.5 0.5 0.5 0.5")
    (tmp_path / "data" / "list.txt").write_text("images/train/a.png\nimages/train/b.jpg\n")
    described = tmp_path / "coco.yaml"
    described.write_text(f"# a data set\npath: data\nval: {place}\nnc: 2\n{names}\n")
    paths, labels, found = read_yolo(described, "val")
    assert found == ["cat", "big dog"] and len(paths) == 2 and labels["classes"][0].tolist() == [1]


def test_yolo_turned_images_have_the_size_that_is_shown(tmp_path):
    yolo(tmp_path, "0 0.5 0.5 1 1")
    image(tmp_path / "images/train/a.png", (40, 20), orientation=6)
    paths, labels, _ = read_yolo(tmp_path)
    assert labels["boxes"][0].tolist() == [[0, 0, 20, 40]]
    x, y = DetectionPreprocessor((40, 20))(paths[:1], {k: v[:1] for k, v in labels.items()})
    assert y["boxes"][0, 0].tolist() == [0, 0, 20, 40]


BAD_YOLO = {
    "line 2: could not convert string to float: 'cat': 'cat 0.5 0 1 1'": "cat 0.5 0 1 1",
    "expected class x y width height, got 4 numbers": "0 0.5 0.5 0.1",
    "expected class x y width height, got 7 numbers": "0 0.5 0.5 0.1 0.1 0.1 0.1",
    "the class must be a whole number below 2, as many": "2 0.5 0.5 0.1 0.1",
    "the class must be a whole number below": "-1 0.5 0.5 0.1 0.1",
    "the class must be a whole number": "0.5 0.5 0.5 0.1 0.1",
    "must be 4 finite numbers": "0 0.5 nan 0.1 0.1",
    "width and height must be positive": "0 0.5 0.5 0 0.1",
    "must lie in 0..1": "0 5 5 1 1",
}


@pytest.mark.parametrize("message", BAD_YOLO)
def test_bad_rows_are_named(message, tmp_path):
    yolo(tmp_path, f"1 0.5 0.5 0.5 0.25\n{BAD_YOLO[message]}\n")
    with pytest.raises(ValueError, match=r"1 bad rows(.|\n)*a\.txt, line 2: ") as error:
        read_yolo(tmp_path)
    assert message in str(error.value)
    with pytest.warns(UserWarning, match="line 2"):
        assert len(read_yolo(tmp_path, bad_rows="skip")[1]["boxes"][0]) == 1


def test_yolo_files_that_are_missing(tmp_path):
    with pytest.raises(ValueError, match="has no images"):
        read_yolo(tmp_path)
    yolo(tmp_path, "")
    assert read_yolo(tmp_path)[1]["boxes"][0].shape == (0, 4)
    (tmp_path / "labels/train/z.txt").write_text("0 0.5 0.5 0.1 0.1")
    with pytest.raises(ValueError, match="z.txt has no image"):
        read_yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("train: nowhere/images")
    with pytest.raises(ValueError, match="nowhere"):
        read_yolo(tmp_path)
