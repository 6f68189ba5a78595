"""EfficientNet. Tan & Le 2019, arXiv:1905.11946."""

import math
from functools import partial
from string import ascii_lowercase

from khub import initializers, layers
from khub.fields import Choice, PositiveInt, Rate

from ..cv import inverted, parts
from ..cv.backbone import check
from ..cv.image_classifier import image_family
from .classifier import Architecture, channel_axis, padded
from .imagenet_utils import DEVIATION, decode_predictions, preprocessing  # noqa: F401

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
        return block, math.ceil(depth * count), parts.divisible(filters * width), stride

    x = padded(pixels(image, weights), 3, "stem_conv_pad")
    x = active(conv(x, parts.divisible(32 * width), 3, 2, "stem", "valid"), "stem")
    stages = [stage(*row) for row in STAGES]
    x = chain(x, stages, total=sum(count for _, count, _, _ in stages))
    return active(conv(x, parts.divisible(1280 * width), 1, 1, "top"), "top")


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

_ROWS = (  # block, expansion, kernel, stride (arXiv:2104.00298, table 4)
    ("conv", 1, 3, 1),
    ("fused", 4, 3, 2),
    ("fused", 4, 3, 2),
    ("mbconv", 4, 3, 2),
    ("mbconv", 6, 3, 1),
    ("mbconv", 6, 3, 2),
    ("mbconv", 6, 3, 1),
)
V2 = {  # widths and blocks of the stages, stem, head, first block (ibid.; rw: timm's)
    "s": ((24, 48, 64, 128, 160, 256), (2, 4, 4, 6, 9, 15), 24, 1280, "conv"),
    "m": ((24, 48, 80, 160, 176, 304, 512), (3, 5, 5, 7, 14, 18, 5), 24, 1280, "conv"),
    "l": ((32, 64, 96, 192, 224, 384, 640), (4, 7, 7, 10, 19, 25, 7), 32, 1280, "conv"),
    "xl": ((32, 64, 96, 192, 256, 512, 640), (4, 8, 8, 16, 24, 32, 8), 32, 1280, "conv"),
    "rw_t": ((24, 40, 48, 104, 128, 208), (2, 4, 4, 6, 9, 14), 24, 1024, "conv"),
    "rw_s": ((24, 48, 64, 128, 160, 272), (2, 4, 4, 6, 9, 15), 24, 1792, "fused"),
    "rw_m": ((32, 56, 80, 152, 192, 328), (3, 5, 5, 8, 15, 24), 32, 2152, "fused"),
    "b": ((16, 32, 48, 96, 112, 192), (1, 2, 2, 3, 5, 8), 32, 1280, "conv"),
}


def _v2(name):
    widths, counts, stem, head, first = V2[name]
    rows = ((first, *_ROWS[0][1:]), *_ROWS[1:])
    stages = tuple((*row, *size) for row, *size in zip(rows, widths, counts))
    return dict(stages=stages, stem_width=stem, head_width=head)


_TF = dict(epsilon=1e-3, padding="same")
_SCALES = {name.lower(): dict(width=row[0], depth=row[1]) for name, row in VARIANTS.items()}
NETWORKS = {f"efficientnet_{name}": scale for name, scale in _SCALES.items()}
NETWORKS |= {f"efficientnetv2_{name}": _v2(name) for name in V2 if name != "b"}
NETWORKS |= {f"tf_{name}": row | _TF for name, row in NETWORKS.items() if "_rw_" not in name}
for name in ("b0", "b1", "b2", "b3"):
    NETWORKS[f"tf_efficientnetv2_{name}"] = _v2("b") | _SCALES[name] | _TF | dict(least=0.0)
_TINY = zip((*_ROWS[:2], _ROWS[1], _ROWS[3], _ROWS[3]), (16, 24, 32, 48, 64))
_TINY = tuple((*row, width, 1) for row, width in _TINY)
NETWORKS["test_efficientnet"] = dict(stages=_TINY, stem_width=24, head_width=256)

_PAIRS = (
    ("expansion.expand_conv", "expansion.expand_bn"),
    ("depthwise_conv.depthwise_conv", "depthwise_conv.depthwise_norm"),
    ("squeeze_excite.reduce", "squeeze_excite.expand"),
    ("projection.project_conv", "projection.project_bn"),
)
_STAGES = ("expand_ratios", "kernel_sizes", "strides", "out_channels", "num_block_repeats")


@image_family("efficientnet")
class EfficientNetBackbone(inverted.InvertedBackbone):
    """EfficientNet and EfficientNetV2 (Tan & Le 2021, arXiv:2104.00298), with the last convolution.

    images (batch, height, width, 3) -> features (batch, height / 32, width / 32, head width)
    stages: of each block ("mbconv", "fused" or "conv"), expansion, kernel, stride, width, blocks
    width, depth: factors; widths are multiples of `divisor`, not under `least` of the exact value
    squeeze: width inside of squeeze and excite, of a block's input, 0 for none
    padding: zeros alike on both sides; "same", as Keras; or "fixed", at a stride one less before
    than after, except in blocks with a number in `symmetric`
    """

    stages: tuple = tuple(("mbconv", *row) for row in STAGES)
    width: float = 1.0
    depth: float = 1.0
    stem_width: PositiveInt = 32
    head_width: PositiveInt = 1280
    divisor: PositiveInt = 8
    least: Rate = 0.9
    squeeze: Rate = 0.25
    activation: str = "silu"
    padding: Choice("zeros", "same", "fixed") = "zeros"
    symmetric: tuple = ()

    VARIANTS = NETWORKS
    STEMS = {"efficientnet": "EfficientNet"}
    REFERENCES = inverted.references(
        ("embeddings.convolution", "embeddings.batchnorm", "encoder.top_conv", "encoder.top_bn"),
        "efficientnet",
    )
    COARSE = ("b5", "b6", "b7", "v2_s", "v2_m", "v2_l")
    KEYS = {
        "width": ("width_coefficient", 2.0),
        "depth": ("depth_coefficient", 3.1),
        "divisor": ("depth_divisor", 8),
        "squeeze": ("squeeze_expansion_ratio", 0.25),
        "activation": ("hidden_act", "swish"),
        "epsilon": ("batch_norm_eps", 0.001),
        "symmetric": ("depthwise_padding", ()),
    }

    def scaled(self, width):
        return parts.divisible(width * self.width, self.divisor, self.least)

    def zeros(self, kernel, number=None):
        if self.padding != "fixed":
            return "same" if self.padding == "same" else None
        return (kernel // 2 - (number not in self.symmetric), kernel // 2)

    def blocks(self):
        before, number = self.scaled(self.stem_width), 0
        for s, (kind, expansion, kernel, stride, width, count) in enumerate(self.stages):
            mbconv, width = kind == "mbconv", self.scaled(width)
            kind = ("separable" if expansion == 1 else "inverted") if mbconv else kind
            for i in range(math.ceil(count * self.depth)):
                sizes = (expansion * before, width, kernel, 1 if i else stride)
                squeeze = max(1, int(before * self.squeeze)) if mbconv and self.squeeze else 0
                skip = i > 0 or self.reference != "transformers"
                options = (self.activation, squeeze, skip, self.zeros(kernel, number))
                yield f"blocks.{s}.{i}", inverted.Block(kind, *sizes, *options)
                before, number = width, number + 1

    def block_names(self, number, name, block):
        if self.reference == "transformers":
            return f"encoder.blocks.{number}", _PAIRS
        _, stage, i = name.split(".")
        return f"features.{int(stage) + 1}.{i}", block.torchvision_pairs()

    def draw(self, image):
        stem, head = self.scaled(self.stem_width), self.scaled(self.head_width)
        x = self.draw_blocks(image, stem, self.zeros(3), (self.activation, "sigmoid"))
        return self.conv(x, head, 1, 1, "conv_head", "bn2", self.activation)

    @classmethod
    def config_from_transformers(cls, config):
        found = super().config_from_transformers(config)
        columns = [config.get(key, row) for key, row in zip(_STAGES, zip(*STAGES), strict=True)]
        head = parts.divisible(1280 * found["width"], found["divisor"])
        inputs = [32, *columns[3][:-1]]
        check(config, dict(pooling_type="mean", hidden_dim=head, in_channels=inputs))
        stages = tuple(("mbconv", *row) for row in zip(*columns, strict=True))
        return found | {"stages": stages, "padding": "fixed"}

    def transformers_config(self):
        kinds, *columns = zip(*self.stages)
        if {*kinds} != {"mbconv"} or self.padding != "fixed":
            raise ValueError("transformers has no EfficientNetV2, and only the padding 'fixed'.")
        return {
            **super().transformers_config(),
            **dict(zip(_STAGES, map(list, columns), strict=True)),
            "in_channels": [self.stem_width, *columns[3][:-1]],
            "hidden_dim": self.scaled(self.head_width),
        }
