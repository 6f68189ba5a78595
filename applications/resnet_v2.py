"""Residual networks with norm and relu before convolutions. He et al. 2016, arXiv:1603.05027."""

from dataclasses import replace

from khub import layers

from . import resnet
from .classifier import Architecture
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401

UNIT = replace(resnet.UNIT, bias=False)  # a bias has only what is not normalized


def block(x, width, stride, first, name):
    """x + F(relu(norm(x))), figure 1 b; a first block projects relu(norm(x)) to take x's place."""
    active = UNIT.normalized(x, f"{name}_preact")
    shortcut = x
    if first:
        shortcut = layers.Conv2D(4 * width, 1, name=f"{name}_0_conv")(active)
    elif stride > 1:
        shortcut = layers.MaxPooling2D(1, strides=stride)(x)
    x = UNIT(active, width, name=f"{name}_1")
    x = layers.ZeroPadding2D(1, name=f"{name}_2_pad")(x)
    x = UNIT(x, width, 3, stride, name=f"{name}_2")
    x = layers.Conv2D(4 * width, 1, name=f"{name}_3_conv")(x)
    return layers.Add(name=f"{name}_out")([shortcut, x])


def resnet_v2(image, blocks, **options):
    x = layers.ZeroPadding2D(3, name="conv1_pad")(image)
    x = resnet.pool(layers.Conv2D(64, 7, strides=2, name="conv1_conv")(x))
    for stage, (width, count) in enumerate(zip(resnet.WIDTHS, blocks, strict=True), 2):
        for i in range(1, count + 1):
            stride = 2 if i == count and stage < 5 else 1  # at the end of a stage, unlike version 1
            x = block(x, width, stride, i == 1, f"conv{stage}_block{i}")
    return UNIT.normalized(x, "post")


_architecture = Architecture(resnet_v2, "tf", named_pooling=True)
ResNet50V2, ResNet101V2, ResNet152V2 = (
    _architecture.constructor(f"ResNet{n}V2", f"resnet{n}v2", 224, blocks=resnet.DEPTHS[n])
    for n in (50, 101, 152)
)

preprocess_input = preprocessing(_architecture.preprocessing)
