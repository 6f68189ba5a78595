"""Networks of inverted residual blocks, MobileNet and EfficientNet, named as timm names them.

Sandler et al. 2018, arXiv:1801.04381; with squeeze and excite: Howard et al. 2019, arXiv:1905.02244
"""

from dataclasses import dataclass, replace
from functools import cached_property

from khub import layers

from . import parts
from .backbone import ImageBackbone, Reference, pooled

UNITS = {  # kind of a block -> its convolutions; those of SPATIAL have the kernel and the stride
    "conv": ("conv",),
    "separable": ("conv_dw", "conv_pw"),
    "inverted": ("conv_pw", "conv_dw", "conv_pwl"),
    "fused": ("conv_exp", "conv_pwl"),
}
SPATIAL = ("conv", "conv_dw", "conv_exp")
SQUEEZE = ("se.conv_reduce", "se.conv_expand")
HEAD = ("conv_head.*", "norm_head.*", "classifier.*")  # tensors of a classifier's head


def references(ends, prefix):
    """REFERENCES with transformers' names of the first and the last convolution and their norms."""
    names = tuple(zip(ends, ("conv_stem", "bn1", "conv_head", "bn2"), strict=True))
    return {
        "timm": Reference(ignored=HEAD),
        "transformers": Reference(names, prefix, HEAD),
        "torchvision": Reference((("classifier.1", "head.classifier"),), ignored=HEAD),
    }


@dataclass(frozen=True)
class Block:
    """A block: a kind of UNITS, to `inner` channels and from them to `width`.

    squeeze: width inside of squeeze and excite behind the depthwise convolution, 0 for none
    skip: add the input where the shapes allow it   zeros: as of `parts.conv`
    """

    kind: str
    inner: int
    width: int
    kernel: int
    stride: int
    activation: str
    squeeze: int = 0
    skip: bool = True
    zeros: object = None

    def units(self):
        """Names of (convolution, normalization) and of SQUEEZE, in their order."""
        found = [(name, f"bn{i}") for i, name in enumerate(UNITS[self.kind], 1)]
        return [*found[:-1], SQUEEZE, found[-1]] if self.squeeze else found

    def torchvision_pairs(self):
        """The pairs of `InvertedBackbone.block_names` for EfficientNet and MobileNetV3."""
        leaves = [("fc1", "fc2") if pair == SQUEEZE else ("0", "1") for pair in self.units()]
        return [(f"block.{i}.{a}", f"block.{i}.{b}") for i, (a, b) in enumerate(leaves)]


class InvertedBackbone(ImageBackbone):
    """A 3 x 3 convolution at stride 2, blocks, a 1 x 1 convolution."""

    activation: str = "relu6"
    epsilon: float = 1e-5

    last = ("conv_head", "bn2")  # the layers of the 1 x 1 convolution
    COARSE = ()  # ends of the variants that have the epsilon 1e-3 in torchvision

    @classmethod
    def variant(cls, name, **overrides):
        if overrides.get("reference") == "torchvision" and name.endswith(cls.COARSE):
            overrides = {"epsilon": 1e-3, **overrides}
        return super().variant(name, **overrides)

    def blocks(self):
        """Yield the name of each block, and the `Block`."""
        raise NotImplementedError(f"{type(self).__name__} does not define blocks().")

    def block_names(self, number, name, block):
        """Return where the reference has a block, and pairs of names, the last for its units."""
        raise NotImplementedError(f"{type(self).__name__} does not define block_names().")

    @cached_property
    def naming(self):
        found, names = super().naming, []
        if self.reference == "timm":
            return found
        for number, (name, block) in enumerate(self.blocks()):
            below, pairs = self.block_names(number, name, block)
            units = block.units()
            for theirs, ours in zip(pairs[-len(units) :], units, strict=True):
                names += [(f"{below}.{a}", f"{name}.{b}") for a, b in zip(theirs, ours)]
        if self.reference == "torchvision":
            last = int(below.split(".")[1]) + 1
            places = ("features.0.0", "features.0.1", f"features.{last}.0", f"features.{last}.1")
            names += zip(places, ("conv_stem", "bn1", *self.last))
        return replace(found, names=(*found.names, *names))

    def conv(self, x, width, kernel, stride, name, norm, activation, **options):
        """A convolution, normalized and activated."""
        sizes = (width, kernel, stride, (name, norm))
        return parts.unit(x, *sizes, activation, self.epsilon, **options)

    def draw_block(self, x, block, name, gates):
        y, last = x, UNITS[block.kind][-1]
        for unit, norm in block.units():
            if unit == SQUEEZE[0]:
                names = [pair.removeprefix("se.") for pair in SQUEEZE]
                y = parts.squeeze_excite(y, block.squeeze, f"{name}.se", names, *gates)
                continue
            size = (block.kernel, block.stride) if unit in SPATIAL else (1, 1)
            width = block.width if unit == last else block.inner
            linear = unit == last and block.kind != "conv"
            names = (f"{name}.{unit}", f"{name}.{norm}", None if linear else block.activation)
            options = dict(groups=width if unit == "conv_dw" else 1, zeros=block.zeros)
            y = self.conv(y, width, *size, *names, **options)
        fits = block.skip and block.stride == 1 and parts.width_of(x) == block.width
        return layers.Add()([x, y]) if fits else y

    def draw_blocks(self, image, stem, zeros=None, gates=("relu", "sigmoid"), activation=None):
        activation = activation or self.activation
        x = self.conv(image, stem, 3, 2, "conv_stem", "bn1", activation, zeros=zeros)
        for name, block in self.blocks():
            x = self.draw_block(x, block, name, gates)
        return x

    def draw_head(self, features, num_classes, dropout):
        x = layers.Dropout(dropout, name="dropout")(pooled(features))
        return layers.Dense(num_classes, name="classifier")(x)
