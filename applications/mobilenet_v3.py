"""MobileNetV3, with squeeze and excitation and hard swish. Howard et al. 2019, arXiv:1905.02244."""

from itertools import groupby

from khub import layers
from khub.fields import Choice

from ..cv import inverted, parts
from ..cv.backbone import Reference
from ..cv.image_classifier import image_family
from .classifier import channel_axis
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401
from .mobilenet import Mobile
from .mobilenet_v2 import depthwise, norm, pointwise

VARIANTS = {  # tables 1 and 2; blocks: kernel, expanded width, width, excitation, swish, stride
    "MobileNetV3Large": dict(
        hidden=1280,
        blocks=(
            (3, 16, 16, False, False, 1),
            (3, 64, 24, False, False, 2),
            (3, 72, 24, False, False, 1),
            (5, 72, 40, True, False, 2),
            (5, 120, 40, True, False, 1),
            (5, 120, 40, True, False, 1),
            (3, 240, 80, False, True, 2),
            (3, 200, 80, False, True, 1),
            (3, 184, 80, False, True, 1),
            (3, 184, 80, False, True, 1),
            (3, 480, 112, True, True, 1),
            (3, 672, 112, True, True, 1),
            (5, 672, 160, True, True, 2),
            (5, 960, 160, True, True, 1),
            (5, 960, 160, True, True, 1),
        ),
    ),
    "MobileNetV3Small": dict(
        hidden=1024,
        blocks=(
            (3, 16, 16, True, False, 2),
            (3, 72, 24, False, False, 2),
            (3, 88, 24, False, False, 1),
            (5, 96, 40, True, True, 2),
            (5, 240, 40, True, True, 1),
            (5, 240, 40, True, True, 1),
            (5, 120, 48, True, True, 1),
            (5, 144, 48, True, True, 1),
            (5, 288, 96, True, True, 2),
            (5, 576, 96, True, True, 1),
            (5, 576, 96, True, True, 1),
        ),
    ),
}


def active(x, swish):
    """Hard swish, or relu."""
    return (layers.Activation("hard_silu") if swish else layers.ReLU())(x)


def excited(x, name):
    """x times a gate a channel, relu6(z + 3) / 6, where z comes from the means of all channels."""
    channels = x.shape[channel_axis()]
    z = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_avg_pool")(x)
    z = layers.Conv2D(parts.divisible(channels / 4), 1, padding="same", name=f"{name}_conv")(z)
    z = layers.ReLU(name=f"{name}_relu")(z)
    z = layers.Conv2D(channels, 1, padding="same", name=f"{name}_conv_1")(z)
    gate = layers.ReLU(6.0)(z + 3.0) * (1.0 / 6.0)
    return layers.Multiply(name=f"{name}_mul")([x, gate])


def bottleneck(x, size, expanded, width, excitation, swish, stride, name):
    """The bottleneck of MobileNetV2 with excitation (figure 4).  expanded: None: as x"""
    channels, h = x.shape[channel_axis()], x
    if expanded is not None:
        h = norm(pointwise(x, expanded, f"{name}_expand"), f"{name}_expand_bn")
        h = active(h, swish)
    h = depthwise(h, size, stride, f"{name}_depthwise", f"{name}_depthwise_pad")
    h = active(norm(h, f"{name}_depthwise_bn"), swish)
    if excitation:
        h = excited(h, f"{name}_squeeze_excite")
    h = norm(pointwise(h, width, f"{name}_project"), f"{name}_project_bn")
    return layers.Add(name=f"{name}_add")([x, h]) if stride == 1 and channels == width else h


def mobilenet_v3(image, blocks, alpha, minimalistic, include_preprocessing, **options):
    """minimalistic: without excitation, swish and 5 x 5 kernels."""
    x = layers.Rescaling(1 / 127.5, -1.0)(image) if include_preprocessing else image
    x = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="conv")(x)
    x = active(norm(x, "conv_bn"), not minimalistic)
    before = 16  # the width that the table has before a block
    for i, (size, expanded, width, excitation, swish, stride) in enumerate(blocks):
        if minimalistic:
            size, excitation, swish = 3, False, False
        expanded = parts.divisible(expanded / before * x.shape[channel_axis()]) if i else None
        name = f"expanded_conv_{i}" if i else "expanded_conv"
        x = bottleneck(
            x, size, expanded, parts.divisible(width * alpha), excitation, swish, stride, name
        )
        before = width
    x = norm(pointwise(x, parts.divisible(6 * x.shape[channel_axis()]), "conv_1"), "conv_1_bn")
    return active(x, not minimalistic)


def scores(x, classes, activation, hidden, alpha, minimalistic, dropout_rate, **options):
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Conv2D(parts.divisible(hidden * max(1, alpha)), 1, padding="same", name="conv_2")(x)
    x = active(x, not minimalistic)
    x = layers.Dropout(dropout_rate)(x) if dropout_rate else x
    x = layers.Flatten()(layers.Conv2D(classes, 1, padding="same", name="logits")(x))
    return layers.Activation(activation, name="predictions")(x)


_architecture = Mobile(
    mobilenet_v3,
    top=scores,
    arguments={
        "input_shape": None,
        "alpha": 1.0,
        "minimalistic": False,
        "include_top": True,
        "weights": "imagenet",
        "input_tensor": None,
        "classes": 1000,
        "pooling": None,
        "dropout_rate": 0.2,
        "classifier_activation": "softmax",
        "include_preprocessing": True,
    },
    trained=(
        {"alpha": (0.75, 1.0), "minimalistic": (False,)},
        {"alpha": (1.0,), "minimalistic": (True,)},
    ),
)
MobileNetV3Large, MobileNetV3Small = (
    _architecture.constructor(name, name, None, **variant) for name, variant in VARIANTS.items()
)

preprocess_input = preprocessing(_architecture.mode)


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
        """Blocks of one width are a stage."""
        stages = len({row[2] for row in self.table["blocks"]})
        return f"blocks.{stages}.0.conv", f"blocks.{stages}.0.bn1"

    def blocks(self):
        channels, before = 16, 16  # those here, and those of the table
        stages = groupby(self.table["blocks"], lambda row: row[2])
        for s, (width, rows) in enumerate(stages):
            for i, (kernel, inner, _, excitation, swish, stride) in enumerate(rows):
                inner = parts.divisible(inner / before * channels)
                kind = "inverted" if s else "separable"
                squeeze = parts.divisible(inner / 4) if excitation else 0
                options = (stride, "hard_silu" if swish else "relu", squeeze)
                channels, before = parts.divisible(width * self.width), width
                yield f"blocks.{s}.{i}", inverted.Block(kind, inner, channels, kernel, *options)

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
