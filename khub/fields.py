"""Classes made of typed fields, from which constructor, `get_config`, `from_config`, `repr` follow.

    class Dense(Layer):
        units: PositiveInt
        activation: Activation = None

`Initializers`, `Penalties` and `Weights` declare several fields in a line, those of named weights:

        options: Weights(kernel="glorot_uniform", bias="zeros")

`FieldsOf` declares fields as another class has them.

Own fields come first, inherited ones after them, those without a default before the others;
annotating an inherited field again moves it. A class with a hand-written `__init__` keeps it, and
its arguments are recorded for `get_config`.
"""

import inspect
from functools import cache, partial, wraps
from typing import Annotated, ClassVar, dataclass_transform, get_args, get_origin

from khub import config
from khub.choices import choose
from khub.saving import registry


def _positive(name, value):
    whole = hasattr(value, "__index__") or isinstance(value, float) and value.is_integer()
    if isinstance(value, bool) or not whole or value <= 0:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    return int(value)


def _rate(name, value):
    if not hasattr(value, "__float__") or not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value!r}.")
    return value


def _positive_number(name, value):
    if not hasattr(value, "__float__") or not value > 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}.")
    return value


def _not_negative(name, value):
    if value is not None and not (hasattr(value, "__float__") and value >= 0):
        raise ValueError(f"{name} must be a number from 0, got {value!r}.")
    return value


def _integers(name, value):
    return (value,) if isinstance(value, int) else value if value is None else tuple(value)


def _named(kind, name, value):
    try:
        return registry.get(kind, value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _activation(name, value):
    return _named("activations", name, "linear" if value is None else value)


def _data_format(name, value):
    return choose(name, value or config.image_data_format(), DATA_FORMATS)


def Choice(*names):  # noqa: N802  (it stands where a type does)
    """The type of a field that is one of these names, in upper or lower case."""
    return Annotated[str, lambda field, value: choose(field, value, names)]


DATA_FORMATS = ("channels_last", "channels_first")
PositiveInt = Annotated[int, _positive]
Integers = Annotated[tuple, _integers]  # or one of them, or None
DataFormat = Annotated[str, _data_format]
Rate = Annotated[float, _rate]
Positive = Annotated[float, _positive_number]
NotNegative = Annotated[float, _not_negative]
Activation = Annotated[object, _activation]
Initializer = Annotated[object, partial(_named, "initializers")]
Regularizer = Annotated[object, partial(_named, "regularizers")]
Constraint = Annotated[object, partial(_named, "constraints")]

_NO_DEFAULT = inspect.Parameter.empty


def Initializers(**defaults):  # noqa: N802  (the three stand where a type does)
    """The fields `{name}_initializer` of these weights."""
    convert = partial(_named, "initializers")
    return [(f"{name}_initializer", convert, default) for name, default in defaults.items()]


def Penalties(*names, activity=False):  # noqa: N802
    """The fields `{name}_regularizer` of these weights, then their `{name}_constraint`.

    activity: whether there is an `activity_regularizer` too
    """
    regularized = (*names, "activity") if activity else names
    convert, restrict = partial(_named, "regularizers"), partial(_named, "constraints")
    regularizers = [(f"{name}_regularizer", convert, None) for name in regularized]
    return regularizers + [(f"{name}_constraint", restrict, None) for name in names]


def Weights(activity=False, **initializers):  # noqa: N802
    """The `Initializers` and `Penalties` of these weights."""
    return Initializers(**initializers) + Penalties(*initializers, activity=activity)


def FieldsOf(owner, *names):  # noqa: N802
    """The fields of these names as the class `owner` declares them, in this order."""
    declared = {field[0]: field for field in owner._fields}
    return [declared[name] for name in names]


def _own_fields(cls):
    for name, annotation in inspect.get_annotations(cls).items():
        if isinstance(annotation, list):  # several fields
            yield from annotation
            continue
        if name.startswith("_") or annotation is ClassVar or get_origin(annotation) is ClassVar:
            continue
        arguments = get_args(annotation) if get_origin(annotation) is Annotated else ()
        convert = arguments[1] if len(arguments) > 1 and callable(arguments[1]) else None
        yield name, convert, cls.__dict__.get(name, _NO_DEFAULT)


@cache
def _parameters(function):
    return inspect.signature(function).parameters.values()


def _make_init(cls, fields):
    base = next(
        c for c in cls.__mro__ if "__init__" in c.__dict__ and not hasattr(c.__init__, "made")
    )
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
        for name, _, default in fields
    ]
    extra = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
    accepts_more = any(
        p.kind is extra.kind or p.name not in ("self", *(f[0] for f in fields))
        for p in _parameters(base.__init__)
        if p.name != "args"
    )
    more = [extra] if accepts_more and base is not object else []
    own = inspect.Signature([*parameters, *more])

    def __init__(self, *args, **kwargs):
        try:
            values = own.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}.") from None
        values.apply_defaults()
        values = values.arguments
        base.__init__(self, **values.pop("kwargs", {}))
        try:
            for name, convert, _ in fields:
                value = values[name]
                setattr(self, name, value if convert is None else convert(name, value))
            self.setup()
        except ValueError as error:
            raise _located(self, error) from error.__cause__

    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    __init__.__signature__ = own.replace(parameters=[self_parameter, *parameters, *more])
    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    __init__.made = True
    return __init__


def _located(item, error):
    """The error with the class, and the layer's name, in front."""
    kind = type(item).__name__
    where = f"{kind} {item.name!r}" if isinstance(getattr(item, "name", None), str) else kind
    text = str(error).removeprefix(f"{kind}: ")
    return type(error)(text if text.startswith(where) else f"{where}: {text}")


def _recording(init):
    """Wrap a hand-written `__init__` so that its arguments can be given back by `get_config`."""
    signature = inspect.signature(init)

    @wraps(init)
    def __init__(self, *args, **kwargs):
        if "_arguments" not in self.__dict__:
            try:
                bound = signature.bind(self, *args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{type(self).__name__}: {error}.") from None
            bound.apply_defaults()
            arguments = dict(list(bound.arguments.items())[1:])
            for parameter in signature.parameters.values():
                if parameter.kind is parameter.VAR_KEYWORD:
                    arguments.update(arguments.pop(parameter.name, {}))
                elif parameter.kind is parameter.VAR_POSITIONAL:
                    arguments.pop(parameter.name, None)
            object.__setattr__(self, "_arguments", arguments)
        init(self, *args, **kwargs)

    return __init__


@dataclass_transform(eq_default=False)
class Configurable:
    """Base of everything that is described by its fields."""

    _kind: ClassVar = None  # the public module whose name table the class joins
    _fields: ClassVar = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        own = list(_own_fields(cls))
        names = {name for name, _, _ in own}
        cls._fields = (*own, *(f for f in cls._fields if f[0] not in names))
        # a changed default of an inherited field counts even when the annotation is not repeated
        fields = ((n, c, cls.__dict__.get(n, d)) for n, c, d in cls._fields)
        cls._fields = tuple(sorted(fields, key=lambda field: field[2] is not _NO_DEFAULT))
        if "__init__" in cls.__dict__:
            if "__init_recorded__" not in cls.__dict__.get("__init__").__dict__:
                cls.__init__ = _recording(cls.__dict__["__init__"])
        elif own or any(hasattr(c.__dict__.get("__init__"), "made") for c in cls.__mro__[1:2]):
            cls.__init__ = _make_init(cls, cls._fields)
        if cls._kind and not cls.__name__.startswith("_") and cls.__module__.startswith("khub."):
            registry.register(cls._kind, cls)

    def setup(self):
        """Runs after the constructor made of fields; override it to derive and check values."""

    def get_config(self):
        """Return the constructor's arguments as plain data."""
        return {n: registry.serialize(value) for n, value in self._constructor_values().items()}

    def _constructor_values(self):
        if hasattr(type(self).__init__, "made"):
            return {name: getattr(self, name) for name, _, _ in self._fields}
        return self.__dict__.get("_arguments", {})

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Build an instance from `get_config()`'s result."""
        with registry.CustomObjectScope(custom_objects):
            return cls(**config)

    def __repr__(self):
        given = ", ".join(
            f"{name}={getattr(self, name, None)!r}"
            for name, _, default in self._fields
            if getattr(self, name, None) is not default
        )
        return f"{type(self).__name__}({given})"
