"""Small helpers around models and data."""

import random as _random

import numpy as np

from khub import random
from khub.training.data import PyDataset, pack_x_y_sample_weight, unpack_x_y_sample_weight


def set_random_seed(seed):
    """Seed Python's, NumPy's and khub's random numbers."""
    random.set_global_seed(seed)
    _random.seed(seed)
    np.random.seed(seed % 2**32)


__all__ = ["PyDataset", "pack_x_y_sample_weight", "set_random_seed", "unpack_x_y_sample_weight"]
