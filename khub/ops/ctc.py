"""Connectionist temporal classification: its loss and its decoders.  Graves et al. 2006."""

from khub import dtypes
from khub.ops import math
from khub.ops.array import *  # noqa: F403
from khub.ops.core import cast, scan, shape, where
from khub.ops.nn import log_softmax, one_hot
from khub.ops.op import op

# ruff: noqa: F405  (names of array)

_NEVER = -1e30  # the logarithm of a probability of 0 that has gradients


def _frames(output, lengths):
    """(batch, time, classes), (batch,) -> log probabilities and validity, the time axis first"""
    name = dtypes.standardize(output.dtype)
    wide = name if name == "float64" else "float32"
    valid = math.less(expand_dims(arange(shape(output)[1]), 1), cast(lengths, "int32"))
    return transpose(log_softmax(cast(output, wide)), (1, 0, 2)), valid


def _total(*logarithms):
    """log(sum(exp)) elementwise of tensors that may hold `_NEVER`."""
    return math.logsumexp(stack(logarithms, 0), axis=0)


@op(operands=("target", "output", "target_length", "output_length"))
def ctc_loss(target, output, target_length, output_length, mask_index=0):
    """-log p(target | output) over all alignments; infinite where the target is too long.

    target: int (batch, length), output: logits (batch, time, classes), lengths: (batch,) -> same
    mask_index: the class that stands for no label (blank).
    """
    frames, valid = _frames(output, output_length)
    batch, length = shape(target)
    labels = math.maximum(cast(target, "int32"), 0)
    blank = zeros_like(labels) + mask_index
    path = reshape(stack([blank, labels], 2), (batch, -1))  # blank, label, blank, ..., blank
    path = concatenate([path, blank[:, :1]], 1)
    # a label may follow the last one without a blank between, if it is another
    other = math.not_equal(path[:, 2:], path[:, :-2])
    skips = pad(other, [(0, 0), (2, 0)])
    emitted = take_along_axis(frames, expand_dims(path, 0), 2)  # (time, batch, path)
    place = arange(2 * length + 1)

    def before(score, steps):
        return pad(score[:, :-steps], [(0, 0), (steps, 0)], constant_values=_NEVER)

    def step(score, frame):
        emission, here = frame
        reached = _total(score, before(score, 1), where(skips, before(score, 2), _NEVER))
        return where(expand_dims(here, 1), reached + emission, score), None

    start = where(math.equal(place, 0), zeros_like(emitted[0]), _NEVER)
    score, _ = scan(step, start, (emitted, valid))
    end = expand_dims(2 * cast(target_length, "int32"), 1)
    last = where(math.logical_or(math.equal(place, end), math.equal(place, end - 1)), score, _NEVER)
    loss = -math.logsumexp(last, axis=-1)
    loss = where(math.less(loss, -_NEVER / 2), loss, float("inf"))
    return cast(loss, dtypes.standardize(output.dtype))


@op(operands=2)
def ctc_decode(
    inputs,
    sequence_lengths,
    strategy="greedy",
    beam_width=100,
    top_paths=1,
    merge_repeated=True,
    mask_index=0,
):
    """The most likely labels, padded with -1, and their scores.

    inputs: logits (batch, time, classes)

    strategy: "greedy" -> int32 (1, batch, time), and minus the sum of the largest logits (batch, 1)
    "beam_search" -> int32 (top_paths, batch, time), and log probabilities (batch, top_paths)
    """
    if strategy == "greedy":
        return _greedy(inputs, sequence_lengths, merge_repeated, mask_index)
    if strategy != "beam_search":
        raise ValueError(f'strategy must be "greedy" or "beam_search", got {strategy!r}.')
    if top_paths > beam_width:
        raise ValueError(
            f"top_paths={top_paths} needs beam_width >= {top_paths}, got {beam_width}."
        )
    return _beam_search(inputs, sequence_lengths, beam_width, top_paths, merge_repeated, mask_index)


def _greedy(inputs, lengths, merge_repeated, mask_index):
    valid = math.less(arange(shape(inputs)[1]), expand_dims(cast(lengths, "int32"), 1))
    score = -math.sum(where(valid, math.max(inputs, -1), 0.0), -1, keepdims=True)
    labels = math.argmax(inputs, -1)  # (batch, time)
    kept = math.logical_and(valid, math.not_equal(labels, mask_index))
    if merge_repeated:
        previous = pad(labels[:, :-1], [(0, 0), (1, 0)], constant_values=-1)
        kept = math.logical_and(kept, math.not_equal(labels, previous))
    order = argsort(
        cast(math.logical_not(kept), "int32"), -1
    )  # the kept ones first, in their order
    count = math.sum(cast(kept, "int32"), -1, keepdims=True)
    labels = take_along_axis(labels, order, -1)
    decoded = where(math.less(arange(shape(labels)[1]), count), labels, -1)
    return expand_dims(decoded, 0), score


def _beam_search(inputs, lengths, width, top_paths, merge_repeated, mask_index):
    """Keep the `width` likeliest prefixes, with log probabilities of a blank end or none."""
    frames, valid = _frames(inputs, lengths)
    time, batch, classes = shape(frames)
    places = arange(time)

    def step(state, frame):
        prefix, size, in_blank, in_label = state  # (batch, width, time), 3 x (batch, width)
        scores, here = frame
        either = _total(in_blank, in_label)
        last = take_along_axis(prefix, expand_dims(math.maximum(size - 1, 0), 2), 2)
        last = where(expand_dims(size, 2) > 0, last, -1)  # (batch, width, 1)
        blank = scores[:, mask_index : mask_index + 1]
        same = one_hot(squeeze(last, 2), classes, dtype=dtypes.standardize(scores.dtype))
        of_last = math.sum(same * expand_dims(scores, 1), -1)
        stay_blank = either + blank
        stay_label = in_label + of_last if merge_repeated else zeros_like(in_label) + _NEVER
        grown = broadcast_to(expand_dims(either, 2), (batch, width, classes))
        if merge_repeated:  # the same label once more needs a blank between
            grown = where(same > 0, expand_dims(in_blank, 2), grown)
        grown = grown + expand_dims(scores, 1)
        grown = where(math.equal(arange(classes), mask_index), _NEVER, grown)
        # prefix i with one more label may be prefix j: its probability goes there
        known = math.equal(expand_dims(size, 2) + 1, expand_dims(size, 1))
        alive = math.greater(expand_dims(either, 1), _NEVER / 2)  # others may be copies of j
        known = math.logical_and(known, alive)
        agree = math.equal(expand_dims(prefix, 2), expand_dims(prefix, 1))
        beyond = math.greater_equal(places, expand_dims(expand_dims(size, 2), 3))
        known = math.logical_and(known, math.all(math.logical_or(agree, beyond), -1))
        label = math.maximum(broadcast_to(transpose(last, (0, 2, 1)), (batch, width, width)), 0)
        arriving = where(known, take_along_axis(grown, label, 2), _NEVER)
        stay_label = _total(stay_label, math.logsumexp(arriving, axis=1))
        taken = math.max(where(expand_dims(known, 3), one_hot(label, classes), 0.0), 2)
        grown = where(taken > 0, _NEVER, grown)
        # the best of those that stay and those that grow
        candidates = concatenate(
            [_total(stay_blank, stay_label), reshape(grown, (batch, width * classes))], 1
        )
        _, best = top_k(candidates, width)
        grows = math.greater_equal(best, width)
        parent = where(grows, math.floor_divide(best - width, classes), best)
        new_label = math.mod(best - width, classes)
        new_size = take_along_axis(size, parent, 1)
        new_prefix = take_along_axis(prefix, expand_dims(parent, 2), 1)
        at = math.equal(places, expand_dims(new_size, 2))
        at = math.logical_and(at, expand_dims(grows, 2))
        new_prefix = where(at, expand_dims(new_label, 2), new_prefix)
        new_blank = where(grows, _NEVER, take_along_axis(stay_blank, parent, 1))
        new_in_label = where(
            grows, take_along_axis(candidates, best, 1), take_along_axis(stay_label, parent, 1)
        )
        new = (new_prefix, new_size + cast(grows, "int32"), new_blank, new_in_label)
        here = expand_dims(here, 1)
        return tuple(
            where(expand_dims(here, 2) if a is new_prefix else here, a, b)
            for a, b in zip(new, state, strict=True)
        ), None

    name = dtypes.standardize(frames.dtype)
    nothing = zeros((batch, width), name) + _NEVER
    start = (
        zeros((batch, width, time), "int32") - 1,
        zeros((batch, width), "int32"),
        where(math.equal(arange(width), 0), zeros_like(nothing), nothing),
        nothing,
    )
    (prefix, _, in_blank, in_label), _ = scan(step, start, (frames, valid))
    score, best = top_k(_total(in_blank, in_label), top_paths)
    prefix = take_along_axis(prefix, expand_dims(best, 2), 1)
    return moveaxis(prefix, 1, 0), cast(score, dtypes.standardize(inputs.dtype))
