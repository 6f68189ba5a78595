"""MobileNetV2: inverted residuals, linear bottlenecks. Sandler et al. 2018, arXiv:1801.04381."""

from functools import partial

from khub import layers

from . import mobilenet
from .classifier import ARGUMENTS, channel_axis, padded, scores
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401
from .mobilenet import Mobile, relu6

BOTTLENECKS = (  # expansion "t", width "c", repetitions "n", stride of the first "s" (table 2)
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
norm = partial(mobilenet.norm, momentum=0.999)


def eights(width):
    """The multiple of 8 nearest to `width` that is not less than 90 % of it, at least 8."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest


def pointwise(x, width, name):
    return layers.Conv2D(width, 1, padding="same", use_bias=False, name=name)(x)


def depthwise(x, size, stride, name, pad):
    """`size` x `size` in each channel; stride 2 halves x, padded by a layer called `pad`."""
    if stride == 2:
        x = padded(x, size, pad)
    options = dict(strides=stride, padding="same" if stride == 1 else "valid", use_bias=False)
    return layers.DepthwiseConv2D(size, name=name, **options)(x)


def bottleneck(x, expansion, width, stride, name):
    """Expand, filter in each channel, project linearly; added to x where it fits (figure 4 d)."""
    channels = x.shape[channel_axis()]
    h = x
    if expansion > 1:
        h = norm(pointwise(x, expansion * channels, f"{name}_expand"), f"{name}_expand_BN")
        h = relu6(h, f"{name}_expand_relu")
    h = depthwise(h, 3, stride, f"{name}_depthwise", f"{name}_pad")
    h = relu6(norm(h, f"{name}_depthwise_BN"), f"{name}_depthwise_relu")
    h = norm(pointwise(h, width, f"{name}_project"), f"{name}_project_BN")
    return layers.Add(name=f"{name}_add")([x, h]) if stride == 1 and channels == width else h


def mobilenet_v2(image, alpha, **options):
    options = dict(strides=2, padding="same", use_bias=False, name="Conv1")
    x = layers.Conv2D(eights(32 * alpha), 3, **options)(image)
    x = relu6(norm(x, "bn_Conv1"), "Conv1_relu")
    i = 0
    for expansion, width, repetitions, first in BOTTLENECKS:
        for stride in (first, *(1,) * (repetitions - 1)):
            name = f"block_{i}" if i else "expanded_conv"
            x = bottleneck(x, expansion, eights(int(width * alpha)), stride, name)
            i += 1
    x = layers.Conv2D(eights(1280 * max(1, alpha)), 1, use_bias=False, name="Conv_1")(x)
    return relu6(norm(x, "Conv_1_bn"), "out_relu")


_architecture = Mobile(
    mobilenet_v2,
    "tf",
    partial(scores, pool=None),
    arguments={"input_shape": None, "alpha": 1.0} | ARGUMENTS,
    sizes=(96, 128, 160, 192),
    named_pooling=False,
    trained=({"alpha": (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)},),
)
MobileNetV2 = _architecture.constructor("MobileNetV2", None, 224)

preprocess_input = preprocessing(_architecture.mode)
