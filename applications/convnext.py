"""ConvNeXt. Liu et al. 2022, arXiv:2201.03545."""

from khub import config, initializers, layers, models

from .classifier import ARGUMENTS, Architecture
from .imagenet_utils import decode_predictions, preprocessing  # noqa: F401

VARIANTS = {  # width, blocks of each stage (arXiv:2201.03545, section 3)
    "Tiny": ((96, 192, 384, 768), (3, 3, 9, 3)),
    "Small": ((96, 192, 384, 768), (3, 3, 27, 3)),
    "Base": ((128, 256, 512, 1024), (3, 3, 27, 3)),
    "Large": ((192, 384, 768, 1536), (3, 3, 27, 3)),
    "XLarge": ((256, 512, 1024, 2048), (3, 3, 27, 3)),
}
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


def convnext(image, widths, blocks, include_preprocessing, name, **options):
    if config.image_data_format() != "channels_last":
        raise ValueError(
            "ConvNeXt needs images with channels last, got the format 'channels_first'; call "
            "khub.config.set_image_data_format('channels_last')."
        )
    x = image
    if include_preprocessing and x.shape[-1] == 3:
        variance = [deviation**2 for deviation in DEVIATION]
        x = layers.Normalization(-1, MEAN, variance, name=f"{name}_prestem_normalization")(x)
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
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


_architecture = Architecture(
    convnext,
    top=scores,
    end=norm,
    arguments={"include_top": True, "include_preprocessing": True} | ARGUMENTS,
    named_pooling=False,
)
ConvNeXtTiny, ConvNeXtSmall, ConvNeXtBase, ConvNeXtLarge, ConvNeXtXLarge = (
    _architecture.constructor(
        f"ConvNeXt{name}", f"convnext_{name.lower()}", 224, widths=widths, blocks=blocks
    )
    for name, (widths, blocks) in VARIANTS.items()
)

preprocess_input = preprocessing(_architecture.mode)


# --- the hub's: as timm, torchvision and transformers have them ---------------------------------

SIZES = {  # timm's name without the version -> blocks and widths of the stages
    "atto": ((2, 2, 6, 2), 40),  # this and the next three: arXiv:2301.00808, table 13
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
CONVOLVED = {name: {"linear": False} for name in ("atto", "femto", "pico", "nano")}


def _arguments(size, **options):
    num_blocks, width = SIZES[size]
    widths = tuple(width * 2**stage for stage in range(4))
    return {"num_blocks": num_blocks, "widths": widths, **CONVOLVED.get(size, {}), **options}


MODELS = {f"convnext_{size}": _arguments(size) for size in SIZES if size not in ("huge", "xxlarge")}
MODELS |= {
    f"convnextv2_{size}": _arguments(size, version=2) for size in SIZES if "xlarge" not in size
}
MODELS |= {
    f"convnext_{size}_ols": _arguments(size, stem="overlapping")
    for size in ("atto", "femto", "pico", "nano")
}
MODELS |= {  # of CLIP
    "convnext_large_mlp": _arguments("large", head_width=1536),
    "convnext_xxlarge": _arguments("xxlarge", epsilon=1e-5, head_epsilon=1e-5),
}


def _transformers(prefix):
    names = (
        ("embeddings.patch_embeddings", "stem.0"),
        ("embeddings.layernorm", "stem.1"),
        ("encoder.stages.{i}.downsampling_layer", "stages.{i}.downsample"),
        *(
            (f"encoder.stages.{{i}}.layers.{{i}}.{theirs}", f"stages.{{i}}.blocks.{{i}}.{ours}")
            for theirs, ours in (
                ("dwconv", "conv_dw"),
                ("layernorm", "norm"),
                ("pwconv1", "mlp.fc1"),
                ("grn", "mlp.grn"),
                ("pwconv2", "mlp.fc2"),
                ("layer_scale_parameter", "gamma"),
            )
        ),
        (f"{prefix}.layernorm", "head.head.norm"),
        ("classifier", "head.head.fc"),
    )
    return Reference(names, prefix, ignored=("layernorm.*", "classifier.*"))


REFERENCES = {
    "timm": Reference(ignored=("head.*",)),
    "transformers": _transformers("convnext"),
    "torchvision": Reference(
        names=(
            ("features.0", "stem"),
            *(
                pair
                for s in range(4)
                for pair in (
                    (f"features.{2 * s}", f"stages.{s}.downsample"),
                    (f"features.{2 * s + 1}.{{i}}.block.0", f"stages.{s}.blocks.{{i}}.conv_dw"),
                    (f"features.{2 * s + 1}.{{i}}.block.2", f"stages.{s}.blocks.{{i}}.norm"),
                    (f"features.{2 * s + 1}.{{i}}.block.3", f"stages.{s}.blocks.{{i}}.mlp.fc1"),
                    (f"features.{2 * s + 1}.{{i}}.block.5", f"stages.{s}.blocks.{{i}}.mlp.fc2"),
                    (f"features.{2 * s + 1}.{{i}}.layer_scale", f"stages.{s}.blocks.{{i}}.gamma"),
                )
            ),
            ("classifier.0", "head.head.norm"),
            ("classifier.2", "head.head.fc"),
        ),
        ignored=("classifier.*",),
    ),
}
