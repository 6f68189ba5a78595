"""Small helpers around models and data."""

import random as _random

import numpy as np

from khub import random
from khub.saving import (
    CustomObjectScope,
    custom_object_scope,
    deserialize_keras_object,
    get_custom_objects,
    get_registered_name,
    get_registered_object,
    register_keras_serializable,
    serialize_keras_object,
)
from khub.training.data import PyDataset, pack_x_y_sample_weight, unpack_x_y_sample_weight
from khub.utils import bounding_boxes
from khub.utils.arrays import pad_sequences, to_categorical


def __getattr__(name):
    if name == "FeatureSpace":  # it needs the layers, which need this module
        from khub.utils.feature_space import FeatureSpace

        return FeatureSpace
    raise AttributeError(f"module 'khub.utils' has no attribute {name!r}")


def set_random_seed(seed):
    """Seed Python's, NumPy's and khub's random numbers."""
    random.set_global_seed(seed)
    _random.seed(seed)
    np.random.seed(seed % 2**32)


__all__ = [
    "FeatureSpace",  # noqa: F822
    "PyDataset",
    "bounding_boxes",
    "pack_x_y_sample_weight",
    "set_random_seed",
    "unpack_x_y_sample_weight",
]
