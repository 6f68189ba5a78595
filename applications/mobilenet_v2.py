"""MobileNetV2: inverted residuals, linear bottlenecks. Sandler et al. 2018, arXiv:1801.04381."""

import math
from dataclasses import replace
from functools import partial

from khub.fields import PositiveInt

from ..cv import inverted, parts
from ..cv.backbone import check
from ..cv.image_classifier import image_family
from . import mobilenet
from .classifier import ARGUMENTS, scores
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401
from .mobilenet import Mobile
from .units import draw_block

BOTTLENECKS = (  # expansion "t", width "c", repetitions "n", stride of the first "s" (table 2)
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
UNIT = replace(mobilenet.UNIT, norm="{}_BN", normalization={"momentum": 0.999})
FIRST, LAST = replace(UNIT, norm="bn_{}"), replace(UNIT, norm="{}_bn", active="out_relu")


def filtered(x, block, name):
    return UNIT(x, None, 3, block.stride, pad=f"{name}_pad", name=f"{name}_depthwise")


def blocks(before, factor, scaled, expansion=6, depth=1.0):
    """Yield timm's name of each block, and the `Block` with relu6.

    before: width in front of them   factor: of the widths   scaled: width -> a multiple
    """
    for s, (least, width, count, first) in enumerate(BOTTLENECKS):
        width, kind = scaled(width * factor), "inverted" if s else "separable"
        for i in range(math.ceil(count * (depth if 0 < s < 6 else 1))):
            inner = scaled(before * (expansion if s else least))
            sizes = (inner, width, 3, 1 if i else first)
            yield f"blocks.{s}.{i}", inverted.Block(kind, *sizes, "relu6")
            before = width


def mobilenet_v2(image, alpha, **options):
    x = FIRST(image, parts.divisible(32 * alpha), 3, 2, name="Conv1")
    found = blocks(parts.width_of(x), alpha, lambda width: parts.divisible(int(width)))
    for i, (_, block) in enumerate(found):
        x = draw_block(x, block, f"block_{i}" if i else "expanded_conv", UNIT, filtered)
    return LAST(x, parts.divisible(1280 * max(1, alpha)), padding="valid", name="Conv_1")


SIGNATURE = {"input_shape": None, "alpha": 1.0} | ARGUMENTS
_options = dict(sizes=(96, 128, 160, 192), trained=({"alpha": (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)},))
_architecture = Mobile(
    mobilenet_v2, "tf", partial(scores, pool=None), arguments=SIGNATURE, **_options
)
MobileNetV2 = _architecture.constructor("MobileNetV2", None, 224)

preprocess_input = preprocessing(_architecture.preprocessing)


# --- the hub's: as timm, torchvision and transformers have them ---------------------------------

VARIANTS = {  # factors of the widths (section 6.1) and, of those with "d" (timm's), of the depths
    "mobilenetv2_035": dict(width=0.35, stem_width=16),
    "mobilenetv2_050": dict(width=0.5, stem_width=16),
    "mobilenetv2_075": dict(width=0.75, stem_width=24),
    "mobilenetv2_100": dict(),
    "mobilenetv2_110d": dict(width=1.1, depth=1.2),
    "mobilenetv2_120d": dict(width=1.2, depth=1.4),
    "mobilenetv2_140": dict(width=1.4, stem_width=48, head_width=1792),
}
_LAYER = "{}.convolution", "{}.normalization"  # transformers'
_UNITS = [[n.format(unit) for n in _LAYER] for unit in ("expand_1x1", "conv_3x3", "reduce_1x1")]
_ENDS = [n.format(end) for end in ("conv_stem.first_conv", "conv_1x1") for n in _LAYER]


@image_family("mobilenet_v2")
class MobileNetV2Backbone(inverted.InvertedBackbone):
    """MobileNetV2, with the last 1 x 1 convolution.

    images (batch, height, width, 3) -> features (batch, height / 32, width / 32, head_width)
    width, depth: factors of the widths, which are multiples of `divisor`, and of the numbers of
    blocks   expansion: of the inner width   same: zeros as TensorFlow puts them
    """

    width: float = 1.0
    depth: float = 1.0
    stem_width: PositiveInt = 32
    head_width: PositiveInt = 1280
    divisor: PositiveInt = 8
    expansion: float = 6.0
    same: bool = False

    VARIANTS = VARIANTS
    STEMS = {"mobilenet_v2": "MobileNetV2"}
    REFERENCES = inverted.references(_ENDS, "mobilenet_v2")
    KEYS = {
        "width": ("depth_multiplier", 1.0),
        "divisor": ("depth_divisible_by", 8),
        "expansion": ("expand_ratio", 6.0),
        "activation": ("hidden_act", "relu6"),
        "epsilon": ("layer_norm_eps", 0.001),
        "same": ("tf_padding", True),
    }

    def blocks(self):
        own = dict(activation=self.activation, zeros="same" if self.same else None)
        found = blocks(self.stem_width, self.width, self.scaled, self.expansion, self.depth)
        return ((name, replace(block, **own)) for name, block in found)

    def block_names(self, number, name, block):
        if self.reference == "transformers":
            return f"layer.{number - 1}" if number else "conv_stem", _UNITS
        pairs = [(f"{i}.0", f"{i}.1") for i in range(2)] if number else [("0.0", "0.1")]
        return f"features.{number + 1}.conv", [*pairs, (f"{len(pairs)}", f"{len(pairs) + 1}")]

    def draw(self, image):
        x = self.draw_blocks(image, self.stem_width, "same" if self.same else None)
        return self.conv(x, self.head_width, 1, 1, "conv_head", "bn2", self.activation)

    def scaled(self, width):
        exact = self.reference != "transformers"
        return parts.divisible(width if exact else round(width), self.divisor)

    @classmethod
    def config_from_transformers(cls, config):
        found = super().config_from_transformers(config)
        width, divisor = found["width"], found["divisor"]
        check(config, dict(output_stride=32, first_layer_is_expansion=True, min_depth=divisor))
        stem, head = (parts.divisible(round(n * width), divisor) for n in (32, 1280))
        fixed = config.get("finegrained_output", True) and width < 1
        return found | {"stem_width": stem, "head_width": 1280 if fixed else head}

    def transformers_config(self):
        if self.depth != 1:
            raise ValueError(f"transformers has no MobileNetV2 of depth {self.depth}, only of 1.")
        return super().transformers_config() | {
            "min_depth": self.divisor,
            "finegrained_output": self.head_width == 1280,
        }
