"""Models."""

from khub.models.cloning import clone_model
from khub.models.functional import Functional
from khub.models.model import Model, model_from_json
from khub.models.sequential import Sequential

__all__ = ["Functional", "Model", "Sequential", "clone_model", "model_from_json"]


def __getattr__(name):
    if name in ("load_model", "save_model"):  # reading files needs the models
        from khub.saving import archive

        return getattr(archive, name)
    raise AttributeError(f"module 'khub.models' has no attribute {name!r}")
