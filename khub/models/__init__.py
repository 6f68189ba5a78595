"""Models."""

from khub.models.functional import Functional
from khub.models.model import Model, model_from_json
from khub.models.sequential import Sequential

__all__ = ["Functional", "Model", "Sequential", "model_from_json"]
