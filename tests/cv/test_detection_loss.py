"""Assigner and losses beside the papers' formulas, point by point in NumPy."""

import math

import numpy as np
import pytest

import khub
from khub import ops
from khub.cv import detection_loss

SIZE, STRIDES, BINS, CLASSES = (64, 96), (8, 16, 32), 16, 3
TRUE = [  # boxes xyxy, class; padded to four below
    [((8.0, 8.0, 40.0, 50.0), 0), ((20.0, 10.0, 90.0, 60.0), 2), ((50.0, 30.0, 61.0, 41.0), 0)],
    [],
    [((0.0, 0.0, 96.0, 64.0), 1), ((0.0, 0.0, 96.0, 64.0), 2)],  # two in one place
    [((33.0, 33.0, 34.0, 34.0), 1)],  # between the centres
]


def labels():
    boxes, classes = np.full((len(TRUE), 4, 4), -1.0, "float32"), np.full((len(TRUE), 4), -1)
    for image, rows in enumerate(TRUE):
        for row, (box, kind) in enumerate(rows):
            boxes[image, row], classes[image, row] = box, kind
    return boxes, classes.astype("int32")


def raw(points):
    random = np.random.default_rng(5)
    count = len(points)
    boxes = random.normal(size=(len(TRUE), count, 4 * BINS), scale=1.5)
    boxes -= np.tile(np.arange(BINS) * 0.35, 4)  # of sizes like those of the objects
    classes = random.normal(size=(len(TRUE), count, CLASSES), loc=-1)
    return {"boxes": boxes.astype("float32"), "classes": classes.astype("float32")}


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def iou(a, b):
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - wide * high
    return wide * high / area if area else 0.0


def ciou(a, b):
    """Zheng et al. 2020, arXiv:1911.08287, equations 7 to 11."""
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    middle = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (a, b)]
    rho = (middle[0][0] - middle[1][0]) ** 2 + (middle[0][1] - middle[1][1]) ** 2
    one, two = (math.atan2(box[2] - box[0], box[3] - box[1]) for box in (a, b))
    v = 4 / math.pi**2 * (one - two) ** 2
    overlap = iou(a, b)
    alpha = v / (1 - overlap + v) if v else 0.0
    return overlap - rho / diagonal - alpha * v


def centres():
    found = []
    for stride in STRIDES:
        for row in range(SIZE[0] // stride):
            for column in range(SIZE[1] // stride):
                found.append(((column + 0.5) * stride, (row + 0.5) * stride, stride))
    return found


def predicted(logits, point):
    x, y, stride = point
    means = [sum(i * p for i, p in enumerate(softmax(side))) for side in logits.reshape(4, BINS)]
    left, top, right, bottom = (mean * stride for mean in means)
    return x - left, y - top, x + right, y + bottom


def assigned(scores, boxes, points, rows):
    """{point: (class, box, weight)} of one image.  Feng et al. 2021, arXiv:2108.07755"""
    owners, agreement = {}, {}
    for number, (true, kind) in enumerate(rows):
        inside = [
            i
            for i, (x, y, _) in enumerate(points)
            if true[0] < x < true[2] and true[1] < y < true[3]
        ]
        for i in inside:
            agreement[number, i] = scores[i][kind] ** 0.5 * iou(boxes[i], true) ** 6
        for i in sorted(inside, key=lambda i: -agreement[number, i])[:10]:
            if i not in owners or iou(boxes[i], true) > iou(boxes[i], rows[owners[i]][0]):
                owners[i] = number
    found = {}
    for number, (true, kind) in enumerate(rows):
        own = [i for i in owners if owners[i] == number]
        most = max((agreement[number, i] for i in own), default=0)
        largest = max((iou(boxes[i], true) for i in own), default=0)
        for i in own:
            found[i] = kind, true, agreement[number, i] / most * largest
    return found


def expected(raw):
    points, total = centres(), 0.0
    losses = dict.fromkeys(["box_loss", "class_loss", "distance_loss"], 0.0)
    every = []
    for image, rows in enumerate(TRUE):
        logits = raw["boxes"][image].astype("float64")
        classes = raw["classes"][image].astype("float64")
        boxes = [predicted(row, point) for row, point in zip(logits, points, strict=True)]
        found = assigned(1 / (1 + np.exp(-classes)), boxes, points, rows)
        every.append(found)
        for i, (x, y, stride) in enumerate(points):
            kind, true, weight = found.get(i, (None, None, 0.0))
            for c in range(CLASSES):
                p, t = 1 / (1 + math.exp(-classes[i, c])), weight if c == kind else 0.0
                losses["class_loss"] -= t * math.log(p) + (1 - t) * math.log(1 - p)
            if kind is None:
                continue
            total += weight
            losses["box_loss"] += weight * (1 - ciou(boxes[i], true))
            sides = np.array([x - true[0], y - true[1], true[2] - x, true[3] - y]) / stride
            for side, row in zip(sides.clip(0, BINS - 1.01), logits[i].reshape(4, BINS)):
                low, shares = int(side), softmax(row)  # arXiv:2006.04388, equation 6
                term = (low + 1 - side) * math.log(shares[low])
                term += (side - low) * math.log(shares[low + 1])
                losses["distance_loss"] -= weight * term / 4
    return {name: value / max(total, 1) for name, value in losses.items()}, every


def test_anchor_points():
    points, strides = detection_loss.anchor_points(SIZE, STRIDES)
    np.testing.assert_array_equal(ops.concatenate([points, strides], 1), centres())
    with pytest.raises(ValueError, match=r"multiples of 32, got \(64, 80\)"):
        detection_loss.check_size((64, 80), STRIDES)


def test_equal_to_the_formulas():
    points, strides = detection_loss.anchor_points(SIZE, STRIDES)
    given, (boxes, classes) = raw(points), labels()
    want, every = expected(given)
    assert [len(found) for found in every] == [21, 0, 12, 0]

    def run(logits, kinds, boxes, classes):
        scores = ops.sigmoid(kinds)
        found = detection_loss.around(points, detection_loss.distances(logits, BINS) * strides)
        told = detection_loss.assign(scores, found, points, boxes, classes)
        raw = {"boxes": logits, "classes": kinds}
        return told, detection_loss.losses(raw, points, strides, boxes, classes, BINS)

    tensors = [ops.convert_to_tensor(x) for x in (given["boxes"], given["classes"])]
    told, losses = khub.jit(run)(*tensors, ops.convert_to_tensor(boxes), classes)
    scores, found, weights = map(ops.convert_to_numpy, told)
    for image, rows in enumerate(every):
        assert set(np.flatnonzero(weights[image])) == set(rows)
        for i, (kind, true, weight) in rows.items():
            np.testing.assert_allclose(scores[image, i], weight * np.eye(CLASSES)[kind], rtol=1e-4)
            np.testing.assert_array_equal(found[image, i], np.float32(true))
            np.testing.assert_allclose(weights[image, i], weight, rtol=1e-4)
    assert {name: float(x) for name, x in losses.items()} == pytest.approx(want, rel=1e-4)
