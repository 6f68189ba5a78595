"""EfficientNetV2. Tan & Le 2021, arXiv:2104.00298."""

import math
from functools import partial

from khub import layers

from ..cv import parts
from . import efficientnet as v1
from .classifier import ARGUMENTS, Architecture, channel_axis
from .imagenet_utils import DEVIATION, MEAN, decode_predictions, preprocessing  # noqa: F401

MOMENTUM = 0.9
STAGES = (  # fused, expansion, stride (arXiv:2104.00298, table 4); kernels are 3 x 3
    (True, 1, 1),
    (True, 4, 2),
    (True, 4, 2),
    (False, 4, 2),
    (False, 6, 1),
    (False, 6, 2),
    (False, 6, 1),  # M and L only
)
BASES = {  # width of the stem, widths and blocks of the stages (table 4; B, M, L: effnetv2_configs)
    "B": (32, (16, 32, 48, 96, 112, 192), (1, 2, 2, 3, 5, 8)),
    "S": (24, (24, 48, 64, 128, 160, 256), (2, 4, 4, 6, 9, 15)),
    "M": (24, (24, 48, 80, 160, 176, 304, 512), (3, 5, 5, 7, 14, 18, 5)),
    "L": (32, (32, 64, 96, 192, 224, 384, 640), (4, 7, 7, 10, 19, 25, 7)),
}
VARIANTS = {  # base, width, depth, size (the authors' effnetv2_configs.py)
    "B0": ("B", 1.0, 1.0, 224),
    "B1": ("B", 1.0, 1.1, 240),
    "B2": ("B", 1.1, 1.2, 260),
    "B3": ("B", 1.2, 1.4, 300),
    "S": ("S", 1.0, 1.0, 384),
    "M": ("M", 1.0, 1.0, 480),
    "L": ("L", 1.0, 1.0, 480),
}
active = partial(v1.active, momentum=MOMENTUM)
norm = partial(v1.norm, momentum=MOMENTUM)


def depthwise(x, kernel, stride, name):
    return v1.depthwise(x, kernel, stride, f"{name}_dwconv2")


def fused(x, width, stride, name, expansion):
    """3 x 3 to `expansion` times the width, 1 x 1 to `width`; without expansion one 3 x 3."""
    expand, project = f"{name}_expand", f"{name}_project"
    if expansion == 1:
        return active(v1.conv(x, width, 3, stride, project), project)
    x = active(v1.conv(x, expansion * v1.width_of(x), 3, stride, expand), expand)
    return norm(v1.conv(x, width, 1, 1, project), project)


def pixels(image, base):
    """Values of 0..255 to mean 0 and deviation 1, or to -1..1."""
    if base != "B" or v1.width_of(image) != 3:
        return layers.Rescaling(1 / 128, -1)(image)
    variance = [deviation**2 for deviation in DEVIATION]
    return layers.Normalization(channel_axis(), MEAN, variance)(layers.Rescaling(1 / 255)(image))


def scaled(width, factor):
    return parts.divisible(width * factor, least=0)


def efficientnet_v2(image, base, width, depth, include_preprocessing, **options):
    mbconv = partial(v1.mbconv, kernel=3, depthwise=depthwise, momentum=MOMENTUM)

    def stage(is_fused, expansion, stride, filters, count):
        block = partial(fused if is_fused else mbconv, expansion=expansion)
        return block, math.ceil(depth * count), scaled(filters, width), stride

    stem, widths, counts = BASES[base]
    x = pixels(image, base) if include_preprocessing else image
    x = active(v1.conv(x, scaled(stem, width), 3, 2, "stem"), "stem")
    stages = [stage(*row, *sizes) for row, *sizes in zip(STAGES, widths, counts)]
    x = v1.chain(x, stages, total=sum(counts))  # as in Keras: of the base, whatever the depth
    return active(v1.conv(x, scaled(1280, width), 1, 1, "top"), "top")


_architecture = Architecture(
    efficientnet_v2, top=v1.scores, arguments=ARGUMENTS | {"include_preprocessing": True}
)
_all = [
    _architecture.constructor(
        f"EfficientNetV2{name}",
        f"efficientnetv2-{name.lower()}",
        size,
        base=base,
        width=width,
        depth=depth,
        dropout=0.2,
    )
    for name, (base, width, depth, size) in VARIANTS.items()
]
EfficientNetV2B0, EfficientNetV2B1, EfficientNetV2B2, EfficientNetV2B3 = _all[:4]
EfficientNetV2S, EfficientNetV2M, EfficientNetV2L = _all[4:]

preprocess_input = preprocessing(_architecture.mode)
