"""ImageNet: where the weights of Keras' classifiers are, as `weights.toml` lists them."""

import os
import tomllib
from functools import cache
from pathlib import Path

import numpy as np

from ..presets import WeightsError, keras_h5
from ..presets.download import download, fetch
from ..presets.tensors import Checkpoint
from ..presets.weights import load_own

HOST = "https://storage.googleapis.com/"


@cache
def entries():
    """Return constructor -> its row of weights.toml."""
    return tomllib.loads(Path(__file__).with_name("weights.toml").read_text("utf-8"))


def trained_size(variant, lengths):
    """Return the size of the images that the weights for this height and width were trained on."""
    sizes = (variant.size, *variant.sizes)
    return lengths[0] if lengths in [(n, n) for n in sizes] else variant.size


def weights_file(variant, weights, include_top, options, lengths):
    """Return the path of the weights that a constructor's argument names, None for None.

    Raises ValueError when the argument is neither "imagenet" nor a file or a preset.
    """
    if weights is None:
        return None
    if weights != "imagenet":
        path = isinstance(weights, str | os.PathLike) and Path(weights).expanduser()
        if path and path.is_file():
            return path
        try:
            return download(weights if path else "")
        except (ValueError, FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(
                f"{variant.name}: weights must be 'imagenet', None, the path of a weights file or "
                f"the handle of a preset, got {weights!r}"
                + (", and there is no such file or preset." if path else ".")
            ) from error
    return fetch(*address(variant, include_top, options, lengths))


def address(variant, include_top, options, lengths):
    """Return where ImageNet's weights are, and their MD5 or SHA-256 if known."""
    row = entries()[variant.name]
    part, alpha = row["top" if include_top else "no_top"], str(float(options.get("alpha", 1)))
    path = part["path"].format(
        alpha=row.get("alphas", {}).get(alpha, alpha),
        size=trained_size(variant, lengths),
        minimalistic="_minimalistic" if options.get("minimalistic") else "",
    )
    return HOST + path, part.get("hash") or row.get("hashes", {}).get(path.rpartition("/")[2])


def load(model, path, include_top):
    """Assign the weights in a file or preset to a model.

    The error for a file of Keras tells which variant's it looks like.
    """
    if Path(path).is_dir() or Path(path).suffix not in (".h5", ".hdf5"):
        return load_own(model, Checkpoint(path), partly=not include_top)
    try:
        keras_h5.load(model, path)
    except WeightsError as error:
        found = variants_like(keras_h5.shapes(path))
        hint = f"\nIts size is that of {' or '.join(found)}." if found else ""
        raise WeightsError(f"{error}{hint}") from None


def variants_like(shapes):
    """Return the constructors whose parameters are as many as those of arrays in a file.

    The number of classes is the file's: the last array but one is the head's kernel.
    """
    count = sum(np.prod(shape, dtype=int) for shape in shapes)
    *_, width, classes = shapes[-2] if len(shapes) > 1 and len(shapes[-2]) > 1 else (0, 0)
    thousand = count + (1000 - classes) * (width + 1)
    return [
        f"{name} with include_top={part == 'top'}"
        for name, row in entries().items()
        for part, parameters in (("top", thousand), ("no_top", count))
        if row[part]["parameters"] == parameters
    ]
