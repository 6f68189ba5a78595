"""Families: which classes open which `model_type`."""

import importlib
from dataclasses import dataclass, field

_FAMILIES = {}  # name -> Family


@dataclass(frozen=True)
class Family:
    """The classes of one architecture family.

    model_types: values of "model_type" in a reference config.json that are this family
    tasks: generic task name -> class   architectures: generic name -> the reference's class name
    """

    name: str
    model_types: tuple[str, ...]
    backbone: type
    tokenizer: type | None = None
    tasks: dict[str, type] = field(default_factory=dict)
    architectures: dict[str, str] = field(default_factory=dict)

    def classes(self):
        """Return all classes of the family."""
        return [self.backbone, *filter(None, [self.tokenizer]), *self.tasks.values()]

    def heads(self):
        """Return the classes that add a head to the backbone."""
        return [cls for cls in self.tasks.values() if cls is not self.backbone]


def register(family):
    """Make a family known, replacing one of the same name, and return it."""
    _FAMILIES[family.name] = family
    return family


def families():
    """Return name -> Family; imports the model folders at the first call."""
    for folder in ("khub.nlp", "khub.cv", "khub.applications"):
        importlib.import_module(folder)
    return _FAMILIES


def of_model_type(model_type, where):
    """Return the family of a `model_type`; `where` (a file) is for the error."""
    for family in families().values():
        if model_type in family.model_types:
            return family
    known = sorted(t for family in families().values() for t in family.model_types)
    raise ValueError(
        f"{where} has model_type {model_type!r}, which no family of this version reads; "
        f"expected one of {', '.join(known)}."
    )


def of_class(cls):
    """Return the family that `cls` (or a base of it) belongs to, None for a generic class."""
    for family in families().values():
        if issubclass(cls, tuple(family.classes())):
            return family
    return None
