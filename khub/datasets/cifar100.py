"""Photographs of 32 x 32 in 100 classes, or 20 coarse ones.  Krizhevsky 2009."""

from khub.choices import choose
from khub.datasets.cifar10 import read


def load_data(label_mode="fine"):
    """Return ((x, y), (x, y)) as `cifar10.load_data()`; label_mode: "fine" or "coarse"."""
    column = ("coarse", "fine").index(choose("label_mode", label_mode, ("coarse", "fine")))
    files = ["train.bin", "test.bin"]
    return read("cifar-100", "03b5dce01913d631647c71ecec9e9cb8", files, 2, column)
