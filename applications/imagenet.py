"""ImageNet: where the weights of Keras' classifiers are, as `weights.toml` lists them."""

import tomllib
from functools import cache
from pathlib import Path

from ..presets.download import fetch

HOST = "https://storage.googleapis.com/"


@cache
def entries():
    """Return constructor -> its row of weights.toml."""
    return tomllib.loads(Path(__file__).with_name("weights.toml").read_text("utf-8"))


@cache
def classes():
    """Return (WordNet id, name) of each of the 1,000 classes."""
    rows = Path(__file__).with_name("imagenet_classes.tsv").read_text("utf-8").splitlines()
    return tuple(tuple(row.split("\t")) for row in rows)


def class_names():
    """Return the names of the 1,000 classes, for people."""
    return tuple(name.replace("_", " ") for _, name in classes())


def weights_file(function, weights, include_top, options, shape):
    """Return the path of the weights that a constructor's argument names.

    Raises ValueError when the argument is neither "imagenet" nor a file.
    """
    if weights != "imagenet":
        path = Path(weights).expanduser()
        if not path.is_file():
            raise ValueError(
                f"{function}: weights must be 'imagenet', None or the path of a weights file, got "
                f"{weights!r}, and there is no such file."
            )
        return path
    row = entries()[function]["top" if include_top else "no_top"]
    return fetch(HOST + row["path"], row.get("hash"))
