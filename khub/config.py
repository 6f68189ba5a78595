"""Settings of the process: float type, epsilon, image layout, the user's `~/.khub/khub.json`."""

import json
import os
from pathlib import Path

_SETTINGS = {"floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last"}
_CHOICES = {
    "floatx": ("bfloat16", "float16", "float32", "float64"),
    "image_data_format": ("channels_last", "channels_first"),
}
_SWITCHES = {"interactive_logging": True, "flash_attention": True}


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


def _switch(name, what):
    """Return the functions that turn a setting on, off, and say whether it is on."""

    def enable():
        _SWITCHES[name] = True

    def disable():
        _SWITCHES[name] = False

    def is_enabled():
        return _SWITCHES[name]

    enable.__doc__, disable.__doc__ = f"Let {what}, as is the default.", f"Do not let {what}."
    is_enabled.__doc__ = f"Say whether to let {what}."
    return enable, disable, is_enabled


enable_interactive_logging, disable_interactive_logging, is_interactive_logging_enabled = _switch(
    "interactive_logging", "progress bars be redrawn in place"
)
enable_flash_attention, disable_flash_attention, is_flash_attention_enabled = _switch(
    "flash_attention", "`ops.dot_product_attention` use a flash kernel where it asks for none"
)


def _limit(name, value):
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} must be a positive integer or None, got {value!r}.")
    _SETTINGS[name] = value


def max_epochs():
    """Return the most epochs that `fit` runs, None without a limit."""
    return _SETTINGS.get("max_epochs")


def set_max_epochs(max_epochs):
    """Let `fit` run at most so many epochs, whatever it is asked for: to try a program out."""
    _limit("max_epochs", max_epochs)


def max_steps_per_epoch():
    """Return the most batches that `fit`, `evaluate` and `predict` go through, None for all."""
    return _SETTINGS.get("max_steps_per_epoch")


def set_max_steps_per_epoch(max_steps_per_epoch):
    """Let an epoch, `evaluate` and `predict` end after so many batches."""
    _limit("max_steps_per_epoch", max_steps_per_epoch)


def is_nnx_enabled():
    """Say whether Variables are Flax NNX's: they never are."""
    return False


def is_traceback_filtering_enabled():
    """Say whether errors hide khub's own calls: they never do."""
    return False


def enable_traceback_filtering():
    """Raise NotImplementedError: tracebacks are whole."""
    raise NotImplementedError("khub shows whole tracebacks; sys.excepthook may shorten them.")


def disable_traceback_filtering():
    """Leave tracebacks whole, as they always are."""


def enable_unsafe_deserialization():
    """Raise NotImplementedError: nothing that is loaded can run code."""
    raise NotImplementedError(
        "khub runs no code of a file; register your classes, register_keras_serializable()."
    )


def set_backend(backend):
    """Raise RuntimeError unless `backend` is the running one, which is chosen before the import."""
    from khub.backend import name

    if backend != name:
        raise RuntimeError(
            f"The backend is {name}; set KHUB_BACKEND={backend} before khub is imported."
        )


def _apply_user_settings():
    settings = user_settings()
    for name in _CHOICES:
        if name in settings:
            _set(name, settings[name])
    if "epsilon" in settings:
        set_epsilon(settings["epsilon"])


_apply_user_settings()
