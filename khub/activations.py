"""Activation functions by name: x of any shape -> same, unless said otherwise."""

from khub import ops
from khub.ops import (
    celu,
    elu,
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
    softmax,
    softplus,
    softsign,
    tanh,
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


def glu(x, axis=-1):
    """The first half of x along `axis` times the sigmoid of the second.  arXiv:1612.08083"""
    value, gate = ops.split(x, 2, axis)
    return value * ops.sigmoid(gate)


def soft_shrink(x, threshold=0.5):
    """x moved towards 0 by `threshold`, 0 where it is nearer than that"""
    x = ops.convert_to_tensor(x)
    return ops.relu(x - threshold) - ops.relu(-x - threshold)


def hard_shrink(x, threshold=0.5):
    """x, 0 where |x| <= threshold"""
    x = ops.convert_to_tensor(x)
    return ops.where(ops.absolute(x) > threshold, x, 0.0)


def tanh_shrink(x):
    """x - tanh(x)"""
    x = ops.convert_to_tensor(x)
    return x - ops.tanh(x)


def threshold(x, threshold, default_value):
    """x above `threshold`, else `default_value`"""
    x = ops.convert_to_tensor(x)
    return ops.where(x > threshold, x, float(default_value))


def squareplus(x, b=4):
    """(x + sqrt(x**2 + b)) / 2.  arXiv:2112.11687"""
    x = ops.convert_to_tensor(x)
    return (x + ops.sqrt(ops.square(x) + b)) / 2


def sparse_plus(x):
    """0 below -1, x above 1, (x + 1)**2 / 4 between"""
    x = ops.convert_to_tensor(x)
    return ops.where(x >= 1, x, ops.square(ops.clip(x, -1.0, 1.0) + 1.0) / 4)


def sparse_sigmoid(x):
    """clip((x + 1) / 2, 0, 1)"""
    return ops.clip((ops.convert_to_tensor(x) + 1.0) / 2, 0.0, 1.0)


def sparsemax(x, axis=-1):
    """The point of the probability simplex nearest to x along `axis`.  arXiv:1602.02068"""
    x = ops.moveaxis(ops.convert_to_tensor(x), axis, -1)
    largest = ops.flip(ops.sort(x, axis=-1), axis=-1)
    sums = ops.cumsum(largest, axis=-1)
    rank = ops.cast(ops.arange(1, x.shape[-1] + 1), ops.dtype(x))
    support = ops.cast(1.0 + rank * largest > sums, ops.dtype(x))
    count = ops.sum(support, axis=-1, keepdims=True)
    excess = (ops.sum(support * largest, axis=-1, keepdims=True) - 1.0) / count
    return ops.moveaxis(ops.relu(x - excess), -1, axis)


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
