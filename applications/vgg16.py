"""VGG with 16 and 19 weighted layers. Simonyan and Zisserman 2014, arXiv:1409.1556."""

from khub import layers
from khub.fields import PositiveInt

from ..cv import parts
from ..cv.backbone import ImageBackbone, Reference
from ..cv.image_classifier import image_family
from .classifier import Architecture, channel_axis
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # layers -> 3 x 3 convolutions of each block (table 1, columns A, B, D and E)
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def vgg(image, convolutions, **options):
    x = image
    for block, (width, count) in enumerate(zip(WIDTHS, convolutions, strict=True), 1):
        for i in range(1, count + 1):
            name = f"block{block}_conv{i}"
            x = layers.Conv2D(width, 3, padding="same", activation="relu", name=name)(x)
        x = layers.MaxPooling2D(2, strides=2, name=f"block{block}_pool")(x)
    return x


def scores(x, classes, activation, **options):
    """Two hidden layers on all positions at once: the size of the image must be known."""
    x = layers.Flatten(name="flatten")(x)
    for name in ("fc1", "fc2"):
        x = layers.Dense(4096, activation="relu", name=name)(x)
    return layers.Dense(classes, activation=activation, name="predictions")(x)


_architecture = Architecture(vgg, "caffe", scores)
VGG16, VGG19 = (
    _architecture.constructor(f"VGG{n}", f"vgg{n}", 224, convolutions=CONVOLUTIONS[n])
    for n in (16, 19)
)

preprocess_input = preprocessing(_architecture.preprocessing)


# --- the hub's: as timm and torchvision have them ------------------------------------------------

NETWORKS = {
    f"vgg{n}{end}": dict(convolutions=convolutions, normalized=end == "_bn")
    for n, convolutions in CONVOLUTIONS.items()
    for end in ("", "_bn")
}


@image_family("vgg")
class VGGBackbone(ImageBackbone):
    """VGG without its dense layers.

    images (batch, height, width, 3) -> features (batch, height / 32, width / 32, 512)
    convolutions: of each block   normalized: each by its batch (arXiv:1502.03167)
    hidden: width of the two layers in a classifier's head
    """

    convolutions: tuple
    normalized: bool = False
    hidden: PositiveInt = 4096

    VARIANTS = NETWORKS
    REFERENCES = {
        "timm": Reference(ignored=("pre_logits.*", "head.*")),
        "torchvision": Reference(
            names=(
                ("classifier.0", "head.pre_logits.fc1"),
                ("classifier.3", "head.pre_logits.fc2"),
                ("classifier.6", "head.head.fc"),
            ),
            ignored=("classifier.*",),
        ),
    }

    def draw(self, image):
        x, place = image, 0
        for width, count in zip(WIDTHS, self.convolutions, strict=True):
            for _ in range(count):
                x = parts.conv(x, width, 3, bias=True, name=f"features.{place}")
                if self.normalized:
                    place += 1
                    x = parts.batch_norm(x, f"features.{place}")
                x, place = parts.active(x, "relu"), place + 2
            x, place = layers.MaxPooling2D(2)(x), place + 1
        return x

    def draw_head(self, features, num_classes, dropout):
        """timm's is a convolution over every 7 x 7, torchvision's has the mean of 7 x 7 parts."""
        x, flat = features, self.reference == "torchvision"
        if flat:
            x = layers.AdaptiveAveragePooling2D(7)(x)
            x = layers.Permute((3, 1, 2))(x) if channel_axis() == -1 else x
            x = layers.Flatten()(x)
        for name, kernel in (("pre_logits.fc1", 7), ("pre_logits.fc2", 1)):
            layer = layers.Dense if flat else layers.Conv2D
            x = layer(self.hidden, *() if flat else (kernel,), activation="relu", name=name)(x)
            x = layers.Dropout(dropout)(x)
        x = x if flat else layers.GlobalAveragePooling2D(name="pool")(x)
        return layers.Dense(num_classes, name="head.fc")(x)
