"""The catalogue: what presets there are. Data in `catalog/*.toml`, most of them a family's."""

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
EMBEDDED = HERE / "embedded"


class UnknownPreset(ValueError):
    """No preset has this name."""


@dataclass(frozen=True)
class PresetInfo:
    """One preset of the catalogue.

    tasks: generic names (TextClassifier, ...) that it opens as
    parameters: of the backbone   bytes: what is downloaded (or shipped, when embedded)
    image_size: height and width that a model of images is for   top1, top5: accuracy on ImageNet's
    validation set in percent, as published   config: stands for the config.json of weights that are
    published without one
    """

    name: str
    family: str
    tasks: tuple[str, ...]
    parameters: int
    bytes: int
    licence: str
    source: str
    embedded: bool
    description: str
    image_size: int | None = None
    top1: float | None = None
    top5: float | None = None
    config: dict | None = None


def nearest(name, names):
    """Return the part of an error's text that suggests names."""
    near = difflib.get_close_matches(name, names, 3, 0.4)
    return f"did you mean {', '.join(near)}?" if near else "`khub presets` lists the names."


@cache
def entries():
    """Return name -> PresetInfo."""
    found = {}
    for path in sorted((HERE / "catalog").glob("*.toml")):
        for name, fields in tomllib.loads(path.read_text()).items():
            if name in found:
                raise ValueError(f"{path}: {name} is in the catalogue twice.")
            embedded = fields["source"] == "embedded"
            fields["tasks"] = tuple(fields["tasks"])
            fields.setdefault("family", path.stem)
            found[name] = PresetInfo(name=name, embedded=embedded, **fields)
    return found


def list(task=None, family=None):
    """Return the catalogue's presets, those of one task (a generic name) or family when given."""
    return [
        preset
        for preset in entries().values()
        if task in (None, *preset.tasks) and family in (None, preset.family)
    ]


def info(name):
    """Return the `PresetInfo` of a catalogue name. Raises UnknownPreset, with the nearest names."""
    if name not in entries():
        raise UnknownPreset(f"The catalogue has no preset {name!r}; {nearest(name, entries())}")
    return entries()[name]
