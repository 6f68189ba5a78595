"""Models."""

from khub.models.functional import Functional
from khub.models.model import Model
from khub.models.sequential import Sequential

__all__ = ["Functional", "Model", "Sequential"]
