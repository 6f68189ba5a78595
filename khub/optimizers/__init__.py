"""Optimizers and learning-rate schedules."""

from khub.optimizers import schedules
from khub.optimizers.loss_scale import LossScaleOptimizer
from khub.optimizers.optimizer import Optimizer
from khub.optimizers.rules import SGD, Adagrad, Adam, AdamW, Lion, RMSprop
from khub.saving import registry


def get(identifier):
    """Return an optimizer for a name ("adam"), a serialized optimizer, a class or an optimizer."""
    if isinstance(identifier, str):
        identifier = identifier.lower()
    return registry.get("optimizers", identifier)


def serialize(optimizer):
    """Return an optimizer in serialized form."""
    return registry.serialize(optimizer)


def deserialize(config, custom_objects=None):
    """Build an optimizer from its serialized form."""
    return registry.deserialize(config, custom_objects, "optimizers")


__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Lion",
    "LossScaleOptimizer",
    "Optimizer",
    "RMSprop",
    "deserialize",
    "get",
    "schedules",
    "serialize",
]
