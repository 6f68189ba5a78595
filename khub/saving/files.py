"""Files that replace another only when they are whole, and what may be wrong with one."""

import json
import os
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path


class WeightsError(ValueError):
    """A weights file is damaged, hostile, or does not fit the model."""


@contextmanager
def replacing(path):
    """Give a path beside `path` for a file or folder, which takes its place when all went well.

    What was at `path` stays as it is when the block raises, or when the process dies in it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    old = temporary.with_suffix(".old")
    try:
        yield temporary
        for file in temporary.rglob("*") if temporary.is_dir() else (temporary,):
            if file.is_file():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
        if path.is_dir():  # only a file can be replaced in one step
            path.rename(old)
        os.replace(temporary, path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for rest in (temporary, old):
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink(missing_ok=True)


def _unique(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"these names occur twice: {', '.join(twice)}")
    return found


def parse_json(text, what):
    """Return the JSON object in `text` (str or bytes); `what` names it in the WeightsError."""
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{what} is not valid JSON: {error}.") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{what} must be a JSON object, got {type(found).__name__}.")
    return found
