"""khub: a multi-backend deep-learning runtime with Keras 3's API and a hub of pretrained models."""

import gc
import importlib
from contextlib import contextmanager


@contextmanager
def _no_collections():
    """Going through all that a framework has made, for garbage there cannot be yet: 0.2 s."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


with _no_collections():
    from khub import (  # noqa: I001  (in the order they need one another)
        activations,
        backend,
        config,
        constraints,
        dtype_policies,
        initializers,
        layers,
        losses,
        metrics,
        mixed_precision,
        models,
        ops,
        optimizers,
        quantizers,
        random,
        regularizers,
        tree,
        utils,
    )
    from khub.backend import device
    from khub.backend.stateless import StatelessScope, SymbolicScope
    from khub.backend.variable import Variable, name_scope
    from khub.dtype_policies import DTypePolicy, FloatDTypePolicy
    from khub.initializers import Initializer
    from khub.layers import Input, InputSpec, Layer
    from khub.layers.remat import RematScope
    from khub.losses import Loss
    from khub.metrics import Metric
    from khub.models import Functional, Model, Sequential
    from khub.models.function import Function
    from khub.operation import Operation
    from khub.ops import (
        checkpoint,
        cond,
        grad,
        jit,
        scan,
        value_and_grad,
        vmap,
        while_loop,
    )
    from khub.ops import checkpoint as remat
    from khub.ops.symbolic import KerasTensor
    from khub.optimizers import Optimizer
    from khub.quantizers import Quantizer
    from khub.random import SeedGenerator
    from khub.regularizers import Regularizer
    from khub.training import callbacks

__version__ = "0.1.0"

_LAZY = (
    "applications",
    "cv",
    "datasets",
    "distillation",
    "distribution",
    "export",
    "nlp",
    "preprocessing",
    "presets",
    "saving",
    "visualization",
    "wrappers",
)


def __getattr__(name):
    if name in _LAZY:
        return importlib.import_module(f"khub.{name}")
    raise AttributeError(f"module 'khub' has no attribute {name!r}")


def version():
    """Return khub's version."""
    return __version__
