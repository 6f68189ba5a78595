"""Plain data and back: which classes may be built from a configuration."""

from khub.saving.registry import (
    CustomObjectScope,
    get_custom_objects,
    get_registered_name,
    get_registered_object,
    register_keras_serializable,
)
from khub.saving.registry import CustomObjectScope as custom_object_scope
from khub.saving.registry import deserialize as deserialize_keras_object
from khub.saving.registry import serialize as serialize_keras_object
