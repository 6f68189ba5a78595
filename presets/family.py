"""Families: which classes open which `model_type`."""

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

_FAMILIES = {}  # name -> Family
# what a config.json may say what model it is by -> the field of `Family` that has the values
KEYS = {"_class_name": "model_types", "model_type": "model_types", "architecture": "variants"}


@dataclass(frozen=True)
class Family:
    """The classes of one architecture family.

    model_types: values of "model_type" in a reference config.json that are this family, or of
    "_class_name", where diffusers says what it is
    tasks: generic task name -> class   architectures: generic name -> the reference's class name,
    or several   variants: names of timm's that are this family   published: (config.json, whether
    with the head) -> the file of weights that are published without a config.json
    """

    name: str
    model_types: tuple[str, ...]
    backbone: type
    tokenizer: type | None = None
    tasks: dict[str, type] = field(default_factory=dict)
    architectures: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    published: Callable | None = None

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
        module = importlib.import_module(folder)
        getattr(module, "register_families", int)()
    return _FAMILIES


def key_of(config):
    """Return which of `KEYS` says what model a config.json is of, None when there is none."""
    return next((key for key in KEYS if isinstance(config.get(key), str)), None)


def of_config(config, where):
    """Return the family that a config.json is of, by one of `KEYS`.

    where: the file, for the error   Raises ValueError when no family reads it.
    """
    key = key_of(config)
    if key is None:
        raise ValueError(
            f"{where} has neither model_type nor timm's architecture nor diffusers' _class_name, "
            "which say what model it is."
        )
    name = config[key].partition(".")[0] if key == "architecture" else config[key]
    known = {n: family for family in families().values() for n in getattr(family, KEYS[key])}
    if name in known:
        return known[name]
    # of architectures there are hundreds
    many = key == "architecture"
    names = difflib.get_close_matches(name, known, 8, 0.3) if many else sorted(known)
    raise ValueError(
        f"{where} has {key} {name!r}, which no family of this version reads; expected one of "
        f"{', '.join(names)}."
    )


def of_class(cls):
    """Return the family that `cls` (or a base of it) belongs to, None for a generic class."""
    for known in ((cls,), cls.__mro__):  # a class that is a family's own is not its base's
        for family in families().values():
            if any(c in known for c in family.classes()):
                return family
    return None
