"""What Keras' architectures are drawn with: a convolution, normalized and activated."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from khub import layers

from ..cv.parts import channel_axis, width_of
from .classifier import padded


def joined(paths, name=None):
    """What several paths have found, one after another in the channels."""
    return layers.Concatenate(channel_axis(), name=name)(paths)


@dataclass(frozen=True)
class Unit:
    """A convolution, its normalization and its activation, as a family has them in all its places.

    conv, norm, active: names of the layers, where "{}" is the unit's; None: as Keras counts them
    activation: (name=...) -> layer   bias, padding: of the convolution, which a call may pad else
    start: () -> the initializer of its kernel   normalization: options of that layer
    """

    conv: str = "{}"
    norm: str = "{}_bn"
    active: str | None = "{}_relu"
    activation: Callable = partial(layers.Activation, "relu")
    bias: bool = False
    padding: str = "same"
    start: Callable = lambda: "glorot_uniform"
    normalization: dict = field(default_factory=dict)

    def __call__(
        self, x, width, size=1, stride=1, padding=None, pad=None, name=None, linear=False, **options
    ):
        """width: None: a filter for each channel   pad: the name of a layer of zeros at stride 2

        options: of the convolution
        """
        if pad and stride == 2:
            x, padding = padded(x, size, pad), "valid"
        options |= dict(padding=padding or self.padding, name=_named(self.conv, name))
        options |= dict(strides=stride, use_bias=self.bias)
        if width is None:
            x = layers.DepthwiseConv2D(size, depthwise_initializer=self.start(), **options)(x)
        else:
            x = layers.Conv2D(width, size, kernel_initializer=self.start(), **options)(x)
        return self.normalized(x, name, linear)

    def normalized(self, x, name=None, linear=False):
        """x by the statistics of its batch, with the activation where it is not linear."""
        norm = _named(self.norm, name)
        x = layers.BatchNormalization(channel_axis(), name=norm, **self.normalization)(x)
        return x if linear else self.activation(name=_named(self.active, name))(x)


def _named(pattern, name):
    return pattern and name and pattern.format(name)


def draw_block(x, block, name, unit, filtered, excited=None, rate=None):
    """Draw an inverted residual block: expand, filter in each channel, project linearly.

    block: an `inverted.Block`, added to x where that has its shape, left out in training at `rate`
    filtered: (x, block, name) -> the depthwise unit   excited: (x, block.squeeze, name)
    """
    y, spatial = x, (block.kernel, block.stride)
    if block.kind in ("inverted", "fused"):
        size = spatial if block.kind == "fused" else ()
        y = unit(y, block.inner, *size, name=f"{name}_expand")
    if block.kind in ("inverted", "separable"):
        y = filtered(y, block, name)
    if block.squeeze:
        y = excited(y, block.squeeze, name)
    size, linear = ((), True) if block.kind != "conv" else (spatial, False)
    y = unit(y, block.width, *size, name=f"{name}_project", linear=linear)
    if block.stride > 1 or width_of(x) != block.width:
        return y
    if rate:
        y = layers.Dropout(rate, (None, 1, 1, 1), name=f"{name}_drop")(y)
    both = [x, y] if rate is None else [y, x]  # as Keras has them
    return layers.Add(name=f"{name}_add")(both)
