"""Convolutions over 1, 2 or 3 space axes."""

import operator

from khub import fields, ops
from khub.backend import active, windows
from khub.fields import FieldsOf, PositiveInt, Weights
from khub.layers.layer import InputSpec, Layer

_added = getattr(active, "added_in_place", operator.add)


class _Convolution(Layer):
    """What all kinds share: windows, the bias, the activation."""

    _space = 2
    _keras_keys = {"activity_regularizer": None}
    _paddings = ("valid", "same")

    def setup(self):
        for name in ("kernel_size", "strides", "dilation_rate"):
            setattr(self, name, windows.per_axis(getattr(self, name), self._space, name, 1))
        self._first = windows.channels_first(self.data_format)
        self.padding = windows.checked(self.padding, self._space, self._paddings)
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ValueError(
                f"strides {self.strides} and dilation_rate {self.dilation_rate} cannot both be "
                "above 1."
            )
        self.input_spec = InputSpec(ndim=self._space + 2)
        self._linear = getattr(self.activation, "__name__", "") == "linear"

    def build(self, input_shape):
        axis = 1 if self._first else -1
        channels = self._width = input_shape[axis]
        if channels is None:
            raise ValueError(
                f"{type(self).__name__} {self.name!r} needs a known number of channels, got "
                f"{tuple(input_shape)}."
            )
        outputs = self._add_kernels(channels)
        self.bias = self.add_weight((outputs,), name="bias") if self.use_bias else None
        self.input_spec = InputSpec(ndim=self._space + 2, axes={axis: channels})

    @property
    def _settings(self):
        padding = self.padding
        if padding == "causal":  # zeros in front, as many as a window sees
            padding = [((self.kernel_size[0] - 1) * self.dilation_rate[0], 0)]
        return self.strides, padding, self.data_format, self.dilation_rate

    def call(self, inputs):
        if inputs.shape[1 if self._first else -1] != self._width:  # or it would pass for groups
            raise ValueError(f"{self.name} was built for {self._width} channels.")
        y = self._convolve(inputs)
        if self.bias is not None:
            bias = self.bias
            bias = ops.reshape(bias, (1, -1, *[1] * self._space)) if self._first else bias.value
            y = _added(y, bias)
        return y if self._linear else self.activation(y)


class _Conv(_Convolution):
    """y = activation(conv(x, kernel) + bias)

    x: (batch, *space, n)  ->  y: (batch, *space', filters); channels_first: (batch, n, *space)
    padding: "valid", "same", "causal" (1D: sees no later step), or numbers of zeros: for each axis
    (before, after) or one for both.
    Weights: kernel (*kernel_size, n / groups, filters), bias (filters,)
    """

    filters: PositiveInt
    kernel_size: object
    strides: object = 1
    padding: object = "valid"
    data_format: fields.DataFormat = None
    dilation_rate: object = 1
    groups: PositiveInt = 1
    activation: fields.Activation = None
    use_bias: bool = True
    options: Weights(activity=True, kernel="glorot_uniform", bias="zeros")

    def setup(self):
        super().setup()
        if self.filters % self.groups:
            raise ValueError(f"{self.filters} filters do not divide into {self.groups} groups.")

    def _add_kernels(self, channels):
        if channels % self.groups:
            raise ValueError(
                f"{type(self).__name__} {self.name!r}: {channels} input channels do not divide "
                f"into {self.groups} groups."
            )
        shape = (*self.kernel_size, channels // self.groups, self.filters)
        self.kernel = self.add_weight(shape, name="kernel")
        return self.filters

    def _convolve(self, inputs):
        return ops.conv(inputs, self.kernel, *self._settings)


class _ConvTranspose(_Convolution):
    """The gradient of a convolution as a layer: it makes images larger.  arXiv:1603.07285

    x: (batch, *space, n)  ->  y: (batch, *space', filters); channels_first: (batch, n, *space)
    output_padding: rows and columns added at the end of the output, fewer than `strides`.
    Weights: kernel (*kernel_size, filters, n), bias (filters,)
    """

    window: FieldsOf(_Conv, "filters", "kernel_size", "strides", "padding")
    output_padding: object = None
    others: FieldsOf(_Conv, "data_format", "dilation_rate", "activation", "use_bias")
    options: Weights(activity=True, kernel="glorot_uniform", bias="zeros")

    def setup(self):
        super().setup()
        if (extra := self.output_padding) is not None:
            self.output_padding = windows.per_axis(extra, self._space, "output_padding")

    def _add_kernels(self, channels):
        shape = (*self.kernel_size, self.filters, channels)
        self.kernel = self.add_weight(shape, name="kernel")
        return self.filters

    def _convolve(self, inputs):
        strides, padding, *others = self._settings
        others = self.output_padding, *others
        return ops.conv_transpose(inputs, self.kernel, strides, padding, *others)


class _DepthwiseConv(_Convolution):
    """Each channel convolved by itself, `depth_multiplier` times.

    x: (batch, *space, n)  ->  y: (batch, *space', n * depth_multiplier)
    Weights: kernel (*kernel_size, n, depth_multiplier), bias (n * depth_multiplier,)
    """

    window: FieldsOf(_Conv, "kernel_size", "strides", "padding")
    depth_multiplier: PositiveInt = 1
    others: FieldsOf(_Conv, "data_format", "dilation_rate", "activation", "use_bias")
    options: Weights(activity=True, depthwise="glorot_uniform", bias="zeros")

    def _add_kernels(self, channels):
        shape = (*self.kernel_size, channels, self.depth_multiplier)
        self.kernel = self.add_weight(
            shape,
            self.depthwise_initializer,
            regularizer=self.depthwise_regularizer,
            constraint=self.depthwise_constraint,
            name="kernel",
        )
        return channels * self.depth_multiplier

    def _convolve(self, inputs):
        return ops.depthwise_conv(inputs, self.kernel, *self._settings)


class _SeparableConv(_Convolution):
    """A depthwise convolution, then one of width 1 that mixes the channels.  arXiv:1610.02357

    x: (batch, *space, n)  ->  y: (batch, *space', filters)
    Weights: depthwise_kernel (*kernel_size, n, depth_multiplier),
    pointwise_kernel (1, ..., n * depth_multiplier, filters), bias (filters,)
    """

    window: FieldsOf(_Conv, "filters", "kernel_size", "strides", "padding", "data_format")
    dilation_rate: object = 1
    depth_multiplier: PositiveInt = 1
    end: FieldsOf(_Conv, "activation", "use_bias")
    options: Weights(
        activity=True, depthwise="glorot_uniform", pointwise="glorot_uniform", bias="zeros"
    )

    def _add_kernels(self, channels):
        deep = channels * self.depth_multiplier
        shape = (*self.kernel_size, channels, self.depth_multiplier)
        self.depthwise_kernel = self.add_weight(shape, name="depthwise_kernel")
        shape = (*[1] * self._space, deep, self.filters)
        self.pointwise_kernel = self.add_weight(shape, name="pointwise_kernel")
        return self.filters

    def _convolve(self, inputs):
        kernels = self.depthwise_kernel, self.pointwise_kernel
        return ops.separable_conv(inputs, *kernels, *self._settings)


__all__ = []
for _base, _name, _spaces in (
    (_Conv, "Conv{}D", (1, 2, 3)),
    (_ConvTranspose, "Conv{}DTranspose", (1, 2, 3)),
    (_DepthwiseConv, "DepthwiseConv{}D", (1, 2)),
    (_SeparableConv, "SeparableConv{}D", (1, 2)),
):
    for _space in _spaces:
        _members = {"_space": _space, "__doc__": _base.__doc__}
        if _space == 1:
            _members["_paddings"] = ("valid", "same", *(("causal",) if _base is _Conv else ()))
        else:
            _members |= {"strides": (1,) * _space, "dilation_rate": (1,) * _space}
        if _base is _ConvTranspose and _space == 3:  # Keras has these two the other way round here
            _order = "filters kernel_size strides padding data_format output_padding"
            _members["__annotations__"] = {"order": FieldsOf(_base, *_order.split())}
        _layer = type(_name.format(_space), (_base,), _members)
        _names = {_layer.__name__: _layer}
        if _base is not _DepthwiseConv:
            _names[_layer.__name__.replace("Conv", "Convolution")] = _layer
        globals().update(_names)
        __all__ += _names
