"""Xception. Chollet 2016, arXiv:1610.02357."""

from khub import layers

from .classifier import Architecture, channel_axis
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401

# Blocks of figure 5, from the second on: the widths of their separable convolutions
ENTRY = ((128, 128), (256, 256), (728, 728))
MIDDLE = 8 * ((728, 728, 728),)
EXIT = (728, 1024)
LAST = (1536, 2048)


def norm(x, name=None):
    return layers.BatchNormalization(channel_axis(), name=name)(x)


def relu(x, name):
    return layers.Activation("relu", name=name)(x)


def convolution(x, width, stride, name):
    x = layers.Conv2D(width, 3, strides=stride, use_bias=False, name=name)(x)
    return relu(norm(x, f"{name}_bn"), f"{name}_act")


def separable(x, width, name):
    x = layers.SeparableConv2D(width, 3, padding="same", use_bias=False, name=name)(x)
    return norm(x, f"{name}_bn")


def separables(x, widths, name, relu_first=True):
    for i, width in enumerate(widths, 1):
        if i > 1 or relu_first:
            x = relu(x, f"{name}_sepconv{i}_act")
        x = separable(x, width, f"{name}_sepconv{i}")
    return x


def shrinking(x, widths, name, **options):
    """Half the size; the shortcut is a strided 1 x 1 convolution."""
    shortcut = layers.Conv2D(widths[-1], 1, strides=2, padding="same", use_bias=False)(x)
    shortcut = norm(shortcut)
    x = separables(x, widths, name, **options)
    x = layers.MaxPooling2D(3, strides=2, padding="same", name=f"{name}_pool")(x)
    return layers.Add()([x, shortcut])


def xception(image, **options):
    x = convolution(image, 32, 2, "block1_conv1")
    x = convolution(x, 64, 1, "block1_conv2")
    for i, widths in enumerate(ENTRY, 2):
        x = shrinking(x, widths, f"block{i}", relu_first=i > 2)  # block 1 ends in a relu
    for i, widths in enumerate(MIDDLE, 5):
        x = layers.Add()([separables(x, widths, f"block{i}"), x])
    x = shrinking(x, EXIT, "block13")
    for i, width in enumerate(LAST, 1):
        x = relu(separable(x, width, f"block14_sepconv{i}"), f"block14_sepconv{i}_act")
    return x


_architecture = Architecture(xception, "tf", least=71, named_pooling=False)
Xception = _architecture.constructor("Xception", "xception", 299)

preprocess_input = preprocessing(_architecture.mode)
