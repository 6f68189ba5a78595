"""EfficientNetV2. Tan & Le 2021, arXiv:2104.00298."""

from dataclasses import replace

from khub import layers

from ..cv import parts
from . import efficientnet as v1
from .classifier import ARGUMENTS, channel_axis
from .imagenet_utils import DEVIATION, MEAN, decode_predictions, preprocessing  # noqa: F401

VARIANTS = {  # base, factors, size, dropout (the authors' effnetv2_configs.py)
    "B0": dict(base="b", width=1.0, depth=1.0, size=224, dropout=0.2),
    "B1": dict(base="b", width=1.0, depth=1.1, size=240, dropout=0.2),
    "B2": dict(base="b", width=1.1, depth=1.2, size=260, dropout=0.2),
    "B3": dict(base="b", width=1.2, depth=1.4, size=300, dropout=0.2),
    "S": dict(base="s", width=1.0, depth=1.0, size=384, dropout=0.2),
    "M": dict(base="m", width=1.0, depth=1.0, size=480, dropout=0.2),
    "L": dict(base="l", width=1.0, depth=1.0, size=480, dropout=0.2),
}
UNIT = replace(v1.UNIT, normalization={"momentum": 0.9})


def filtered(x, block, name):
    return replace(UNIT, conv="{}_dwconv2")(x, None, block.kernel, block.stride, name=name)


def pixels(image, base):
    """Values of 0..255 to mean 0 and deviation 1, or to -1..1."""
    if base != "b" or parts.width_of(image) != 3:
        return layers.Rescaling(1 / 128, -1)(image)
    variance = [deviation**2 for deviation in DEVIATION]
    return layers.Normalization(channel_axis(), MEAN, variance)(layers.Rescaling(1 / 255)(image))


def efficientnet_v2(image, base, width, depth, include_preprocessing, **options):
    def scaled(n):
        return parts.divisible(n * width, least=0)

    stages, stem, head = v1.version2(base).values()
    x = pixels(image, base) if include_preprocessing else image
    x = UNIT(x, scaled(stem), 3, 2, name="stem")
    total = sum(count for *_, count in stages)  # as in Keras: of the base, whatever the depth
    x = v1.chain(x, v1.blocks(stages, scaled(stem), scaled, depth), total, UNIT, filtered)
    return UNIT(x, scaled(head), name="top")


SIGNATURE = ARGUMENTS | {"include_preprocessing": True}
_architecture = replace(v1._architecture, body=efficientnet_v2, arguments=SIGNATURE)
_all = [
    _architecture.constructor(f"EfficientNetV2{name}", f"efficientnetv2-{name.lower()}", **variant)
    for name, variant in VARIANTS.items()
]
EfficientNetV2B0, EfficientNetV2B1, EfficientNetV2B2, EfficientNetV2B3 = _all[:4]
EfficientNetV2S, EfficientNetV2M, EfficientNetV2L = _all[4:]

preprocess_input = preprocessing(_architecture.preprocessing)
