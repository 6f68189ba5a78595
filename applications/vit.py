"""Vision transformers. Dosovitskiy et al. 2020, arXiv:2010.11929, and their descendants."""

import math
from dataclasses import replace

import numpy as np

from khub import initializers, layers, ops
from khub.fields import Choice, PositiveInt, Rate
from khub.models.functional import Functional

from ..cv import parts
from ..cv.backbone import ImageBackbone, Reference
from ..cv.image_classifier import image_family
from ..cv.transformer import KEYS, MLP, Attention, Block, Tokens, resampled, transformers_names
from ..presets.weights import LAYOUTS

SIZES = {  # layers, heads, hidden and MLP width (arXiv:2010.11929, table 1; arXiv:2012.12877,
    # table 1; arXiv:2204.07118, table 1; arXiv:2106.04560, table 2)
    "tiny": (12, 3, 192, 768),
    "small": (12, 6, 384, 1536),
    "medium": (12, 8, 512, 2048),
    "base": (12, 12, 768, 3072),
    "large": (24, 16, 1024, 4096),
    "huge": (32, 16, 1280, 5120),
    "giant": (40, 16, 1408, 6144),
    "dino": (40, 24, 1536, 4096),  # arXiv:2304.07193, table 17
}
MEAN = dict(pooling="mean", class_token=False, num_positioned=0)
REGISTERS = MEAN | dict(num_registers=4, fc_norm=True)
DEIT3 = dict(layer_scale=1e-6, num_positioned=0)  # arXiv:2204.07118
DISTILLED = dict(pooling="distilled", distillation_token=True, num_positioned=2)  # arXiv:2012.12877
DINO = dict(layer_scale=1e-5)  # arXiv:2304.07193
DINO_REGISTERS = DINO | dict(num_registers=4, num_positioned=0)  # arXiv:2309.16588
CLIP = dict(pre_norm=True, epsilon=1e-5)  # arXiv:2103.00020
VARIANTS = {
    name.format(size, image): {
        **dict(zip(("num_layers", "num_heads", "hidden_dim", "mlp_dim"), SIZES[size])),
        **dict(patch_size=patch, image_shape=(image, image, 3)),
        **options,
    }
    for name, patch, images, sizes, options in (
        ("vit_{}_patch8_{}", 8, (224,), "small base", {}),
        ("vit_{}_patch14_{}", 14, (224,), "large huge giant", {}),
        ("vit_{}_patch16_{}", 16, (224, 384), "tiny small base large", {}),
        ("vit_{}_patch32_{}", 32, (224, 384), "small base large", {}),
        ("vit_{}_patch14_gap_{}", 14, (224,), "huge", MEAN),
        ("vit_{}_patch16_gap_{}", 16, (224,), "giant", MEAN),
        ("vit_{}_patch16_gap_{}", 16, (448,), "huge", MEAN),
        ("vit_{}_patch16_reg4_gap_{}", 16, (256,), "base", REGISTERS),
        ("vit_{}_patch16_reg4_gap_{}", 16, (256,), "medium", REGISTERS | DINO),
        ("vit_{}_patch16_siglip_gap_{}", 16, (224, 256, 384), "base", MEAN),
        ("vit_{}_patch16_siglip_gap_{}", 16, (256, 384), "large", MEAN),
        ("vit_{}_patch16_clip_{}", 16, (224, 384), "base", CLIP),
        ("vit_{}_patch32_clip_{}", 32, (224, 256, 384, 448), "base", CLIP),
        ("vit_{}_patch14_clip_{}", 14, (224, 336), "large huge", CLIP),
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
_their, _our, _vision = "encoder.layer.{i}", "blocks.{i}", "encoder.layers.encoder_layer_{i}"
_BLOCK = transformers_names(_their, _our, "attention")
TRANSFORMERS = (
    ("embeddings.cls_token", "tokens.cls_token"),
    ("embeddings.distillation_token", "tokens.dist_token"),
    ("embeddings.register_tokens", "tokens.reg_token"),
    ("embeddings.position_embeddings", "tokens.pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    *_BLOCK[:2],
    ("layernorm", "norm"),
    ("classifier", "head.head"),
)
TEACHER = (("cls_classifier", "head.head"), ("distillation_classifier", "head.head_dist"))
DINOV2 = (
    (_their, _our),
    (f"{_their}.layer_scale1.lambda1", f"{_our}.ls1.gamma"),
    (f"{_their}.layer_scale2.lambda1", f"{_our}.ls2.gamma"),
)
SWIGLU = (
    (f"{_their}.mlp.weights_in", f"{_our}.mlp.fc1"),
    (f"{_their}.mlp.weights_out", f"{_our}.mlp.fc2"),
)
TORCHVISION = (
    ("class_token", "tokens.cls_token"),
    ("encoder.pos_embedding", "tokens.pos_embed"),
    ("conv_proj", "patch_embed.proj"),
    (f"{_vision}.ln_1", f"{_our}.norm1"),
    (f"{_vision}.self_attention", f"{_our}.attn.qkv"),
    (f"{_vision}.self_attention.out_proj", f"{_our}.attn.proj"),
    (f"{_vision}.ln_2", f"{_our}.norm2"),
    (f"{_vision}.mlp.0", f"{_our}.mlp.fc1"),
    (f"{_vision}.mlp.3", f"{_our}.mlp.fc2"),
    ("encoder.ln", "norm"),
    ("heads.head", "head.head"),
)
REFERENCES = {
    "timm": Reference(tuple((name, f"tokens.{name}") for name in TOKENS), ignored=HEAD),
    "transformers": Reference(ignored=(*HEAD, "pooler.*", "embeddings.mask_token")),
    "torchvision": Reference(TORCHVISION, ignored=HEAD),
}


# --- the backbone --------------------------------------------------------------------------------
@image_family("vit")
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
    activation: str = "gelu"
    qkv_bias: bool = True
    pre_norm: bool = False
    fc_norm: bool = False
    epsilon: float = 1e-6
    drop_path: Rate = 0.0
    image_shape: tuple = (224, 224, 3)

    VARIANTS = VARIANTS
    STEMS = {
        "vit": "ViT",
        "deit": "DeiT",
        "dinov2": "Dinov2",
        "dinov2_with_registers": "Dinov2WithRegisters",
    }
    KEYS = KEYS | {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "hidden_dim": "hidden_size",
        "mlp_dim": "intermediate_size",
        "layer_scale": "layerscale_value",
        "gated": "use_swiglu_ffn",
        "num_registers": "num_register_tokens",
    }
    REFERENCES = REFERENCES

    def setup(self):
        self._grid = tuple((n or 0) // self.patch_size for n in self.image_shape[:2])
        if 0 in self._grid:
            raise ValueError(
                f"image_shape must be height and width of at least one patch ({self.patch_size}), "
                f"and 3, got {self.image_shape}."
            )
        counts = (self.class_token, self.distillation_token, self.num_registers)
        self._extra = {name: int(n) for name, n in zip(TOKENS, counts) if n}
        self._count = sum(self._extra.values())
        # transformers smooths positions that become fewer only in models with registers
        self._antialias = self.reference == "timm" or self.num_registers > 0
        super().setup()

    def draw(self, image):
        size, start = self.patch_size, initializers.TruncatedNormal(stddev=0.02)
        options = dict(use_bias=not self.pre_norm, kernel_initializer=start)
        x = layers.Conv2D(self.hidden_dim, size, size, name="patch_embed.proj", **options)(image)
        x = parts.channels_last(x)
        x = Tokens(self._grid, self._extra, self.num_positioned, self._antialias, name="tokens")(x)
        x = parts.layer_norm(x, "norm_pre", self.epsilon) if self.pre_norm else x
        for i in range(self.num_layers):
            attention = Attention(self.num_heads, self.qkv_bias)
            mlp = MLP(self.mlp_dim, self.activation, self.gated)
            rate = self.drop_path * i / max(self.num_layers - 1, 1)
            options = (self.epsilon, rate, self.layer_scale)
            x = Block(attention, mlp, *options, name=f"blocks.{i}")(x)
        return x if self.fc_norm else parts.layer_norm(x, "norm", self.epsilon)

    def draw_head(self, features, num_classes, dropout):
        x = features[:, 0]
        if self.pooling in ("mean", "both"):
            mean = layers.GlobalAveragePooling1D(name="pool")(features[:, self._count :])
            x = layers.Concatenate()([x, mean]) if self.pooling == "both" else mean
        x = parts.layer_norm(x, "fc_norm", self.epsilon) if self.fc_norm else x
        x = layers.Dense(num_classes, name="head")(layers.Dropout(dropout, name="dropout")(x))
        if self.pooling == "distilled":
            other = layers.Dropout(dropout, name="dropout_dist")(features[:, 1])
            x = layers.Average()([x, layers.Dense(num_classes, name="head_dist")(other)])
        return x

    def feature_pyramid(self):
        """Return the model images -> {"P4": the patches (batch, rows, columns, hidden_dim)}.

        The level is the one nearest to the patch size; images are of `image_shape`.
        """
        x = layers.Reshape((*self._grid, self.hidden_dim))(self.output[:, self._count :])
        x = parts.placed(x)
        level = f"P{round(math.log2(self.patch_size))}"
        return Functional(self.input, {level: x}, name=f"{self.name}_pyramid")

    # --- weights ---------------------------------------------------------------------------------
    @property
    def model_type(self):
        if self.layer_scale is None:
            return "deit" if self.distillation_token else "vit"
        return "dinov2_with_registers" if self.num_registers else "dinov2"

    @property
    def naming(self):
        if self.reference != "transformers":
            return super().naming
        names = TEACHER if self.pooling == "distilled" else ()
        names += SWIGLU if self.gated else ()
        names += TRANSFORMERS + (_BLOCK[2:] if self.layer_scale is None else DINOV2)
        return replace(super().naming, names=names, prefix=self.model_type)

    @property
    def layouts(self):
        joined = {"kernel": ("in_proj_weight", (1, 0)), "bias": ("in_proj_bias", None)}
        return LAYOUTS | ({"QKV": joined} if self.reference == "torchvision" else {})

    def fit_tensor(self, slot, tensor):
        """Resample the position table of a checkpoint for other image sizes."""
        first = self.num_positioned
        if not slot.path.endswith("tokens.pos_embed") or len(tensor.shape) != 3:
            return tensor
        side = math.isqrt(max(tensor.shape[1] - first, 0))
        if tensor.shape != (1, side**2 + first, self.hidden_dim) or side == 0:
            return tensor

        def read():
            table = tensor.read().astype("float32")
            places = resampled(table[:, first:], (side, side), self._grid, self._antialias)
            return np.concatenate([table[:, :first], ops.convert_to_numpy(places)], 1)

        return replace(tensor, shape=slot.shape, dtype=np.dtype("float32"), read=read)

    # --- presets ---------------------------------------------------------------------------------
    @classmethod
    def config_from_transformers(cls, config):
        found, kind = super().config_from_transformers(config), config["model_type"]
        if kind.startswith("dinov2"):
            hidden = int(found["hidden_dim"] * config.get("mlp_ratio", 4))
            found["mlp_dim"] = (hidden * 2 // 3 + 7) // 8 * 8 if found.get("gated") else hidden
            return {"layer_scale": 1.0} | found | {"pooling": "both"}
        if kind == "deit":
            found |= {"distillation_token": True, "num_positioned": 2}
        teacher = "DeiTForImageClassificationWithTeacher" in (config.get("architectures") or ())
        return found | {"pooling": "distilled" if teacher else "token"}

    def transformers_config(self):
        found = super().transformers_config()
        if self.pooling == "distilled":
            found["architectures"] = [f"{found['architectures'][0]}WithTeacher"]
        return {name: value for name, value in found.items() if value is not None} | {
            "mlp_ratio": round(self.mlp_dim * (1.5 if self.gated else 1) / self.hidden_dim),
            "use_mask_token": False,
        }
