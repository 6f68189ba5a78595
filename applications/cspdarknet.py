"""Darknet and cross stage partial networks.

Redmon and Farhadi 2018, arXiv:1804.02767; Wang et al. 2019, arXiv:1911.11929.
"""

from khub import layers, ops
from khub.fields import Choice, PositiveInt

from ..cv import parts
from ..cv.backbone import ImageBackbone, Reference
from ..cv.image_classifier import image_family
from .classifier import channel_axis

DARK = (64, 128, 256, 512, 1024)
DARK53 = dict(num_blocks=(1, 2, 8, 8, 4), widths=DARK)
NARROW, WIDE = (128, 256, 512, 1024), (256, 512, 1024, 2048)
CSP = dict(num_blocks=(3, 3, 5, 2), block="bottleneck", stem="plain", expand=(2, 2, 2, 2))
VARIANTS = {  # arXiv:1804.02767, table 1; arXiv:1911.11929; as timm has them
    "darknet17": dict(num_blocks=(1, 1, 1, 1, 1), widths=DARK),
    "darknet21": dict(num_blocks=(1, 1, 1, 2, 2), widths=DARK),
    "darknet53": DARK53,
    "cspdarknet53": DARK53 | dict(expand=(2, 1, 1, 1, 1), inner=(0.5, 1, 1, 1, 1)),
    "cspresnet50": CSP | dict(widths=NARROW),
    "cspresnet50d": CSP | dict(widths=NARROW, stem="deep"),
    "cspresnet50w": CSP | dict(widths=WIDE, stem="deep", expand=(1,) * 4, inner=(0.25,) * 4),
    "cspresnext50": CSP | dict(widths=WIDE, expand=(1,) * 4, inner=(1,) * 4, groups=32),
}


@image_family("cspdarknet")
class CSPDarkNetBackbone(ImageBackbone):
    """Stages of residual blocks, through which half of the channels pass where `expand` is given.

    num_blocks, widths: of each stage   expand: width of the two halves together, over the stage's
    inner: width inside a block, over that of the block
    block: "dark" of 1 x 1 and 3 x 3, or "bottleneck" of 1 x 1, 3 x 3 in `groups`, 1 x 1
    stem: "dark" 3 x 3, "plain" 7 x 7 and a maximum, or "deep" of three 3 x 3 and a maximum
    """

    num_blocks: tuple
    widths: tuple
    expand: tuple = None
    inner: tuple = None
    block: Choice("dark", "bottleneck") = "dark"
    stem: Choice("dark", "plain", "deep") = "dark"
    groups: PositiveInt = 1

    VARIANTS = VARIANTS
    HEAD = "head.fc"
    REFERENCES = {"timm": Reference(ignored=("head.*",))}

    def draw(self, image):
        x = self.draw_stem(image)
        for stage, (width, count) in enumerate(zip(self.widths, self.num_blocks, strict=True)):
            name, dark = f"stages.{stage}", self.block == "dark"
            if stage or self.stem == "dark":
                down = width if dark else parts.width_of(x)
                x = self.conv(x, down, 3, 2, self.groups, name=f"{name}.conv_down")
            other = None
            if self.expand:
                both = int(width * self.expand[stage])
                x = self.conv(x, both, active=dark, name=f"{name}.conv_exp")
                other, x = ops.split(x, 2, channel_axis())
            inner = self.inner[stage] if self.inner else 0.5
            for i in range(count):
                x = self.residual(x, int(parts.width_of(x) * inner), f"{name}.blocks.{i}")
            if self.expand:
                x = self.conv(x, both // 2, name=f"{name}.conv_transition_b")
                x = layers.Concatenate(channel_axis())([other, x])
                x = self.conv(x, width, name=f"{name}.conv_transition")
        return x

    def draw_stem(self, image):
        if self.stem == "dark":
            return self.conv(image, 32, 3, name="stem.conv1")
        if self.stem == "plain":
            x = self.conv(image, 64, 7, 2, name="stem.conv1")
        else:
            x = self.conv(image, 32, 3, 2, name="stem.conv1")
            x = self.conv(self.conv(x, 32, 3, name="stem.conv2"), 64, 3, name="stem.conv3")
        return parts.max_pool(x, positive=False)

    def conv(self, x, width, kernel=1, stride=1, groups=1, active=True, name=None):
        x = parts.unit(x, width, kernel, stride, (f"{name}.conv", f"{name}.bn"), groups=groups)
        return layers.LeakyReLU(0.01)(x) if active else x

    def residual(self, x, inner, name):
        width = parts.width_of(x)
        y = self.conv(x, inner, name=f"{name}.conv1")
        if self.block == "dark":
            return layers.Add()([x, self.conv(y, width, 3, name=f"{name}.conv2")])
        y = self.conv(y, inner, 3, groups=self.groups, name=f"{name}.conv2")
        y = self.conv(y, width, active=False, name=f"{name}.conv3")
        return layers.LeakyReLU(0.01)(layers.Add()([x, y]))
