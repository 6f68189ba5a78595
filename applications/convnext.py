"""ConvNeXt. Liu et al. 2022, arXiv:2201.03545."""

import numpy as np

from khub import config, initializers, layers, models, ops
from khub.fields import Choice, PositiveInt, Rate

from ..cv import parts, transformer
from ..cv.backbone import ImageBackbone, Reference, pooled
from ..cv.image_classifier import image_family
from .classifier import ARGUMENTS, Architecture, channel_axis
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401

SIZES = {  # blocks of the stages, width of the first (arXiv:2201.03545, section 3)
    "atto": ((2, 2, 6, 2), 40),  # this and the next three, and huge, of arXiv:2301.00808
    "femto": ((2, 2, 6, 2), 48),
    "pico": ((2, 2, 6, 2), 64),
    "nano": ((2, 2, 8, 2), 80),
    "tiny": ((3, 3, 9, 3), 96),
    "small": ((3, 3, 27, 3), 96),
    "base": ((3, 3, 27, 3), 128),
    "large": ((3, 3, 27, 3), 192),
    "xlarge": ((3, 3, 27, 3), 256),
    "huge": ((3, 3, 27, 3), 352),
    "xxlarge": ((3, 4, 30, 3), 384),
}


def stages(size):
    """Return what the backbone is told of a row of SIZES, by timm's or Keras' name of it."""
    num_blocks, width = SIZES[size.lower()]
    return dict(num_blocks=num_blocks, widths=tuple(width * 2**stage for stage in range(4)))


MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, 0..255


class LayerScale(layers.Layer):
    """x * gamma, which starts at `init_values`.  Touvron et al. 2021, arXiv:2103.17239

    x: (..., projection_dim) -> same.  Weights: gamma (projection_dim,)
    """

    _kind = "convnext"
    _module, _registered_name = "keras.src.applications.convnext", "LayerScale"

    init_values: float
    projection_dim: int

    def build(self, input_shape):
        start = initializers.Constant(self.init_values)
        self.gamma = self.add_weight((self.projection_dim,), start)

    def call(self, x):
        return x * self.gamma


def norm(x=None, name=None):
    layer = layers.LayerNormalization(epsilon=1e-6, name=name)
    return layer if x is None else layer(x)


def block(x, width, name):
    """x + gamma * W2 gelu(W1 norm(7 x 7 depthwise convolution of x)), W1 to 4 times the width"""
    y = layers.Conv2D(width, 7, padding="same", groups=width, name=f"{name}_depthwise_conv")(x)
    y = norm(y, f"{name}_layernorm")
    y = layers.Dense(4 * width, name=f"{name}_pointwise_conv_1")(y)
    y = layers.Activation("gelu", name=f"{name}_gelu")(y)
    y = layers.Dense(width, name=f"{name}_pointwise_conv_2")(y)
    y = LayerScale(1e-6, width, name=f"{name}_layer_scale")(y)
    y = layers.Activation("linear", name=f"{name}_identity")(y)  # Keras drops no paths
    return x + y


def convnext(image, widths, num_blocks, include_preprocessing, name, **options):
    if config.image_data_format() != "channels_last":
        raise ValueError(
            "ConvNeXt needs images with channels last, got the format 'channels_first'; call "
            "khub.config.set_image_data_format('channels_last')."
        )
    x = image
    if include_preprocessing and x.shape[-1] == 3:
        variance = [deviation**2 for deviation in DEVIATION]
        x = layers.Normalization(-1, MEAN, variance, name=f"{name}_prestem_normalization")(x)
    for stage, (width, count) in enumerate(zip(widths, num_blocks, strict=True)):
        if stage == 0:
            conv = layers.Conv2D(width, 4, strides=4, name=f"{name}_stem_conv")
            parts, title = [conv, norm(name=f"{name}_stem_layernorm")], f"{name}_stem"
        else:
            i, down = stage - 1, f"{name}_downsampling"
            conv = layers.Conv2D(width, 2, strides=2, name=f"{down}_conv_{i}")
            parts, title = [norm(name=f"{down}_layernorm_{i}"), conv], f"{down}_block_{i}"
        x = models.Sequential(parts, name=title)(x)
        for i in range(count):
            x = block(x, width, f"{name}_stage_{stage}_block_{i}")
    return x


def scores(x, classes, activation, name, **options):
    x = layers.GlobalAveragePooling2D(name=f"{name}_head_gap")(x)
    x = norm(x, f"{name}_head_layernorm")
    return layers.Dense(classes, activation=activation, name=f"{name}_head_dense")(x)


SIGNATURE = {"include_top": True, "include_preprocessing": True} | ARGUMENTS
_architecture = Architecture(convnext, top=scores, end=norm, arguments=SIGNATURE)
ConvNeXtTiny, ConvNeXtSmall, ConvNeXtBase, ConvNeXtLarge, ConvNeXtXLarge = (
    _architecture.constructor(f"ConvNeXt{name}", f"convnext_{name.lower()}", 224, **stages(name))
    for name in ("Tiny", "Small", "Base", "Large", "XLarge")
)

preprocess_input = preprocessing(_architecture.preprocessing)


# --- the hub's: as timm, torchvision and transformers have them ---------------------------------


class GlobalResponseNormalization(layers.Layer):
    """x + weight * x * n / mean(n over channels) + bias, n: norm of each channel over space.

    Woo et al. 2023, arXiv:2301.00808, section 3.
    x: (batch, height, width, channels) -> same.  Weights: weight and bias `shape`
    """

    shape: tuple

    def build(self, input_shape):
        self.weight = self.add_weight(self.shape, "zeros", name="weight")
        self.bias = self.add_weight(self.shape, "zeros", name="bias")

    def call(self, x):
        n = ops.sqrt(ops.sum(ops.square(x), (1, 2), keepdims=True) + 1e-12)  # no slope without end
        n = n / (ops.mean(n, -1, keepdims=True) + 1e-6)
        return x * (1 + self.weight * n) + self.bias


def _arguments(size, **options):
    linear = {} if SIZES[size][1] >= 96 else {"linear": False}
    return stages(size) | linear | options


V2 = {"layer_scale": 0.0, "response_norm": True}
MODELS = {
    **{f"convnext_{size}": _arguments(size) for size in SIZES if size != "huge"},
    **{f"convnextv2_{size}": _arguments(size, **V2) for size in SIZES if "xlarge" not in size},
    # of CLIP
    "convnext_large_mlp": _arguments("large", head_width=1536),
    "convnext_xxlarge": _arguments("xxlarge", epsilon=1e-5, head_epsilon=1e-5),
}
PARTS = {  # of a block -> transformers' and torchvision's names
    "conv_dw": ("dwconv", "block.0"),
    "norm": ("layernorm", "block.2"),
    "mlp.fc1": ("pwconv1", "block.3"),
    "mlp.grn": ("grn", "grn"),
    "mlp.fc2": ("pwconv2", "block.5"),
    "gamma": ("layer_scale_parameter", "layer_scale"),
}


def _transformers(prefix):
    block = "encoder.stages.{i}.layers.{i}"
    names = (
        ("embeddings.patch_embeddings", "stem.0"),
        ("embeddings.layernorm", "stem.1"),
        ("encoder.stages.{i}.downsampling_layer", "stages.{i}.downsample"),
        *((f"{block}.{name}", f"stages.{{i}}.blocks.{{i}}.{p}") for p, (name, _) in PARTS.items()),
        (f"{prefix}.layernorm", "head.head.norm"),
        ("classifier", "head.head.fc"),
    )
    return Reference(names, prefix, ignored=("layernorm.*", "classifier.*"))


def _torchvision():
    names = [("classifier.0", "head.head.norm"), ("classifier.2", "head.head.fc")]
    for s in range(4):
        names.append((f"features.{2 * s}", f"stages.{s}.downsample" if s else "stem"))
        block, own = f"features.{2 * s + 1}.{{i}}", f"stages.{s}.blocks.{{i}}"
        names += [(f"{block}.{name}", f"{own}.{part}") for part, (_, name) in PARTS.items()]
    return Reference(tuple(names), ignored=("classifier.*",))


REFERENCES = {
    "timm": Reference(ignored=("head.*",)),
    "transformers": _transformers("convnext"),
    "torchvision": _torchvision(),
}


@image_family("convnext")
class ConvNeXtBackbone(ImageBackbone):
    """Stages of 7 x 7 depthwise convolutions and of networks of two layers for each pixel.

    num_blocks, widths: of each stage   patch_size: of the first convolution
    linear: two Dense in a block, else two 1 x 1 convolutions, which differ in their files alone
    layer_scale: where gamma starts, 0 for none   response_norm: that of ConvNeXt V2
    drop_path: of the last block, which rises from 0   head_width: of a hidden layer before the
    scores, 0 for none   epsilon, head_epsilon: of the normalizations
    """

    num_blocks: tuple
    widths: tuple
    patch_size: PositiveInt = 4
    linear: bool = True
    layer_scale: Rate = 1e-6
    response_norm: bool = False
    activation: Choice("gelu", "relu", "silu") = "gelu"
    drop_path: Rate = 0.0
    head_width: int = 0
    epsilon: float = 1e-6
    head_epsilon: float = 1e-6

    VARIANTS = MODELS
    STEMS = {"convnext": "ConvNext", "convnextv2": "ConvNextV2"}
    KEYS = {
        "num_blocks": ("depths", (3, 3, 9, 3)),
        "widths": ("hidden_sizes", (96, 192, 384, 768)),
        "patch_size": "patch_size",
        "layer_scale": "layer_scale_init_value",
        "activation": "hidden_act",
        "drop_path": "drop_path_rate",
        "head_epsilon": ("layer_norm_eps", 1e-12),
    }
    REFERENCES = REFERENCES

    @property
    def naming(self):
        theirs = self.reference == "transformers"
        return _transformers(self.model_type) if theirs else super().naming

    def draw(self, image):
        x = self.patches(image, self.widths[0], self.patch_size, "stem.0")
        x = self.norm(x, "stem.1")
        rates = iter(np.linspace(0, self.drop_path, sum(self.num_blocks)).tolist())
        for stage, (width, count) in enumerate(zip(self.widths, self.num_blocks, strict=True)):
            name = f"stages.{stage}"
            if stage:
                x = self.norm(x, f"{name}.downsample.0")
                x = self.patches(x, width, 2, f"{name}.downsample.1")
            for i in range(count):
                x = self.block(x, width, next(rates), f"{name}.blocks.{i}")
        return x

    def norm(self, x, name):
        return parts.layer_norm(x, name, self.epsilon, channel_axis())

    def patches(self, x, width, size, name, **options):
        start = initializers.TruncatedNormal(stddev=0.02)
        return layers.Conv2D(width, size, size, kernel_initializer=start, name=name, **options)(x)

    def dense(self, x, width, name):
        if not self.linear:
            return self.patches(x, width, 1, name, data_format="channels_last")
        start = initializers.TruncatedNormal(stddev=0.02)
        return layers.Dense(width, kernel_initializer=start, name=name)(x)

    def block(self, x, width, rate, name):
        """x + gamma * W2 gelu(W1 norm(depthwise convolution of x)), W1 to 4 times the width."""
        # axes of 1 that the reference's tensors have
        before = {"transformers": (1, 1, 1)}.get(self.reference, ())
        after = {"torchvision": (1, 1)}.get(self.reference, ())
        y = parts.conv(x, width, 7, groups=width, bias=True, name=f"{name}.conv_dw")
        y = parts.channels_last(y)
        y = parts.layer_norm(y, f"{name}.norm", self.epsilon)
        y = parts.active(self.dense(y, 4 * width, f"{name}.mlp.fc1"), self.activation)
        if self.response_norm:
            shape = (*before, 4 * width)
            y = GlobalResponseNormalization(shape, name=f"{name}.mlp.grn")(y)
        y = self.dense(y, width, f"{name}.mlp.fc2")
        if self.layer_scale:
            y = transformer.LayerScale(self.layer_scale, -1, after, name=name)(y)
        return layers.Add()([x, parts.drop_path(parts.placed(y), rate)])

    def draw_head(self, features, num_classes, dropout):
        x = parts.layer_norm(pooled(features), "head.norm", self.head_epsilon)
        if self.head_width:
            x = layers.Dense(self.head_width, name="head.pre_logits.fc")(x)
            x = parts.active(x, "gelu")
        x = layers.Dropout(dropout, name="dropout")(x)
        return layers.Dense(num_classes, name="head.fc")(x)

    @classmethod
    def config_from_transformers(cls, config):
        found = super().config_from_transformers(config)
        return found | (V2 if config["model_type"] == "convnextv2" else {})

    @property
    def model_type(self):
        return "convnextv2" if self.response_norm else "convnext"

    def transformers_config(self):
        found = super().transformers_config() | {"num_stages": len(self.widths)}
        if self.response_norm:
            del found["layer_scale_init_value"]
        return found
