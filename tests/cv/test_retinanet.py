"""RetinaNet: its losses against NumPy, learning by heart, saving. tests/parity/ has torchvision."""

import numpy as np
import pytest

import khub
from khub import cv, ops
from khub.applications.resnet import ResNetBackbone
from khub.cv import retinanet
from khub.cv.detection_data import DetectionPreprocessor

SIZE = (64, 96)
SLOW_ON_JAX = pytest.mark.slow if khub.backend.name == "jax" else lambda test: test


def detector(**options):
    backbone = ResNetBackbone(num_blocks=(1, 1, 1, 1), block="basic")
    return cv.RetinaNetDetector(backbone, 2, width=32, depth=1, **options)


def scenes(count=4, seed=0):
    """Images of 0..255 with a red and a blue rectangle beside each other, and their boxes."""
    random = np.random.default_rng(seed)
    images, boxes = np.full((count, *SIZE, 3), 100, "uint8"), np.zeros((count, 2, 4), "float32")
    classes = np.stack([np.arange(count) % 2, (np.arange(count) + 1) % 2], -1)
    for i in range(count):
        for k in range(2):
            w, h = random.integers(24, 44, 2)
            x, y = random.integers(48 - w + 1) + 48 * k, random.integers(SIZE[0] - h)
            images[i, y : y + h, x : x + w] = [[255, 30, 30], [30, 30, 255]][classes[i, k]]
            boxes[i, k] = [x, y, x + w, y + h]
    return images, {"boxes": boxes, "classes": classes}


def test_anchors():
    found = retinanet.anchors(SIZE)
    cells = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    assert found.shape == (sum(9 * h * w for h, w in cells), 4) and found.dtype == "float32"
    assert found[:3].tolist() == [[-23, -11, 23, 11], [-28, -14, 28, 14], [-35, -18, 35, 18]]
    assert (found[9:18] - found[:9] == [8, 0, 8, 0]).all()


def numpy_losses(logits, deltas, places, boxes, classes):
    """The losses of one image, anchor after anchor."""
    there = np.flatnonzero(classes >= 0)
    iou = np.zeros((len(places), len(there)))
    for i, a in enumerate(places.astype("float64")):
        for k, b in enumerate(boxes[there].astype("float64")):
            shared = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
            iou[i, k] = shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)
    scores = 1 / (1 + np.exp(-logits.astype("float64")))
    focal = far = count = 0
    for i, a in enumerate(places.astype("float64")):
        best = iou[i].argmax() if len(there) else None
        positive = len(there) and (
            iou[i, best] >= 0.5
            or any(iou[i, k] >= iou[:, k].max() - 1e-6 for k in range(len(there)))
        )
        if not positive and len(there) and iou[i, best] >= 0.4:
            continue
        for c, p in enumerate(scores[i]):
            if positive and classes[there[best]] == c:
                focal -= 0.25 * (1 - p) ** 2 * np.log(p)
            else:
                focal -= 0.75 * p**2 * np.log(1 - p)
        if positive:
            b, sides = boxes[there[best]], a[2:] - a[:2]
            middle = ((b[:2] + b[2:]) - (a[:2] + a[2:])) / 2 / sides
            x = np.abs(deltas[i] - np.concatenate([middle, np.log((b[2:] - b[:2]) / sides)]))
            far += np.where(x < 1 / 9, 4.5 * x**2, x - 1 / 18).sum()
            count += 1
    return focal / max(count, 1), far / max(count, 1)


def test_losses_are_those_of_numpy():
    random, places = np.random.default_rng(1), retinanet.anchors(SIZE)
    raw = {"classes": random.normal(-2, 1, (3, len(places), 2)).astype("float32")}
    raw["boxes"] = random.normal(0, 0.3, (3, len(places), 4)).astype("float32")
    _, y = scenes(3)
    boxes, classes = (np.pad(y[k], ((0, 0), (0, 1), (0, 0))[: y[k].ndim]) for k in y)
    classes[:, 2], boxes[:, 2] = -1, -1
    classes[2] = boxes[2] = -1  # nothing in it
    boxes[1, 1] = [50, 20, 57, 26]  # too small for any anchor, which the best ones get all the same
    model = detector()
    tensors = {name: ops.convert_to_tensor(x) for name, x in raw.items()}
    found = khub.jit(lambda *x: model.part_losses(*x, SIZE))(
        tensors, ops.convert_to_tensor(boxes), ops.convert_to_tensor(classes.astype("int32"))
    )
    rows = [
        numpy_losses(*x) for x in zip(raw["classes"], raw["boxes"], [places] * 3, boxes, classes)
    ]
    wanted = np.mean(rows, 0)
    got = [float(found["class_loss"]), float(found["box_loss"])]
    np.testing.assert_allclose(got, wanted, rtol=2e-5)


@pytest.mark.skipif(khub.backend.name == "numpy", reason="NumPy computes no gradients")
@SLOW_ON_JAX  # which compiles for a minute
def test_learns_by_heart():
    images, y = scenes()
    model = detector(preprocessor=DetectionPreprocessor(SIZE), confidence_threshold=0.3)
    model.compile(khub.optimizers.AdamW(1e-3))
    model.fit(images, y, batch_size=4, epochs=60, augment=False, average=0, verbose=0)
    result = model.evaluate(images, y, verbose=0)
    assert result["mAP50"] > 0.9, result


def test_saved_and_opened(tmp_path):
    model = detector(preprocessor=DetectionPreprocessor(SIZE), iou_threshold=0.6)
    model.save_to_preset(str(tmp_path / "saved"))
    again = cv.ObjectDetector.from_preset(str(tmp_path / "saved"))
    assert type(again) is cv.RetinaNetDetector and type(again.backbone) is ResNetBackbone
    assert (again.width, again.iou_threshold, again.preprocessor.image_size) == (32, 0.6, SIZE)
    ours, theirs = model.named_variables(), again.named_variables()
    assert ours.keys() == theirs.keys()
    for name, variable in ours.items():
        np.testing.assert_array_equal(variable.numpy(), theirs[name].numpy())
