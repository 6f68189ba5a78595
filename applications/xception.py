"""Xception. Chollet 2016, arXiv:1610.02357."""

from khub import layers

from .classifier import Architecture
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401
from .units import Unit

# Blocks of figure 5, from the second on: the widths of their separable convolutions
ENTRY = ((128, 128), (256, 256), (728, 728))
MIDDLE = 8 * ((728, 728, 728),)
EXIT = (728, 1024)
LAST = (1536, 2048)


UNIT = Unit(active="{}_act")


def separable(x, width, name, linear=True):
    options = dict(padding="same", use_bias=False, name=name)
    return UNIT.normalized(layers.SeparableConv2D(width, 3, **options)(x), name, linear)


def separables(x, widths, name, relu_first=True):
    for i, width in enumerate(widths, 1):
        if i > 1 or relu_first:
            x = layers.Activation("relu", name=f"{name}_sepconv{i}_act")(x)
        x = separable(x, width, f"{name}_sepconv{i}")
    return x


def shrinking(x, widths, name, **options):
    """Half the size; the shortcut is a strided 1 x 1 convolution."""
    shortcut = UNIT(x, widths[-1], 1, 2, linear=True)
    x = separables(x, widths, name, **options)
    x = layers.MaxPooling2D(3, strides=2, padding="same", name=f"{name}_pool")(x)
    return layers.Add()([x, shortcut])


def xception(image, **options):
    x = UNIT(image, 32, 3, 2, "valid", name="block1_conv1")
    x = UNIT(x, 64, 3, 1, "valid", name="block1_conv2")
    for i, widths in enumerate(ENTRY, 2):
        x = shrinking(x, widths, f"block{i}", relu_first=i > 2)  # block 1 ends in a relu
    for i, widths in enumerate(MIDDLE, 5):
        x = layers.Add()([separables(x, widths, f"block{i}"), x])
    x = shrinking(x, EXIT, "block13")
    for i, width in enumerate(LAST, 1):
        x = separable(x, width, f"block14_sepconv{i}", linear=False)
    return x


_architecture = Architecture(xception, "tf", least=71)
Xception = _architecture.constructor("Xception", "xception", 299)

preprocess_input = preprocessing(_architecture.preprocessing)
