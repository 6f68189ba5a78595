"""Mean average precision of boxes, as COCO defines it (Lin et al. 2014, arXiv:1405.0312)."""

import numpy as np

from khub import ops
from khub.fields import PositiveInt
from khub.metrics import Metric

AREAS = {  # square pixels
    "": (0, 1e10),
    "_small": (0, 32**2),
    "_medium": (32**2, 96**2),
    "_large": (96**2, 1e10),
}
LOW, HIGH = np.asarray(list(AREAS.values())).T[..., None]  # (areas, 1)
RECALLS = np.linspace(0, 1, 101)


class MeanAveragePrecision(Metric):
    """COCO's averages of precision and recall over classes and thresholds of the IoU.

    update_state(y_true, y_pred), both for each of a batch of images:
    y_true: {"boxes": (count, 4) in xyxy, "classes": (count,)}, with "crowd" for boxes around
    several objects, and "area" where that of the object is not its box's
    y_pred: {"boxes", "classes", "confidence"}; lists, or arrays padded with classes of -1
    result() -> {"mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large", "AR_1", "AR_10",
    "AR_100"}; -1 where there is nothing to find. Kept on the host, so not for compiled steps.
    class_count: classes from there on are an error   max_detections: for each image and class, the
    most confident ones   iou_thresholds: None is 0.5, 0.55, ... 0.95
    """

    class_count: object = None
    iou_thresholds: tuple = None
    max_detections: PositiveInt = 100
    name: str = "mean_average_precision"

    def setup(self):
        super().setup()
        given = self.iou_thresholds
        self._thresholds = np.linspace(0.5, 0.95, 10) if given is None else np.asarray(given)
        self.reset_state()

    def reset_state(self):
        """Forget all batches."""
        self._found, self._wanted = {}, {}  # class -> rows of `_matched`; numbers (areas,)

    def update_state(self, y_true, y_pred):
        """Add a batch of images."""
        truth, found = (_images(labels) for labels in (y_true, y_pred))
        if len(truth) != len(found):
            raise ValueError(f"y_true has {len(truth)} images, y_pred {len(found)}.")
        for wanted, given in zip(truth, found):
            present = np.union1d(wanted["classes"], given["classes"])
            if self.class_count is not None and len(present) and present[-1] >= self.class_count:
                raise ValueError(
                    f"Class {present[-1]:.0f} is not one of class_count={self.class_count}."
                )
            for kind in present.tolist():
                parts = wanted["classes"] == kind, given["classes"] == kind
                self._add(kind, _of(wanted, parts[0]), _of(given, parts[1]))

    def _add(self, kind, wanted, given):
        """Match the detections of one class in one image with its objects."""
        best = np.argsort(-given["confidence"], kind="stable")[: self.max_detections]
        boxes, confidence = given["boxes"][best], given["confidence"][best]
        crowd = wanted["crowd"] > 0
        ignored = crowd | (wanted["area"] < LOW) | (wanted["area"] > HIGH)  # (areas, objects)
        iou = _iou(boxes, wanted["boxes"], crowd)
        matched, unjudged = _matched(iou, crowd, ignored, self._thresholds)
        outside = (given["area"][best] < LOW) | (given["area"][best] > HIGH)
        unjudged = unjudged | ~matched & outside[:, None]
        row = confidence, np.arange(len(best)), matched & ~unjudged, ~matched & ~unjudged
        self._found.setdefault(kind, []).append(row)
        self._wanted[kind] = self._wanted.get(kind, 0) + (~ignored).sum(-1)

    def result(self):
        """Return name -> average."""
        limits = sorted({1, 10, self.max_detections})
        curves = [self._curves(kind, limits) for kind in self._found]
        empty = np.zeros((0, len(self._thresholds)))
        at = {name: np.isclose(self._thresholds, t) for name, t in (("50", 0.5), ("75", 0.75))}
        of_area = [[p[i] for p, _ in curves if i in p] for i in range(len(AREAS))]
        stacked = [np.stack(values) if values else empty for values in of_area]
        found = {"mAP": _mean(stacked[0])}
        found |= {f"mAP{name}": _mean(stacked[0][:, mask]) for name, mask in at.items()}
        found |= {f"mAP{name}": _mean(p) for name, p in zip(AREAS, stacked) if name}
        recalls = [r for _, r in curves if r]
        return found | {f"AR_{k}": _mean(np.asarray([r[k] for r in recalls])) for k in limits}

    def _curves(self, kind, limits):
        """{area: precisions (thresholds, recalls)} and {limit: recall (thresholds,)} of a class."""
        rows = self._found[kind]
        confidence, rank = (np.concatenate([row[i] for row in rows]) for i in (0, 1))
        order = np.argsort(-confidence, kind="stable")
        hits, misses = (np.concatenate([row[i] for row in rows], -1)[..., order] for i in (2, 3))
        rank, wanted = rank[order], self._wanted[kind]
        precisions = {}
        for i in np.flatnonzero(wanted):
            right, wrong = hits[i].cumsum(-1), misses[i].cumsum(-1)
            precision = right / (right + wrong + np.spacing(1))
            precision = np.maximum.accumulate(precision[:, ::-1], -1)[:, ::-1]
            precision = np.pad(precision, ((0, 0), (0, 1)))  # 0 where recall does not come to
            places = [np.searchsorted(line / wanted[i], RECALLS) for line in right]
            precisions[i] = np.take_along_axis(precision, np.asarray(places), -1)
        recalls = {k: hits[0][:, rank < k].sum(-1) / wanted[0] for k in limits if wanted[0]}
        return precisions, recalls


def _mean(values):
    return float(np.mean(values)) if np.size(values) else -1.0


def _images(labels):
    """A dict for each image, without padding."""
    labels = {k: v if isinstance(v, list) else ops.convert_to_numpy(v) for k, v in labels.items()}
    found = []
    for i, classes in enumerate(labels["classes"]):
        classes = np.asarray(classes).reshape(-1)
        there = classes >= 0
        boxes = np.asarray(labels["boxes"][i], "float64").reshape(-1, 4)
        values = {"area": np.prod(boxes[:, 2:] - boxes[:, :2], -1), "crowd": np.zeros(len(boxes))}
        for name in labels.keys() & {"area", "crowd", "confidence"}:
            values[name] = np.asarray(labels[name][i], "float64").reshape(-1)
        values |= {"classes": classes, "boxes": boxes}
        if len({len(v) for v in values.values()}) > 1:
            counts = {name: len(v) for name, v in values.items()}
            raise ValueError(f"Image {i} has different numbers of {counts}.")
        found.append(_of(values, there))
    return found


def _of(values, there):
    return {name: rows[there] for name, rows in values.items()}


def _iou(boxes, others, crowd):
    """(m, n); of a crowd's box, the part of the other box that lies in it."""
    one, two = boxes[:, None], others[None]
    sides = np.minimum(one[..., 2:], two[..., 2:]) - np.maximum(one[..., :2], two[..., :2])
    shared = np.maximum(sides, 0).prod(-1)
    areas = [np.prod(box[..., 2:] - box[..., :2], -1) for box in (one, two)]
    union = np.where(crowd, areas[0], areas[0] + areas[1] - shared)
    return shared / np.where(union > 0, union, 1)


def _matched(iou, crowd, ignored, thresholds):
    """Whether each detection found an object, and whether that one does not count.

    iou: (detections, objects), crowd: (objects,), ignored: (areas, objects)
    -> two of (areas, thresholds, detections)
    """
    shape = len(ignored), len(thresholds)
    taken = np.zeros((*shape, len(crowd)), bool)
    matched, unjudged = np.zeros((2, *shape, len(iou)), bool)
    least = np.minimum(thresholds, 1 - 1e-10)[:, None]
    for d, row in enumerate(iou if len(crowd) else ()):
        free = (crowd | ~taken) & (row >= least)
        counted = free & ~ignored[:, None]
        fit = np.where(counted.any(-1, keepdims=True), counted, free)
        best = len(row) - 1 - np.where(fit, row, -1)[..., ::-1].argmax(-1)  # of equal ones the last
        chosen = fit & (np.arange(len(row)) == best[..., None])
        matched[..., d] = chosen.any(-1)
        unjudged[..., d] = (chosen & ignored[:, None]).any(-1)
        taken |= chosen
    return matched, unjudged
