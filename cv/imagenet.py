"""ImageNet's 1,000 classes."""

from functools import cache
from pathlib import Path


@cache
def classes():
    """Return (WordNet id, name) of each of the 1,000 classes."""
    rows = Path(__file__).with_name("imagenet_classes.tsv").read_text("utf-8").splitlines()
    return tuple(tuple(row.split("\t")) for row in rows)


def class_names():
    """Return the names of the 1,000 classes, for people."""
    return tuple(name.replace("_", " ") for _, name in classes())
