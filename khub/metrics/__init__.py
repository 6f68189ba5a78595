"""Metrics: values that add up over the batches of an epoch."""

# ruff: noqa: F403, F405  (what the modules call public is the namespace)
from khub.metrics.confusion import *
from khub.metrics.functions import *
from khub.metrics.metric import Mean, MeanMetricWrapper, Metric, Sum
from khub.saving import registry

for _loss in registry.registered("losses").values():
    if not isinstance(_loss, type):
        globals().setdefault(_loss.__name__, _loss)  # a loss of each sample is a metric too
for _short, _class in (
    ("bce", BinaryCrossentropy),
    ("mse", MeanSquaredError),
    ("mae", MeanAbsoluteError),
    ("mape", MeanAbsolutePercentageError),
    ("msle", MeanSquaredLogarithmicError),
):
    registry.register("metrics", _class, _short, _short.upper())


def get(identifier):
    """Return the metric that a name, config, class, object or function stands for."""
    return registry.get("metrics", identifier)


def serialize(metric):
    """Return the metric as plain data."""
    return registry.serialize(metric)


def deserialize(config, custom_objects=None):
    """Return the metric that `serialize` described."""
    return registry.deserialize(config, custom_objects, "metrics")
