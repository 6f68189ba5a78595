"""Mean average precision against pycocotools."""

import contextlib
import io

import numpy as np
import pytest

from khub.cv.box_metrics import MeanAveragePrecision

pytestmark = pytest.mark.once
NAMES = ["mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large", "AR_1", "AR_10", "AR_100"]


def dataset(random, images, classes, objects, tied):
    """Truth and detections of images: some empty, of many sizes, jittered, missed, invented."""
    truth = {"boxes": [], "classes": [], "crowd": [], "area": []}
    found = {"boxes": [], "classes": [], "confidence": []}
    for _ in range(images):
        n = random.integers(objects + 1) * (random.random() < 0.85)
        left, side = random.uniform(0, 300, (n, 2)), np.exp(random.uniform(1.5, 5.5, (n, 2)))
        boxes = np.concatenate([left, left + side], -1).round() + [0, 0, 1, 1]
        kinds = random.integers(classes, size=n)
        repeats = random.integers(4, size=n) * (random.random() < 0.9)
        near = np.repeat(boxes, repeats, 0)
        noise = random.normal(0, 0.08, near.shape) * np.tile(near[:, 2:] - near[:, :2], 2)
        noise[random.random(len(near)) < 0.2] = 0
        guesses = random.uniform(0, 300, (random.integers(6), 2))
        guesses = np.concatenate([guesses, guesses + random.uniform(5, 150, guesses.shape)], -1)
        near = np.concatenate([near + noise, guesses])
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        near = near.round() if tied else near.round(2)
        repeated = np.repeat(kinds, repeats)
        repeated = np.where(random.random(len(repeated)) < 0.1, 0, repeated)
        confidence = random.random(len(near))
        truth["boxes"].append(boxes)
        truth["classes"].append(kinds)
        truth["crowd"].append((random.random(n) < 0.15).astype(int))
        truth["area"].append((boxes[:, 2:] - boxes[:, :2]).prod(-1) * random.uniform(0.4, 1, n))
        found["boxes"].append(near)
        found["classes"].append(
            np.concatenate([repeated, random.integers(classes, size=len(guesses))])
        )
        found["confidence"].append(confidence.round(1) if tied else confidence)
    return truth, found


def reference(truth, found, limit):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(labels, names):
        for i, boxes in enumerate(labels["boxes"]):
            for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
                row = {"image_id": i + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                row["category_id"] = int(labels["classes"][i][k]) + 1
                yield row | {name: float(labels[ours][i][k]) for name, ours in names.items()}

    coco = COCO()
    kinds = {int(c) + 1 for d in (truth, found) for row in d["classes"] for c in row}
    coco.dataset = {
        "images": [{"id": i + 1} for i in range(len(truth["boxes"]))],
        "categories": [{"id": kind} for kind in sorted(kinds)],
        "annotations": [
            row | {"id": k + 1, "iscrowd": int(row["iscrowd"])}
            for k, row in enumerate(rows(truth, {"area": "area", "iscrowd": "crowd"}))
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        detections = coco.loadRes(list(rows(found, {"score": "confidence"})))
        run = COCOeval(coco, detections, "bbox")
        run.params.maxDets = [1, 10, limit]
        run.evaluate()
        run.accumulate()
    precision, recall = run.eval["precision"], run.eval["recall"]

    def mean(values):
        values = values[values > -1]
        return values.mean() if len(values) else -1

    best = precision[..., 2]
    found = [mean(best[..., 0]), mean(best[0, ..., 0]), mean(best[5, ..., 0])]
    found += [mean(best[..., area]) for area in (1, 2, 3)]
    return found + [mean(recall[:, :, 0, k]) for k in range(3)]


@pytest.mark.parametrize(
    "seed, images, classes, objects, tied, limit",
    [
        (0, 12, 3, 6, False, 100),
        (1, 12, 3, 6, True, 100),
        (2, 60, 80, 12, True, 100),
        (3, 40, 2, 30, True, 20),
        (4, 1, 1, 1, False, 100),
        (5, 30, 20, 10, False, 100),
    ],
)
def test_is_pycocotools(seed, images, classes, objects, tied, limit):
    random = np.random.default_rng(seed)
    for _ in range(4):
        truth, found = dataset(random, images, classes, objects, tied)
        if not sum(map(len, found["boxes"])):
            continue  # loadRes takes no empty list
        metric = MeanAveragePrecision(max_detections=limit)
        metric.update_state(truth, found)
        ours = list(metric.result().values())
        np.testing.assert_allclose(ours, reference(truth, found, limit), atol=1e-9)


def test_names_are_cocos():
    assert list(MeanAveragePrecision().result()) == NAMES
