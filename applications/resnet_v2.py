"""Residual networks with norm and relu before convolutions. He et al. 2016, arXiv:1603.05027."""

from khub import layers

from .classifier import Architecture
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401
from .resnet import BLOCKS, WIDTHS, norm, pool, relu, stem


def block(x, width, stride, first, name):
    """x + F(relu(norm(x))), figure 1 b; a first block projects relu(norm(x)) to take x's place."""
    active = relu(norm(x, f"{name}_preact_bn"), f"{name}_preact_relu")
    shortcut = x
    if first:
        shortcut = layers.Conv2D(4 * width, 1, name=f"{name}_0_conv")(active)
    elif stride > 1:
        shortcut = layers.MaxPooling2D(1, strides=stride)(x)
    x = layers.Conv2D(width, 1, use_bias=False, name=f"{name}_1_conv")(active)
    x = relu(norm(x, f"{name}_1_bn"), f"{name}_1_relu")
    x = layers.ZeroPadding2D(1, name=f"{name}_2_pad")(x)
    x = layers.Conv2D(width, 3, strides=stride, use_bias=False, name=f"{name}_2_conv")(x)
    x = relu(norm(x, f"{name}_2_bn"), f"{name}_2_relu")
    x = layers.Conv2D(4 * width, 1, name=f"{name}_3_conv")(x)
    return layers.Add(name=f"{name}_out")([shortcut, x])


def resnet_v2(image, blocks, **options):
    x = pool(stem(image))
    for stage, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True), 2):
        for i in range(1, count + 1):
            stride = 2 if i == count and stage < 5 else 1  # at the end of a stage, unlike version 1
            x = block(x, width, stride, i == 1, f"conv{stage}_block{i}")
    return relu(norm(x, "post_bn"), "post_relu")


_architecture = Architecture(resnet_v2, "tf")
ResNet50V2, ResNet101V2, ResNet152V2 = (
    _architecture.constructor(f"{name}V2", f"{name}v2".lower(), 224, blocks=blocks)
    for name, blocks in BLOCKS.items()
)

preprocess_input = preprocessing(_architecture.mode)
