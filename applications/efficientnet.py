"""EfficientNet. Tan & Le 2019, arXiv:1905.11946."""

import math
from dataclasses import replace
from functools import partial
from string import ascii_lowercase

from khub import initializers, layers
from khub.fields import Choice, PositiveInt, Rate

from ..cv import inverted, parts
from ..cv.backbone import check
from ..cv.image_classifier import image_family
from .classifier import Architecture, channel_axis
from .imagenet_utils import DEVIATION, decode_predictions, preprocessing  # noqa: F401
from .units import Unit, draw_block

STAGES = (  # block, expansion, kernel, stride, width, blocks (arXiv:1905.11946, table 1)
    ("mbconv", 1, 3, 1, 16, 1),
    ("mbconv", 6, 3, 2, 24, 2),
    ("mbconv", 6, 5, 2, 40, 2),
    ("mbconv", 6, 3, 2, 80, 3),
    ("mbconv", 6, 5, 1, 112, 3),
    ("mbconv", 6, 5, 2, 192, 4),
    ("mbconv", 6, 3, 1, 320, 1),
)
VARIANTS = {  # factors, size, dropout (the authors' efficientnet_builder.py; section 5.2)
    "B0": dict(width=1.0, depth=1.0, size=224, dropout=0.2),
    "B1": dict(width=1.0, depth=1.1, size=240, dropout=0.2),
    "B2": dict(width=1.1, depth=1.2, size=260, dropout=0.3),
    "B3": dict(width=1.2, depth=1.4, size=300, dropout=0.3),
    "B4": dict(width=1.4, depth=1.8, size=380, dropout=0.4),
    "B5": dict(width=1.6, depth=2.2, size=456, dropout=0.4),
    "B6": dict(width=1.8, depth=2.6, size=528, dropout=0.5),
    "B7": dict(width=2.0, depth=3.1, size=600, dropout=0.5),
}
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


def version2(name):
    """Return the constructor arguments of `EfficientNetBackbone` for a row of V2."""
    widths, counts, stem, head, first = V2[name]
    rows = ((first, *_ROWS[0][1:]), *_ROWS[1:])
    stages = tuple((*row, *size) for row, *size in zip(rows, widths, counts))
    return dict(stages=stages, stem_width=stem, head_width=head)


def blocks(stages, before, scaled, depth, squeeze=0.25):
    """Yield timm's name of each block, and the `Block` with silu.

    stages: as those of `EfficientNetBackbone`   before: width in front of them
    scaled: width -> that of a variant   depth: factor of the blocks   squeeze: of a block's input
    """
    for s, (kind, expansion, kernel, stride, width, count) in enumerate(stages):
        mbconv, width = kind == "mbconv", scaled(width)
        kind = ("separable" if expansion == 1 else "inverted") if mbconv else kind
        squeezed = squeeze if mbconv else 0
        for i in range(math.ceil(count * depth)):
            sizes = (expansion * before, width, kernel, 1 if i else stride, "silu")
            inside = max(1, int(before * squeezed)) if squeezed else 0
            yield f"blocks.{s}.{i}", inverted.Block(kind, *sizes, inside)
            before = width


def he():
    return initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")


silu = partial(layers.Activation, "silu")
UNIT = Unit("{}_conv", active="{}_activation", activation=silu, start=he)


def filtered(x, block, name):
    unit, pad = replace(UNIT, conv="{}_dwconv"), f"{name}_dwconv_pad"
    return unit(x, None, block.kernel, block.stride, pad=pad, name=name)


def squeeze_excite(x, width, name):
    """x * sigmoid(W2 silu(W1 mean(x))), W1 to `width`.  Hu et al. 2017, arXiv:1709.01507"""
    n, name = parts.width_of(x), f"{name}_se"
    layer = partial(layers.Conv2D, kernel_size=1, padding="same")
    s = layers.GlobalAveragePooling2D(name=f"{name}_squeeze")(x)
    s = layers.Reshape((n, 1, 1) if channel_axis() == 1 else (1, 1, n), name=f"{name}_reshape")(s)
    s = layer(width, activation="silu", kernel_initializer=he(), name=f"{name}_reduce")(s)
    s = layer(n, activation="sigmoid", kernel_initializer=he(), name=f"{name}_expand")(s)
    return layers.Multiply(name=f"{name}_excite")([x, s])


def chain(x, found, total, unit, filtered):
    """Draw what `blocks` has found, to be left out in training at 0.2 * a block's place / total."""
    for place, (name, block) in enumerate(found):
        _, stage, i = name.split(".")
        name, rate = f"block{int(stage) + 1}{ascii_lowercase[int(i)]}", 0.2 * place / total
        x = draw_block(x, block, name, unit, filtered, squeeze_excite, rate)
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
    def scaled(n):
        return parts.divisible(n * width)

    found = list(blocks(STAGES, scaled(32), scaled, depth))
    x = UNIT(pixels(image, weights), scaled(32), 3, 2, pad="stem_conv_pad", name="stem")
    x = chain(x, found, len(found), UNIT, filtered)
    return UNIT(x, scaled(1280), name="top")


_architecture = Architecture(efficientnet, top=scores, named_pooling=True)
_all = [
    _architecture.constructor(f"EfficientNet{name}", f"efficientnet{name.lower()}", **variant)
    for name, variant in VARIANTS.items()
]
EfficientNetB0, EfficientNetB1, EfficientNetB2, EfficientNetB3 = _all[:4]
EfficientNetB4, EfficientNetB5, EfficientNetB6, EfficientNetB7 = _all[4:]

preprocess_input = preprocessing(_architecture.preprocessing)


# --- the hub's: as timm, torchvision and transformers have them ---------------------------------

_TF = dict(epsilon=1e-3, padding="same")
_SCALES = {
    name.lower(): {"width": row["width"], "depth": row["depth"]} for name, row in VARIANTS.items()
}
NETWORKS = {f"efficientnet_{name}": scale for name, scale in _SCALES.items()}
NETWORKS |= {f"efficientnetv2_{name}": version2(name) for name in V2 if name != "b"}
NETWORKS |= {f"tf_{name}": row | _TF for name, row in NETWORKS.items() if "_rw_" not in name}
for name in ("b0", "b1", "b2", "b3"):
    NETWORKS[f"tf_efficientnetv2_{name}"] = version2("b") | _SCALES[name] | _TF | dict(least=0.0)
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

    stages: tuple = STAGES
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
        before = self.scaled(self.stem_width)
        found = blocks(self.stages, before, self.scaled, self.depth, self.squeeze)
        for number, (name, block) in enumerate(found):
            own = dict(activation=self.activation, zeros=self.zeros(block.kernel, number))
            own["skip"] = self.reference != "transformers" or not name.endswith(".0")
            yield name, replace(block, **own)

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
        _, *usual = zip(*STAGES)
        columns = [config.get(key, row) for key, row in zip(_STAGES, usual, strict=True)]
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
