"""The handwritten digits that two recipes learn from: MNIST's test set, LeCun et al. 1998."""

import gzip

import numpy as np

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def read_digits(folder):
    """(images: uint8 (10000, 28, 28), labels: int (10000,)) of the folder's two files."""
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), "uint8", offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        return images, np.frombuffer(file.read(), "uint8", offset=8).astype(int)
