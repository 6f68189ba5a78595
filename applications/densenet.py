"""DenseNet: each layer sees the features of all before it. Huang et al. 2016, arXiv:1608.06993."""

from khub import layers
from khub.fields import PositiveInt

from ..cv import parts
from ..cv.backbone import ImageBackbone, Reference, pooled
from ..cv.image_classifier import image_family
from .classifier import Architecture, channel_axis
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401
from .resnet import norm, relu

GROWTH = 32  # channels that a layer adds, "k" of table 1
LAYERS = {  # model -> layers of each dense block (table 1)
    "DenseNet121": (6, 12, 24, 16),
    "DenseNet169": (6, 12, 32, 32),
    "DenseNet201": (6, 12, 48, 32),
}


def convolution(x, width, size, name, **options):
    return layers.Conv2D(width, size, use_bias=False, name=name, **options)(x)


def stem(image):
    x = convolution(layers.ZeroPadding2D(3)(image), 64, 7, "conv1_conv", strides=2)
    x = layers.ZeroPadding2D(1)(relu(norm(x, "conv1_bn"), "conv1_relu"))
    return layers.MaxPooling2D(3, strides=2, name="pool1")(x)


def dense(x, name):
    """[x, H(x)], equation 2, with the bottleneck of section 3: 1 x 1 and 3 x 3 convolution."""
    h = relu(norm(x, f"{name}_0_bn"), f"{name}_0_relu")
    h = convolution(h, 4 * GROWTH, 1, f"{name}_1_conv")
    h = relu(norm(h, f"{name}_1_bn"), f"{name}_1_relu")
    h = convolution(h, GROWTH, 3, f"{name}_2_conv", padding="same")
    return layers.Concatenate(channel_axis(), name=f"{name}_concat")([x, h])


def transition(x, name):
    """Half the channels, half the size."""
    x = relu(norm(x, f"{name}_bn"), f"{name}_relu")
    x = convolution(x, x.shape[channel_axis()] // 2, 1, f"{name}_conv")
    return layers.AveragePooling2D(2, strides=2, name=f"{name}_pool")(x)


def densenet(image, counts, **options):
    x = stem(image)
    for stage, count in enumerate(counts, 2):
        if stage > 2:
            x = transition(x, f"pool{stage - 1}")
        for i in range(1, count + 1):
            x = dense(x, f"conv{stage}_block{i}")
    return relu(norm(x, "bn"), "relu")


_architecture = Architecture(densenet, "torch")
DenseNet121, DenseNet169, DenseNet201 = (
    _architecture.constructor(name, name.lower(), 224, counts=counts)
    for name, counts in LAYERS.items()
)

preprocess_input = preprocessing(_architecture.mode)


# --- the hub's: as timm and torchvision have them ------------------------------------------------


@image_family("densenet")
class DenseNetBackbone(ImageBackbone):
    """DenseNet, with the normalization and activation at its end.

    images (batch, height, width, 3) -> features (batch, height / 32, width / 32, channels)
    num_layers: of each dense block   growth: channels that a layer adds
    """

    num_layers: tuple
    growth: PositiveInt = GROWTH
    stem_width: PositiveInt = 64

    VARIANTS = {  # table 1; 161 of the authors' repository
        "densenet121": dict(num_layers=(6, 12, 24, 16)),
        "densenet161": dict(num_layers=(6, 12, 36, 24), growth=48, stem_width=96),
        "densenet169": dict(num_layers=(6, 12, 32, 32)),
        "densenet201": dict(num_layers=(6, 12, 48, 32)),
    }
    REFERENCES = {name: Reference(ignored=("classifier.*",)) for name in ("timm", "torchvision")}

    def draw(self, image):
        x = parts.conv(image, self.stem_width, 7, 2, name="features.conv0")
        x = parts.max_pool(self.active(x, "features.norm0"))
        for stage, count in enumerate(self.num_layers, 1):
            for i in range(1, count + 1):
                name = f"features.denseblock{stage}.denselayer{i}"
                y = self.active(x, f"{name}.norm1")
                y = parts.conv(y, 4 * self.growth, name=f"{name}.conv1")
                y = self.active(y, f"{name}.norm2")
                y = parts.conv(y, self.growth, 3, name=f"{name}.conv2")
                x = layers.Concatenate(channel_axis())([x, y])
            if stage < len(self.num_layers):
                name = f"features.transition{stage}"
                x = self.active(x, f"{name}.norm")
                x = parts.conv(x, parts.width_of(x) // 2, name=f"{name}.conv")
                x = layers.AveragePooling2D(2)(x)
        return self.active(x, f"features.norm{stage + 1}")

    def active(self, x, name):
        return parts.active(parts.batch_norm(x, name), "relu")

    def draw_head(self, features, num_classes, dropout):
        x = layers.Dropout(dropout, name="dropout")(pooled(features))
        return layers.Dense(num_classes, name="classifier")(x)
