"""Serialization in the form of Keras 2."""

from khub.saving import registry


def serialize_keras_object(instance):
    """Return {"class_name", "config"} of an object, the name of a function."""
    if not hasattr(instance, "get_config"):
        return instance if instance is None else instance.__name__
    name = registry.get_registered_name(type(instance))
    return {"class_name": name, "config": instance.get_config()}


def deserialize_keras_object(
    identifier, module_objects=None, custom_objects=None, printable_module_name="object"
):
    """Return the object that such a dict, or a name, stands for.

    Only classes in `module_objects`, `custom_objects` or registered ones are made.
    """
    if identifier is None:
        return None
    plain = isinstance(identifier, str)
    name = identifier if plain else identifier["class_name"]
    found = registry.get_registered_object(name, custom_objects, module_objects)
    if found is None:
        raise ValueError(
            f"Unknown {printable_module_name}: {name!r}; register it, or give it in custom_objects."
        )
    return found if plain else found.from_config(identifier["config"])
