"""Small helpers around models and data."""

import random as _random
from importlib import import_module

import numpy as np

from khub import config, random
from khub.dtypes import standardize as standardize_dtype
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
from khub.training.data import PyDataset as Sequence
from khub.utils import bounding_boxes
from khub.utils.arrays import normalize, pad_sequences, to_categorical
from khub.utils.session import clear_session, get_source_inputs, is_keras_tensor

enable_interactive_logging = config.enable_interactive_logging
disable_interactive_logging = config.disable_interactive_logging
is_interactive_logging_enabled = config.is_interactive_logging_enabled
_LATE = {  # module -> its names, imported when they are asked for: some need the layers
    "datasets": "image_dataset_from_directory text_dataset_from_directory split_dataset "
    "audio_dataset_from_directory timeseries_dataset_from_array",
    "feature_space": "FeatureSpace",
    "files": "get_file",
    "images": "array_to_img img_to_array load_img save_img smart_resize",
    "legacy": "",
    "plot": "model_to_dot plot_model",
    "progress": "Config Progbar",
}


def __getattr__(name):
    for module, names in _LATE.items():
        if name == module or name in names.split():
            found = import_module(f"khub.utils.{module}")
            return found if name == module else getattr(found, name)
    raise AttributeError(f"module 'khub.utils' has no attribute {name!r}")


def __dir__():
    return [*globals(), *" ".join(_LATE.values()).split()]


def set_random_seed(seed):
    """Seed Python's, NumPy's and khub's random numbers."""
    random.set_global_seed(seed)
    _random.seed(seed)
    np.random.seed(seed % 2**32)
