"""VGG with 16 and 19 weighted layers. Simonyan and Zisserman 2014, arXiv:1409.1556."""

from khub import layers

from .classifier import Architecture
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # model -> 3 x 3 convolutions of each block (table 1, columns D and E)
    "VGG16": (2, 2, 3, 3, 3),
    "VGG19": (2, 2, 4, 4, 4),
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


_architecture = Architecture(vgg, "caffe", scores, named_pooling=False)
VGG16, VGG19 = (
    _architecture.constructor(name, name.lower(), 224, convolutions=convolutions)
    for name, convolutions in CONVOLUTIONS.items()
)

preprocess_input = preprocessing(_architecture.mode)
