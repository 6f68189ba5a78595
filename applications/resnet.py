"""Residual networks. He et al. 2015, arXiv:1512.03385."""

import re

from khub import layers
from khub.fields import Choice, PositiveInt, Rate

from ..cv import parts
from ..cv.backbone import ImageBackbone, Reference, check
from ..cv.image_classifier import image_family
from .classifier import Architecture, channel_axis
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401

BLOCKS = {  # model -> blocks of each stage (arXiv:1512.03385, table 1)
    "ResNet50": (3, 4, 6, 3),
    "ResNet101": (3, 4, 23, 3),
    "ResNet152": (3, 8, 36, 3),
}
WIDTHS = (64, 128, 256, 512)


def norm(x, name):
    return layers.BatchNormalization(channel_axis(), epsilon=1.001e-5, name=name)(x)


def relu(x, name):
    return layers.Activation("relu", name=name)(x)


def stem(image):
    x = layers.ZeroPadding2D(3, name="conv1_pad")(image)
    return layers.Conv2D(64, 7, strides=2, name="conv1_conv")(x)


def pool(x):
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)


def block(x, width, stride, first, name):
    """1 x 1 to `width`, 3 x 3, 1 x 1 to 4 `width`, normalized; added to x or its projection."""
    shortcut = x
    if first:
        shortcut = layers.Conv2D(4 * width, 1, strides=stride, name=f"{name}_0_conv")(x)
        shortcut = norm(shortcut, f"{name}_0_bn")
    x = layers.Conv2D(width, 1, strides=stride, name=f"{name}_1_conv")(x)
    x = relu(norm(x, f"{name}_1_bn"), f"{name}_1_relu")
    x = layers.Conv2D(width, 3, padding="same", name=f"{name}_2_conv")(x)
    x = relu(norm(x, f"{name}_2_bn"), f"{name}_2_relu")
    x = norm(layers.Conv2D(4 * width, 1, name=f"{name}_3_conv")(x), f"{name}_3_bn")
    return relu(layers.Add(name=f"{name}_add")([shortcut, x]), f"{name}_out")


def resnet(image, blocks, **options):
    x = pool(relu(norm(stem(image), "conv1_bn"), "conv1_relu"))
    for stage, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), 2):
        for i in range(1, count + 1):
            first = i == 1
            stride = 2 if first and stage > 2 else 1
            x = block(x, width, stride, first, f"conv{stage}_block{i}")
    return x


_architecture = Architecture(resnet, "caffe")
ResNet50, ResNet101, ResNet152 = (
    _architecture.constructor(name, name.lower(), 224, blocks=blocks)
    for name, blocks in BLOCKS.items()
)

preprocess_input = preprocessing(_architecture.mode)


# --- the hub's: as timm, torchvision and transformers have them ---------------------------------

DEPTHS = {  # -> blocks of each stage
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

REFERENCES = {
    "timm": Reference(ignored=("fc.*",)),
    "torchvision": Reference(ignored=("fc.*",)),
    "transformers": Reference(
        names=(
            ("embedder.embedder.convolution", "conv1"),
            ("embedder.embedder.normalization", "bn1"),
            *(
                (f"encoder.stages.{{i-1}}.layers.{{i}}.{theirs}", f"layer{{i}}.{{i}}.{ours}")
                for theirs, ours in (
                    *((f"layer.{k}.convolution", f"conv{k + 1}") for k in range(3)),
                    *((f"layer.{k}.normalization", f"bn{k + 1}") for k in range(3)),
                    ("shortcut.convolution", "downsample.0"),
                    ("shortcut.normalization", "downsample.1"),
                )
            ),
            ("classifier.1", "head.fc"),
        ),
        prefix="resnet",
        ignored=("classifier.*",),
    ),
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
        if self.stem == "plain":
            x = parts.conv(image, self.stem_width, 7, 2, name="conv1")
        else:
            x, half = image, self.stem_width // 2
            for stride, i in ((2, 0), (1, 3)):
                width = half * 3 // 4 if self.stem == "tiered" and i == 0 else half
                x = parts.conv(x, width, 3, stride, name=f"conv1.{i}")
                x = parts.active(parts.batch_norm(x, f"conv1.{i + 1}"), "relu")
            x = parts.conv(x, self.stem_width, 3, name="conv1.6")
        x = parts.active(parts.batch_norm(x, "bn1"), "relu")
        if self.stem_pool == "max":
            return parts.max_pool(x)
        x = parts.conv(x, self.stem_width, 3, 2, name="maxpool.0")
        return parts.active(parts.batch_norm(x, "maxpool.1"), "relu")

    def residual(self, x, width, stride, name):
        """relu(x + branch(x)), x projected where the branch has another shape."""
        early, late = (stride, 1) if self.early_stride else (1, stride)
        inner = int(width * self.group_width / 64) * self.groups
        rows = {  # width, kernel, stride, groups
            "basic": ((inner, 3, stride, 1), (width, 3, 1, 1)),
            "bottleneck": (
                (inner, 1, early, 1),
                (inner, 3, late, self.groups),
                (4 * width, 1, 1, 1),
            ),
        }[self.block]
        y = x
        for k, row in enumerate(rows, 1):
            y = parts.batch_norm(parts.conv(y, *row, name=f"{name}.conv{k}"), f"{name}.bn{k}")
            y = parts.active(y, "relu" if k < len(rows) else None)
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
        x = parts.conv(x, width, 1, stride, name=f"{name}.{i}")
        return parts.batch_norm(x, f"{name}.{i + 1}")

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
