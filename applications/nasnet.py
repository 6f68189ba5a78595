"""NASNet-A. Zoph et al. 2017, arXiv:1707.07012."""

from functools import partial

from khub import layers, name_scope

from .classifier import ARGUMENTS, Architecture, channel_axis, padded, scores, space
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401
from .units import joined

# "N @ F" in tables 2 and 3: normal cells in a stage, channels at the end. Not in the paper, but in
# its authors' weights: the stem's width, and skip: whether the cell after a reduction takes as its
# second input the reduction's second input, else the reduction's first.
VARIANTS = {
    "NASNetMobile": dict(size=224, cells=4, channels=1056, stem=32, skip=False),
    "NASNetLarge": dict(size=331, cells=6, channels=4032, stem=96, skip=True),
}


def relu(x, name=None):
    return layers.Activation("relu", name=name)(x)


def norm(x, name):
    return layers.BatchNormalization(channel_axis(), momentum=0.9997, name=name)(x)


def convolution(x, width, name, size=1, stride=1, padding="same"):
    options = dict(use_bias=False, kernel_initializer="he_normal", name=name)
    return layers.Conv2D(width, size, strides=stride, padding=padding, **options)(x)


# The operations of figure 4: (x, width, stride, name) -> the same size, or half of it at stride 2


def same(x, width, stride, name):
    return x


def mean(x, width, stride, name):
    padding = "same" if stride == 1 else "valid"
    return layers.AveragePooling2D(3, strides=stride, padding=padding, name=name)(x)


def maximum(x, width, stride, name):
    return layers.MaxPooling2D(3, strides=stride, name=name)(x)


def separable(size, x, width, stride, name):
    """Twice relu, separable convolution, norm; the first has the stride."""
    with name_scope(f"separable_conv_block_{name}"):
        for i, step in ((1, stride), (2, 1)):
            x, padding = relu(x), "same"
            if step == 2:
                x, padding = padded(x, size, f"separable_conv_{i}_pad_{name}"), "valid"
            options = dict(use_bias=False, name=f"separable_conv_{i}_{name}")
            x = layers.SeparableConv2D(width, size, strides=step, padding=padding, **options)(x)
            x = norm(x, f"separable_conv_{i}_bn_{name}")
    return x


separable3, separable5, separable7 = (partial(separable, size) for size in (3, 5, 7))
CELLS = {  # figure 4: each sum, its left and right (name, operation, state)
    # states: h the last cell's result, p that of the cell before it, padded: h in zeros, sums
    "normal": (
        ("add_1", ("left1", separable5, "h"), ("right1", separable3, "p")),
        ("add_2", ("left2", separable5, "p"), ("right2", separable3, "p")),
        ("add_3", ("left3", mean, "h"), ("right3", same, "p")),
        ("add_4", ("left4", mean, "p"), ("right4", mean, "p")),
        ("add_5", ("left5", separable3, "h"), ("right5", same, "h")),
    ),
    "reduction": (
        ("add_1", ("left1", separable5, "h"), ("right1", separable7, "p")),
        ("add_2", ("left2", maximum, "padded"), ("right2", separable7, "p")),
        ("add3", ("left3", mean, "padded"), ("right3", separable5, "p")),
        (None, ("left0", same, "add_2"), ("left4", mean, "add_1")),
        ("add4", ("left4", separable3, "add_1"), ("right5", maximum, "padded")),
    ),
}
JOINED = {
    "normal": ("p", "add_1", "add_2", "add_3", "add_4", "add_5"),
    "reduction": ("add_2", "add3", None, "add4"),
}


def squeezed(x, width, kind, number):
    x = convolution(relu(x), width, f"{kind}_conv_1_{number}")
    return norm(x, f"{kind}_bn_1_{number}")


def projected(x, width, number):
    with name_scope(f"adjust_projection_block_{number}"):
        x = convolution(relu(x), width, f"adjust_conv_projection_{number}")
        return norm(x, f"adjust_bn_{number}")


def halved(x, width, number):
    """Half of the channels see the even pixels, the other half the odd ones."""
    with name_scope(f"adjust_reduction_block_{number}"):
        x = relu(x, f"adjust_relu_1_{number}")
        shifted = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
        shifted = layers.Cropping2D(((1, 0), (1, 0)))(shifted)
        halves = []
        for i, half in enumerate((x, shifted), 1):
            half = layers.AveragePooling2D(1, strides=2, name=f"adjust_avg_pool_{i}_{number}")(half)
            halves.append(convolution(half, width // 2, f"adjust_conv_{i}_{number}"))
        return norm(joined(halves), f"adjust_bn_{number}")


def fitted(p, x, width, number):
    """p, the result before x, with `width` channels and the size of x."""
    with name_scope("adjust_block"):
        return (projected if space(p.shape) == space(x.shape) else halved)(p, width, number)


def cell(kind, x, before, width, number):
    """Figure 4.  x: the last cell's result   before: that of the cell before it, if any"""

    def name(part):
        return part and f"{kind}_{part}_{number}"

    with name_scope(f"{kind}_A_block_{number}"):
        p = x if before is None else fitted(before, x, width, number)
        states = {"p": p, "h": squeezed(x, width, kind, number)}
        if kind == "reduction":
            states["padded"] = padded(states["h"], 3, name("pad_1"))
        shrinking = tuple(states) if kind == "reduction" else ()
        for i, (total, *sides) in enumerate(CELLS[kind], 1):
            with name_scope(f"block_{i}"):
                parts = [
                    operation(states[state], width, 2 if state in shrinking else 1, name(side))
                    for side, operation, state in sides
                ]
                states[total] = layers.Add(name=name(total))(parts)
        return joined([states[state] for state in JOINED[kind]], name("concat"))


def nasnet(image, cells, channels, stem, skip, **options):
    if None in space(image.shape):
        raise ValueError(
            "NASNet pads its features by their size, so the size of the image must be known, got "
            f"the shape {tuple(image.shape)}; give an input_shape such as (224, 224, 3)."
        )
    width = channels // 24  # the last cells join 6 results, 4 times as wide as the first cells'
    x = norm(convolution(image, stem, "stem_conv1", 3, 2, "valid"), "stem_bn1")
    before, x = x, cell("reduction", x, None, width // 4, "stem_1")
    before, x = x, cell("reduction", x, before, width // 2, "stem_2")
    for stage in range(3):
        number = stage * cells
        if stage:
            half = cell("reduction", x, before, width * 2**stage, f"reduce_{number}")
            before, x = before if skip else x, half
            number += 1
        for i in range(number, number + cells):
            before, x = x, cell("normal", x, before, width * 2**stage, i)
    return relu(x)


_top, SIGNATURE = partial(scores, pool=None), {"input_shape": None} | ARGUMENTS
_architecture = Architecture(nasnet, "tf", _top, arguments=SIGNATURE, sized=True)
NASNetMobile, NASNetLarge = (
    _architecture.constructor(name, name.lower().replace("nasnet", "nasnet_"), **variant)
    for name, variant in VARIANTS.items()
)

preprocess_input = preprocessing(_architecture.preprocessing)
