"""The running backend, chosen once: KHUB_BACKEND, KERAS_BACKEND, khub.json, then what is installed.

`name` is "jax", "torch", "tensorflow" or "numpy"; `active` is its module of plain functions on
native tensors. `contract.py` says which functions it must have. Keras' names are here, too.
"""

import os
import sys
from importlib import import_module
from importlib.util import find_spec

from khub import config
from khub.backend.scope import local
from khub.dtypes import is_float_dtype, is_int_dtype, result_type
from khub.dtypes import standardize as standardize_dtype

backend, epsilon, set_epsilon = config.backend, config.epsilon, config.set_epsilon
floatx, set_floatx = config.floatx, config.set_floatx
image_data_format = config.image_data_format
set_image_data_format = config.set_image_data_format

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


class device:
    """Makes arrays and Variables on a device inside a `with` block: "cpu", "gpu:0", ...

    Raises ValueError for what is no name, an error of the framework for a device it has not.
    """

    def __init__(self, device_name):
        if not isinstance(device_name, str):
            raise ValueError(f"device: expected a name like 'gpu:0' or 'cpu', got {device_name!r}.")
        self.name = device_name.lower().removeprefix("/")
        self._native = active.on_device(self.name)

    def __enter__(self):
        self._native.__enter__()
        self._before, local.device = local.device, self.name
        return self

    def __exit__(self, *error):
        self._native.__exit__(*error)
        local.device = self._before


def __getattr__(key):
    if key in ("clear_session", "get_uid", "is_keras_tensor"):  # they stand above the backend
        return getattr(import_module("khub.utils.session"), key)
    raise AttributeError(f"module 'khub.backend' has no attribute {key!r}")
