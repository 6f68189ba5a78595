"""RegNet. Radosavovic et al. 2020, arXiv:2003.13678."""

from khub import layers
from khub.fields import Choice, PositiveInt

from ..cv import parts
from ..cv.backbone import ImageBackbone, Reference
from ..cv.image_classifier import image_family

SIZES = {  # blocks and widths of the stages, width of a group (arXiv:2003.13678, figures 16 and 17)
    "x_002": ((1, 1, 4, 7), (24, 56, 152, 368), 8),
    "x_004": ((1, 2, 7, 12), (32, 64, 160, 384), 16),
    "x_004_tv": ((1, 2, 7, 12), (32, 64, 160, 400), 16),  # torchvision's regnet_x_400mf
    "x_006": ((1, 3, 5, 7), (48, 96, 240, 528), 24),
    "x_008": ((1, 3, 7, 5), (64, 128, 288, 672), 16),
    "x_016": ((2, 4, 10, 2), (72, 168, 408, 912), 24),
    "x_032": ((2, 6, 15, 2), (96, 192, 432, 1008), 48),
    "x_040": ((2, 5, 14, 2), (80, 240, 560, 1360), 40),
    "x_064": ((2, 4, 10, 1), (168, 392, 784, 1624), 56),
    "x_080": ((2, 5, 15, 1), (80, 240, 720, 1920), 120),
    "x_120": ((2, 5, 11, 1), (224, 448, 896, 2240), 112),
    "x_160": ((2, 6, 13, 1), (256, 512, 896, 2048), 128),
    "x_320": ((2, 7, 13, 1), (336, 672, 1344, 2520), 168),
    "y_002": ((1, 1, 4, 7), (24, 56, 152, 368), 8),
    "y_004": ((1, 3, 6, 6), (48, 104, 208, 440), 8),
    "y_006": ((1, 3, 7, 4), (48, 112, 256, 608), 16),
    "y_008": ((1, 3, 8, 2), (64, 128, 320, 768), 16),
    "y_008_tv": ((1, 3, 8, 2), (64, 144, 320, 784), 16),
    "y_016": ((2, 6, 17, 2), (48, 120, 336, 888), 24),
    "y_032": ((2, 5, 13, 1), (72, 216, 576, 1512), 24),
    "y_040": ((2, 6, 12, 2), (128, 192, 512, 1088), 64),
    "y_064": ((2, 7, 14, 2), (144, 288, 576, 1296), 72),
    "y_080": ((2, 4, 10, 1), (168, 448, 896, 2016), 56),
    "y_080_tv": ((2, 4, 10, 1), (224, 448, 896, 2016), 56),
    "y_120": ((2, 5, 11, 1), (224, 448, 896, 2240), 112),
    "y_160": ((2, 4, 11, 1), (224, 448, 1232, 3024), 112),
    "y_320": ((2, 5, 12, 1), (232, 696, 1392, 3712), 232),
    "y_640": ((2, 5, 12, 1), (328, 984, 1968, 4920), 328),  # this and the next: arXiv:2202.08360
    "y_1280": ((2, 7, 17, 1), (528, 1056, 2904, 7392), 264),
    "y_2560": ((2, 7, 17, 1), (746, 1492, 4103, 10444), 373),
}
VARIANTS = {
    f"regnet{name}": dict(num_blocks=blocks, widths=widths, group_width=group, layer_type=name[0])
    for name, (blocks, widths, group) in SIZES.items()
}


def _block(theirs, ours, units, kinds):
    """Pairs of (reference, khub) names of convolutions and of their normalizations."""
    return tuple(
        (f"{theirs}.{unit}.{kind}", f"{ours}.{own}.{part}")
        for unit, own in units.items()
        for kind, part in zip(kinds, ("conv", "bn"))
    )


def _transformers(layer_type):
    last, kinds = 2 + (layer_type == "y"), ("convolution", "normalization")
    theirs, ours = "encoder.stages.{i-1}.layers.{i-1}", "s{i}.b{i}"
    units = {"layer.0": "conv1", "layer.1": "conv2", f"layer.{last}": "conv3"}
    names = (
        *((f"embedder.embedder.{kind}", f"stem.{own}") for kind, own in zip(kinds, ("conv", "bn"))),
        *_block(theirs, ours, units | {"shortcut": "downsample"}, kinds),
        (f"{theirs}.layer.2.attention.0", f"{ours}.se.fc1"),
        (f"{theirs}.layer.2.attention.2", f"{ours}.se.fc2"),
        ("classifier.1", "head.head.fc"),
    )
    return Reference(names, "regnet", ignored=("classifier.*",))


def _torchvision():
    names = [("stem.0", "stem.conv"), ("stem.1", "stem.bn"), ("fc", "head.head.fc")]
    units = {"f.a": "conv1", "f.b": "conv2", "f.c": "conv3", "proj": "downsample"}
    for stage in range(1, 5):
        theirs, ours = f"trunk_output.block{stage}.block{stage}-{{i-1}}", f"s{stage}.b{{i}}"
        names += [*_block(theirs, ours, units, "01"), (f"{theirs}.f.se", f"{ours}.se")]
    return Reference(tuple(names), ignored=("fc.*",))


REFERENCES = {
    "timm": Reference(ignored=("head.*",)),
    "transformers": _transformers("y"),
    "torchvision": _torchvision(),
}


@image_family("regnet")
class RegNetBackbone(ImageBackbone):
    """Four stages of residual blocks 1 x 1, 3 x 3 in groups, 1 x 1, all of a stage's width.

    num_blocks, widths: of each stage   group_width: channels of a group of the 3 x 3 convolution,
    all where a stage has no more   layer_type: "y" has squeeze and excite to a quarter of the
    width that comes into the block, "x" has not   downsample_first: whether the first stage halves
    height and width too
    """

    num_blocks: tuple
    widths: tuple
    group_width: PositiveInt
    layer_type: Choice("x", "y") = "y"
    stem_width: PositiveInt = 32
    activation: Choice("relu", "gelu", "silu") = "relu"
    downsample_first: bool = True

    VARIANTS = VARIANTS
    HEAD = "head.fc"
    STEMS = {"regnet": "RegNet"}
    KEYS = {
        "num_blocks": ("depths", (2, 6, 12, 2)),
        "widths": ("hidden_sizes", (128, 192, 512, 1088)),
        "group_width": ("groups_width", 64),
        "layer_type": "layer_type",
        "stem_width": "embedding_size",
        "activation": "hidden_act",
        "downsample_first": "downsample_in_first_stage",
    }
    REFERENCES = REFERENCES

    @property
    def naming(self):
        if self.reference == "transformers":
            return _transformers(self.layer_type)
        return super().naming

    def draw(self, image):
        x = self.conv(image, self.stem_width, 3, 2, 1, "stem")
        for stage, (width, count) in enumerate(zip(self.widths, self.num_blocks, strict=True), 1):
            for i in range(1, count + 1):
                stride = 2 if i == 1 and (stage > 1 or self.downsample_first) else 1
                x = self.block(x, width, stride, f"s{stage}.b{i}")
        return x

    def conv(self, x, width, kernel, stride, groups, name, active=True):
        names, activation = (f"{name}.conv", f"{name}.bn"), self.activation if active else None
        return parts.unit(x, width, kernel, stride, names, activation, groups=groups)

    def block(self, x, width, stride, name):
        """activation(x + branch(x)), x projected where the branch has another shape."""
        y = self.conv(x, width, 1, 1, 1, f"{name}.conv1")
        groups = max(1, width // self.group_width)
        y = self.conv(y, width, 3, stride, groups, f"{name}.conv2")
        if self.layer_type == "y":
            y = parts.squeeze_excite(y, round(parts.width_of(x) / 4), f"{name}.se")
        y = self.conv(y, width, 1, 1, 1, f"{name}.conv3", active=False)
        if stride > 1 or parts.width_of(x) != width:
            x = self.conv(x, width, 1, stride, 1, f"{name}.downsample", active=False)
        return parts.active(layers.Add()([x, y]), self.activation)
