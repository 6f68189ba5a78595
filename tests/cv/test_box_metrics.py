"""Mean average precision: cases worked out by hand; tests/parity/ compares with pycocotools."""

import numpy as np
import pytest

from khub import ops
from khub.cv.box_metrics import MeanAveragePrecision


def measured(truth, found, **options):
    metric = MeanAveragePrecision(**options)
    metric.update_state(truth, found)
    return metric.result()


def test_by_hand():
    box, other = [0, 0, 50, 50], [100, 100, 150, 150]
    truth = {"boxes": [[box, other]], "classes": [[0, 0]]}
    # right, wrong, right: precision 1 up to recall 0.5, 2/3 from there
    found = {"boxes": [[box, [60, 60, 90, 90], other]], "classes": [[0] * 3]}
    found["confidence"] = [[0.9, 0.8, 0.7]]
    result = measured(truth, found)
    wanted = (51 + 50 * 2 / 3) / 101
    assert [result["mAP"], result["mAP50"]] == pytest.approx([wanted] * 2, abs=1e-12)
    assert (result["AR_1"], result["AR_10"], result["AR_100"]) == (0.5, 1, 1)
    assert result["mAP_large"] == -1 and result["mAP_medium"] == pytest.approx(1)


def test_padded_tensors_are_as_lists():
    random = np.random.default_rng(0)
    left = random.uniform(0, 50, (3, 6, 2))
    boxes = np.concatenate([left, left + 30], -1).astype("float32")
    classes = np.where(np.arange(6) < [[6], [2], [0]], 1, -1)
    confidence = random.random((3, 6)).astype("float32")
    truth = {"boxes": boxes, "classes": classes}
    found = {"boxes": boxes + 3, "classes": classes, "confidence": confidence, "num_detections": 0}
    there = [rows >= 0 for rows in classes]
    lists = [
        {k: [row[t] for row, t in zip(v, there)] for k, v in d.items() if k != "num_detections"}
        for d in (truth, found)
    ]
    tensors = [{k: ops.convert_to_tensor(v) for k, v in d.items()} for d in (truth, found)]
    wanted = measured(*lists)
    assert wanted == measured(*tensors) and 0.1 < wanted["mAP"] < 0.9
    halves, metric = [slice(0, 1), slice(1, 3)], MeanAveragePrecision(2)
    for part in halves:
        metric.update_state(*({k: v[part] for k, v in d.items()} for d in lists))
    assert metric.result() == wanted
    metric.reset_state()
    assert set(metric.result().values()) == {-1.0}


def test_what_does_not_fit_is_refused():
    one = {"boxes": [[[0, 0, 1, 1]]], "classes": [[3]], "confidence": [[1.0]]}
    with pytest.raises(ValueError, match="Class 3 is not one of class_count=3"):
        measured(one, one, class_count=3)
    with pytest.raises(ValueError, match="y_true has 1 images, y_pred 0"):
        measured(one, {"boxes": [], "classes": [], "confidence": []})
    with pytest.raises(ValueError, match="Image 0 has different numbers"):
        measured(one | {"classes": [[3, 3]]}, one)
