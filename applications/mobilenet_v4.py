"""MobileNetV4. Qin et al. 2024, arXiv:2404.10518."""

from khub import layers, ops
from khub.fields import PositiveInt
from khub.ops.symbolic import KerasTensor

from ..cv import inverted, parts
from ..cv.backbone import Reference
from ..cv.image_classifier import image_family
from ..cv.transformer import LayerScale
from .classifier import channel_axis


def _variant(*stages, **options):
    return {"stages": stages, **options}


# The paper's appendix. A stage: width and blocks. A block: kernels of its depthwise convolutions
# (0: none) and the expansion; "mqa": attention
VARIANTS = {
    "mobilenetv4_conv_small": _variant(
        (96, "553 032 032 032 032 304"),
        (128, "336 554 054 053 034 034"),
        start=((32, 32), (96, 64)),
    ),
    "mobilenetv4_conv_medium": _variant(
        (80, "354 332"),
        (160, "356 334 334 354 334 304 002 304"),
        (256, "556 554 354 354 004 304 352 554 004 004 502"),
    ),
    "mobilenetv4_conv_large": _variant(
        (96, "354 334"),
        (192, "354 334 334 334 354 534 534 534 534 534 304"),
        (512, "554 554 554 554 504 534 504 504 534 554 504 504 504"),
        stem_width=24,
    ),
    "mobilenetv4_hybrid_medium": _variant(
        (80, "354 332"),
        (160, "356 002 334 354 mqa 334 mqa 304 mqa 334 mqa 304"),
        (256, "556 554 354 354 002 352 002 004 mqa 304 mqa 554 mqa 504 mqa 504"),
        layer_scale=True,
    ),
    "mobilenetv4_hybrid_large": _variant(
        (96, "354 334"),
        (192, "354 334 334 334 354 534 534 mqa 534 mqa 534 mqa 534 mqa 304"),
        (512, "554 554 554 554 504 534 504 504 534 554 mqa 504 mqa 504 mqa 504 mqa 504"),
        stem_width=24,
        layer_scale=True,
        activation="gelu",
        heads=8,
        head_widths=(48, 64),
    ),
}
for name in ("conv_small_035", "conv_small_050", "hybrid_medium_075", "hybrid_large_075"):
    whole, _, percent = f"mobilenetv4_{name}".rpartition("_")
    VARIANTS[f"mobilenetv4_{name}"] = VARIANTS[whole] | {"width": int(percent) / 100}


class MultiQueryAttention(layers.Layer):
    """Attention where all heads have the same keys and values.  Shazeer 2019, arXiv:1911.02150

    query: (batch, height, width, heads * n), key, value: (batch, rows, columns, n) -> as query
    """

    def call(self, query, key, value):
        first = channel_axis() == 1
        if first:
            query, key, value = (ops.moveaxis(x, 1, -1) for x in (query, key, value))
        shape, width = ops.shape(query), key.shape[-1]
        # the heads are so many more queries
        rows = [ops.reshape(x, (shape[0], -1, 1, width)) for x in (query, key, value)]
        y = ops.reshape(ops.dot_product_attention(*rows), shape)
        return ops.moveaxis(y, -1, 1) if first else y

    def compute_output_spec(self, query, key, value):
        return KerasTensor(query.shape, query.dtype)  # NumPy would run it on a very large image


@image_family("mobilenet_v4")
class MobileNetV4Backbone(inverted.InvertedBackbone):
    """MobileNetV4: universal inverted bottlenecks, in the hybrids with attention between them.

    images (batch, height, width, 3) -> features (batch, height / 32, width / 32, 960)
    start: of each stage before, widths of a 3 x 3 and a 1 x 1 convolution; of a first width 0
    a fused block, from four times the stem's   stages: width and blocks of each, see VARIANTS
    width: factor of all widths except the stem's   heads, head_widths: of attention; the widths in
    the last two stages   layer_scale: the blocks' outputs are scaled
    """

    stages: tuple
    start: tuple = ((0, 48),)
    stem_width: PositiveInt = 32
    width: float = 1.0
    heads: PositiveInt = 4
    head_widths: tuple = (64, 64)
    layer_scale: bool = False
    activation: str = "relu"

    VARIANTS = VARIANTS
    REFERENCES = {"timm": Reference(ignored=inverted.HEAD)}

    def blocks(self):
        """Yield those before the bottlenecks."""
        for s, (inner, outer) in enumerate(self.start):
            outer = self.scaled(outer)
            rows = [("fused", 4 * self.stem_width, outer, 3, 2)]
            if inner:
                rows = [("conv", 0, self.scaled(inner), 3, 2), ("conv", 0, outer, 1, 1)]
            for i, row in enumerate(rows):
                yield f"blocks.{s}.{i}", inverted.Block(*row, self.activation, skip=False)

    def draw(self, image):
        x, last = self.draw_blocks(image, self.stem_width), len(self.stages) - 1
        for s, (width, blocks) in enumerate(self.stages):
            for i, code in enumerate(blocks.split()):
                name = f"blocks.{s + len(self.start)}.{i}"
                if code == "mqa":
                    y = self.attention(x, self.head_widths[s == last], 1 if s == last else 2, name)
                else:
                    y = self.bottleneck(x, *map(int, code), width, 1 if i else 2, name)
                if self.layer_scale:
                    y = LayerScale(1.0, channel_axis(), name=f"{name}.layer_scale")(y)
                x = layers.Add()([x, y]) if i else y
        name = f"blocks.{last + 1 + len(self.start)}.0"
        return self.conv(x, self.scaled(960), 1, 1, f"{name}.conv", f"{name}.bn1", self.activation)

    def scaled(self, width):
        return parts.divisible(width * self.width)

    def bottleneck(self, x, start, middle, expansion, width, stride, name):
        """Depthwise, 1 x 1 to `expansion` times the width, depthwise, 1 x 1 to `width`."""
        before = parts.width_of(x)
        inner = parts.divisible(before * expansion)
        for unit, kernel, out, activation in (
            ("dw_start", start, before, None),
            ("pw_exp", 1, inner, self.activation),
            ("dw_mid", middle, inner, self.activation),
            ("pw_proj", 1, self.scaled(width), None),
        ):
            if kernel:
                step = stride if unit == ("dw_mid" if middle else "dw_start") else 1
                names = (f"{name}.{unit}.conv", f"{name}.{unit}.bn")
                groups = out if unit.startswith("dw") else 1
                x = self.conv(x, out, kernel, step, *names, activation, groups=groups)
        return x

    def attention(self, x, head_width, stride, name):
        """Keys and values from a smaller image where the stride is 2."""
        width, pair = parts.width_of(x), []
        x, name = parts.batch_norm(x, f"{name}.norm"), f"{name}.attn"
        query = parts.conv(x, self.heads * head_width, name=f"{name}.query.proj")
        for role in (f"{name}.key", f"{name}.value"):
            names = (f"{role}.down_conv", f"{role}.norm")
            y = x if stride == 1 else self.conv(x, width, 3, stride, *names, None, groups=width)
            pair.append(parts.conv(y, head_width, name=f"{role}.proj"))
        return parts.conv(MultiQueryAttention()(query, *pair), width, name=f"{name}.output.proj")

    def draw_head(self, features, num_classes, dropout):
        x = layers.GlobalAveragePooling2D(keepdims=True, name="pool")(features)
        x = self.conv(x, 1280, 1, 1, "conv_head", "norm_head", self.activation)
        return super().draw_head(x, num_classes, dropout)
