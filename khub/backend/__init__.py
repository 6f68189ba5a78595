"""The running backend, chosen once: KHUB_BACKEND, KERAS_BACKEND, khub.json, then what is installed.

`name` is "jax", "torch", "tensorflow" or "numpy"; `active` is its module of plain functions on
native tensors. `contract.py` says which functions it must have. Keras' names are here, too.
"""

import os
import sys
from importlib import import_module
from importlib.util import find_spec

from khub import config
from khub.config import (
    backend,
    epsilon,
    floatx,
    image_data_format,
    set_epsilon,
    set_floatx,
    set_image_data_format,
)
from khub.dtypes import is_float as is_float_dtype
from khub.dtypes import is_integer as is_int_dtype
from khub.dtypes import result_type
from khub.dtypes import standardize as standardize_dtype

NAMES = ("jax", "torch", "tensorflow", "numpy")


def _installed(framework):
    try:
        return find_spec(framework) is not None
    except (ImportError, ValueError):  # blocked, or half removed
        return False


def _choose():
    for source in ("KHUB_BACKEND", "KERAS_BACKEND"):
        if os.environ.get(source):
            return os.environ[source], source
    if "backend" in config.user_settings():
        return config.user_settings()["backend"], str(config.home() / "khub.json")
    return next(
        filter(_installed, NAMES)
    ), "the first framework installed; KHUB_BACKEND chooses another"


name, _source = _choose()
if name not in NAMES:
    raise ValueError(
        f"{_source} asks for the backend {name!r}; expected one of {', '.join(NAMES)}."
    )
if not _installed(name):
    raise ImportError(
        f"{_source} asks for the backend {name!r}, which is not installed: "
        f"pip install 'khub[{name}]'."
    )
print(f"khub: {name} backend ({_source})", file=sys.stderr)
active = import_module(f"khub.backend.{name}")
