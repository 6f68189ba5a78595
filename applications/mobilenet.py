"""MobileNet, of convolutions split in depth and point. Howard et al. 2017, arXiv:1704.04861."""

from dataclasses import dataclass
from functools import partial

from khub import layers

from .classifier import ARGUMENTS, Architecture
from .imagenet import trained_size
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401
from .units import Unit

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

    def check(self, options):
        if not options["alpha"] > 0:
            raise ValueError(
                f"{self.name}: alpha multiplies the widths and must be over 0, got "
                f"alpha={options['alpha']!r}."
            )
        fits = any(all(options[k] in values for k, values in row.items()) for row in self.trained)
        if options["weights"] == "imagenet" and not fits:
            rows = [[f"{key} in {values}" for key, values in row.items()] for row in self.trained]
            expected = " or ".join(map(", ".join, rows))
            given = ", ".join(f"{key}={options[key]!r}" for key in self.trained[0])
            raise ValueError(
                f"{self.name}: the weights 'imagenet' are for {expected}, got {given}; give "
                "weights=None."
            )

    def title(self, options, lengths):
        """Return the name given, or one such as mobilenet_0.50_160."""
        size = trained_size(self, lengths) if options["weights"] == "imagenet" else lengths[0]
        return options["name"] or f"{self.name.lower()}_{options['alpha']:.2f}_{size}"


UNIT = Unit(activation=partial(layers.ReLU, 6.0))


def mobilenet(image, alpha, depth_multiplier, **options):
    """3 x 3 in each channel, then 1 x 1, each with norm and relu (figure 3), again and again."""
    x = UNIT(image, int(32 * alpha), 3, 2, name="conv1")
    for i, (stride, width) in enumerate(BLOCKS, 1):
        options = dict(depth_multiplier=depth_multiplier, name=f"conv_dw_{i}")
        if stride == 2:
            x = layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"conv_pad_{i}")(x)
        x = UNIT(x, None, 3, stride, "same" if stride == 1 else "valid", **options)
        x = UNIT(x, int(width * alpha), name=f"conv_pw_{i}")
    return x


def scores(x, classes, activation, dropout, **options):
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Conv2D(classes, 1, padding="same", name="conv_preds")(x)
    x = layers.Reshape((classes,), name="reshape_2")(x)
    return layers.Activation(activation, name="predictions")(x)


SIGNATURE = {"input_shape": None, "alpha": 1.0, "depth_multiplier": 1, "dropout": 1e-3} | ARGUMENTS
TRAINED = ({"alpha": (0.25, 0.5, 0.75, 1.0), "depth_multiplier": (1,)},)
_architecture = Mobile(
    mobilenet, "tf", scores, arguments=SIGNATURE, sizes=(128, 160, 192), trained=TRAINED
)
MobileNet = _architecture.constructor("MobileNet", None, 224)

preprocess_input = preprocessing(_architecture.preprocessing)
