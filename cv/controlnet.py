"""ControlNet: what is added to a UNet's features so that its image follows another one.

Zhang et al. 2023, arXiv:2302.05543.
"""

from khub import ops
from khub.fields import Choice, PositiveInt
from khub.layers import Layer

from ..nlp.transformer import built
from ..presets import Family, register
from . import diffusion_parts as parts
from .diffusion_parts import Widths
from .unet import ConditionedModel


class ConditionEmbedding(Layer):
    """Convolutions from an image to features of the latents' size, at first 0.

    x: (batch, height, width, channels) -> (batch, height / 8, width / 8, outputs)
    """

    channels: PositiveInt
    widths: tuple
    outputs: PositiveInt

    def build(self, shape=None):
        widths = self.widths
        self.conv_in = parts.conv(self, self.channels, widths[0])
        self.blocks = []
        for width, after in zip(widths, widths[1:]):
            halving = parts.conv(self, width, after, strides=2, zeros=(1, 1))
            self.blocks += [parts.conv(self, width, width), halving]
        self.conv_out = parts.conv(self, widths[-1], self.outputs, kernel_initializer="zeros")

    def call(self, x):
        for layer in (self.conv_in, *self.blocks):
            x = ops.silu(layer(x))
        return self.conv_out(x)


class ControlNet(ConditionedModel):
    """Residuals for a UNet's features, of an image that its result shall follow.

    inputs: those of the `UNet` and "image": (batch, height, width, conditioning_channels) in 0 .. 1
    -> a list of residuals, as the UNet takes them as "residuals": one for each layer on the way
    down, then that of the middle
    """

    conditioning_channels: PositiveInt = 3
    conditioning_embedding_out_channels: Widths = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: Choice("rgb", "bgr") = "rgb"
    global_pool_conditions: bool = False

    class_name = "ControlNetModel"

    @property
    def needed(self):
        return (*super().needed, "image")

    def build(self, shape=None):
        super().build(shape)
        sizes = self.conditioning_channels, self.conditioning_embedding_out_channels
        embedding = ConditionEmbedding(*sizes, self.block_out_channels[0], dtype=self.dtype_policy)
        self.controlnet_cond_embedding = built(embedding)
        *widths, middle = [
            parts.conv(self, n, n, 1, kernel_initializer="zeros") for n in self.residual_widths
        ]
        self.controlnet_down_blocks, self.controlnet_mid_block = widths, middle

    def call(self, inputs):
        x, time, context = self._given(inputs)
        image = ops.cast(inputs["image"], self.compute_dtype)
        if self.controlnet_conditioning_channel_order == "bgr":
            image = ops.flip(image, -1)
        x = self.conv_in(x) + self.controlnet_cond_embedding(image)
        skips, middle = self._down(x, time, context)
        layers = *self.controlnet_down_blocks, self.controlnet_mid_block
        found = [layer(x) for layer, x in zip(layers, (*skips, middle), strict=True)]
        if self.global_pool_conditions:
            found = [ops.mean(x, axis=(1, 2), keepdims=True) for x in found]
        return found


register(Family("control_net", (ControlNet.class_name,), ControlNet))
