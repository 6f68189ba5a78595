"""What an anchor-free detector learns: which points stand for which object, and three losses.

b images, m objects in each (absent ones: boxes and classes -1), n points, c classes; boxes float32
xyxy in pixels. All is made of products with masks, so every shape is fixed and no gather is needed.
"""

import numpy as np

from khub import ops
from khub.utils.bounding_boxes import compute_ciou, compute_iou

TOP, ALPHA, BETA = 10, 0.5, 6.0  # arXiv:2108.07755, section 3.2


def check_size(size, strides):
    """Raise ValueError where a stride does not divide the size (height and width) of images."""
    if any(n % stride for n in size for stride in strides):
        raise ValueError(
            f"The images' height and width must be multiples of {max(strides)}, got {size}; "
            "letterbox them (the preprocessor does) or choose another image_size."
        )


def anchor_points(size, strides):
    """Return the centres (n, 2), x and y in pixels, of the cells of all levels, and their strides.

    size: height and width of the images   -> float32 (n, 2), (n, 1)
    """
    points = []
    for stride in strides:
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride]
        cells = np.stack([columns, rows], -1).reshape(-1, 2).astype("float32")
        points.append(np.insert((cells + 0.5) * stride, 2, stride, axis=1))
    points = ops.convert_to_tensor(np.concatenate(points).astype("float32"))
    return points[:, :2], points[:, 2:]


def distances(logits, bins):
    """Return the means (..., 4) of the distributions over 0 .. bins - 1.  logits: (..., 4 * bins)

    Li et al. 2020, arXiv:2006.04388, equation 5
    """
    shares = ops.softmax(ops.reshape(logits, (*logits.shape[:-1], 4, bins)), -1)
    return ops.matmul(shares, ops.arange(bins, dtype="float32"))


def around(points, sides):
    """Return boxes (b, n, 4): `sides` (left, top, right, bottom) in pixels away from points."""
    return ops.concatenate([points - sides[..., :2], points + sides[..., 2:]], -1)


def assign(scores, boxes, points, true_boxes, true_classes, top=TOP, alpha=ALPHA, beta=BETA):
    """Return what each point should say: scores (b, n, c), box (b, n, 4), weight (b, n).

    scores: (b, n, c) of 0..1 and boxes: (b, n, 4), the predictions   true_boxes: (b, m, 4)
    true_classes: (b, m). Among points inside an object those `top` are its own that agree best with
    it, by score^alpha * IoU^beta; a point of several objects is left to the one of the largest IoU.
    A weight is the agreement, scaled to the object's largest IoU; 0 where a point has no object.
    Feng et al. 2021, arXiv:2108.07755
    """
    classes = ops.one_hot(true_classes, scores.shape[-1], dtype="float32")  # absent: all 0
    overlap = ops.maximum(compute_iou(true_boxes, boxes, "xyxy"), 0.0)  # (b, m, n)
    least = ops.expand_dims(true_boxes, 2)
    reach = ops.concatenate([points - least[..., :2], least[..., 2:] - points], -1)
    inside = ops.cast(ops.all(ops.greater(reach, 0), -1), "float32")
    likely = ops.matmul(classes, ops.swapaxes(scores, 1, 2))
    agreement = likely**alpha * overlap**beta * inside
    best = ops.top_k(agreement, min(top, points.shape[0]))[0][..., -1:]  # equal ones stand together
    own = ops.logical_and(ops.greater(agreement, 0), ops.greater_equal(agreement, best))
    rank = ops.where(own, overlap, -1.0)
    nearest = ops.one_hot(ops.argmax(rank, 1), true_boxes.shape[1], axis=1, dtype="float32")
    own = ops.cast(own, "float32") * nearest
    agreement, overlap = agreement * own, overlap * own
    most = ops.max(agreement, -1, keepdims=True)
    scaled = agreement / ops.where(ops.greater(most, 0), most, 1.0)
    scaled = ops.swapaxes(scaled * ops.max(overlap, -1, keepdims=True), 1, 2)  # (b, n, m)
    boxes = ops.matmul(ops.swapaxes(own, 1, 2), true_boxes)
    return ops.matmul(scaled, classes), boxes, ops.sum(scaled, -1)


def losses(raw, points, strides, true_boxes, true_classes, bins):
    """Return {"box_loss": 1 - CIoU, "class_loss": cross-entropy, "distance_loss": DFL}, scalars.

    raw: {"boxes": (b, n, 4 * bins), "classes": (b, n, c)}, logits. Each loss is a sum over points
    in units of the weights' sum: arXiv:1911.08287, arXiv:2108.07755, arXiv:2006.04388 (equation 6).
    """
    logits, classes = (ops.cast(raw[name], "float32") for name in ("boxes", "classes"))
    found = around(points, distances(logits, bins) * strides)
    fixed = ops.stop_gradient(ops.sigmoid(classes)), ops.stop_gradient(found)
    scores, boxes, weights = map(
        ops.stop_gradient, assign(*fixed, points, true_boxes, true_classes)
    )
    total = ops.maximum(ops.sum(weights), 1.0)
    entropy = ops.relu(classes) - classes * scores + ops.softplus(-ops.abs(classes))
    overlap = compute_ciou(found, boxes, "xyxy")
    # a side lies between two bins: each has the share by which the other is farther
    sides = ops.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], -1) / strides
    sides = ops.expand_dims(ops.clip(sides, 0, bins - 1.01), -1)
    shares = ops.relu(1 - ops.abs(sides - ops.arange(bins, dtype="float32")))
    logits = ops.log_softmax(ops.reshape(logits, (*logits.shape[:-1], 4, bins)), -1)
    distance = -ops.sum(shares * logits, (-1, -2)) / 4
    return {
        "box_loss": ops.sum((1 - overlap) * weights) / total,
        "class_loss": ops.sum(entropy) / total,
        "distance_loss": ops.sum(distance * weights) / total,
    }
