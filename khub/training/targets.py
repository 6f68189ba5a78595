"""What may be wrong with a loss's targets: said before the first step, with the output's name."""

import warnings

import numpy as np

from khub import activations, losses
from khub.backend import active

_SPARSE = ("sparse_categorical_crossentropy", "categorical_generalized_cross_entropy")
_CATEGORICAL = ("categorical_crossentropy", "categorical_focal_crossentropy")
_BINARY = ("binary_crossentropy", "binary_focal_crossentropy")
_FREE = ("circle", "ctc")  # no number of the output belongs to one of the target


def _kind(loss):
    """Return the name of the built-in function that a loss calls, None for a user's own."""
    function = getattr(loss, "_call", None) or getattr(loss, "fn", None)
    own = getattr(function, "__module__", None) == losses.__name__
    return function.__name__ if own and function.__name__ not in _FREE else None


def check_shapes(name, loss, y, y_pred, layer):
    """Raise ValueError where a target's shape does not fit an output's.

    layer: what gives the output, None where that is not known; warns where it gives no
    probabilities and the loss takes them
    """
    kind, shape = _kind(loss), tuple(y_pred.shape)
    if kind is None or not hasattr(y, "shape"):
        return
    given, advice = tuple(y.shape), None
    expected = [shape]
    if kind in _SPARSE:
        axis = getattr(loss, "axis", -1) % len(shape)
        expected = [shape[:axis] + shape[axis + 1 :], shape[:axis] + (1,) + shape[axis + 1 :]]
        if len(given) == len(shape) and given[axis] == shape[axis] != 1:
            advice = "the target looks one-hot: use categorical_crossentropy, or y.argmax(-1)"
        advice = advice or "it takes one class number for each row of values"
    elif kind in _CATEGORICAL:
        advice = "the target seems to hold class numbers: use sparse_categorical_crossentropy, or "
        advice += f"khub.utils.to_categorical(y, {shape[-1]})"
    else:  # a last axis of size 1 may be there or not
        expected += [(*shape, 1), shape[:-1] if shape[-1:] == (1,) else shape]
        if len(given) == len(shape):  # and size 1 is as good as any
            expected.append(tuple(1 if g == 1 else e for g, e in zip(given, shape)))
    if not any(_alike(given, e) for e in expected):
        advice = advice or "it compares them element by element"
        raise ValueError(
            f"The output {name!r} has the shape {shape}, its target {given}, which does not fit "
            f"{kind}: {advice}."
        )
    options = getattr(loss, "_options", {})
    likely = kind in (*_BINARY, *_CATEGORICAL, _SPARSE[0]) and not options.get("from_logits")
    if likely and getattr(layer, "activation", None) is activations.linear:
        warnings.warn(
            f"The output {name!r} has no activation, but {kind} expects probabilities: use "
            "the loss with from_logits=True, or an activation (sigmoid, softmax).",
            stacklevel=2,
        )


def _alike(given, expected):
    alike = (a == b or None in (a, b) for a, b in zip(given, expected))
    return len(given) == len(expected) and all(alike)


def check_labels(name, loss, y, classes):
    """Raise ValueError for class numbers that an output with so many classes does not have."""
    kind = _kind(loss)
    if kind not in _SPARSE + _BINARY or not (active.is_tensor(y) or isinstance(y, np.ndarray)):
        return
    y = active.convert_to_numpy(y)  # of a device, in the first batch of an epoch alone
    ignored = getattr(loss, "ignore_class", None)
    y = y if ignored is None else y[y != ignored]
    if y.size == 0 or y.dtype.kind not in "iuf" or kind in _BINARY and y.dtype.kind == "f":
        return
    classes = 2 if kind in _BINARY else classes
    low, high = y.min(), y.max()
    if y.dtype.kind == "f" and (y % 1).any():
        raise ValueError(
            f"The target of {name!r} must be class numbers for {kind}, got {y.flat[0]}."
        )
    if low < 0 or high >= classes:
        raise ValueError(
            f"The target of {name!r} has classes from {low} to {high}; {kind} takes 0 to "
            f"{classes - 1} here: correct the labels, or give the output {int(high) + 1} classes."
        )
