"""Classes and sequences as arrays."""

import numpy as np

from khub import ops
from khub.backend import active
from khub.ops.symbolic import any_symbolic


def _is_native(x):
    """Whether the backend computes it: a tensor, not an array, which is one on NumPy."""
    return not isinstance(x, np.ndarray) and (active.is_tensor(x) or any_symbolic((x,)))


def to_categorical(x, num_classes=None):
    """Return one-hot rows: (...) or (..., 1) of integers -> (..., num_classes)"""
    if _is_native(x):
        return ops.one_hot(x, num_classes or int(ops.max(x)) + 1)
    labels = np.asarray(x, "int64")
    if labels.ndim > 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    return np.eye(num_classes or int(labels.max()) + 1)[labels]


def normalize(x, axis=-1, order=2):
    """Return `x` divided by its norm of this order along `axis`; zeros stay."""
    if _is_native(x):
        return ops.normalize(x, axis=axis, order=order)
    norm = np.linalg.norm(x, order, axis, keepdims=True)
    return np.asarray(x) / np.where(norm == 0, 1, norm)


def pad_sequences(
    sequences, maxlen=None, dtype="int32", padding="pre", truncating="pre", value=0.0
):
    """Return lists of different lengths as one array (rows, maxlen, ...), filled with `value`.

    padding, truncating: "pre" or "post", the end that is filled or cut; maxlen: by default the
    longest row's length
    """
    for name, given in (("padding", padding), ("truncating", truncating)):
        if given not in ("pre", "post"):
            raise ValueError(f"{name} must be 'pre' or 'post', got {given!r}.")
    rows = [np.asarray(row) for row in sequences]
    width = max(map(len, rows), default=0) if maxlen is None else maxlen
    inner = next((row.shape[1:] for row in rows if len(row)), ())
    result = np.full((len(rows), width, *inner), value, dtype)
    for target, row in zip(result, rows):
        if len(row) and width:
            row = row[-width:] if truncating == "pre" else row[:width]
            target[slice(-len(row), None) if padding == "pre" else slice(len(row))] = row
    return result
