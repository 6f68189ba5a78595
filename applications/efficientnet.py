"""EfficientNet. Tan & Le 2019, arXiv:1905.11946."""

import math
from dataclasses import replace
from functools import partial
from string import ascii_lowercase

from khub import initializers, layers
from khub.fields import Choice, PositiveInt, Rate

from . import inverted, parts
from .backbone import ImageBackbone, ImageClassifier, Reference, check, image_family, pooled
from .classifier import Architecture, channel_axis, padded
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401

STAGES = (  # expansion, kernel, stride, width, blocks (arXiv:1905.11946, table 1)
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
VARIANTS = {  # width, depth, size, dropout (the authors' efficientnet_builder.py; section 5.2)
    "B0": (1.0, 1.0, 224, 0.2),
    "B1": (1.0, 1.1, 240, 0.2),
    "B2": (1.1, 1.2, 260, 0.3),
    "B3": (1.2, 1.4, 300, 0.3),
    "B4": (1.4, 1.8, 380, 0.4),
    "B5": (1.6, 2.2, 456, 0.4),
    "B6": (1.8, 2.6, 528, 0.5),
    "B7": (2.0, 3.1, 600, 0.5),
}
DEVIATION = (0.229, 0.224, 0.225)  # of ImageNet's red, green, blue in 0..1


def he():
    return initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")


def width_of(x):
    return x.shape[channel_axis()]


def norm(x, name, momentum=0.99):
    return layers.BatchNormalization(channel_axis(), momentum, name=f"{name}_bn")(x)


def active(x, name, momentum=0.99):
    return layers.Activation("silu", name=f"{name}_activation")(norm(x, name, momentum))


def conv(x, width, kernel, stride, name, padding="same"):
    layer = partial(layers.Conv2D, use_bias=False, kernel_initializer=he())
    return layer(width, kernel, stride, padding, name=f"{name}_conv")(x)


def depthwise(x, kernel, stride, name, padding="same"):
    layer = partial(layers.DepthwiseConv2D, use_bias=False, depthwise_initializer=he())
    return layer(kernel, stride, padding, name=name)(x)


def padded_depthwise(x, kernel, stride, name):
    name = f"{name}_dwconv"
    if stride == 1:
        return depthwise(x, kernel, stride, name)
    return depthwise(padded(x, kernel, f"{name}_pad"), kernel, stride, name, "valid")


def squeeze_excite(x, width, name):
    """x * sigmoid(W2 silu(W1 mean(x))), W1 to `width`.  Hu et al. 2017, arXiv:1709.01507"""
    n = width_of(x)
    layer = partial(layers.Conv2D, kernel_size=1, padding="same")
    s = layers.GlobalAveragePooling2D(name=f"{name}_squeeze")(x)
    s = layers.Reshape((n, 1, 1) if channel_axis() == 1 else (1, 1, n), name=f"{name}_reshape")(s)
    s = layer(width, activation="silu", kernel_initializer=he(), name=f"{name}_reduce")(s)
    s = layer(n, activation="sigmoid", kernel_initializer=he(), name=f"{name}_expand")(s)
    return layers.Multiply(name=f"{name}_excite")([x, s])


def mbconv(x, width, stride, name, expansion, kernel, depthwise, momentum=0.99):
    """1 x 1 to `expansion` times the width, depthwise, squeeze and excite, 1 x 1 to `width`."""
    n = width_of(x)
    if expansion > 1:
        expand = f"{name}_expand"
        x = active(conv(x, expansion * n, 1, 1, expand), expand, momentum)
    x = active(depthwise(x, kernel, stride, name), name, momentum)
    x = squeeze_excite(x, n // 4, f"{name}_se")
    return norm(conv(x, width, 1, 1, f"{name}_project"), f"{name}_project", momentum)


def chain(x, stages, total):
    """Blocks one after another, added to what they get where that has their shape.

    stages: of each, block (x, width, stride, name) -> x, the number of them, width, first stride
    total: a block is left out in training at the rate 0.2 * its index / total (arXiv:1603.09382)
    """
    index = 0
    for stage, (block, count, width, stride) in enumerate(stages, 1):
        for letter in ascii_lowercase[:count]:
            name = f"block{stage}{letter}"
            y = block(x, width, stride, name)
            if stride == 1 and width_of(x) == width:
                if index:
                    rate = 0.2 * index / total
                    y = layers.Dropout(rate, (None, 1, 1, 1), name=f"{name}_drop")(y)
                y = layers.Add(name=f"{name}_add")([y, x])
            x, stride, index = y, 1, index + 1
    return x


def scores(x, classes, activation, dropout, **options):
    """The mean over space, with dropout, then a Dense."""
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dropout(dropout, name="top_dropout")(x)
    start = initializers.VarianceScaling(1 / 3, "fan_out", "uniform")
    return layers.Dense(classes, activation, kernel_initializer=start, name="predictions")(x)


def scaled(width, factor):
    """The multiple of 8 nearest to width * factor, or the next if that is over 10 % less."""
    exact = width * factor
    near = max(8, int(exact + 4) // 8 * 8)
    return near if near >= 0.9 * exact else near + 8


def pixels(image, weights):
    """Values of 0..255 to mean 0 and deviation 1."""
    x = layers.Normalization(channel_axis())(layers.Rescaling(1 / 255)(image))
    if weights == "imagenet":  # these have the deviations in place of the variances
        scale = [1 / math.sqrt(deviation) for deviation in DEVIATION]
        x = layers.Rescaling(scale)(x)
    return x


def efficientnet(image, width, depth, weights, **options):
    def stage(expansion, kernel, stride, filters, count):
        block = partial(mbconv, expansion=expansion, kernel=kernel, depthwise=padded_depthwise)
        return block, math.ceil(depth * count), scaled(filters, width), stride

    x = padded(pixels(image, weights), 3, "stem_conv_pad")
    x = active(conv(x, scaled(32, width), 3, 2, "stem", "valid"), "stem")
    stages = [stage(*row) for row in STAGES]
    x = chain(x, stages, total=sum(count for _, count, _, _ in stages))
    return active(conv(x, scaled(1280, width), 1, 1, "top"), "top")


_architecture = Architecture(efficientnet, top=scores)
_all = [
    _architecture.constructor(
        f"EfficientNet{name}",
        f"efficientnet{name.lower()}",
        size,
        width=width,
        depth=depth,
        dropout=dropout,
    )
    for name, (width, depth, size, dropout) in VARIANTS.items()
]
EfficientNetB0, EfficientNetB1, EfficientNetB2, EfficientNetB3 = _all[:4]
EfficientNetB4, EfficientNetB5, EfficientNetB6, EfficientNetB7 = _all[4:]

preprocess_input = preprocessing(_architecture.mode)


# --- the hub's: as timm, torchvision and transformers have them ---------------------------------

TF = dict(epsilon=1e-3, padding="same")
MBCONV = tuple(("mbconv", *row) for row in STAGES)
V2 = (  # block, expansion, kernel, stride (arXiv:2104.00298, table 4)
    ("conv", 1, 3, 1),
    ("fused", 4, 3, 2),
    ("fused", 4, 3, 2),
    ("mbconv", 4, 3, 2),
    ("mbconv", 6, 3, 1),
    ("mbconv", 6, 3, 2),
    ("mbconv", 6, 3, 1),
)


def _v2(widths, counts, stem=24, rows=V2, **options):
    stages = tuple((*row, *size) for row, *size in zip(rows, widths, counts))
    return dict(stages=stages, stem_width=stem, **options)


_FUSED = (("fused", *V2[0][1:]), *V2[1:])
NETWORKS = {
    "efficientnetv2_s": _v2((24, 48, 64, 128, 160, 256), (2, 4, 4, 6, 9, 15)),
    "efficientnetv2_m": _v2((24, 48, 80, 160, 176, 304, 512), (3, 5, 5, 7, 14, 18, 5)),
    "efficientnetv2_l": _v2((32, 64, 96, 192, 224, 384, 640), (4, 7, 7, 10, 19, 25, 7), 32),
    "efficientnetv2_xl": _v2((32, 64, 96, 192, 256, 512, 640), (4, 8, 8, 16, 24, 32, 8), 32),
}
for name, (width, depth, *_) in VARIANTS.items():
    NETWORKS[f"efficientnet_{name.lower()}"] = dict(width=width, depth=depth)
NETWORKS |= {f"tf_{name}": row | TF for name, row in NETWORKS.items()}
for name in ("B0", "B1", "B2", "B3"):
    NETWORKS[f"tf_efficientnetv2_{name.lower()}"] = _v2(
        *((16, 32, 48, 96, 112, 192), (1, 2, 2, 3, 5, 8), 32),
        **dict(zip(("width", "depth"), VARIANTS[name]), least=0.0, **TF),
    )
NETWORKS |= {  # timm's own
    "efficientnetv2_rw_t": _v2((24, 40, 48, 104, 128, 208), (2, 4, 4, 6, 9, 14), head_width=1024),
    "efficientnetv2_rw_s": _v2(
        *((24, 48, 64, 128, 160, 272), (2, 4, 4, 6, 9, 15), 24, _FUSED), head_width=1792
    ),
    "efficientnetv2_rw_m": _v2(
        *((32, 56, 80, 152, 192, 328), (3, 5, 5, 8, 15, 24), 32, _FUSED), head_width=2152
    ),
    "test_efficientnet": dict(
        stages=(
            ("conv", 1, 3, 1, 16, 1),
            ("fused", 4, 3, 2, 24, 1),
            ("fused", 4, 3, 2, 32, 1),
            ("mbconv", 4, 3, 2, 48, 1),
            ("mbconv", 4, 3, 2, 64, 1),
        ),
        stem_width=24,
        head_width=256,
    ),
}

_HEAD = ("classifier.*",)
REFERENCES = {
    "timm": Reference(ignored=_HEAD),
    "transformers": Reference(
        names=(
            ("embeddings.convolution", "conv_stem"),
            ("embeddings.batchnorm", "bn1"),
            ("encoder.top_conv", "conv_head"),
            ("encoder.top_bn", "bn2"),
        ),
        prefix="efficientnet",
        ignored=_HEAD,
    ),
    "torchvision": Reference(
        names=(
            ("features.0.0", "conv_stem"),
            ("features.0.1", "bn1"),
            ("classifier.1", "head.classifier"),
        ),
        ignored=_HEAD,
    ),
}
_PAIRS = (
    ("expansion.expand_conv", "expansion.expand_bn"),
    ("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm"),
    ("squeeze_excite.reduce", "squeeze_excite.expand"),
    ("projection.project_conv", "projection.project_bn"),
)


class EfficientNetBackbone(ImageBackbone):
    """EfficientNet and EfficientNetV2 (Tan & Le 2021, arXiv:2104.00298), with the last convolution.

    images (batch, height, width, 3) -> features (batch, height / 32, width / 32, head width)
    stages: of each block ("mbconv", "fused" or "conv"), expansion, kernel, stride, width, blocks
    width, depth: factors; widths are multiples of `divisor`, not under `least` of the exact value
    squeeze: width inside of squeeze and excite, of a block's input, 0 for none
    padding: zeros alike on both sides; "same", as Keras; or "fixed", at a stride one less before
    than after, except in blocks with a number in `symmetric`
    """

    stages: tuple = MBCONV
    width: float = 1.0
    depth: float = 1.0
    stem_width: PositiveInt = 32
    head_width: PositiveInt = 1280
    divisor: PositiveInt = 8
    least: Rate = 0.9
    squeeze: Rate = 0.25
    activation: str = "silu"
    epsilon: float = 1e-5
    padding: Choice("zeros", "same", "fixed") = "zeros"
    symmetric: tuple = ()

    VARIANTS = NETWORKS
    REFERENCES = REFERENCES

    def scaled(self, width):
        return parts.divisible(width * self.width, self.divisor, self.least)

    def zeros(self, kernel, number=None):
        if self.padding != "fixed":
            return "same" if self.padding == "same" else None
        return (kernel // 2 - (number not in self.symmetric), kernel // 2)

    def blocks(self):
        """Yield the name of each block, and the block."""
        before, number = self.scaled(self.stem_width), 0
        for s, (kind, expansion, kernel, stride, width, count) in enumerate(self.stages):
            width, squeeze = self.scaled(width), 0
            for i in range(math.ceil(count * self.depth)):
                if kind == "mbconv":
                    squeeze = self.squeeze and max(1, int(before * self.squeeze))
                yield (
                    f"blocks.{s}.{i}",
                    inverted.Block(
                        {"mbconv": "separable" if expansion == 1 else "inverted"}.get(kind, kind),
                        *(expansion * before, width, kernel, 1 if i else stride, self.activation),
                        squeeze=squeeze,
                        skip=i > 0 or self.reference != "transformers",
                        epsilon=self.epsilon,
                        zeros=self.zeros(kernel, number),
                    ),
                )
                before, number = width, number + 1

    def draw(self, image):
        last, zeros = (self.activation, self.epsilon), self.zeros(3)
        width = self.scaled(self.stem_width)
        x = inverted.conv_norm(image, width, 3, 2, ("conv_stem", "bn1"), *last, zeros)
        for name, block in self.blocks():
            x = block.draw(x, name)
        width = self.scaled(self.head_width)
        return inverted.conv_norm(x, width, 1, 1, ("conv_head", "bn2"), *last)

    def draw_head(self, features, num_classes, dropout):
        x = layers.Dropout(dropout, name="dropout")(pooled(features))
        return layers.Dense(num_classes, name="classifier")(x)

    @property
    def naming(self):
        found, names = super().naming, []
        for number, (ours, block) in enumerate(self.blocks()):
            if self.reference == "transformers":
                names += inverted.renames(block, f"encoder.blocks.{number}", _PAIRS, ours)
            if self.reference == "torchvision":
                _, stage, i = ours.split(".")
                theirs = f"features.{int(stage) + 1}.{i}"
                names += inverted.renames(block, theirs, inverted.torchvision_pairs(block), ours)
        if self.reference == "torchvision":
            last = f"features.{len(self.stages) + 1}"
            names += [(f"{last}.0", "conv_head"), (f"{last}.1", "bn2")]
        return replace(found, names=(*found.names, *names))

    @classmethod
    def config_from_transformers(cls, config):
        keys = ("expand_ratios", "kernel_sizes", "strides", "out_channels", "num_block_repeats")
        default = dict(zip(keys, zip(*STAGES)))
        columns = [config.get(key, default[key]) for key in keys]
        width, divisor = config.get("width_coefficient", 2.0), config.get("depth_divisor", 8)
        head = parts.divisible(1280 * width, divisor)
        inputs = [32, *columns[3][:-1]]
        check(config, dict(pooling_type="mean", hidden_dim=head, in_channels=inputs))
        return {
            "stages": tuple(("mbconv", *row) for row in zip(*columns, strict=True)),
            "width": width,
            "depth": config.get("depth_coefficient", 3.1),
            "divisor": divisor,
            "squeeze": config.get("squeeze_expansion_ratio", 0.25),
            "activation": config.get("hidden_act", "swish"),
            "epsilon": config.get("batch_norm_eps", 0.001),
            "padding": "fixed",
            "symmetric": tuple(config.get("depthwise_padding", ())),
        }

    def transformers_config(self):
        _, expansions, kernels, strides, widths, counts = zip(*self.stages)
        return {
            "model_type": "efficientnet",
            "architectures": ["EfficientNetForImageClassification"],
            "expand_ratios": list(expansions),
            "kernel_sizes": list(kernels),
            "strides": list(strides),
            "in_channels": [self.stem_width, *widths[:-1]],
            "out_channels": list(widths),
            "num_block_repeats": list(counts),
            "width_coefficient": self.width,
            "depth_coefficient": self.depth,
            "depth_divisor": self.divisor,
            "hidden_dim": self.scaled(self.head_width),
            "squeeze_expansion_ratio": self.squeeze,
            "hidden_act": self.activation,
            "batch_norm_eps": self.epsilon,
            "depthwise_padding": list(self.symmetric),
        }


class EfficientNetImageClassifier(ImageClassifier):
    """A class of an image, by an EfficientNet."""


image_family(
    "efficientnet",
    EfficientNetBackbone,
    EfficientNetImageClassifier,
    ("efficientnet",),
    ("EfficientNetForImageClassification",),
)
