"""DeepLabV3+: context at several rates, refined at edges. Chen et al. 2018, arXiv:1802.02611."""

from functools import partial

from khub import layers
from khub.fields import PositiveInt

from ..presets import Family, register
from .backbone import AnyBackbone
from .parts import batch_norm, channel_axis, channels_last, conv, unit, width_of
from .segmentation import ImageSegmenter

RATE, OF = 6, 16  # of the first dilated convolution, where features have this stride (section 4)
LARGER = partial(layers.UpSampling2D, interpolation="bilinear")
LOW_WIDTH = 48  # of the early features beside the late ones (table 1)


def separable(x, width, name, rate=1):
    """3 x 3 of each channel, then 1 x 1 of all, both normalized and activated (figure 3)."""
    own, names = width_of(x), [f"{name}.{part}" for part in ("depthwise", "bn1", "conv", "bn2")]
    x = unit(x, own, 3, 1, names[:2], "relu", groups=own, dilation=rate)
    return unit(x, width, 1, 1, names[2:], "relu")


def pyramid(x, width, rate):
    """Atrous spatial pyramid pooling: 1 x 1, 3 x 3 at three rates, the mean; projected."""
    plain = partial(unit, width=width, kernel=1, stride=1, activation="relu")
    parts = [plain(x, names=("aspp.conv", "aspp.bn"))]
    parts += [separable(x, width, f"aspp.{k}", k * rate) for k in (1, 2, 3)]
    mean = layers.GlobalAveragePooling2D(keepdims=True)(x)
    mean = plain(mean, names=("aspp.pool.conv", "aspp.pool.bn"))
    x = conv(layers.Concatenate(channel_axis())(parts), width, name="aspp.project")
    # the rows of one convolution of all five that belong to the mean, equal everywhere
    x = layers.Add()([x, conv(mean, width, name="aspp.pool.project")])
    x = layers.ReLU()(batch_norm(x, "aspp.project.bn"))
    return layers.Dropout(0.1, name="aspp.dropout")(x)


class DeepLabV3Plus(ImageSegmenter):
    """A class for each pixel, from features of any application.

    Height and width must be multiples of the stride of the deep level. As these are not dilated in
    the backbone, the rates here grow with their resolution.
    low, deep: levels of the pyramid   width: of the pyramid and the decoder
    """

    low: str = "P2"
    deep: str = "P5"
    width: PositiveInt = 256

    def draw_head(self, levels):
        if missing := {self.low, self.deep} - levels.keys():
            raise ValueError(
                f"{type(self.backbone).__name__} has no features of level {', '.join(missing)}; it "
                f"has {', '.join(levels)}. Set low and deep."
            )
        strides = [2 ** int(name[1:]) for name in (self.low, self.deep)]
        x = pyramid(levels[self.deep], self.width, max(1, RATE * OF // strides[1]))
        x = LARGER(strides[1] // strides[0])(x)
        low = unit(levels[self.low], LOW_WIDTH, 1, 1, ("low.conv", "low.bn"), "relu")
        x = layers.Concatenate(channel_axis())([x, low])
        for i in (1, 2):
            x = separable(x, self.width, f"decoder.{i}")
        x = conv(x, self.num_classes, bias=True, name="logits")
        return channels_last(LARGER(strides[0])(x))


TASKS = {"ImageSegmenter": DeepLabV3Plus}
register(Family("deeplab_v3_plus", ("khub_deeplab_v3_plus",), AnyBackbone, tasks=TASKS))
