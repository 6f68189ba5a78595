"""Non-maximum suppression against taking one box after the other."""

import numpy as np
import pytest

import khub
from khub import ops
from khub.cv import suppression
from khub.cv.suppression import non_max_suppression

# size, classes, cases, candidates a round, most detections; together 1,000 cases
TABLE = [
    (30, 3, 500, 16, 12),
    (30, 3, 150, 512, 100),
    (13, 1, 200, 4, 5),
    (60, 8, 100, 24, 40),
    (0, 4, 25, 512, 3),
    (1, 2, 25, 512, 1),
]


def shared_too_much(one, two, threshold):
    """Whether two boxes overlap, in float32 as the layers compute."""
    sides = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
    shared = np.prod(np.maximum(sides, 0))
    areas = sum(np.prod(np.maximum(box[2:] - box[:2], 0)) for box in (one, two))
    return shared > np.float32(threshold) * (areas - shared)


def one_by_one(boxes, scores, threshold, least, most, agnostic):
    """(box, class) of one image, each candidate compared with all that were taken before."""
    if agnostic and scores.size:
        best = scores.argmax(-1)
        scores = np.where(np.arange(scores.shape[1]) == best[:, None], scores, -1)
    order = sorted((-s, i, c) for (i, c), s in np.ndenumerate(scores) if s > np.float32(least))
    taken = []
    for _, i, c in order:
        rivals = [j for j, d in taken if agnostic or c == d]
        if len(taken) < most and not any(
            shared_too_much(boxes[i], boxes[j], threshold) for j in rivals
        ):
            taken.append((i, c))
    return taken


def cases(random, count, size, classes, tied):
    """Boxes around few places, some empty or inverted; where tied, numbers of few values."""
    places = random.uniform(0, 60, (count, 4, 2))
    left = np.take_along_axis(places, random.integers(4, size=(count, size, 1)), 1)
    left = left + random.normal(0, 6, (count, size, 2))
    sides = random.uniform(5, 40, (count, size, 2))
    sides = np.where(random.random((count, size, 1)) < 0.1, -sides * (sides > 20), sides)
    scores = random.random((count, size, classes))
    if tied:
        left, sides = left.round(-1), sides.round(-1)
        scores = scores.round(1)
    return np.concatenate([left, left + sides], -1).astype("float32"), scores.astype("float32")


def check(found, boxes, scores, wanted):
    rows, classes = ([pair[i] for pair in wanted] for i in (0, 1))
    n, padding = len(wanted), (found["confidence"][len(wanted) :] == -1).all()
    assert found["num_detections"] == n and padding
    assert (found["boxes"][n:] == -1).all() and (found["classes"][n:] == -1).all()
    assert found["classes"][:n].tolist() == classes
    np.testing.assert_array_equal(found["boxes"][:n], boxes[rows].reshape(-1, 4))
    np.testing.assert_array_equal(found["confidence"][:n], scores[rows, classes])


@pytest.mark.parametrize("size, classes, count, candidates, most", TABLE)
def test_equals_one_box_after_the_other(size, classes, count, candidates, most, monkeypatch):
    monkeypatch.setattr(suppression, "CANDIDATES", candidates)
    random, agnostic = np.random.default_rng(size + candidates), classes == 8
    least = 0.2
    parts = [cases(random, n, size, classes, tied) for tied, n in ((0, count // 2), (1, count))]
    boxes, scores = (np.concatenate(x)[:count] for x in zip(*parts))
    scores[::7] *= 0.1  # few or none are over the threshold

    @khub.jit
    def suppress(boxes, scores):
        return non_max_suppression(boxes, scores, 0.5, least, most, agnostic)

    found = suppress(ops.convert_to_tensor(boxes), ops.convert_to_tensor(scores))
    found = {name: ops.convert_to_numpy(x) for name, x in found.items()}
    assert found["boxes"].shape == (count, most, 4) and found["classes"].dtype == "int32"
    for i in range(count):
        wanted = one_by_one(boxes[i], scores[i], 0.5, least, most, agnostic)
        check({k: x[i] for k, x in found.items()}, boxes[i], scores[i], wanted)


def test_overlap_at_the_threshold_stays_and_nan_is_no_candidate():
    boxes = [[[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 6], [0, 0, 10, 10]]]
    scores = [[[0.9], [0.8], [0.7], [float("nan")]]]
    found = non_max_suppression(np.float32(boxes), np.float32(scores), 0.5)
    assert int(found["num_detections"][0]) == 2
    assert ops.convert_to_numpy(found["boxes"])[0, 1].tolist() == [0, 0, 10, 5]


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 4\) and \(1, 2, 5\)"):
        non_max_suppression(np.zeros((1, 3, 4)), np.zeros((1, 2, 5)))
