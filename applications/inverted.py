"""Inverted residual blocks, as MobileNet and EfficientNet have them, named as timm names them.

Sandler et al. 2018, arXiv:1801.04381; squeeze and excite: arXiv:1905.02244; fused: arXiv:2003.02838
"""

from dataclasses import dataclass

from khub import layers

from . import parts

UNITS = {  # kind of a block -> its convolutions; that with the kernel and the stride is in SPATIAL
    "conv": ("conv",),
    "separable": ("conv_dw", "conv_pw"),
    "inverted": ("conv_pw", "conv_dw", "conv_pwl"),
    "fused": ("conv_exp", "conv_pwl"),
}
SPATIAL = ("conv", "conv_dw", "conv_exp")


@dataclass(frozen=True)
class Block:
    """A block: `kind` of UNITS, to `inner` channels and from them to `width`.

    squeeze: width inside of squeeze and excite behind the depthwise convolution, 0 for none
    gates: activations of squeeze and excite   skip: add the input where the shapes allow it
    zeros: as of `parts.conv`
    """

    kind: str
    inner: int
    width: int
    kernel: int = 3
    stride: int = 1
    activation: str = "relu"
    squeeze: int = 0
    gates: tuple = (None, "sigmoid")
    skip: bool = True
    epsilon: float = 1e-5
    zeros: object = None

    def units(self):
        """Names of (convolution, normalization) and of (reduction, expansion), in their order."""
        found = [(name, f"bn{i}") for i, name in enumerate(UNITS[self.kind], 1)]
        if self.squeeze:
            found.insert(-1, ("se.conv_reduce", "se.conv_expand"))
        return found

    def draw(self, x, name):
        """Return the block's output for a symbolic x; the last convolution is linear."""
        y, last = x, UNITS[self.kind][-1]
        for unit, norm in self.units():
            if norm == "se.conv_expand":
                start, gate = self.gates
                names = ("conv_reduce", "conv_expand")
                start = start or self.activation
                y = parts.squeeze_excite(y, self.squeeze, f"{name}.se", names, start, gate)
                continue
            width = self.width if unit == last else self.inner
            size = (self.kernel, self.stride) if unit in SPATIAL else (1, 1)
            groups = width if unit == "conv_dw" else 1
            y = parts.conv(y, width, *size, groups, name=f"{name}.{unit}", zeros=self.zeros)
            y = parts.batch_norm(y, f"{name}.{norm}", self.epsilon)
            y = parts.active(y, None if unit == last != "conv" else self.activation)
        if self.skip and self.stride == 1 and parts.width_of(x) == self.width:
            return layers.Add()([x, y])
        return y


def conv_norm(x, width, kernel, stride, names, activation, epsilon=1e-5, zeros=None):
    """A convolution, normalized and activated; names: of the two layers"""
    x = parts.conv(x, width, kernel, stride, name=names[0], zeros=zeros)
    return parts.active(parts.batch_norm(x, names[1], epsilon), activation)


def renames(block, theirs, pairs, ours):
    """Renames of a block below `theirs`; pairs: there, the last of them for each of its units."""
    units = block.units()
    for pair, names in zip(pairs[-len(units) :], units, strict=True):
        for reference, name in zip(pair, names, strict=True):
            yield f"{theirs}.{reference}", f"{ours}.{name}"


def torchvision_pairs(block):
    """The pairs of `renames` for torchvision's EfficientNet and MobileNetV3."""
    leaves = [("fc1", "fc2") if pair[0].startswith("se.") else ("0", "1") for pair in block.units()]
    return [(f"block.{i}.{a}", f"block.{i}.{b}") for i, (a, b) in enumerate(leaves)]
