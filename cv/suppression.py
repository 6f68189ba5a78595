"""Non-maximum suppression: of boxes that overlap, the most confident one stays."""

from functools import partial

from khub import ops

CANDIDATES = 512  # that one round looks at; any number gives the same result
ABSENT = -float("inf")


def non_max_suppression(
    boxes,
    scores,
    iou_threshold=0.5,
    confidence_threshold=0.05,
    max_detections=100,
    class_agnostic=False,
):
    """Take boxes by falling confidence, each time leaving out those that overlap it too much.

    boxes: (batch, n, 4) in xyxy, scores: (batch, n, classes); every class of a box whose score is
    over `confidence_threshold` is a candidate, left out by an earlier one of its class with an IoU
    over `iou_threshold`. Equal scores: the lower box first, then the lower class.
    class_agnostic: the best class of each box alone, left out by any earlier one
    -> {"boxes": (batch, k, 4), "confidence": (batch, k), "classes": int32 (batch, k),
    "num_detections": int32 (batch,)}, k = max_detections, padded with -1

    A round takes the best `CANDIDATES` and settles them at once; where they do not fill the result
    and there are more, the next round takes the best of those that nothing taken overlaps. So the
    result is that of taking one after the other, whatever was preselected. NaN is no candidate.
    """
    boxes, scores = (ops.convert_to_tensor(x, "float32") for x in (boxes, scores))
    one, two = tuple(boxes.shape), tuple(scores.shape)
    if len(one) != 3 or len(two) != 3 or one[1:] != (two[1], 4):
        raise ValueError(
            f"Expected boxes (batch, n, 4) and scores (batch, n, classes), got {one} and {two}."
        )
    batch = ops.shape(boxes)[0]
    if 0 in two[1:]:
        boxes, scores = ops.zeros((batch, 1, 4)), ops.full((batch, 1, 1), ABSENT)
    scores = _numbers(scores)
    best = ops.argmax(scores, -1) if class_agnostic else None
    if class_agnostic:
        scores = ops.max(scores, -1, keepdims=True)
    count = scores.shape[1] * scores.shape[2]
    blank = max(max_detections - min(count, CANDIDATES), 0)  # where the candidates are too few
    taken = (
        ops.zeros((batch, blank, 4)),
        ops.full((batch, blank), ABSENT),
        ops.zeros((batch, blank), "int32"),  # places: box * classes + class
    )
    settle = partial(
        _round,
        boxes=boxes,
        iou_threshold=iou_threshold,
        confidence_threshold=confidence_threshold,
        k=max_detections,
    )

    def unfinished(number, scores, more, *rest):
        return ops.any(more)

    def following(number, scores, more, value, place, *taken):
        scores = _following(scores, value, place)
        pruned = partial(_pruned, scores, taken, boxes, iou_threshold)
        scores = ops.cond(number > 1, pruned, lambda: scores)  # few need a third round
        return (number + 1, scores, *settle(scores, taken))

    state = (1, scores, *settle(scores, taken))
    found, confidence, places = ops.while_loop(unfinished, following, state)[-3:]
    there = confidence > ABSENT
    classes = places % ops.shape(scores)[2]
    if class_agnostic:
        classes = ops.take_along_axis(best, places, 1)
    return {
        "boxes": ops.where(there[..., None], found, -1.0),
        "confidence": ops.where(there, confidence, -1.0),
        "classes": ops.cast(ops.where(there, classes, -1), "int32"),
        "num_detections": ops.sum(ops.cast(there, "int32"), 1),
    }


def _numbers(scores):
    """Scores with NaN made ABSENT; most have none, and are not gone through a second time."""
    clean = ops.all(ops.max(scores, 2) < float("inf"))
    return ops.cond(clean, lambda: scores, lambda: ops.where(scores == scores, scores, ABSENT))


def _round(scores, taken, boxes, iou_threshold, confidence_threshold, k):
    """Settle the best candidates: whether more are wanted, the last one, what is taken by now."""
    values, places = _candidates(scores, confidence_threshold)
    classes = scores.shape[2]
    found = _rows(boxes, places // classes), values, places
    joined = [ops.concatenate(pair, 1) for pair in zip(taken, found)]  # still in order
    corners, confidence, kinds = joined[0], joined[1], joined[2] % classes
    over = _overlap(corners, corners, iou_threshold)
    over = ops.logical_and(over, kinds[:, :, None] == kinds[:, None])
    over = ops.triu(ops.cast(over, "float32"), 1)  # [j, i]: j comes first and leaves i out

    def settled(keep, changed):
        blocked = ops.matmul(ops.cast(keep, "float32")[:, None], over)[:, 0] > 0
        after = ops.logical_and(confidence > ABSENT, ops.logical_not(blocked))
        return after, ops.any(after != keep)

    # after i + 1 steps the first i candidates do not change any more
    keep, _ = ops.while_loop(lambda keep, go: go, settled, (confidence > ABSENT, True))
    index = _first(keep, k)
    corners, confidence, origins = (_rows(x, index) for x in joined)
    confidence = ops.where(_rows(keep, index), confidence, ABSENT)
    more = ops.logical_and(values[:, -1] > ABSENT, confidence[:, -1] == ABSENT)
    return more, values[:, -1:], places[:, -1:], corners, confidence, origins


def _candidates(scores, confidence_threshold):
    """Scores and places (batch, k) of the best candidates, in order, ABSENT after the last."""
    size, classes = scores.shape[1:]
    # the k best candidates lie in the k boxes with the best of their candidates
    rows = _best(ops.max(scores, 2), min(CANDIDATES, size))
    near = ops.reshape(_rows(scores, rows), (-1, rows.shape[1] * classes))
    near = ops.where(near > confidence_threshold, near, ABSENT)
    index = _best(near, min(CANDIDATES, near.shape[1]))
    values = _rows(near, index)
    order = ops.argsort(-values, 1)  # stable, and the index rises
    index, values = _rows(index, order), _rows(values, order)
    return values, _rows(rows, index // classes) * classes + index % classes


def _following(scores, value, place):
    """Scores without the candidates up to that of this score and place, in their order."""
    value, place = value[..., None], place[..., None]
    places = ops.reshape(ops.arange(scores.shape[1] * scores.shape[2]), (1, *scores.shape[1:]))
    equal = ops.logical_and(scores == value, places <= place)
    return ops.where(ops.logical_or(scores > value, equal), ABSENT, scores)


def _pruned(scores, taken, boxes, iou_threshold):
    """Scores without the candidates that something taken leaves out."""
    found, confidence, origins = taken
    kinds = ops.one_hot(origins % scores.shape[2], scores.shape[2])
    kinds = kinds * ops.cast(confidence > ABSENT, "float32")[..., None]
    over = ops.cast(_overlap(boxes, found, iou_threshold), "float32")
    return ops.where(ops.matmul(over, kinds) > 0, ABSENT, scores)


def _best(values, k):
    """Places (batch, k) of the k largest values, of equal ones the first, in rising order."""
    # not [:, -1:], of which XLA makes a full sort
    least = ops.min(ops.top_k(values, k)[0], 1, keepdims=True)
    above, equal = values > least, values == least
    room = k - ops.sum(ops.cast(above, "int32"), 1, keepdims=True)
    rank = ops.cumsum(ops.cast(equal, "int32"), 1)
    return _first(ops.logical_or(above, ops.logical_and(equal, rank <= room)), k)


def _first(flags, k):
    """Places (batch, k) of the first k flags, then others."""
    size = flags.shape[1]
    # no two keys are equal, whose order would be the backend's; XLA sorts all of other dtypes
    keys = ops.arange(size, 0, -1, dtype="float32")
    return ops.top_k(ops.where(flags, keys + size, keys), k)[1]


def _rows(x, index):
    """x[b, index[b]] for x (batch, n, ...) and index (batch, k)."""
    return ops.take_along_axis(x, index[..., None] if len(x.shape) == 3 else index, 1)


def _overlap(one, two, iou_threshold):
    """Whether boxes (batch, m, 4) and (batch, n, 4) share more than the threshold: (batch, m, n)"""
    left, top, right, bottom = ops.split(one, 4, 2)
    x1, y1, x2, y2 = ops.split(ops.swapaxes(two, 1, 2), 4, 1)
    wide = ops.minimum(right, x2) - ops.maximum(left, x1)
    high = ops.minimum(bottom, y2) - ops.maximum(top, y1)
    shared = ops.relu(wide) * high  # negative where the boxes lie apart: no overlap either
    areas = ops.relu(right - left) * ops.relu(bottom - top) + ops.relu(x2 - x1) * ops.relu(y2 - y1)
    return shared > iou_threshold * (areas - shared)  # no division: empty boxes overlap nothing
