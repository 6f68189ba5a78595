"""Running code that was written for Keras: its `import keras` and `tf.keras` get khub.

A finder on `sys.meta_path` gives the module khub.x.y itself for keras.x.y and tensorflow.keras.x.y;
the rest of TensorFlow is untouched, or a stand-in that holds `keras` alone where it is missing.
"""

import importlib
import os
import runpy
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import khub


class _Loader:
    """Puts a module that is there already in the place of the one being imported."""

    def __init__(self, module):
        self.module = module

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        sys.modules[module.__name__] = self.module


class _NoTensorFlow(ModuleType):
    """`tensorflow` where it is not installed: `keras` and nothing else."""

    __path__ = ()
    keras = khub

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(_missing_tensorflow(f"tensorflow.{name}"), name="tensorflow")


def _missing_tensorflow(name):
    return (
        f"{name}: TensorFlow is not installed; khub stands in for tensorflow.keras only. Install "
        "tensorflow, or use keras.ops."
    )


def _own_module(path):
    """Return khub's module of this path ("callbacks" is khub.training.callbacks), else None."""
    found = khub
    for part in path:
        found = getattr(found, part, None)
    if isinstance(found, ModuleType):
        return found
    name = ".".join(["khub", *path])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there, and lacks something itself
        return None


class _Finder:
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        if name == "tensorflow":
            return self._tensorflow(path, target)
        if parts[0] == "tensorflow":
            del parts[0]
            if parts[0] != "keras" and isinstance(sys.modules["tensorflow"], _NoTensorFlow):
                raise ModuleNotFoundError(_missing_tensorflow(name), name=name)
        if parts[0] != "keras":
            return None
        _check_backend()
        module = _own_module(parts[1:])
        if module is None:
            ours = ".".join(["khub", *parts[1:]])
            raise ModuleNotFoundError(f"No module named {name!r}: khub has no {ours}.", name=name)
        return ModuleSpec(name, _Loader(module))

    def _tensorflow(self, path, target):
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec("tensorflow", path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None:
            return ModuleSpec("tensorflow", _Loader(_NoTensorFlow("tensorflow")), is_package=True)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            module.keras = khub

        spec.loader.exec_module = exec_module
        return spec


def _check_backend():
    """A script that chooses its backend comes too late; the user's own choice stands."""
    asked, active = os.environ.get("KERAS_BACKEND"), khub.backend.name
    if asked not in (None, active) and "KHUB_BACKEND" not in os.environ:
        raise ImportError(
            f"The script sets KERAS_BACKEND to {asked!r}, and khub has started on {active!r}: "
            f"set KHUB_BACKEND={asked} (or {active}, to stay) before `khub run`."
        )


def install():
    """From here on `import keras` and `tensorflow.keras` mean khub, whatever is installed."""
    for name in list(sys.modules):
        if f"{name}.".startswith(("keras.", "tensorflow.keras.")):
            del sys.modules[name]
    if "tensorflow" in sys.modules:
        sys.modules["tensorflow"].keras = khub
    sys.meta_path.insert(0, _Finder())


def run(target, arguments=(), is_module=False):
    """Run a script, or a module by its name, as `python` would; return its exit status."""
    if not is_module and not os.path.exists(target):
        raise FileNotFoundError(f"khub run: there is no script {target!r}.")
    sys.argv = [target, *arguments]
    sys.path[0] = os.getcwd() if is_module else os.path.dirname(os.path.realpath(target))
    install()
    try:
        if is_module:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(target, run_name="__main__")
    except Exception as error:
        place = error.__traceback__  # from the script's own first line on
        while place is not None and place.tb_frame.f_globals["__name__"] != "__main__":
            place = place.tb_next
        sys.excepthook(type(error), error.with_traceback(place), place)
        return 1
    return 0
