"""Vision transformers. Dosovitskiy et al. 2020, arXiv:2010.11929, and their descendants."""

import math
from dataclasses import replace
from functools import partial

import numpy as np

from khub import initializers, layers, ops
from khub.backend.windows import channels_first
from khub.fields import Choice, PositiveInt, Rate
from khub.models.functional import Functional
from khub.ops.symbolic import KerasTensor

from ..presets.weights import LAYOUTS
from . import parts
from .backbone import ImageBackbone, ImageClassifier, Reference, check, image_family

SIZES = {  # layers, heads, hidden and MLP width (arXiv:2010.11929, table 1; arXiv:2012.12877,
    # table 1; arXiv:2204.07118, table 1; arXiv:2106.04560, table 2)
    "tiny": (12, 3, 192, 768),
    "small": (12, 6, 384, 1536),
    "medium": (12, 8, 512, 2048),
    "base": (12, 12, 768, 3072),
    "large": (24, 16, 1024, 4096),
    "huge": (32, 16, 1280, 5120),
    "giant": (40, 16, 1408, 6144),
    "gap": (12, 16, 768, 3072),  # one of timm's own
    "dino": (40, 24, 1536, 4096),  # arXiv:2304.07193, table 17
}
MEAN = dict(pooling="mean", class_token=False, num_positioned=0)
REGISTERS = MEAN | dict(num_registers=4, fc_norm=True)
DEIT3 = dict(layer_scale=1e-6, num_positioned=0)  # arXiv:2204.07118
DISTILLED = dict(pooling="distilled", distillation_token=True, num_positioned=2)  # arXiv:2012.12877
DINO = dict(layer_scale=1e-5, image_shape=(518, 518, 3))  # arXiv:2304.07193
DINO_REGISTERS = DINO | dict(num_registers=4, num_positioned=0)  # arXiv:2309.16588
CLIP = dict(pre_norm=True, epsilon=1e-5)  # arXiv:2103.00020
QUICK = CLIP | dict(activation="quick_gelu")
VARIANTS = {
    name.format(size, image): {
        **dict(zip(("num_layers", "num_heads", "hidden_dim", "mlp_dim"), SIZES[size])),
        "patch_size": patch,
        "image_shape": (image, image, 3),
        **options,
    }
    for name, patch, images, sizes, options in (
        ("vit_{}_patch8_{}", 8, (224,), "small base", {}),
        ("vit_{}_patch14_{}", 14, (224,), "large huge giant", {}),
        ("vit_{}_patch16_{}", 16, (224, 384), "tiny small base large", {}),
        ("vit_{}_patch32_{}", 32, (224, 384), "small base large", {}),
        ("vit_{}_patch16_224_miil", 16, (224,), "base", dict(qkv_bias=False)),
        ("vit_base_patch16_gap_224", 16, (224,), "gap", MEAN),
        ("vit_{}_patch16_gap_224", 16, (224,), "giant", MEAN),
        ("vit_{}_patch14_gap_224", 14, (224,), "huge", MEAN),
        ("vit_{}_patch16_gap_448", 16, (448,), "huge", MEAN),
        ("vit_{}_patch16_reg4_gap_{}", 16, (256,), "base", REGISTERS),
        ("vit_{}_patch16_reg4_gap_{}", 16, (256,), "medium", REGISTERS | dict(layer_scale=1e-5)),
        ("vit_{}_patch16_siglip_gap_{}", 16, (224, 256, 384, 512), "base", MEAN),
        ("vit_{}_patch16_siglip_gap_{}", 16, (256, 384), "large", MEAN),
        ("vit_{}_patch16_clip_{}", 16, (224, 384), "base", CLIP),
        ("vit_{}_patch32_clip_{}", 32, (224, 256, 384, 448), "base", CLIP),
        ("vit_{}_patch14_clip_{}", 14, (224, 336), "large huge", CLIP),
        ("vit_{}_patch16_clip_quickgelu_{}", 16, (224,), "base", QUICK),
        ("vit_{}_patch32_clip_quickgelu_{}", 32, (224,), "base", QUICK),
        ("vit_{}_patch14_clip_quickgelu_{}", 14, (224, 336), "large", QUICK),
        ("deit_{}_patch16_{}", 16, (224,), "tiny small base", {}),
        ("deit_{}_patch16_{}", 16, (384,), "base", {}),
        ("deit_{}_distilled_patch16_{}", 16, (224,), "tiny small base", DISTILLED),
        ("deit_{}_distilled_patch16_{}", 16, (384,), "base", DISTILLED),
        ("deit3_{}_patch16_{}", 16, (224, 384), "small base large", DEIT3),
        ("deit3_{}_patch16_{}", 16, (224,), "medium", DEIT3),
        ("deit3_{}_patch14_{}", 14, (224,), "huge", DEIT3),
        ("vit_{}_patch14_dinov2", 14, (518,), "small base large", DINO),
        ("vit_giant_patch14_dinov2", 14, (518,), "dino", DINO | dict(gated=True)),
        ("vit_{}_patch14_reg4_dinov2", 14, (518,), "small base large", DINO_REGISTERS),
        ("vit_giant_patch14_reg4_dinov2", 14, (518,), "dino", DINO_REGISTERS | dict(gated=True)),
    )
    for image in images
    for size in sizes.split()
}

TOKENS = ("cls_token", "dist_token", "reg_token", "pos_embed")
HEAD = ("head.*", "head_dist.*", "fc_norm.*", "classifier.*", "*_classifier.*", "heads.*")
_attention, _output = "encoder.layer.{i}.attention.attention", "encoder.layer.{i}.attention.output"
TRANSFORMERS = (
    ("embeddings.cls_token", "tokens.cls_token"),
    ("embeddings.distillation_token", "tokens.dist_token"),
    ("embeddings.register_tokens", "tokens.reg_token"),
    ("embeddings.position_embeddings", "tokens.pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    (tuple(f"{_attention}.{part}" for part in ("query", "key", "value")), "blocks.{i}.attn.qkv"),
    (f"{_output}.dense", "blocks.{i}.attn.proj"),
    ("layernorm", "norm"),
    ("classifier", "head.head"),
)
VIT = (  # model types "vit" and "deit"
    *TRANSFORMERS,
    ("encoder.layer.{i}.layernorm_before", "blocks.{i}.norm1"),
    ("encoder.layer.{i}.layernorm_after", "blocks.{i}.norm2"),
    ("encoder.layer.{i}.intermediate.dense", "blocks.{i}.mlp.fc1"),
    ("encoder.layer.{i}.output.dense", "blocks.{i}.mlp.fc2"),
)
TEACHER = (
    *VIT[: len(TRANSFORMERS) - 1],
    *VIT[len(TRANSFORMERS) :],
    ("cls_classifier", "head.head"),
    ("distillation_classifier", "head.head_dist"),
)
DINOV2 = (
    *TRANSFORMERS,
    ("encoder.layer.{i}", "blocks.{i}"),
    *((f"encoder.layer.{{i}}.layer_scale{n}.lambda1", f"blocks.{{i}}.ls{n}.gamma") for n in (1, 2)),
)
SWIGLU = (
    *DINOV2,
    ("encoder.layer.{i}.mlp.weights_in", "blocks.{i}.mlp.fc1"),
    ("encoder.layer.{i}.mlp.weights_out", "blocks.{i}.mlp.fc2"),
)
_block = "encoder.layers.encoder_layer_{i}"
REFERENCES = {
    "timm": Reference(names=tuple((name, f"tokens.{name}") for name in TOKENS), ignored=HEAD),
    "transformers": Reference(ignored=(*HEAD, "pooler.*", "embeddings.mask_token")),
    "torchvision": Reference(
        names=(
            ("class_token", "tokens.cls_token"),
            ("encoder.pos_embedding", "tokens.pos_embed"),
            ("conv_proj", "patch_embed.proj"),
            (f"{_block}.ln_1", "blocks.{i}.norm1"),
            (f"{_block}.self_attention", "blocks.{i}.attn.qkv"),
            (f"{_block}.self_attention.out_proj", "blocks.{i}.attn.proj"),
            (f"{_block}.ln_2", "blocks.{i}.norm2"),
            (f"{_block}.mlp.0", "blocks.{i}.mlp.fc1"),
            (f"{_block}.mlp.3", "blocks.{i}.mlp.fc2"),
            ("encoder.ln", "norm"),
            ("heads.head", "head.head"),
        ),
        ignored=HEAD,
    ),
}
TIMM_ARGUMENTS = {  # its model_args -> the backbone's arguments
    "embed_dim": "hidden_dim",
    "depth": "num_layers",
    "num_heads": "num_heads",
    "patch_size": "patch_size",
}
ACTIVATIONS = {
    "gelu": partial(ops.gelu, approximate=False),
    "gelu_new": partial(ops.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(ops.gelu, approximate=True),
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),
    "relu": ops.relu,
    "silu": ops.silu,
}


# --- layers --------------------------------------------------------------------------------------
class QKV(layers.Dense):
    """Query, key and value of all heads in one product; torchvision has a name of its own for it."""


def dense(layer, inputs, units, kind=layers.Dense, **options):
    """A built Dense of `layer`, with a transformer's initial values and the layer's dtype."""
    start = initializers.TruncatedNormal(stddev=0.02)
    made = kind(units, kernel_initializer=start, dtype=layer.dtype_policy, **options)
    made.build((None, inputs))
    return made


def norm(layer, width, epsilon):
    made = layers.LayerNormalization(epsilon=epsilon, dtype=layer.dtype_policy)
    made.build((None, width))
    return made


class MLP(layers.Layer):
    """W2 f(W1 x); gated: W2 (silu(g) * u) of the halves g and u of W1 x (arXiv:2002.05202).

    x: (..., width) -> same
    """

    hidden: PositiveInt
    activation: str = "gelu"
    gated: bool = False

    def build(self, shape):
        self.fc1 = dense(self, shape[-1], self.hidden * (1 + self.gated))
        self.fc2 = dense(self, self.hidden, shape[-1])

    def call(self, x):
        x = self.fc1(x)
        if self.gated:
            return self.fc2(ops.silu(x[..., : self.hidden]) * x[..., self.hidden :])
        return self.fc2(ACTIVATIONS[self.activation](x))


class LayerScale(layers.Layer):
    """x * gamma, a factor for each channel. Touvron et al. 2021, arXiv:2103.17239"""

    start: float

    def build(self, shape):
        start = initializers.Constant(self.start)
        self.gamma = self.add_weight(shape[-1:], start, name="gamma")

    def call(self, x):
        return x * self.gamma


class Attention(layers.Layer):
    """softmax(q k' / sqrt(head width)) v in every head, then a projection.

    x: (batch, time, width) -> same
    """

    heads: PositiveInt
    bias: bool = True

    def build(self, shape):
        self.qkv = dense(self, shape[-1], 3 * shape[-1], QKV, use_bias=self.bias)
        self.proj = dense(self, shape[-1], shape[-1])

    def call(self, x):
        batch, time, width = ops.shape(x)
        qkv = ops.reshape(self.qkv(x), (batch, time, 3, self.heads, width // self.heads))
        y = ops.dot_product_attention(*(qkv[:, :, i] for i in range(3)))
        return self.proj(ops.reshape(y, (batch, time, width)))


class Block(layers.Layer):
    """x + ls1(attn(norm1(x))), then the same with mlp.  x: (batch, time, width) -> same"""

    heads: PositiveInt
    hidden: PositiveInt
    activation: str
    gated: bool
    bias: bool
    layer_scale: float
    epsilon: float
    drop_path: Rate

    def build(self, shape):
        own = {"dtype": self.dtype_policy}
        self.norm1, self.norm2 = (norm(self, shape[-1], self.epsilon) for _ in range(2))
        self.attn = Attention(self.heads, self.bias, **own)
        self.mlp = MLP(self.hidden, self.activation, self.gated, **own)
        scales = [LayerScale(self.layer_scale, **own) for _ in range(2) if self.layer_scale]
        for part in (self.attn, self.mlp, *scales):
            part.build(shape)
        self.ls1, self.ls2 = scales or (None, None)
        self.drop = layers.Dropout(self.drop_path, (None, 1, 1), **own)

    def compute_output_spec(self, x, training=None):
        return KerasTensor(x.shape, self.compute_dtype)  # tracing every block takes a second

    def call(self, x, training=None):
        for normalize, branch, scale in (
            (self.norm1, self.attn, self.ls1),
            (self.norm2, self.mlp, self.ls2),
        ):
            y = branch(normalize(x))
            y = y if scale is None else scale(y)
            x = x + (self.drop(y, training=training) if self.drop_path else y)
        return x


def cubic(size, new, antialias):
    """The matrix (new, size) of PyTorch's bicubic resampling along one axis."""
    a, stretch = (-0.5, max(size / new, 1)) if antialias else (-0.75, 1)
    places = np.arange(-2, size + 2)
    centres = (np.arange(new) + 0.5) * size / new - 0.5
    d = np.abs(places - centres[:, None]) / stretch
    near, far = ((a + 2) * d - (a + 3)) * d**2 + 1, a * (((d - 5) * d + 8) * d - 4)
    weights = np.where(d < 1, near, np.where(d < 2, far, 0))
    if antialias:
        inside = weights[:, 2:-2]
        return inside / inside.sum(1, keepdims=True)
    weights[:, 2] += weights[:, :2].sum(1)  # beyond its edge a table goes on as at the edge
    weights[:, -3] += weights[:, -2:].sum(1)
    return weights[:, 2:-2]


def resampled(table, grid, new, antialias):
    """Position table (1, rows * columns, width) of one grid -> of another, bicubic."""
    rows, columns = (
        np.asarray(cubic(n, m, antialias), "float32") for n, m in zip(grid, new, strict=True)
    )
    table = ops.reshape(table, (*grid, -1))
    table = ops.einsum("jw,hwc->hjc", columns, table)
    return ops.reshape(ops.einsum("ih,hjc->ijc", rows, table), (1, new[0] * new[1], -1))


class Tokens(layers.Layer):
    """Patches in rows, each with its position; before them the tokens of no patch.

    x: (batch, rows, columns, width) -> (batch, extra + rows * columns, width)
    grid: rows and columns that have positions; other sizes take them resampled
    extra: name -> number of tokens before the patches   positioned: how many of them have positions
    """

    grid: tuple
    extra: dict
    positioned: int
    antialias: bool

    def build(self, shape):
        start, width = initializers.TruncatedNormal(stddev=0.02), shape[-1]
        time = self.positioned + math.prod(self.grid)
        for name, count in self.extra.items():
            setattr(self, name, self.add_weight((1, count, width), start, name=name))
        self.pos_embed = self.add_weight((1, time, width), start, name="pos_embed")

    def call(self, x):
        batch, rows, columns, width = ops.shape(x)
        first, table = self.positioned, ops.convert_to_tensor(self.pos_embed)
        places = table[:, first:]
        if (rows, columns) != tuple(self.grid):
            places = resampled(places, self.grid, (rows, columns), self.antialias)
        x = ops.reshape(x, (batch, rows * columns, width)) + places
        if not self.extra:
            return x
        tokens = [ops.convert_to_tensor(getattr(self, name)) for name in self.extra]
        tokens = ops.concatenate(tokens, axis=1)
        if first:
            positions = [tokens[:, :first] + table[:, :first], tokens[:, first:]]
            tokens = ops.concatenate(positions, axis=1)
        tokens = ops.broadcast_to(ops.cast(tokens, x.dtype), (batch, tokens.shape[1], width))
        return ops.concatenate([tokens, x], axis=1)


# --- the backbone --------------------------------------------------------------------------------
class ViTBackbone(ImageBackbone):
    """A transformer of the patches of an image.

    images (batch, height, width, 3) -> (batch, tokens, hidden_dim): the class token, distillation
    token and registers (arXiv:2309.16588), as far as there are any, then the patches
    Images of another size than `image_shape` are taken too, their positions resampled.
    pooling: what the head sees: the class "token", the "mean" of the patches, "both", or class and
    distillation token by a head each ("distilled", arXiv:2012.12877)
    num_positioned: tokens before the patches that have a position
    layer_scale: initial factor of the branches, None without (arXiv:2103.17239)
    gated: SwiGLU in place of the MLP   pre_norm: normalize before the first block too (CLIP)
    fc_norm: normalize after the mean, not before   drop_path: rate of the last block
    """

    num_layers: PositiveInt
    num_heads: PositiveInt
    hidden_dim: PositiveInt
    mlp_dim: PositiveInt
    patch_size: PositiveInt = 16
    pooling: Choice("token", "mean", "both", "distilled") = "token"
    class_token: bool = True
    distillation_token: bool = False
    num_registers: int = 0
    num_positioned: int = 1
    layer_scale: float = None
    gated: bool = False
    activation: Choice(*ACTIVATIONS) = "gelu"
    qkv_bias: bool = True
    pre_norm: bool = False
    fc_norm: bool = False
    epsilon: float = 1e-6
    drop_path: Rate = 0.0
    image_shape: tuple = (224, 224, 3)

    VARIANTS = VARIANTS
    REFERENCES = REFERENCES

    def setup(self):
        if None in self.image_shape or min(self.image_shape[:2]) < self.patch_size:
            raise ValueError(
                f"image_shape must be height and width of one patch ({self.patch_size}) or more, "
                f"and 3, got {self.image_shape}."
            )
        counts = (self.class_token, self.distillation_token, self.num_registers)
        self._extra = {name: int(n) for name, n in zip(TOKENS, counts) if n}
        self._count = sum(self._extra.values())
        self._grid = tuple(n // self.patch_size for n in self.image_shape[:2])
        # transformers smooths positions that become fewer only in models with registers
        self._antialias = self.reference == "timm" or self.num_registers > 0
        super().setup()

    def draw(self, image):
        start = initializers.TruncatedNormal(stddev=0.02)
        options = dict(use_bias=not self.pre_norm, kernel_initializer=start)
        size = self.patch_size
        x = layers.Conv2D(self.hidden_dim, size, size, name="patch_embed.proj", **options)(image)
        x = layers.Permute((2, 3, 1))(x) if channels_first(None) else x
        x = Tokens(self._grid, self._extra, self.num_positioned, self._antialias, name="tokens")(x)
        x = parts.layer_norm(x, "norm_pre", self.epsilon) if self.pre_norm else x
        for i in range(self.num_layers):
            x = Block(
                self.num_heads,
                self.mlp_dim,
                self.activation,
                self.gated,
                self.qkv_bias,
                self.layer_scale,
                self.epsilon,
                self.drop_path * i / max(self.num_layers - 1, 1),
                name=f"blocks.{i}",
            )(x)
        return x if self.fc_norm else parts.layer_norm(x, "norm", self.epsilon)

    def draw_head(self, features, num_classes, dropout):
        x = features[:, 0]
        if self.pooling in ("mean", "both"):
            mean = layers.GlobalAveragePooling1D(name="pool")(features[:, self._count :])
            x = layers.Concatenate()([x, mean]) if self.pooling == "both" else mean
        x = parts.layer_norm(x, "fc_norm", self.epsilon) if self.fc_norm else x
        x = layers.Dropout(dropout, name="dropout")(x)
        x = layers.Dense(num_classes, name="head")(x)
        if self.pooling == "distilled":
            other = layers.Dropout(dropout, name="dropout_dist")(features[:, 1])
            x = layers.Average()([x, layers.Dense(num_classes, name="head_dist")(other)])
        return x

    def feature_pyramid(self):
        """Return the model images -> {"P4": the patches (batch, rows, columns, hidden_dim)}.

        The level is the one nearest to the patch size.
        """
        x = layers.Reshape((*self._grid, self.hidden_dim))(self.output[:, self._count :])
        x = layers.Permute((3, 1, 2))(x) if channels_first(None) else x
        level = f"P{round(math.log2(self.patch_size))}"
        return Functional(self.input, {level: x}, name=f"{self.name}_pyramid")

    # --- weights ---------------------------------------------------------------------------------
    @property
    def _model_type(self):
        if self.layer_scale is None:
            return "deit" if self.distillation_token else "vit"
        return "dinov2_with_registers" if self.num_registers else "dinov2"

    @property
    def naming(self):
        found = super().naming
        if self.reference != "transformers":
            return found
        names = TEACHER if self.pooling == "distilled" else VIT
        if self.layer_scale is not None:
            names = SWIGLU if self.gated else DINOV2
        return replace(found, names=names, prefix=self._model_type)

    @property
    def layouts(self):
        if self.reference != "torchvision":
            return LAYOUTS
        joined = {"kernel": ("in_proj_weight", (1, 0)), "bias": ("in_proj_bias", None)}
        return LAYOUTS | {"QKV": joined}

    def fit_tensor(self, slot, tensor):
        """Resample the position table of a checkpoint for other image sizes."""
        first = self.num_positioned
        side = math.isqrt(max(tensor.shape[1] - first, 0)) if len(tensor.shape) == 3 else 0
        fits = side and side**2 + first == tensor.shape[1] and tensor.shape[2] == slot.shape[2]
        if not slot.path.endswith("tokens.pos_embed") or not fits:
            return tensor

        def read():
            table = tensor.read().astype("float32")
            places = resampled(table[:, first:], (side, side), self._grid, self._antialias)
            return np.concatenate([table[:, :first], ops.convert_to_numpy(places)], 1)

        return replace(tensor, shape=slot.shape, dtype=np.dtype("float32"), read=read)

    # --- presets ---------------------------------------------------------------------------------
    @classmethod
    def config_from_timm(cls, config):
        found, other = super().config_from_timm(config), dict(config.get("model_args") or {})
        if size := other.pop("img_size", None):
            found["image_shape"] = (*((size, size) if isinstance(size, int) else size), 3)
        ratio = other.pop("mlp_ratio", found["mlp_dim"] / found["hidden_dim"])
        check(other, dict.fromkeys(other.keys() - TIMM_ARGUMENTS.keys()))
        found |= {TIMM_ARGUMENTS[name]: value for name, value in other.items()}
        halves = 1 + ("gated" in found and "mlp_ratio" in (config.get("model_args") or {}))
        return found | {"mlp_dim": int(found["hidden_dim"] * ratio) // halves}

    @classmethod
    def config_from_transformers(cls, config):
        kind, width = config["model_type"], config["hidden_size"]
        check(config, {"num_channels": 3})
        size = config.get("image_size", 224)
        size = (size, size) if isinstance(size, int) else size
        found = {
            "num_layers": config["num_hidden_layers"],
            "num_heads": config["num_attention_heads"],
            "hidden_dim": width,
            "patch_size": config.get("patch_size", 14 if kind.endswith("registers") else 16),
            "image_shape": (*size, 3),
            "activation": config.get("hidden_act", "gelu"),
            "qkv_bias": config.get("qkv_bias", True),
        }
        if not kind.startswith("dinov2"):
            deit = kind == "deit"
            teacher = "DeiTForImageClassificationWithTeacher" in config.get("architectures", ())
            return found | {
                "mlp_dim": config.get("intermediate_size", 3072),
                "epsilon": config.get("layer_norm_eps", 1e-12),
                "distillation_token": deit,
                "num_positioned": 1 + deit,
                "pooling": "distilled" if teacher else "token",
            }
        gated, hidden = config.get("use_swiglu_ffn", False), int(width * config.get("mlp_ratio", 4))
        return found | {
            "mlp_dim": (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden,
            "gated": gated,
            "epsilon": config.get("layer_norm_eps", 1e-6),
            "layer_scale": config.get("layerscale_value", 1.0),
            "num_registers": config.get("num_register_tokens", 4) if kind != "dinov2" else 0,
            "pooling": "both",
        }

    def transformers_config(self):
        kind = self._model_type
        stem = {"vit": "ViT", "deit": "DeiT", "dinov2": "Dinov2"}.get(kind, "Dinov2WithRegisters")
        teacher = "WithTeacher" if self.pooling == "distilled" else ""
        size = self.image_shape[:2]
        found = {
            "model_type": kind,
            "architectures": [f"{stem}ForImageClassification{teacher}"],
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "hidden_size": self.hidden_dim,
            "patch_size": self.patch_size,
            "image_size": size[0] if size[0] == size[1] else list(size),
            "hidden_act": self.activation,
            "qkv_bias": self.qkv_bias,
            "layer_norm_eps": self.epsilon,
        }
        if self.layer_scale is None:
            return found | {"intermediate_size": self.mlp_dim}
        return found | {
            "mlp_ratio": round(self.mlp_dim * (1.5 if self.gated else 1) / self.hidden_dim),
            "use_swiglu_ffn": self.gated,
            "use_mask_token": False,
            "layerscale_value": self.layer_scale,
            "num_register_tokens": self.num_registers,
        }


class ViTImageClassifier(ImageClassifier):
    """A class of an image, by a ViT, DeiT or DINOv2."""


image_family(
    "vit",
    ViTBackbone,
    ViTImageClassifier,
    ("vit", "deit", "dinov2", "dinov2_with_registers"),
    (
        "ViTForImageClassification",
        "DeiTForImageClassification",
        "DeiTForImageClassificationWithTeacher",
        "Dinov2ForImageClassification",
        "Dinov2WithRegistersForImageClassification",
    ),
)
