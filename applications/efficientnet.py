"""EfficientNet. Tan & Le 2019, arXiv:1905.11946."""

import math
from functools import partial
from string import ascii_lowercase

from khub import initializers, layers

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
