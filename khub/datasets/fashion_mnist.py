"""Pictures of clothes in 10 classes, in the form of MNIST.  Xiao et al. 2017, arXiv:1708.07747."""

import gzip

import numpy as np

from khub.datasets.files import SERVER
from khub.utils.files import get_file

_FILES = {  # md5, published beside the files
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


def _array(name, digest):
    path = get_file(name, SERVER + name, file_hash=digest, cache_subdir="datasets/fashion-mnist")
    with gzip.open(path) as file:
        content = file.read()
    rank = content[3]  # of the IDX format: 0, 0, 8 (uint8), rank, sizes as big-endian uint32
    shape = np.frombuffer(content, ">u4", rank, 4)
    return np.frombuffer(content, "uint8", offset=4 + 4 * rank).reshape(shape)


def load_data():
    """Return ((x, y), (x, y)) for training and testing.  x: uint8 (n, 28, 28), y: uint8 (n,)"""
    x, y, x_test, y_test = (_array(*item) for item in _FILES.items())
    return (x, y), (x_test, y_test)
