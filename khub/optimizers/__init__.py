"""Optimizers and learning-rate schedules."""

# ruff: noqa: F401  (what is imported is the public namespace)
from khub.optimizers import legacy, schedules
from khub.optimizers.loss_scale import LossScaleOptimizer
from khub.optimizers.multi import MultiOptimizer, OptimizerMap
from khub.optimizers.optimizer import Optimizer
from khub.optimizers.rules import *  # noqa: F403
from khub.saving import registry


def get(identifier):
    """Return an optimizer for a name ("adam"), a serialized optimizer, a class or an optimizer.

    None gives None. A dict of path patterns and optimizers gives a MultiOptimizer; a pattern may
    be found anywhere in a path.
    """
    if isinstance(identifier, dict) and "class_name" not in identifier:
        parts = {f".*(?:{pattern}).*": get(part) for pattern, part in identifier.items()}
        return MultiOptimizer(OptimizerMap(None, parts))
    if isinstance(identifier, str):
        identifier = identifier.lower()
    found = registry.get("optimizers", identifier)
    if found is not None and not isinstance(found, Optimizer):
        raise ValueError(f"Expected an optimizer or its name, got {identifier!r}.")
    return found


def serialize(optimizer):
    """Return an optimizer in serialized form."""
    return registry.serialize(optimizer)


def deserialize(config, custom_objects=None):
    """Build an optimizer from its serialized form."""
    return registry.deserialize(config, custom_objects, "optimizers")
