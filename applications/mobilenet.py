"""MobileNet, of convolutions split in depth and point. Howard et al. 2017, arXiv:1704.04861."""

from dataclasses import dataclass

from khub import layers

from .classifier import ARGUMENTS, Architecture, channel_axis
from .imagenet import trained_size
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401

BLOCKS = (  # stride of the depthwise convolution, width of the pointwise one (table 1)
    ((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512))
    + ((1, 512),) * 5
    + ((2, 1024), (1, 1024))
)


@dataclass(frozen=True)
class Mobile(Architecture):
    """An architecture with the option `alpha`, which multiplies its widths.

    trained: options -> values with ImageNet weights; one of these must hold
    """

    trained: tuple = ()

    def check(self, variant, options):
        if not options["alpha"] > 0:
            raise ValueError(
                f"{variant.name}: alpha multiplies the widths and must be over 0, got "
                f"alpha={options['alpha']!r}."
            )
        if options["weights"] == "imagenet" and not any(
            all(options[key] in values for key, values in row.items()) for row in self.trained
        ):
            expected = " or ".join(
                ", ".join(f"{key} in {values}" for key, values in row.items())
                for row in self.trained
            )
            given = ", ".join(f"{key}={options[key]!r}" for key in self.trained[0])
            raise ValueError(
                f"{variant.name}: the weights 'imagenet' are for {expected}, got {given}; give "
                "weights=None."
            )

    def title(self, variant, name, options, lengths):
        """Return `name`, or one such as mobilenet_0.50_160."""
        size = trained_size(variant, lengths) if options["weights"] == "imagenet" else lengths[0]
        return name or f"{variant.name.lower()}_{options['alpha']:.2f}_{size}"


def norm(x, name, momentum=0.99):
    return layers.BatchNormalization(channel_axis(), momentum=momentum, name=name)(x)


def relu6(x, name):
    return layers.ReLU(6.0, name=name)(x)


def separable(x, width, stride, multiplier, i):
    """3 x 3 in each channel, then 1 x 1 to `width`, each with norm and relu (figure 3)."""
    if stride == 2:
        x = layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"conv_pad_{i}")(x)
    padding = "same" if stride == 1 else "valid"
    options = dict(padding=padding, depth_multiplier=multiplier, use_bias=False)
    x = layers.DepthwiseConv2D(3, strides=stride, name=f"conv_dw_{i}", **options)(x)
    x = relu6(norm(x, f"conv_dw_{i}_bn"), f"conv_dw_{i}_relu")
    x = layers.Conv2D(width, 1, padding="same", use_bias=False, name=f"conv_pw_{i}")(x)
    return relu6(norm(x, f"conv_pw_{i}_bn"), f"conv_pw_{i}_relu")


def mobilenet(image, alpha, depth_multiplier, **options):
    options = dict(strides=2, padding="same", use_bias=False, name="conv1")
    x = layers.Conv2D(int(32 * alpha), 3, **options)(image)
    x = relu6(norm(x, "conv1_bn"), "conv1_relu")
    for i, (stride, width) in enumerate(BLOCKS, 1):
        x = separable(x, int(width * alpha), stride, depth_multiplier, i)
    return x


def scores(x, classes, activation, dropout, **options):
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Conv2D(classes, 1, padding="same", name="conv_preds")(x)
    x = layers.Reshape((classes,), name="reshape_2")(x)
    return layers.Activation(activation, name="predictions")(x)


_architecture = Mobile(
    mobilenet,
    "tf",
    scores,
    arguments={"input_shape": None, "alpha": 1.0, "depth_multiplier": 1, "dropout": 1e-3}
    | ARGUMENTS,
    sizes=(128, 160, 192),
    named_pooling=False,
    trained=({"alpha": (0.25, 0.5, 0.75, 1.0), "depth_multiplier": (1,)},),
)
MobileNet = _architecture.constructor("MobileNet", None, 224)

preprocess_input = preprocessing(_architecture.mode)
