"""Photographs of 32 x 32 in 10 classes, 50,000 and 10,000.  Krizhevsky 2009.

Read from the archive's binary form: the usual one holds pickles.
"""

from pathlib import Path

import numpy as np

from khub import config
from khub.utils.files import get_file


def read(name, digest, files, labels, column):
    """Return ((x, y), (x, y)) of an archive: in each row `labels` bytes, then an image."""
    folder = get_file(name, f"https://www.cs.toronto.edu/~kriz/{name}-binary.tar.gz", True, digest)

    def part(names):
        paths = [next(Path(folder).rglob(name)) for name in names]
        rows = np.concatenate([np.fromfile(path, "uint8") for path in paths])
        rows = rows.reshape(-1, labels + 3072)
        x = rows[:, labels:].reshape(-1, 3, 32, 32)
        first = config.image_data_format() == "channels_first"
        return x if first else x.transpose(0, 2, 3, 1), rows[:, column : column + 1]

    return part(files[:-1]), part(files[-1:])


def load_data():
    """Return ((x, y), (x, y)) for training and testing.

    x: uint8 (n, 32, 32, 3), or with the channels first as `config.image_data_format()` says;
    y: uint8 (n, 1)
    """
    files = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    return read("cifar-10", "c32a1d4ab5d03f1284b67883e8d87530", files, 1, 0)
