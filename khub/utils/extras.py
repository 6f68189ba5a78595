"""Packages that few need."""

from importlib import import_module


def optional(name, extra):
    """Return a module of a package that may not be installed.

    Raises ImportError that says which extra of khub brings it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        message = f"This needs {name.partition('.')[0]}: pip install 'khub[{extra}]'."
        raise ImportError(message) from error
