"""MobileNetV3, with squeeze and excitation and hard swish. Howard et al. 2019, arXiv:1905.02244."""

from dataclasses import replace
from functools import partial

from khub import layers
from khub.fields import Choice

from ..cv import inverted, parts
from ..cv.backbone import Reference
from ..cv.image_classifier import image_family
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401
from .mobilenet import Mobile
from .units import Unit, draw_block

VARIANTS = {  # tables 1 and 2; stages: width, kernel, expanded widths, excited, activation, stride
    "MobileNetV3Large": dict(
        hidden=1280,
        stages=(
            (16, 3, (16,), False, "relu", 1),
            (24, 3, (64, 72), False, "relu", 2),
            (40, 5, (72, 120, 120), True, "relu", 2),
            (80, 3, (240, 200, 184, 184), False, "hard_silu", 2),
            (112, 3, (480, 672), True, "hard_silu", 1),
            (160, 5, (672, 960, 960), True, "hard_silu", 2),
        ),
    ),
    "MobileNetV3Small": dict(
        hidden=1024,
        stages=(
            (16, 3, (16,), True, "relu", 2),
            (24, 3, (72, 88), False, "relu", 2),
            (40, 5, (96, 240, 240), True, "hard_silu", 2),
            (48, 5, (120, 144), True, "hard_silu", 1),
            (96, 5, (288, 576, 576), True, "hard_silu", 2),
        ),
    ),
}
UNIT = Unit(active=None, normalization={"momentum": 0.999})


def blocks(stages, factor):
    """Yield timm's name of each block, and the `Block`, its widths multiplied by a factor."""
    channels, before = 16, 16  # those here, and those of the table
    for s, (width, kernel, expanded, excitation, activation, stride) in enumerate(stages):
        for i, inner in enumerate(expanded):
            inner = parts.divisible(inner / before * channels)
            squeeze = parts.divisible(inner / 4) if excitation else 0
            channels, before = parts.divisible(width * factor), width
            sizes = (inner, channels, kernel, 1 if i else stride)
            kind = "inverted" if s else "separable"
            yield f"blocks.{s}.{i}", inverted.Block(kind, *sizes, activation, squeeze)


def unit(activation):
    """The convolution of a block, or of an end, with hard swish or relu."""
    relu = activation == "relu"
    return replace(UNIT, activation=layers.ReLU if relu else partial(layers.Activation, activation))


def filtered(x, block, name):
    name, sizes = f"{name}_depthwise", (block.kernel, block.stride)
    return unit(block.activation)(x, None, *sizes, pad=f"{name}_pad", name=name)


def excited(x, width, name):
    """x times a gate a channel, relu6(z + 3) / 6, where z comes from the means of all channels."""
    name = f"{name}_squeeze_excite"
    z = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_avg_pool")(x)
    z = layers.Conv2D(width, 1, padding="same", name=f"{name}_conv")(z)
    z = layers.ReLU(name=f"{name}_relu")(z)
    z = layers.Conv2D(parts.width_of(x), 1, padding="same", name=f"{name}_conv_1")(z)
    gate = layers.ReLU(6.0)(z + 3.0) * (1.0 / 6.0)
    return layers.Multiply(name=f"{name}_mul")([x, gate])


def mobilenet_v3(image, stages, alpha, minimalistic, include_preprocessing, **options):
    """minimalistic: without excitation, swish and 5 x 5 kernels."""
    x = layers.Rescaling(1 / 127.5, -1.0)(image) if include_preprocessing else image
    end = unit("relu" if minimalistic else "hard_silu")
    x = end(x, 16, 3, 2, name="conv")
    for i, (_, block) in enumerate(blocks(stages, alpha)):
        if minimalistic:
            block = replace(block, kernel=3, activation="relu", squeeze=0)
        name = f"expanded_conv_{i}" if i else "expanded_conv"
        x = draw_block(x, block, name, unit(block.activation), filtered, excited)
    return end(x, parts.divisible(6 * parts.width_of(x)), name="conv_1")


def scores(x, classes, activation, hidden, alpha, minimalistic, dropout_rate, **options):
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Conv2D(parts.divisible(hidden * max(1, alpha)), 1, padding="same", name="conv_2")(x)
    x = layers.ReLU()(x) if minimalistic else layers.Activation("hard_silu")(x)
    x = layers.Dropout(dropout_rate)(x) if dropout_rate else x
    x = layers.Flatten()(layers.Conv2D(classes, 1, padding="same", name="logits")(x))
    return layers.Activation(activation, name="predictions")(x)


SIGNATURE = (
    {"input_shape": None, "alpha": 1.0, "minimalistic": False, "include_top": True}
    | {"weights": "imagenet", "input_tensor": None, "classes": 1000, "pooling": None}
    | {"dropout_rate": 0.2, "classifier_activation": "softmax", "include_preprocessing": True}
)
TRAINED = (dict(alpha=(0.75, 1.0), minimalistic=(False,)), dict(alpha=(1.0,), minimalistic=(True,)))
_architecture = Mobile(
    mobilenet_v3, top=scores, arguments=SIGNATURE, trained=TRAINED, named_pooling=True
)
MobileNetV3Large, MobileNetV3Small = (
    _architecture.constructor(name, name, None, **variant) for name, variant in VARIANTS.items()
)

preprocess_input = preprocessing(_architecture.preprocessing)


# --- the hub's: as timm and torchvision have them ------------------------------------------------

NETWORKS = {
    "mobilenetv3_small_050": dict(size="small", width=0.5),
    "mobilenetv3_small_075": dict(size="small", width=0.75),
    "mobilenetv3_small_100": dict(size="small"),
    "mobilenetv3_large_075": dict(size="large", width=0.75),
    "mobilenetv3_large_100": dict(size="large"),
}


@image_family("mobilenet_v3")
class MobileNetV3Backbone(inverted.InvertedBackbone):
    """MobileNetV3, to the last 1 x 1 convolution before the mean.

    images (batch, height, width, 3) -> features (batch, height / 32, width / 32, 6 * the width)
    size: table of the blocks   width: factor of all widths except the stem's
    """

    size: Choice("small", "large") = "large"
    width: float = 1.0

    VARIANTS = NETWORKS
    REFERENCES = {
        "timm": Reference(ignored=inverted.HEAD),
        "torchvision": Reference(
            names=(("classifier.0", "head.conv_head"), ("classifier.3", "head.classifier")),
            ignored=("classifier.*",),
        ),
    }
    COARSE = ("",)

    @property
    def table(self):
        return VARIANTS[f"MobileNetV3{self.size.capitalize()}"]

    @property
    def last(self):
        return tuple(f"blocks.{len(self.table['stages'])}.0.{layer}" for layer in ("conv", "bn1"))

    def blocks(self):
        return blocks(self.table["stages"], self.width)

    def block_names(self, number, name, block):
        return f"features.{number + 1}", block.torchvision_pairs()

    def draw(self, image):
        gates = ("relu", "hard_sigmoid")
        x = self.draw_blocks(image, 16, gates=gates, activation="hard_silu")
        return self.conv(x, parts.divisible(6 * parts.width_of(x)), 1, 1, *self.last, "hard_silu")

    def draw_head(self, features, num_classes, dropout):
        keeps = self.reference != "torchvision"  # the sizes of 1 in the weights
        x = layers.GlobalAveragePooling2D(keepdims=keeps, name="pool")(features)
        hidden = (self.table["hidden"], *(1,) * keeps)
        x = (layers.Conv2D if keeps else layers.Dense)(*hidden, name="conv_head")(x)
        x = parts.active(x if not keeps else layers.Flatten()(x), "hard_silu")
        x = layers.Dropout(dropout, name="dropout")(x)
        return layers.Dense(num_classes, name="classifier")(x)
