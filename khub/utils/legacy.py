"""Serialization in the form of Keras 2, which khub neither writes nor reads."""


def serialize_keras_object(instance):
    """Raise NotImplementedError: `khub.saving.serialize_keras_object` writes today's form."""
    raise NotImplementedError("Use khub.saving.serialize_keras_object.")


def deserialize_keras_object(
    identifier, module_objects=None, custom_objects=None, printable_module_name="object"
):
    """Raise NotImplementedError: `khub.saving.deserialize_keras_object` reads today's form."""
    raise NotImplementedError("Use khub.saving.deserialize_keras_object.")
