"""Convolutions over 1, 2 or 3 space axes."""

from khub import fields, ops
from khub.backend import windows
from khub.fields import Constraint, Initializer, PositiveInt, Regularizer
from khub.layers.layer import InputSpec, Layer


class _Conv(Layer):
    """y = activation(conv(x, kernel) + bias)

    x: (batch, *space, n)  ->  y: (batch, *space', filters); channels_first: (batch, n, *space)
    padding: "valid", "same", or "causal" (1D: sees no later step).
    Weights: kernel (*kernel_size, n / groups, filters), bias (filters,)
    """

    _space = 2
    _keras_keys = {"activity_regularizer": None}

    filters: PositiveInt
    kernel_size: object
    strides: object = 1
    padding: str = "valid"
    data_format: fields.DataFormat = None
    dilation_rate: object = 1
    groups: PositiveInt = 1
    activation: fields.Activation = None
    use_bias: bool = True
    kernel_initializer: Initializer = "glorot_uniform"
    bias_initializer: Initializer = "zeros"
    kernel_regularizer: Regularizer = None
    bias_regularizer: Regularizer = None
    activity_regularizer: Regularizer = None
    kernel_constraint: Constraint = None
    bias_constraint: Constraint = None

    def setup(self):
        for name in ("kernel_size", "strides", "dilation_rate"):
            setattr(self, name, windows.per_axis(getattr(self, name), self._space, name))
        self._first = windows.channels_first(self.data_format)
        self.padding = self.padding.lower()
        if self.padding not in (
            ("valid", "same", "causal") if self._space == 1 else ("valid", "same")
        ):
            raise ValueError(f"{type(self).__name__}: unknown padding {self.padding!r}.")
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ValueError(
                f"{type(self).__name__}: strides {self.strides} and dilation_rate "
                f"{self.dilation_rate} "
                "cannot both be above 1."
            )
        if self.filters % self.groups:
            raise ValueError(f"{self.filters} filters do not divide into {self.groups} groups.")
        self.input_spec = InputSpec(ndim=self._space + 2)
        self._linear = self.activation.__name__ == "linear"

    def _channels(self, input_shape):
        channels = input_shape[1 if self._first else -1]
        if channels is None or channels % self.groups:
            raise ValueError(
                f"{type(self).__name__} {self.name!r}: {channels} input channels "
                f"(shape {tuple(input_shape)}) "
                f"do not divide into {self.groups} groups."
            )
        return channels

    def build(self, input_shape):
        channels = self._width = self._channels(input_shape)
        self.kernel = self.add_weight(
            (*self.kernel_size, channels // self.groups, self.filters), name="kernel"
        )
        self.bias = self.add_weight((self.filters,), name="bias") if self.use_bias else None
        self.input_spec = InputSpec(ndim=self._space + 2, axes={1 if self._first else -1: channels})

    def call(self, inputs):
        padding = self.padding
        if (
            inputs.shape[1 if self._first else -1] != self._width
        ):  # else it would pass for more groups
            raise ValueError(f"{self.name} was built for {self._width} channels.")
        if padding == "causal":
            reach = (self.kernel_size[0] - 1) * self.dilation_rate[0]
            border = [(0, 0), (0, 0), (reach, 0)] if self._first else [(0, 0), (reach, 0), (0, 0)]
            inputs, padding = ops.pad(inputs, border), "valid"
        y = ops.conv(
            inputs, self.kernel, self.strides, padding, self.data_format, self.dilation_rate
        )
        return self._finish(y)

    def _finish(self, y):
        if self.bias is not None:
            bias = self.bias
            y = y + (ops.reshape(bias, (1, -1, *[1] * self._space)) if self._first else bias.value)
        return y if self._linear else self.activation(y)


class Conv1D(_Conv):
    __doc__ = _Conv.__doc__
    _space = 1


class Conv2D(_Conv):
    __doc__ = _Conv.__doc__
    strides = (1, 1)
    dilation_rate = (1, 1)


class Conv3D(_Conv):
    __doc__ = _Conv.__doc__
    _space = 3
    strides = (1, 1, 1)
    dilation_rate = (1, 1, 1)


Convolution1D, Convolution2D, Convolution3D = Conv1D, Conv2D, Conv3D
__all__ = ["Conv1D", "Conv2D", "Conv3D", "Convolution1D", "Convolution2D", "Convolution3D"]
