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


def commit(place):
    """Call `place`, which renames a file; khub.distribution does so in one process of several."""
    place()


def is_writer():
    """Say whether this process writes what all write alike; khub.distribution has its own."""
    return True


def parse_json(text, what):
    """Return the JSON object in `text`.  Raises WeightsError where there is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{what} is not valid JSON: {error}.") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{what} must be a JSON object, got {type(found).__name__}.")
    return found


def _flush(path):
    """Have what was written into a file or folder put on the disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def swap(new, path, old):
    """Rename `new` to `path`; what is there comes back where that fails.  old: a free path"""
    if path.is_dir():  # only a file is replaced in one step
        path.rename(old)
    try:
        os.replace(new, path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise


@contextmanager
def replacing(path, overwrite=True):
    """Give a path beside `path` for a file or folder, which takes its place when all went well.

    What was at `path` stays as it is when the block raises, or when the process or machine dies.
    Raises FileExistsError where something is there and not `overwrite`; FileNotFoundError: no
    folder to put it in
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder: make it first.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists, and overwrite=False.")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    old = temporary.with_suffix(".old")

    def place():
        swap(temporary, path, old)
        if os.name == "posix":  # others open no folders
            _flush(path.parent)

    try:
        yield temporary
        for item in (temporary, *temporary.rglob("*")):
            if item.is_file():
                _flush(item)
        commit(place)
    finally:
        for rest in (temporary, old):
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink(missing_ok=True)
