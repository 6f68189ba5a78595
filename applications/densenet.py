"""DenseNet: each layer sees the features of all before it. Huang et al. 2016, arXiv:1608.06993."""

from dataclasses import replace

from khub import layers
from khub.fields import PositiveInt

from ..cv import parts
from ..cv.backbone import ImageBackbone, Reference
from ..cv.image_classifier import image_family
from . import resnet
from .classifier import Architecture, channel_axis
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401
from .units import joined

GROWTH = 32  # channels that a layer adds, "k" of table 1
# depth -> layers of each dense block (table 1)
LAYERS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
UNIT = replace(resnet.UNIT, bias=False)


def dense(x, name):
    """[x, H(x)], equation 2, with the bottleneck of section 3: 1 x 1 and 3 x 3 convolution."""
    h = UNIT.normalized(x, f"{name}_0")
    h = UNIT(h, 4 * GROWTH, name=f"{name}_1")
    options = dict(padding="same", use_bias=False, name=f"{name}_2_conv")
    return joined([x, layers.Conv2D(GROWTH, 3, **options)(h)], f"{name}_concat")


def transition(x, name):
    """Half the channels, half the size."""
    x = UNIT.normalized(x, name)
    x = layers.Conv2D(parts.width_of(x) // 2, 1, use_bias=False, name=f"{name}_conv")(x)
    return layers.AveragePooling2D(2, strides=2, name=f"{name}_pool")(x)


def densenet(image, counts, **options):
    x = UNIT(layers.ZeroPadding2D(3)(image), 64, 7, 2, name="conv1")
    x = layers.MaxPooling2D(3, strides=2, name="pool1")(layers.ZeroPadding2D(1)(x))
    for stage, count in enumerate(counts, 2):
        if stage > 2:
            x = transition(x, f"pool{stage - 1}")
        for i in range(1, count + 1):
            x = dense(x, f"conv{stage}_block{i}")
    return replace(UNIT, norm="bn", active="relu").normalized(x, "end")


_architecture = Architecture(densenet, "torch", named_pooling=True)
DenseNet121, DenseNet169, DenseNet201 = (
    _architecture.constructor(f"DenseNet{depth}", f"densenet{depth}", 224, counts=counts)
    for depth, counts in LAYERS.items()
)

preprocess_input = preprocessing(_architecture.preprocessing)


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

    VARIANTS = {  # 161: of the authors' repository
        **{f"densenet{depth}": dict(num_layers=counts) for depth, counts in LAYERS.items()},
        "densenet161": dict(num_layers=(6, 12, 36, 24), growth=48, stem_width=96),
    }
    HEAD = "classifier"
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
