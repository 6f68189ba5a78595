"""Handwritten digits: 60,000 and 10,000 images of 28 x 28.  LeCun et al. 1998."""

from khub.datasets.files import arrays

_DIGEST = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"


def load_data(path="mnist.npz"):
    """Return ((x, y), (x, y)) for training and testing.  x: uint8 (n, 28, 28), y: uint8 (n,)"""
    found = arrays(path, "mnist.npz", _DIGEST)
    return (found["x_train"], found["y_train"]), (found["x_test"], found["y_test"])
