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
