"""Residual networks. He et al. 2015, arXiv:1512.03385."""

import re

from khub import layers
from khub.fields import Choice, PositiveInt, Rate

from ..cv import parts
from ..cv.backbone import ImageBackbone, Reference, check, unit_names
from ..cv.image_classifier import image_family
from .classifier import Architecture
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401
from .units import Unit

DEPTHS = {  # -> blocks of each stage (arXiv:1512.03385, table 1, and others below)
    10: (1, 1, 1, 1),
    14: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    26: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
    270: (4, 29, 53, 4),  # this and the next of ResNet-RS alone (arXiv:2103.07579, table 11)
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}
WIDTHS = (64, 128, 256, 512)
UNIT = Unit("{}_conv", bias=True, padding="valid", normalization={"epsilon": 1.001e-5})


def pool(x):
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)


def block(x, width, stride, first, name):
    """1 x 1 to `width`, 3 x 3, 1 x 1 to 4 `width`, normalized; added to x or its projection."""
    shortcut = UNIT(x, 4 * width, 1, stride, name=f"{name}_0", linear=True) if first else x
    x = UNIT(x, width, 1, stride, name=f"{name}_1")
    x = UNIT(x, width, 3, padding="same", name=f"{name}_2")
    x = UNIT(x, 4 * width, name=f"{name}_3", linear=True)
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.Activation("relu", name=f"{name}_out")(x)


def resnet(image, blocks, **options):
    x = layers.ZeroPadding2D(3, name="conv1_pad")(image)
    x = pool(UNIT(x, 64, 7, 2, name="conv1"))
    for stage, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), 2):
        for i in range(1, count + 1):
            stride = 2 if i == 1 and stage > 2 else 1
            x = block(x, width, stride, i == 1, f"conv{stage}_block{i}")
    return x


_architecture = Architecture(resnet, "caffe", named_pooling=True)
ResNet50, ResNet101, ResNet152 = (
    _architecture.constructor(f"ResNet{depth}", f"resnet{depth}", 224, blocks=DEPTHS[depth])
    for depth in (50, 101, 152)
)

preprocess_input = preprocessing(_architecture.preprocessing)


# --- the hub's: as timm, torchvision and transformers have them ---------------------------------

D, T = ({"stem": stem, "average_down": True} for stem in ("deep", "tiered"))
SE = {"squeeze": 1 / 16}
KINDS = {  # timm's names, the width of groups at the end -> arguments beside those in the name
    "resnet18 resnet26 resnet34 resnet50 resnet101 resnet152 resnet200": {},
    "resnext50_32x4d resnext101_32x4d resnext101_32x8d resnext101_64x4d": {},
    "resnext101_32x16d resnext101_32x32d": {},
    "wide_resnet50_2 wide_resnet101_2": {"group_width": 128},
    "resnet50c resnet101c resnet152c": {"stem": "deep"},
    "resnet50s resnet101s resnet152s": {"stem": "deep", "stem_width": 128},
    "resnet18d resnet26d resnet34d resnet50d resnet101d resnet152d resnet200d": D,
    "resnext50d_32x4d": D,
    "resnet10t resnet14t resnet26t resnet50t": T,
    "seresnet18 seresnet34 seresnet50 seresnet101 seresnet152": SE,
    "seresnext50_32x4d seresnext101_32x4d seresnext101_32x8d seresnext101_64x4d": SE,
    "seresnet152d seresnet200d seresnet269d seresnext26d_32x4d seresnext101d_32x8d": SE | D,
    "seresnet50t seresnext26t_32x4d": SE | T,
    "resnetrs50 resnetrs101 resnetrs152 resnetrs200 resnetrs270 resnetrs350 resnetrs420": D
    | {"stem_pool": "conv", "squeeze": 0.25},
}


def _arguments(name, options):
    """The arguments that a name of timm tells, and the options of its kind."""
    depth, *groups = map(int, re.search(r"(\d+)[a-z]*(?:_(\d+)x(\d+)d)?", name).groups("0"))
    found = {"num_blocks": DEPTHS[depth]} | options
    if depth in (10, 18, 34):
        found["block"] = "basic"
    return found | (dict(zip(("groups", "group_width"), groups)) if all(groups) else {})


VARIANTS = {
    name: _arguments(name, options) for names, options in KINDS.items() for name in names.split()
}

_their, _our = "encoder.stages.{i-1}.layers.{i}", "layer{i}.{i}"
TRANSFORMERS = (
    *unit_names("embedder.embedder", "conv1", "bn1"),
    *unit_names(f"{_their}.layer.0", f"{_our}.conv1", f"{_our}.bn1"),
    *unit_names(f"{_their}.layer.1", f"{_our}.conv2", f"{_our}.bn2"),
    *unit_names(f"{_their}.layer.2", f"{_our}.conv3", f"{_our}.bn3"),
    *unit_names(f"{_their}.shortcut", f"{_our}.downsample.0", f"{_our}.downsample.1"),
    ("classifier.1", "head.fc"),
)
REFERENCES = {
    "timm": Reference(ignored=("fc.*",)),
    "torchvision": Reference(ignored=("fc.*",)),
    "transformers": Reference(TRANSFORMERS, "resnet", ("classifier.*",)),
}


@image_family("resnet")
class ResNetBackbone(ImageBackbone):
    """ResNet with the stride in the 3 x 3 convolution, and its relatives.

    num_blocks: of each stage   block: "basic" of two 3 x 3 convolutions or "bottleneck"
    groups, group_width: of the 3 x 3 convolution (ResNeXt, arXiv:1611.05431)
    stem: "plain" 7 x 7, or "deep" of three 3 x 3, or "tiered" of three that widen
    average_down: the projection is 1 x 1 after an average (ResNet-D, He et al. 2018,
    arXiv:1812.01187)
    stem_pool: "max" or "conv"   squeeze: share of the width in squeeze and excite, 0 for none
    (ResNet-RS, Bello et al. 2021, arXiv:2103.07579)
    widths: of the 3 x 3 convolutions of each stage   downsample_first: whether
    the first stage halves height and width too
    early_stride: the stride is in the first convolution of a bottleneck, as in He et al. 2015
    """

    num_blocks: tuple
    block: Choice("basic", "bottleneck") = "bottleneck"
    groups: PositiveInt = 1
    group_width: PositiveInt = 64
    stem: Choice("plain", "deep", "tiered") = "plain"
    average_down: bool = False
    stem_pool: Choice("max", "conv") = "max"
    squeeze: Rate = 0.0
    widths: tuple = WIDTHS
    stem_width: PositiveInt = 64
    downsample_first: bool = False
    early_stride: bool = False

    VARIANTS = VARIANTS
    HEAD = "fc"
    STEMS = {"resnet": "ResNet"}
    KEYS = {
        "num_blocks": "depths",
        "widths": "hidden_sizes",
        "block": "layer_type",
        "stem_width": "embedding_size",
        "downsample_first": "downsample_in_first_stage",
        "early_stride": "downsample_in_bottleneck",
    }
    REFERENCES = REFERENCES

    def draw(self, image):
        x = self.draw_stem(image)
        for stage, (width, count) in enumerate(zip(self.widths, self.num_blocks, strict=True), 1):
            for i in range(count):
                stride = 2 if not i and (stage > 1 or self.downsample_first) else 1
                x = self.residual(x, width, stride, f"layer{stage}.{i}")
        return x

    def draw_stem(self, image):
        x, half = image, self.stem_width // 2
        if self.stem == "plain":
            x = parts.unit(x, self.stem_width, 7, 2, ("conv1", "bn1"), "relu")
        else:
            first = half * 3 // 4 if self.stem == "tiered" else half
            x = parts.unit(x, first, 3, 2, ("conv1.0", "conv1.1"), "relu")
            x = parts.unit(x, half, 3, 1, ("conv1.3", "conv1.4"), "relu")
            x = parts.unit(x, self.stem_width, 3, 1, ("conv1.6", "bn1"), "relu")
        if self.stem_pool == "max":
            return parts.max_pool(x)
        return parts.unit(x, self.stem_width, 3, 2, ("maxpool.0", "maxpool.1"), "relu")

    def residual(self, x, width, stride, name):
        """relu(x + branch(x)), x projected where the branch has another shape."""
        early, late = (stride, 1) if self.early_stride else (1, stride)
        inner = int(width * self.group_width / 64) * self.groups
        rows = [(inner, 3, stride, 1), (width, 3, 1, 1)]  # width, kernel, stride, groups
        if self.block == "bottleneck":
            rows = [(inner, 1, early, 1), (inner, 3, late, self.groups), (4 * width, 1, 1, 1)]
        y = x
        for k, (*sizes, groups) in enumerate(rows, 1):
            names = (f"{name}.conv{k}", f"{name}.bn{k}")
            y = parts.unit(y, *sizes, names, "relu" if k < len(rows) else None, groups=groups)
        out = parts.width_of(y)
        if self.squeeze:
            squeezed = parts.divisible(out * self.squeeze, least=0)
            y = parts.squeeze_excite(y, squeezed, f"{name}.se")
        if stride > 1 or parts.width_of(x) != out:
            x = self.projection(x, out, stride, f"{name}.downsample")
        return parts.active(layers.Add()([x, y]), "relu")

    def projection(self, x, width, stride, name):
        i = 0
        if self.average_down:
            i, pool = 1, layers.AveragePooling2D(2, 2, "same")
            x, stride = (pool(x), 1) if stride > 1 else (x, 1)
        return parts.unit(x, width, 1, stride, (f"{name}.{i}", f"{name}.{i + 1}"))

    @classmethod
    def config_from_transformers(cls, config):
        check(config, {"hidden_act": "relu"})
        found = super().config_from_transformers(config)
        narrow = 1 if found.get("block") == "basic" else 4  # theirs are the widths of the results
        return found | {"widths": tuple(width // narrow for width in found["widths"])}

    def transformers_config(self):
        found = super().transformers_config()
        wide = 4 if self.block == "bottleneck" else 1
        return found | {"hidden_sizes": [wide * width for width in self.widths]}
