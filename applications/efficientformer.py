"""EfficientFormer: pooling on maps, then attention on tokens. Li et al. 2022, arXiv:2206.01191."""

import numpy as np

from khub import layers, ops
from khub.fields import PositiveInt, Rate
from khub.models.functional import Functional

from ..cv import parts
from ..cv.backbone import ImageBackbone, Reference, pooled
from ..cv.image_classifier import image_family
from ..cv.transformer import MLP, Block, LayerScale, dense
from .classifier import channel_axis

_FIELDS = ("widths", "num_blocks", "num_attention")
VARIANTS = {  # arXiv:2206.01191, table 3
    "efficientformer_l1": dict(zip(_FIELDS, ((48, 96, 224, 448), (3, 2, 6, 4), 1))),
    "efficientformer_l3": dict(zip(_FIELDS, ((64, 128, 320, 512), (4, 4, 12, 6), 4))),
    "efficientformer_l7": dict(zip(_FIELDS, ((96, 192, 384, 768), (6, 6, 18, 8), 8))),
}
_block = "stages.{i}.blocks.{i}"
NAMES = ((f"{_block}.token_mixer", f"{_block}.attn"),)
IGNORED = ("head.*", "head_dist.*")
HEADS, KEY, VALUE = 8, 32, 128  # of every attention: their number, the widths of one


class BiasedAttention(layers.Layer):
    """Attention with a bias for each distance between places; values are wider than keys.

    x: (batch, rows * columns, width) -> same
    """

    grid: tuple

    def build(self, shape):
        self.qkv = dense(self, shape[-1], HEADS * (2 * KEY + VALUE))
        self.proj = dense(self, HEADS * VALUE, shape[-1])
        sizes = (HEADS, self.grid[0] * self.grid[1])
        self.attention_biases = self.add_weight(sizes, "zeros", name="attention_biases")
        options = dict(dtype="int32", trainable=False, name="attention_bias_idxs")
        self.attention_bias_idxs = self.add_weight((sizes[1],) * 2, self._distances, **options)

    def _distances(self, shape, dtype=None):
        """The row of the biases for each pair of places; timm keeps it among the weights."""
        y, x = np.divmod(np.arange(shape[0]), self.grid[1])
        rows = np.abs(y[:, None] - y) * self.grid[1] + np.abs(x[:, None] - x)
        return ops.convert_to_tensor(rows, dtype)

    def call(self, x):
        batch, time, _ = ops.shape(x)
        qkv = ops.reshape(self.qkv(x), (batch, time, HEADS, -1))
        q, k, v = qkv[..., :KEY], qkv[..., KEY : 2 * KEY], qkv[..., 2 * KEY :]
        bias = ops.take(self.attention_biases, self.attention_bias_idxs, axis=1)[None]
        y = ops.dot_product_attention(q, k, v, bias=bias)
        return self.proj(ops.reshape(y, (batch, time, HEADS * VALUE)))


@image_family("efficientformer")
class EfficientFormerBackbone(ImageBackbone):
    """Blocks that mix places by a mean of 3 x 3, in the last stage then transformer blocks.

    images (batch, height, width, 3) -> (batch, height / 32 * width / 32, widths[-1])
    widths, num_blocks: of each stage   num_attention: blocks with attention at the end
    layer_scale: initial factor of the branches   drop_path: rate of the last block
    The last stage has biases for the places of `image_shape`: it takes images of no other size.
    """

    widths: tuple
    num_blocks: tuple
    num_attention: PositiveInt
    layer_scale: float = 1e-5
    drop_path: Rate = 0.0
    image_shape: tuple = (224, 224, 3)

    VARIANTS = VARIANTS
    REFERENCES = {"timm": Reference(NAMES, ignored=IGNORED)}

    def draw(self, image):
        x, rates = image, iter(np.linspace(0, self.drop_path, sum(self.num_blocks)).tolist())
        for i, width in enumerate((self.widths[0] // 2, self.widths[0]), 1):
            x = parts.unit(x, width, 3, 2, (f"stem.conv{i}", f"stem.norm{i}"), "relu", bias=True)
        for stage, (width, count) in enumerate(zip(self.widths, self.num_blocks, strict=True)):
            name = f"stages.{stage}"
            if stage:
                names = (f"{name}.downsample.conv", f"{name}.downsample.norm")
                x = parts.unit(x, width, 3, 2, names, bias=True)
            maps = count - self.num_attention * (stage == len(self.widths) - 1)
            for i in range(maps):
                x = self.map_block(x, width, next(rates), f"{name}.blocks.{i}")
        x = parts.channels_last(x)
        self._grid = x.shape[1:3]
        x = layers.Reshape((-1, width))(x)
        for i in range(maps + 1, count + 1):
            attention, mlp = BiasedAttention(self._grid), MLP(4 * width)
            options = (1e-5, next(rates), self.layer_scale)
            x = Block(attention, mlp, *options, name=f"{name}.blocks.{i}")(x)
        return parts.layer_norm(x, "norm", 1e-5)

    def map_block(self, x, width, rate, name):
        """x + ls1(pool(x) - x), then the same with a convolutional MLP."""
        y = layers.Subtract()([layers.AveragePooling2D(3, 1, "same")(x), x])
        for i in (1, 2):
            if i == 2:
                first, second = ((f"{name}.mlp.fc{k}", f"{name}.mlp.norm{k}") for k in (1, 2))
                y = parts.unit(x, 4 * width, 1, 1, first, "gelu", bias=True)
                y = parts.unit(y, width, 1, 1, second, bias=True)
            y = LayerScale(self.layer_scale, channel_axis(), name=f"{name}.ls{i}")(y)
            x = layers.Add()([x, parts.drop_path(y, rate)])
        return x

    def draw_head(self, features, num_classes, dropout):
        x = layers.Dropout(dropout, name="dropout")(pooled(features))
        heads = (layers.Dense(num_classes, name=name)(x) for name in ("head", "head_dist"))
        return layers.Average()(list(heads))

    def feature_pyramid(self):
        x = layers.Reshape((*self._grid, self.widths[-1]))(self.output)
        x = parts.placed(x)
        levels = super().feature_pyramid().output | {"P5": x}
        return Functional(self.input, levels, name=f"{self.name}_pyramid")
