"""Residual networks. He et al. 2015, arXiv:1512.03385."""

from khub import layers

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
