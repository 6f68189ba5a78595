"""Inception version 3. Szegedy et al. 2015, arXiv:1512.00567."""

from khub import layers

from .classifier import Architecture
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401
from .units import Unit, joined

HALF = (2, "valid")  # stride and padding of a convolution that halves the size


# normalized without gamma: the relu's scale is the next layer's
UNIT = Unit(active="{}_ac", normalization={"scale": False})


def path(x, *steps):
    """Convolutions one after another; a step: (width, size) or (width, size, *HALF)."""
    for step in steps:
        x = UNIT(x, *step)
    return x


def mean(x):
    return layers.AveragePooling2D(3, strides=1, padding="same")(x)


def maximum(x):
    return layers.MaxPooling2D(3, strides=2)(x)


def stem(image):
    """Table 1, up to 35 x 35.  (batch, 299, 299, 3) -> (batch, 35, 35, 192)"""
    x = path(image, (32, 3, *HALF), (32, 3, 1, "valid"), (64, 3))
    x = path(maximum(x), (80, 1, 1, "valid"), (192, 3, 1, "valid"))
    return maximum(x)


def inception5(x, first, pool, name):
    """Figure 5: beside each other 1 x 1, 5 x 5, two of 3 x 3, and a mean."""
    paths = [
        path(x, (first, 1)),
        path(x, (48, 1), (64, 5)),
        path(x, (64, 1), (96, 3), (96, 3)),
        path(mean(x), (pool, 1)),
    ]
    return joined(paths, name)


def inception6(x, width, name):
    """Figure 6: 7 x 7 convolutions as 1 x 7 and 7 x 1."""
    row, column = (1, 7), (7, 1)
    paths = [
        path(x, (192, 1)),
        path(x, (width, 1), (width, row), (192, column)),
        path(x, (width, 1), (width, column), (width, row), (width, column), (192, row)),
        path(mean(x), (192, 1)),
    ]
    return joined(paths, name)


def inception7(x, name, fork):
    """Figure 7: two of the paths fork into 1 x 3 and 3 x 1."""

    def forked(x, name=None):
        return joined([path(x, (384, (1, 3))), path(x, (384, (3, 1)))], name)

    paths = [
        path(x, (320, 1)),
        forked(path(x, (384, 1)), fork),
        forked(path(x, (448, 1), (384, 3))),
        path(mean(x), (192, 1)),
    ]
    return joined(paths, name)


def reduction(x, paths, name):
    """Figure 10: convolutions that halve the size beside a maximum that does."""
    return joined([*(path(x, *steps) for steps in paths), maximum(x)], name)


REDUCTIONS = {
    "mixed3": (((384, 3, *HALF),), ((64, 1), (96, 3), (96, 3, *HALF))),
    "mixed8": (
        ((192, 1), (320, 3, *HALF)),
        ((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, *HALF)),
    ),
}


def inception_v3(image, **options):
    x = stem(image)
    for i, pool in enumerate((32, 64, 64)):
        x = inception5(x, 64, pool, f"mixed{i}")
    x = reduction(x, REDUCTIONS["mixed3"], "mixed3")
    for i, width in enumerate((128, 160, 160, 192), 4):
        x = inception6(x, width, f"mixed{i}")
    x = reduction(x, REDUCTIONS["mixed8"], "mixed8")
    for i in range(2):
        x = inception7(x, f"mixed{9 + i}", f"mixed9_{i}")
    return x


_architecture = Architecture(inception_v3, "tf", least=75)
InceptionV3 = _architecture.constructor("InceptionV3", "inception_v3", 299)

preprocess_input = preprocessing(_architecture.preprocessing)
