"""Plain data and back: which classes may be built from a configuration."""

from importlib import import_module

from khub.saving.registry import (
    CustomObjectScope,
    deserialize,
    get_custom_objects,
    get_registered_name,
    get_registered_object,
    register_keras_serializable,
)
from khub.saving.registry import CustomObjectScope as custom_object_scope
from khub.saving.registry import serialize as serialize_keras_object

_FROM = {  # looked up when they are used: reading files needs the layers, which need the registry
    "KerasFileEditor": "editor",
    "WeightsError": "files",
    "load_model": "archive",
    "save_model": "archive",
    "load_weights": "weights",
    "save_weights": "weights",
}


def deserialize_keras_object(config, custom_objects=None, safe_mode=True, **kwargs):
    """Build the object that a config describes; nothing in it is run, whatever `safe_mode` says."""
    return deserialize(config, custom_objects, **kwargs)


def __getattr__(name):
    if name in _FROM:
        return getattr(import_module(f"khub.saving.{_FROM[name]}"), name)
    raise AttributeError(f"module 'khub.saving' has no attribute {name!r}")
