"""Swin transformers: attention in shifted windows. Liu et al. 2021, arXiv:2103.14030."""

from functools import cache

import numpy as np

from khub import initializers, layers, ops
from khub.fields import PositiveInt, Rate
from khub.models.functional import Functional

from ..cv import parts
from ..cv.backbone import ImageBackbone, Reference, check
from ..cv.image_classifier import image_family
from ..cv.transformer import KEYS, MLP, Attention, Block, dense, norm, transformers_names

SIZES = {  # width, blocks and heads of each stage (arXiv:2103.14030, section 3.3)
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
VARIANTS = {
    f"swin_{size}_patch4_window{window}_{image}": {
        **dict(zip(("hidden_dim", "num_blocks", "num_heads"), SIZES[size])),
        **dict(window=window, image_shape=(image, image, 3)),
    }
    for window, image, sizes in ((7, 224, SIZES), (12, 384, ("base", "large")))
    for size in sizes
}

MOST = 8  # stages that have names in other libraries
TABLE = "relative_position_bias_table"
_their, _our = "encoder.layers.{i}.blocks.{i}", "layers.{i}.blocks.{i}"
TRANSFORMERS = (
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("embeddings.norm", "patch_embed.norm"),
    *((f"encoder.layers.{i}.downsample", f"layers.{i + 1}.downsample") for i in range(MOST)),
    *transformers_names(_their, _our, "self"),
    (f"{_their}.attention.self.{TABLE}", f"{_our}.attn.{TABLE}"),
    ("layernorm", "norm"),
    ("classifier", "head.head.fc"),
)
TORCHVISION = (
    ("features.0.0", "patch_embed.proj"),
    ("features.0.2", "patch_embed.norm"),
    *((f"features.{2 * i}", f"layers.{i}.downsample") for i in range(1, MOST)),
    *(
        (f"features.{2 * i + 1}.{{i}}{theirs}", f"layers.{i}.blocks.{{i}}{ours}")
        for i in range(MOST)
        for theirs, ours in (("", ""), (".mlp.0", ".mlp.fc1"), (".mlp.3", ".mlp.fc2"))
    ),
    ("head", "head.head.fc"),
)
INDEX = "*.relative_position_index"
REFERENCES = {
    "timm": Reference(ignored=("head.*", INDEX, "*.attn_mask")),
    "transformers": Reference(TRANSFORMERS, "swin", ("classifier.*", INDEX)),
    "torchvision": Reference(TORCHVISION, ignored=("head.*", INDEX)),
}


# --- layers --------------------------------------------------------------------------------------
@cache
def offsets(rows, columns):
    """Row of the bias table for each pair of places in a window: their offset, as one number."""
    y, x = np.divmod(np.arange(rows * columns), columns)
    down, right = y[:, None] - y + rows - 1, x[:, None] - x + columns - 1
    return (down * (2 * columns - 1) + right).ravel().astype("int32")


@cache
def regions(size, window, shift):
    """Which part of the image each place of each window is from: int (windows, 1, places).

    A shifted image has parts at its border that were not neighbours.
    """
    y, x = (
        (np.arange(n) >= n - w).astype("int32") + (s > 0) * (np.arange(n) >= n - s)
        for n, w, s in zip(size, window, shift, strict=True)
    )
    (down, rows), (across, columns) = ((n // w, w) for n, w in zip(size, window))
    found = (3 * y[:, None] + x).reshape(down, rows, across, columns).transpose(0, 2, 1, 3)
    return found.reshape(-1, 1, rows * columns)


def rolled(x, shift):
    return ops.roll(x, shift, axis=(1, 2)) if any(shift) else x


def padded(x, below, right):
    return ops.pad(x, ((0, 0), (0, below), (0, right), (0, 0))) if below or right else x


class WindowAttention(Attention):
    """Attention among the places of each window, with a bias for each offset between two of them.

    x: (batch, height, width, channels) -> same
    shifted: windows begin half a window later, where there is more than one
    reference: timm moves an image before it fills up its last windows, the others after that;
    transformers moves it along both axes or none
    """

    window: tuple
    shifted: bool
    reference: str

    def build(self, shape):
        super().build(shape)
        sizes = (np.prod([2 * n - 1 for n in self.window]), self.heads)
        start = initializers.TruncatedNormal(stddev=0.02)
        self.relative_position_bias_table = self.add_weight(sizes, start, name=TABLE)

    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        rows, columns = self.window
        shift = tuple(self.shifted * (n > w) * w // 2 for n, w in zip((height, width), self.window))
        shift = (0, 0) if self.reference == "transformers" and 0 in shift else shift
        back, early = tuple(-s for s in shift), self.reference == "timm"
        x = padded(rolled(x, back) if early else x, -height % rows, -width % columns)
        size, x = tuple(ops.shape(x)[1:3]), x if early else rolled(x, back)
        down, across = size[0] // rows, size[1] // columns
        x = ops.reshape(x, (batch, down, rows, across, columns, channels))
        x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, rows * columns, channels))
        x = self.attend(x, self._bias(batch, size, shift))
        x = ops.reshape(x, (batch, down, across, rows, columns, channels))
        x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (batch, *size, channels))
        x = (x if early else rolled(x, shift))[:, :height, :width]
        return rolled(x, shift) if early else x

    def _bias(self, batch, size, shift):
        """What is added to the scores: (batch * windows or 1, heads, places, places)."""
        rows, columns = self.window
        bias = ops.take(self.relative_position_bias_table, offsets(rows, columns), axis=0)
        bias = ops.reshape(bias, (1, rows * columns, rows * columns, self.heads))
        bias = ops.transpose(bias, (0, 3, 1, 2))
        if not any(shift):
            return bias
        part = ops.convert_to_tensor(regions(size, tuple(self.window), shift))
        near = ops.equal(part[..., None], part[:, :, None])
        return ops.tile(ops.where(near, bias, bias - 100.0), (batch, 1, 1, 1))


class PatchMerging(layers.Layer):
    """Four neighbours become one of twice the channels.

    x: (batch, height, width, channels) -> (batch, height / 2, width / 2, 2 channels)
    """

    def build(self, shape):
        self.norm = norm(self, 4 * shape[-1], 1e-5)
        self.reduction = dense(self, 4 * shape[-1], 2 * shape[-1], use_bias=False)

    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        x, size = padded(x, height % 2, width % 2), (-(-height // 2), -(-width // 2))
        x = ops.reshape(x, (batch, size[0], 2, size[1], 2, channels))
        x = ops.reshape(ops.transpose(x, (0, 1, 3, 4, 2, 5)), (batch, *size, 4 * channels))
        return self.reduction(self.norm(x))


# --- the backbone --------------------------------------------------------------------------------
@image_family("swin")
class SwinBackbone(ImageBackbone):
    """A transformer of image patches in windows, with half as many rows and columns each stage.

    images (batch, height, width, 3) -> (batch, height / 32, width / 32, 8 hidden_dim), for four
    stages   hidden_dim: channels of the first stage   num_blocks, num_heads: of each stage
    window: rows and columns of a window   drop_path: rate of the last block (arXiv:1603.09382)
    epsilon: of the blocks' and the last normalization
    """

    hidden_dim: PositiveInt
    num_blocks: tuple
    num_heads: tuple
    window: PositiveInt = 7
    patch_size: PositiveInt = 4
    mlp_ratio: float = 4.0
    activation: str = "gelu"
    qkv_bias: bool = True
    epsilon: float = 1e-5
    drop_path: Rate = 0.0
    image_shape: tuple = (224, 224, 3)

    VARIANTS = VARIANTS
    HEAD = "head.fc"
    STEMS = {"swin": "Swin"}
    KEYS = KEYS | {
        "hidden_dim": "embed_dim",
        "num_blocks": "depths",
        "num_heads": "num_heads",
        "window": "window_size",
        "mlp_ratio": "mlp_ratio",
    }
    REFERENCES = REFERENCES

    def draw(self, image):
        size, start = self.patch_size, initializers.TruncatedNormal(stddev=0.02)
        before = [(0, -(n or 0) % size) for n in self.image_shape[:2]]
        image = layers.ZeroPadding2D(before)(image) if np.any(before) else image
        options = dict(kernel_initializer=start, name="patch_embed.proj")
        x = layers.Conv2D(self.hidden_dim, size, size, **options)(image)
        x = parts.channels_last(x)
        x = parts.layer_norm(x, "patch_embed.norm", 1e-5)
        rates = iter(np.linspace(0, self.drop_path, sum(self.num_blocks)).tolist())
        self._levels = []
        for stage, (count, heads) in enumerate(zip(self.num_blocks, self.num_heads, strict=True)):
            x = PatchMerging(name=f"layers.{stage}.downsample")(x) if stage else x
            least = x.shape[1:3] if self.reference == "timm" else (None, None)
            window = tuple(min(self.window, n or self.window) for n in least)
            for i in range(count):
                options = (window, i % 2 == 1, self.reference, heads, self.qkv_bias)
                attention = WindowAttention(*options)
                mlp = MLP(int(x.shape[-1] * self.mlp_ratio), self.activation)
                name = f"layers.{stage}.blocks.{i}"
                x = Block(attention, mlp, self.epsilon, next(rates), name=name)(x)
            self._levels.append(x)
        x = self._levels[-1] = parts.layer_norm(x, "norm", self.epsilon)
        return parts.placed(x)

    def feature_pyramid(self):
        first = round(np.log2(self.patch_size))
        levels = {f"P{first + i}": parts.placed(x) for i, x in enumerate(self._levels)}
        return Functional(self.input, levels, name=f"{self.name}_pyramid")

    @classmethod
    def config_from_transformers(cls, config):
        check(config, {"use_absolute_embeddings": False})
        return super().config_from_transformers(config)
