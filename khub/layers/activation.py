"""Activation functions as layers, where they have settings of their own."""

from khub import ops
from khub.fields import NotNegative, Weights
from khub.layers.layer import Layer


class ReLU(Layer):
    """max(x, 0), cut at `max_value`, with a slope below `threshold`"""

    max_value: NotNegative = None
    negative_slope: NotNegative = 0.0
    threshold: NotNegative = 0.0
    supports_masking = True

    def call(self, inputs):
        from khub.activations import relu

        return relu(inputs, self.negative_slope, self.max_value, self.threshold)


class LeakyReLU(Layer):
    """x where positive, else negative_slope * x"""

    negative_slope: NotNegative = 0.3
    supports_masking = True

    def call(self, inputs):
        return ops.leaky_relu(inputs, self.negative_slope)


class ELU(Layer):
    """x where positive, else alpha (e**x - 1)"""

    alpha: float = 1.0
    supports_masking = True

    def call(self, inputs):
        return ops.elu(inputs, self.alpha)


class PReLU(Layer):
    """x where positive, else alpha * x with a learned alpha.  arXiv:1502.01852

    shared_axes: axes over which alpha is one number
    """

    options: Weights(alpha="zeros")
    shared_axes: tuple = None
    supports_masking = True

    def build(self, input_shape):
        shared = self.shared_axes or ()
        shape = [1 if a in shared else n for a, n in enumerate(input_shape)][1:]
        self.alpha = self.add_weight(shape, name="alpha")

    def call(self, inputs):
        return ops.relu(inputs) - self.alpha.value * ops.relu(-inputs)


class Softmax(Layer):
    """Positive values that sum to one over `axis`; a mask (true: kept) hides elements."""

    axis: object = -1
    supports_masking = True

    def call(self, inputs, mask=None):
        if mask is not None:
            lowest = -3e4 if self.compute_dtype == "float16" else -1e30
            inputs = ops.where(mask, inputs, lowest)
        y = ops.softmax(inputs, axis=self.axis)
        if mask is None:
            return y
        return ops.where(ops.any(mask, self.axis, keepdims=True), y, ops.zeros_like(y))
