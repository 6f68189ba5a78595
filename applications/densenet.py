"""DenseNet: each layer sees the features of all before it. Huang et al. 2016, arXiv:1608.06993."""

from khub import layers

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
