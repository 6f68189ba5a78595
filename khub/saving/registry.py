"""Names of all that may be built from a file or a string: a list; nothing is imported by name.

A built-in class registers itself when it is defined (`khub.fields`); a user's class through
`register_keras_serializable`. Serialized objects have Keras' shape:
`{"module", "class_name", "config", "registered_name"}`.
"""

import re

import numpy as np

from khub import dtypes
from khub.choices import hint

_BUILT_IN = {}  # (kind, name) -> class or function; kind: the public module, "layers", ...
_STATES = ("build", "compile")
_CUSTOM = {}  # "package>Name" -> class or function


def snake_case(name):
    """Return `name` as Keras names layers: "Conv2D" -> "conv2d", "LSTMCell" -> "lstm_cell"."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def register(kind, item, *aliases):
    """Make a built-in class or function of a public module known under its name and aliases."""
    for name in (item.__name__, snake_case(item.__name__), item.__name__.lower(), *aliases):
        _BUILT_IN.setdefault((kind, name), item)
    return item


def registered(kind):
    """Return name -> item of all built-ins of a public module."""
    return {name: item for (k, name), item in _BUILT_IN.items() if k == kind}


def register_keras_serializable(package="Custom", name=None):
    """Return a decorator that allows a class or function in saved files as `package>name`."""

    def decorate(item):
        key = f"{package}>{name or item.__name__}"
        _CUSTOM[key] = item
        item._registered_name = key
        return item

    return decorate


def get_custom_objects():
    """Return the dict of the user's own objects: a change of it counts."""
    return _CUSTOM


class CustomObjectScope:
    """Inside a `with` block these objects (name -> class or function) may be loaded too."""

    def __init__(self, custom_objects):
        self.custom_objects = custom_objects or {}

    def __enter__(self):
        self._before = {n: _CUSTOM[n] for n in self.custom_objects if n in _CUSTOM}
        _CUSTOM.update(self.custom_objects)
        return self

    def __exit__(self, *_):
        for name in self.custom_objects:
            _CUSTOM.pop(name, None)
        _CUSTOM.update(self._before)


def get_registered_name(obj):
    """Return the name under which `obj` was registered, else its own name."""
    return vars(obj).get("_registered_name") or obj.__name__


def get_registered_object(name, custom_objects=None, module_objects=None):
    """Return the class or function of this name, None when there is none."""
    return ((module_objects or {}) | _CUSTOM | (custom_objects or {})).get(name)


def get(kind, identifier, custom_objects=None):
    """Return the object that a user's argument stands for.

    identifier: None, a name, a serialized object, a class, an instance or a function.
    Raises ValueError for an unknown name, with the nearest ones.
    """
    if identifier is None:
        return None
    if isinstance(identifier, dict):
        return deserialize(identifier, custom_objects, kind)
    if isinstance(identifier, str):
        found = (custom_objects or {}).get(identifier)
        found = found or _BUILT_IN.get((kind, identifier)) or _CUSTOM.get(identifier)
        found = found or _CUSTOM.get(f"Custom>{identifier}")
        if found is None:
            near = hint(identifier, registered(kind))
            raise ValueError(f"khub.{kind} has no {identifier!r}{near}")
        return found() if isinstance(found, type) else found
    if isinstance(identifier, type):
        return identifier()
    if callable(identifier) or hasattr(identifier, "get_config"):
        return identifier
    raise ValueError(f"khub.{kind}: expected a name, object or function, got {identifier!r}.")


def serialize(obj):
    """Return `obj` as plain data: a name for a built-in function, Keras' dict for an object."""
    if obj is None or isinstance(obj, (str, int, float, bool)):
        return obj
    if isinstance(obj, (list, tuple)):
        return [serialize(item) for item in obj]
    if isinstance(obj, dict):
        return {key: serialize(item) for key, item in obj.items()}
    if hasattr(obj, "get_config"):
        cls = type(obj)
        return {
            "module": _module(cls),
            "class_name": cls.__name__,
            "config": obj.get_config(),
            "registered_name": vars(cls).get("_registered_name"),
        }
    if callable(obj):
        own = obj.__module__.startswith("khub.") and not hasattr(obj, "_registered_name")
        known = own and ("activations", obj.__name__) in _BUILT_IN
        return obj.__name__ if known else function_config(obj)
    if getattr(obj, "shape", None) == () and hasattr(obj, "item"):  # a NumPy scalar
        return obj.item()
    if hasattr(obj, "__array__"):
        array = np.asarray(obj)
        content = {"value": array.tolist(), "dtype": array.dtype.name}
        return {"class_name": "__numpy__", "config": content}
    raise TypeError(f"{type(obj).__name__} cannot be serialized: it has no get_config().")


def serialize_built(obj):
    """Return an object as plain data, with how it was built and compiled."""
    parts = {f"{what}_config": getattr(obj, f"get_{what}_config", dict)() for what in _STATES}
    return serialize(obj) | {name: part for name, part in parts.items() if part}


def deserialize_built(config, kind):
    """Build the object that `serialize_built` described as it was built and compiled."""
    made = deserialize(config, kind=kind)
    if config.get("build_config") and not made.built:
        made.build_from_config(config["build_config"])
    if config.get("compile_config"):
        made.compile_from_config(config["compile_config"])
    return made


def function_config(function):
    """Return a function as Keras' files have it.  Raises ValueError for a lambda."""
    name = getattr(function, "_registered_name", function.__name__)
    if name == "<lambda>":
        raise ValueError("A lambda cannot be saved; use a registered function.")
    return dict(module="builtins", class_name="function", config=name, registered_name="function")


def _module(cls):
    kind = getattr(cls, "_kind", None)
    return getattr(cls, "_module", None) or (f"keras.{kind}" if kind else None)


def deserialize(config, custom_objects=None, kind=None):
    """Build the object that `serialize` described; only registered classes are instantiated.

    Raises ValueError for a class that is neither built in, registered nor in `custom_objects`.
    """
    if not isinstance(config, dict) or "class_name" not in config:
        return get(kind, config, custom_objects) if isinstance(config, str) and kind else config
    name = config["class_name"]
    if name in _VALUES:
        return _VALUES[name](config.get("config"))
    if name == "function":
        return _function(config["config"], custom_objects, kind)
    module = (config.get("module") or "").removeprefix("keras.")
    cls = (custom_objects or {}).get(name) or _CUSTOM.get(config.get("registered_name") or name)
    for place in (module, *module.split("."), kind, "models"):  # "keras.src.models.functional"
        cls = cls or _BUILT_IN.get((place, name))
    if cls is None:
        raise ValueError(
            f"{module or kind}.{name} is not a class that may be loaded: decorate it with "
            "khub.saving.register_keras_serializable() or pass it in custom_objects."
        )
    if not isinstance(cls, type):
        return cls
    inner = config.get("config", {})
    if "layers" in inner and hasattr(cls, "_nests_configs"):
        made = cls.from_config(inner, custom_objects)
    else:
        inner = {k: revive(v, custom_objects) for k, v in inner.items()}
        if reads := [k for k in _PATHS if isinstance(inner.get(k), str)]:
            raise ValueError(f"{name}: a config may name no file to read, as {reads[0]} does.")
        made = cls.from_config(inner) if hasattr(cls, "from_config") else cls(**inner)
    return made


_PATHS = ("vocabulary", "filepath")  # arguments that may be the path of a file


def _refuse(_):
    raise ValueError("A lambda is code, which is not loaded from files; use a registered function.")


def _array(content):
    return np.asarray(content["value"], dtypes.numpy_dtype(dtypes.standardize(content["dtype"])))


_VALUES = {
    "__numpy__": _array,
    "__tensor__": _array,
    "__bytes__": lambda content: content["value"].encode(),
    "__lambda__": _refuse,
}


def _function(name, custom_objects, kind):
    known = {n: item for (_, n), item in _BUILT_IN.items() if not isinstance(item, type)}
    known |= registered(kind) | _CUSTOM | (custom_objects or {})
    if name not in known:
        raise ValueError(
            f"{name!r} is not a function that may be loaded: decorate it with "
            "khub.saving.register_keras_serializable() or pass it in custom_objects."
        )
    return known[name]


def revive(value, custom_objects=None):
    """Return plain data with the objects that are described in it."""
    if isinstance(value, dict):
        if "class_name" in value and "config" in value:
            if "module" not in value and value["class_name"] not in _VALUES:
                return value  # Keras 2: who takes it knows what kind it is
            return deserialize(value, custom_objects)
        return {k: revive(v, custom_objects) for k, v in value.items()}
    if isinstance(value, list):
        return [revive(v, custom_objects) for v in value]
    return value
