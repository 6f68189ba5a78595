"""Inception-ResNet version 2. Szegedy et al. 2016, arXiv:1602.07261.

Widths and counts are those of the weights its authors published, which differ from the paper's
figures: the stem is Inception version 3's, and the blocks are repeated 10, 20 and 10 times.
"""

from khub import layers

from .classifier import Architecture, channel_axis
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401
from .inception_v3 import HALF, UNIT, inception5, path, reduction, stem
from .units import joined

BLOCKS = {  # stage -> repeats, scale of the residual (section 3.3), paths (figures 16, 17, 19)
    "block35": (10, 0.17, (((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3)))),
    "block17": (20, 0.10, (((192, 1),), ((128, 1), (160, (1, 7)), (192, (7, 1))))),
    "block8": (10, 0.20, (((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1))))),
}
REDUCTIONS = {  # figures 7 and 18
    "mixed_6a": (((384, 3, *HALF),), ((256, 1), (256, 3), (384, 3, *HALF))),
    "mixed_7a": (
        ((256, 1), (384, 3, *HALF)),
        ((256, 1), (288, 3, *HALF)),
        ((256, 1), (288, 3), (320, 3, *HALF)),
    ),
}


class CustomScaleLayer(layers.Layer):
    """x + scale * residual, of a list [x, residual]"""

    scale: float = 1.0

    def call(self, inputs):
        x, residual = inputs
        return x + residual * self.scale


def residual(x, scale, paths, name):
    """x plus `scale` times what the paths, joined and brought back to x's width, say."""
    y = joined([path(x, *steps) for steps in paths], f"{name}_mixed")
    y = layers.Conv2D(x.shape[channel_axis()], 1, padding="same", name=f"{name}_conv")(y)
    return CustomScaleLayer(scale)([x, y])


def stage(x, block):
    count, scale, paths = BLOCKS[block]
    for i in range(1, count + 1):
        last = block == "block8" and i == count  # neither scaled nor followed by a relu
        x = residual(x, 1.0 if last else scale, paths, f"{block}_{i}")
        x = x if last else layers.Activation("relu", name=f"{block}_{i}_ac")(x)
    return x


def inception_resnet_v2(image, **options):
    x = inception5(stem(image), 96, 64, "mixed_5b")
    x = reduction(stage(x, "block35"), REDUCTIONS["mixed_6a"], "mixed_6a")
    x = reduction(stage(x, "block17"), REDUCTIONS["mixed_7a"], "mixed_7a")
    return UNIT(stage(x, "block8"), 1536, name="conv_7b")


_architecture = Architecture(inception_resnet_v2, "tf", least=75)
InceptionResNetV2 = _architecture.constructor("InceptionResNetV2", "inception_resnet_v2", 299)

preprocess_input = preprocessing(_architecture.preprocessing)
