"""Swin transformers: attention in shifted windows. Liu et al. 2021, arXiv:2103.14030."""

from functools import cache

import numpy as np

from khub import initializers, layers, ops
from khub.backend.windows import channels_first
from khub.fields import Choice, PositiveInt, Rate
from khub.models.functional import Functional
from khub.ops.symbolic import KerasTensor

from . import parts
from .backbone import ImageBackbone, ImageClassifier, Reference, check, image_family, pooled
from .vit import ACTIVATIONS, MLP, dense, norm

SIZES = {  # width, blocks and heads of each stage (arXiv:2103.14030, section 3.3)
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
VARIANTS = {
    f"swin_{size}_patch4_window{window}_{image}": {
        **dict(zip(("hidden_dim", "num_blocks", "num_heads"), SIZES[size])),
        "window": window,
        "image_shape": (image, image, 3),
    }
    for window, image, sizes in ((7, 224, SIZES), (12, 384, ("base", "large")))
    for size in sizes
}
_parts = tuple(
    f"encoder.layers.{{i}}.blocks.{{i}}.attention.self.{p}" for p in ("query", "key", "value")
)
_tables = "attention.self.relative_position_bias_table", "attn.relative_position_bias_table"
_ours, _theirs = "layers.{i}.blocks.{i}", "encoder.layers.{i}.blocks.{i}"
MOST = 8  # stages
REFERENCES = {
    "timm": Reference(ignored=("head.*", "*.relative_position_index", "*.attn_mask")),
    "transformers": Reference(
        names=(
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("embeddings.norm", "patch_embed.norm"),
            *(
                (f"encoder.layers.{i}.downsample", f"layers.{i + 1}.downsample")
                for i in range(MOST)
            ),
            (_parts, f"{_ours}.attn.qkv"),
            *(
                (f"{_theirs}.{theirs}", f"{_ours}.{ours}")
                for theirs, ours in (
                    _tables,
                    ("attention.output.dense", "attn.proj"),
                    ("layernorm_before", "norm1"),
                    ("layernorm_after", "norm2"),
                    ("intermediate.dense", "mlp.fc1"),
                    ("output.dense", "mlp.fc2"),
                )
            ),
            ("layernorm", "norm"),
            ("classifier", "head.head.fc"),
        ),
        prefix="swin",
        ignored=("classifier.*", "*.relative_position_index", "embeddings.mask_token"),
    ),
    "torchvision": Reference(
        names=(
            ("features.0.0", "patch_embed.proj"),
            ("features.0.2", "patch_embed.norm"),
            *(
                pair
                for i in range(MOST)
                for pair in (
                    (f"features.{2 * i}", f"layers.{i}.downsample"),
                    (f"features.{2 * i + 1}.{{i}}", f"layers.{i}.blocks.{{i}}"),
                    (f"features.{2 * i + 1}.{{i}}.mlp.0", f"layers.{i}.blocks.{{i}}.mlp.fc1"),
                    (f"features.{2 * i + 1}.{{i}}.mlp.3", f"layers.{i}.blocks.{{i}}.mlp.fc2"),
                )
            ),
            ("head", "head.head.fc"),
        ),
        ignored=("head.*", "*.relative_position_index"),
    ),
}


TIMM_ARGUMENTS = {  # its model_args -> the backbone's arguments
    "embed_dim": "hidden_dim",
    "depths": "num_blocks",
    "num_heads": "num_heads",
    "window_size": "window",
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
    """The part of the image that each place of each window comes from: int (windows, places).

    A shifted image has parts at its border that were not neighbours.
    """
    parts = []
    for n, w, s in zip(size, window, shift, strict=True):
        places = np.arange(n)
        parts.append((places >= n - w).astype("int32") + (places >= n - s if s else 0))
    whole = 3 * parts[0][:, None] + parts[1]
    (rows, columns), (height, width) = window, size
    whole = whole.reshape(height // rows, rows, width // columns, columns)
    return whole.transpose(0, 2, 1, 3).reshape(-1, rows * columns).astype("int32")


def rolled(x, shift):
    return ops.roll(x, shift, axis=(1, 2)) if any(shift) else x


class WindowAttention(layers.Layer):
    """Attention among the places of each window, with a bias for each offset between two of them.

    x: (batch, height, width, channels) -> same
    shifted: windows begin half a window later, where there is more than one
    reference: timm moves an image before it fills up its last windows, the others after that;
    transformers moves it along both axes or none
    """

    heads: PositiveInt
    window: tuple
    shifted: bool
    bias: bool = True
    reference: str = "timm"

    def build(self, shape):
        count = np.prod([2 * n - 1 for n in self.window])
        start = initializers.TruncatedNormal(stddev=0.02)
        name = "relative_position_bias_table"
        self.relative_position_bias_table = self.add_weight((count, self.heads), start, name=name)
        self.qkv = dense(self, shape[-1], 3 * shape[-1], use_bias=self.bias)
        self.proj = dense(self, shape[-1], shape[-1])

    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        rows, columns = self.window
        below, right = -height % rows, -width % columns
        size = (height + below, width + right)
        shift = tuple(
            w // 2 if self.shifted and n > w else 0
            for n, w in zip((height, width), self.window, strict=True)
        )
        if self.reference == "transformers" and 0 in shift:
            shift = (0, 0)
        back, early = tuple(-s for s in shift), self.reference == "timm"
        x = rolled(x, back) if early else x
        if below or right:
            x = ops.pad(x, ((0, 0), (0, below), (0, right), (0, 0)))
        x = x if early else rolled(x, back)
        down, across = size[0] // rows, size[1] // columns
        x = ops.reshape(x, (batch, down, rows, across, columns, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        split = (-1, rows * columns, 3, self.heads, channels // self.heads)
        qkv = self.qkv(ops.reshape(x, (-1, rows * columns, channels)))
        qkv = ops.reshape(qkv, split)
        q, k, v = (qkv[:, :, i] for i in range(3))
        x = ops.dot_product_attention(q, k, v, bias=self._bias(batch, size, shift))
        x = self.proj(ops.reshape(x, (-1, rows * columns, channels)))
        x = ops.reshape(x, (batch, down, across, rows, columns, channels))
        x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (batch, *size, channels))
        x = x if early else rolled(x, shift)
        x = x[:, :height, :width] if below or right else x
        return rolled(x, shift) if early else x

    def _bias(self, batch, size, shift):
        """What is added to the scores: (batch * windows or 1, heads, places, places)."""
        places = self.window[0] * self.window[1]
        bias = ops.take(self.relative_position_bias_table, offsets(*self.window), axis=0)
        bias = ops.transpose(ops.reshape(bias, (places, places, self.heads)), (2, 0, 1))[None]
        if not any(shift):
            return bias
        part = ops.convert_to_tensor(regions(size, tuple(self.window), shift))
        near = ops.equal(part[:, None, :, None], part[:, None, None, :])
        bias = bias + ops.where(near, 0.0, -100.0)
        return ops.tile(bias, (batch, 1, 1, 1))


class SwinBlock(layers.Layer):
    """x + attn(norm1(x)), then the same with mlp.  x: (batch, height, width, channels) -> same"""

    heads: PositiveInt
    window: tuple
    shifted: bool
    bias: bool
    reference: str
    mlp_ratio: float
    activation: str
    epsilon: float
    drop_path: Rate

    def build(self, shape):
        own = {"dtype": self.dtype_policy}
        self.norm1, self.norm2 = (norm(self, shape[-1], self.epsilon) for _ in range(2))
        window = (self.heads, self.window, self.shifted, self.bias, self.reference)
        self.attn = WindowAttention(*window, **own)
        self.mlp = MLP(int(shape[-1] * self.mlp_ratio), self.activation, **own)
        for part in (self.attn, self.mlp):
            part.build(shape)
        self.drop = layers.Dropout(self.drop_path, (None, 1, 1, 1), **own)

    def compute_output_spec(self, x, training=None):
        return KerasTensor(x.shape, self.compute_dtype)

    def call(self, x, training=None):
        for normalize, branch in ((self.norm1, self.attn), (self.norm2, self.mlp)):
            y = branch(normalize(x))
            x = x + (self.drop(y, training=training) if self.drop_path else y)
        return x


class PatchMerging(layers.Layer):
    """Four neighbours become one of twice the channels.

    x: (batch, height, width, channels) -> (batch, height / 2, width / 2, 2 channels)
    """

    def build(self, shape):
        self.norm = norm(self, 4 * shape[-1], 1e-5)
        self.reduction = dense(self, 4 * shape[-1], 2 * shape[-1], use_bias=False)

    def call(self, x):
        batch, height, width, channels = ops.shape(x)
        if height % 2 or width % 2:
            x = ops.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        size = (-(-height // 2), -(-width // 2))
        x = ops.reshape(x, (batch, size[0], 2, size[1], 2, channels))
        x = ops.transpose(x, (0, 1, 3, 4, 2, 5))
        return self.reduction(self.norm(ops.reshape(x, (batch, *size, 4 * channels))))


# --- the backbone --------------------------------------------------------------------------------
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
    activation: Choice(*ACTIVATIONS) = "gelu"
    qkv_bias: bool = True
    epsilon: float = 1e-5
    drop_path: Rate = 0.0
    image_shape: tuple = (224, 224, 3)

    VARIANTS = VARIANTS
    REFERENCES = REFERENCES

    def draw(self, image):
        start = initializers.TruncatedNormal(stddev=0.02)
        size = self.patch_size
        options = dict(kernel_initializer=start, name="patch_embed.proj")
        before = [(0, -(n or 0) % size) for n in self.image_shape[:2]]
        image = layers.ZeroPadding2D(before)(image) if np.any(before) else image
        x = layers.Conv2D(self.hidden_dim, size, size, **options)(image)
        x = layers.Permute((2, 3, 1))(x) if channels_first(None) else x
        x = parts.layer_norm(x, "patch_embed.norm", 1e-5)
        done, last, self._levels = 0, max(sum(self.num_blocks) - 1, 1), []
        for stage, (count, heads) in enumerate(zip(self.num_blocks, self.num_heads, strict=True)):
            x = PatchMerging(name=f"layers.{stage}.downsample")(x) if stage else x
            window = self._window(x)
            for i in range(count):
                x = SwinBlock(
                    heads,
                    window,
                    i % 2 == 1,
                    self.qkv_bias,
                    self.reference,
                    self.mlp_ratio,
                    self.activation,
                    self.epsilon,
                    self.drop_path * (done + i) / last,
                    name=f"layers.{stage}.blocks.{i}",
                )(x)
            done += count
            self._levels.append(x)
        x = self._levels[-1] = parts.layer_norm(x, "norm", self.epsilon)
        return self._placed(x)

    def _window(self, x):
        """Its size for these features: timm's are never larger than an image."""
        least = [n or self.window for n in x.shape[1:3]]
        timm = self.reference == "timm"
        return tuple(min(self.window, n) if timm else self.window for n in least)

    def _placed(self, x):
        return layers.Permute((3, 1, 2))(x) if channels_first(None) else x

    def draw_head(self, features, num_classes, dropout):
        x = layers.Dropout(dropout, name="dropout")(pooled(features))
        return layers.Dense(num_classes, name="head.fc")(x)

    def feature_pyramid(self):
        first = round(np.log2(self.patch_size))
        levels = {f"P{first + i}": self._placed(x) for i, x in enumerate(self._levels)}
        return Functional(self.input, levels, name=f"{self.name}_pyramid")

    @classmethod
    def config_from_timm(cls, config):
        found, other = super().config_from_timm(config), dict(config.get("model_args") or {})
        if size := other.pop("img_size", None):
            found["image_shape"] = (*((size, size) if isinstance(size, int) else size), 3)
        check(other, dict.fromkeys(other.keys() - TIMM_ARGUMENTS.keys()))
        return found | {TIMM_ARGUMENTS[name]: value for name, value in other.items()}

    @classmethod
    def config_from_transformers(cls, config):
        check(config, {"num_channels": 3, "use_absolute_embeddings": False})
        size = config.get("image_size", 224)
        return {
            "hidden_dim": config.get("embed_dim", 96),
            "num_blocks": tuple(config.get("depths", (2, 2, 6, 2))),
            "num_heads": tuple(config.get("num_heads", (3, 6, 12, 24))),
            "window": config.get("window_size", 7),
            "patch_size": config.get("patch_size", 4),
            "mlp_ratio": config.get("mlp_ratio", 4.0),
            "activation": config.get("hidden_act", "gelu"),
            "qkv_bias": config.get("qkv_bias", True),
            "epsilon": config.get("layer_norm_eps", 1e-5),
            "image_shape": (*((size, size) if isinstance(size, int) else size), 3),
        }

    def transformers_config(self):
        height, width, _ = self.image_shape
        return {
            "model_type": "swin",
            "architectures": ["SwinForImageClassification"],
            "embed_dim": self.hidden_dim,
            "depths": list(self.num_blocks),
            "num_heads": list(self.num_heads),
            "window_size": self.window,
            "patch_size": self.patch_size,
            "mlp_ratio": self.mlp_ratio,
            "hidden_act": self.activation,
            "qkv_bias": self.qkv_bias,
            "layer_norm_eps": self.epsilon,
            "image_size": height if height == width else [height, width],
        }


class SwinImageClassifier(ImageClassifier):
    """A class of an image, by a Swin transformer."""


image_family(
    "swin",
    SwinBackbone,
    SwinImageClassifier,
    ("swin",),
    ("SwinForImageClassification",),
)
