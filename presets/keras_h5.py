"""Weights in Keras' HDF5 files, legacy `.h5` and `.weights.h5`, for models of plain layers."""

from khub.saving import h5
from khub.saving.weights import load_weights as load

__all__ = ["load", "shapes"]


def shapes(path):
    """Return the shapes of a file's arrays, in the order of a legacy file."""
    with h5.opened(path, path) as file:
        stored = h5.legacy(file) or {p: v.values() for p, v in sorted(h5.groups(file).items())}
        return [tuple(array.shape) for arrays in stored.values() for array in arrays]
