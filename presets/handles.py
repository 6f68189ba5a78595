"""Handles: how a user names a preset."""

import re
from dataclasses import dataclass
from pathlib import Path

from . import catalog
from .catalog import UnknownPreset, nearest

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
SHAPES = "a catalogue name, hf://org/name[@revision], a folder or https://...zip#sha256=..."


@dataclass(frozen=True)
class Handle:
    """Where a preset is.

    kind: "embedded" | "folder" (location: a path), "hub" (a repository), "archive" (an address),
    "published" (a catalogue name: weights alone, the catalogue has the rest)
    revision: branch, tag or commit of a repository; the sha256 of an archive
    """

    kind: str
    location: str
    revision: str | None = None


def _hub(text):
    location, _, revision = text.removeprefix("hf://").partition("@")
    if not REPOSITORY.fullmatch(location) or text.endswith("@"):
        raise ValueError(f"Handle {text!r} must look like hf://org/name or hf://org/name@revision.")
    return Handle("hub", location, revision or None)


def _archive(text):
    location, _, digest = text.partition("#sha256=")
    if not re.fullmatch(r"[0-9a-f]{64}", digest) or not location.endswith(".zip"):
        raise ValueError(
            f"Handle {text!r} must be the address of a zip of a preset folder, followed by "
            "#sha256= and the file's 64 hex digits."
        )
    return Handle("archive", location, digest)


def parse(handle):
    """Return the `Handle` that a string or path stands for.

    Raises UnknownPreset for a name that is not in the catalogue, with the nearest ones;
    FileNotFoundError or NotADirectoryError for a path that is no folder; ValueError if malformed.
    """
    if isinstance(handle, Handle):
        return handle
    text = str(handle)
    if not text:
        raise ValueError(f"A preset's handle must not be empty; expected {SHAPES}.")
    if text.startswith("hf://"):
        return _hub(text)
    if text.startswith(("https://", "http://")):
        return _archive(text)
    if isinstance(handle, str) and text in catalog.entries():
        info = catalog.info(text)
        if info.config is not None:
            return Handle("published", text)
        return (
            Handle("embedded", str(catalog.EMBEDDED / text)) if info.embedded else _hub(info.source)
        )
    if (path := Path(text).expanduser()).is_dir():
        return Handle("folder", str(path))
    if path.exists():
        raise NotADirectoryError(f"{text} is a file; a preset is the folder with its config.json.")
    if not isinstance(handle, str) or text.startswith((".", "~", "/")) or "\\" in text:
        raise FileNotFoundError(f"There is no folder {text}; expected {SHAPES}.")
    hint = nearest(text, catalog.entries())
    if REPOSITORY.fullmatch(text):
        hint = f"for the repository on the Hub write hf://{text}; {hint}"
    raise UnknownPreset(f"There is no preset and no folder {text!r}; {hint} Expected {SHAPES}.")
