"""Files that replace another only when they are whole, and what may be wrong with one."""

import json
import os
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path


class WeightsError(ValueError):
    """A weights file is damaged, hostile, or does not fit the model."""


def check_size(what, size, stored):
    """Raise WeightsError where `size` bytes are claimed to be packed in `stored`: a bomb."""
    if size > 2**26 + 100 * stored:
        raise WeightsError(f"{what} claims {size:,} bytes, but {stored:,} are there; refused.")


def parse_json(text, what):
    """Return the JSON object in `text`.  Raises WeightsError where there is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{what} is not valid JSON: {error}.") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{what} must be a JSON object, got {type(found).__name__}.")
    return found


@contextmanager
def replacing(path, overwrite=True):
    """Give a path beside `path` for a file or folder, which takes its place when all went well.

    What was at `path` stays as it is when the block raises, or when the process dies in it.
    Raises FileExistsError where something is there and not `overwrite`.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists, and overwrite=False.")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    old = temporary.with_suffix(".old")
    try:
        yield temporary
        if path.is_dir():  # only a file is replaced in one step
            path.rename(old)
        os.replace(temporary, path)
    finally:
        for rest in (temporary, old):
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink(missing_ok=True)
