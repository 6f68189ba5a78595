"""Activation functions by name: x of any shape -> same, unless said otherwise."""

from khub import ops
from khub.ops import (
    celu,
    elu,
    glu,
    hard_shrink,
    hard_sigmoid,
    hard_silu,
    hard_tanh,
    leaky_relu,
    log_sigmoid,
    log_softmax,
    mish,
    relu6,
    selu,
    sigmoid,
    silu,
    soft_shrink,
    softmax,
    softplus,
    softsign,
    sparse_plus,
    sparse_sigmoid,
    sparsemax,
    squareplus,
    tanh,
    tanh_shrink,
    threshold,
)
from khub.saving import registry

swish, hard_swish = silu, hard_silu


def linear(x):
    """x"""
    return x


def exponential(x):
    """e**x"""
    return ops.exp(x)


def relu(x, negative_slope=0.0, max_value=None, threshold=0.0):
    """x above `threshold` (at most `max_value`), else negative_slope * (x - threshold)"""
    if not (negative_slope or threshold) and max_value is None:
        return ops.relu(x)
    x = ops.convert_to_tensor(x)
    y = ops.where(x > threshold, x, 0.0) if threshold else ops.relu(x)
    y = y if max_value is None else ops.clip(y, 0.0, max_value)
    if not negative_slope:
        return y
    return y + ops.multiply(ops.minimum(ops.subtract(x, threshold), 0), negative_slope)


def gelu(x, approximate=False):
    """x times the normal distribution's Phi(x), or its tanh approximation.  arXiv:1606.08415"""
    return ops.gelu(x, approximate)


_FUNCTIONS = (celu, elu, exponential, gelu, glu, hard_shrink, hard_sigmoid, hard_tanh, leaky_relu)
_FUNCTIONS += (linear, log_sigmoid, log_softmax, mish, relu, relu6, selu, sigmoid, soft_shrink)
_FUNCTIONS += (softmax, softplus, softsign, sparse_plus, sparse_sigmoid, sparsemax, squareplus)
_FUNCTIONS += (tanh, tanh_shrink, threshold)
for _function in _FUNCTIONS:
    registry.register("activations", _function)
registry.register("activations", silu, "swish")
registry.register("activations", hard_silu, "hard_swish")


def get(identifier):
    """Return the function that a name, config or function stands for; None is `linear`."""
    return linear if identifier is None else registry.get("activations", identifier)


def serialize(activation):
    """Return the activation's name, or its config."""
    return registry.serialize(activation)


def deserialize(config, custom_objects=None):
    """Return the activation that `serialize` described."""
    return registry.deserialize(config, custom_objects, "activations")
