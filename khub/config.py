"""Settings of the process: float type, epsilon, image layout, the user's `~/.khub/khub.json`."""

import json
import os
from pathlib import Path

_SETTINGS = {"floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last"}
_CHOICES = {
    "floatx": ("bfloat16", "float16", "float32", "float64"),
    "image_data_format": ("channels_last", "channels_first"),
}


def home():
    """Return the folder of khub's own settings and data sets (`KHUB_HOME`, else `~/.khub`)."""
    return Path(os.environ.get("KHUB_HOME", Path.home() / ".khub"))


def user_settings():
    """Return the content of `khub.json` in `home()`, an empty dict when there is none.

    Raises ValueError when the file is not a JSON object.
    """
    path = home() / "khub.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); mend it or delete it.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(settings).__name__}.")
    return settings


def _set(name, value):
    if value not in _CHOICES[name]:
        raise ValueError(f"{name} must be one of {', '.join(_CHOICES[name])}; got {value!r}.")
    _SETTINGS[name] = value


def floatx():
    """Return the default float dtype as a string."""
    return _SETTINGS["floatx"]


def set_floatx(value):
    """Set the default float dtype: "bfloat16", "float16", "float32" or "float64"."""
    _set("floatx", value)


def epsilon():
    """Return the small number that keeps divisions and logarithms finite."""
    return _SETTINGS["epsilon"]


def set_epsilon(value):
    """Set the number that `epsilon()` returns."""
    _SETTINGS["epsilon"] = float(value)


def image_data_format():
    """Return "channels_last" or "channels_first"."""
    return _SETTINGS["image_data_format"]


def set_image_data_format(data_format):
    """Set the default layout of images."""
    _set("image_data_format", data_format)


def backend():
    """Return the name of the running backend: "jax", "torch", "tensorflow" or "numpy"."""
    from khub.backend import name

    return name


def dtype_policy():
    """Return the policy of layers that are given none."""
    from khub import dtype_policies

    return dtype_policies.dtype_policy()


def set_dtype_policy(policy):
    """Set the policy of layers that are given none: a name or a `DTypePolicy`."""
    from khub import dtype_policies

    dtype_policies.set_dtype_policy(policy)


def _apply_user_settings():
    settings = user_settings()
    for name in _CHOICES:
        if name in settings:
            _set(name, settings[name])
    if "epsilon" in settings:
        set_epsilon(settings["epsilon"])


_apply_user_settings()
