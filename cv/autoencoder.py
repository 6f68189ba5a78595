"""Images to latents and back: the autoencoder of Stable Diffusion, and a tiny one (TAESD).

Rombach et al. 2022, arXiv:2112.10752; Kingma and Welling 2013, arXiv:1312.6114. The tiny one's
layers: https://github.com/madebyollin/taesd.
"""

from functools import partial

from khub import ops
from khub.fields import PositiveInt
from khub.layers import Layer

from ..nlp.transformer import built
from ..presets import Family, register
from . import diffusion_parts as parts
from .diffusion_parts import DiffusionModel, Sizes, Widths, per_block

DOWN = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D")
UP = ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
EPSILON = 1e-6
DEPRECATED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
PLACES = ("mid_block", "down_blocks.{i}", "up_blocks.{i}")
MOST, LEAST = 20.0, -30.0  # log variances


def in_tiles(run, x, tile, scale, axis=1):
    """run(x), computed of tiles of x along an axis, that overlap by a quarter and are blended.

    tile: size in x   scale: pixels of the result for one of x
    """
    size = x.shape[axis]
    if size <= tile:
        return run(x)
    step = max(tile * 3 // 4, 1)
    cut = partial(_cut, axis=axis)
    whole = None
    for start in range(0, size, step):
        piece = run(cut(x, start, min(start + tile, size)))
        if whole is None:
            whole = piece
            continue
        first, last = start * scale, whole.shape[axis]
        length = min(last - first, (tile - step) * scale)
        share = ops.arange(length, dtype="float32") / length
        share = ops.reshape(ops.cast(share, ops.dtype(piece)), (-1, *[1] * (3 - axis)))
        both = cut(whole, first, first + length), cut(piece, 0, length)
        mixed = both[0] * (1 - share) + both[1] * share
        rest = cut(piece, length, piece.shape[axis])
        whole = ops.concatenate([cut(whole, 0, first), mixed, rest], axis)
    return whole


def _cut(x, start, end, axis):
    return x[:, start:end] if axis == 1 else x[:, :, start:end]


class ImageAutoencoder(DiffusionModel):
    """Images in -1 .. 1, (batch, height, width, 3), to latents and back.

    encode(images) -> (mean, log variance), each (batch, height / stride, width / stride,
    latent_channels), neither shifted nor scaled; a network without a variance has None there
    decode(latents, tile, slicing) -> images; tile: in latents, bounds the memory; slicing: one
    image at a time   A call is decode(mean).
    """

    fixed = {"latents_mean": None, "latents_std": None}

    def call(self, inputs):
        return self.decode(self.encode(inputs)[0])

    def encode(self, images):
        """The mean and the log variance of latents."""
        images = ops.convert_to_tensor(images, self.compute_dtype)
        height, width = images.shape[1:3]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"Height and width of images must be multiples of {self.stride}; got {height} and "
                f"{width}."
            )
        return self._encode(images)

    def decode(self, latents, tile=None, slicing=False):
        """Images, (batch, stride * height, stride * width, 3), of latents."""
        latents = ops.convert_to_tensor(latents, self.compute_dtype)
        if tile is not None and (type(tile) is not int or tile < 4):
            raise ValueError(f"tile must be None or an integer of at least 4, got {tile!r}.")
        if slicing and latents.shape[0] > 1:
            rows = [latents[i : i + 1] for i in range(latents.shape[0])]
            return ops.concatenate([self.decode(row, tile) for row in rows], 0)
        if tile is None:
            return self._decode(latents)
        across = partial(in_tiles, self._decode, tile=tile, scale=self.stride, axis=2)
        return in_tiles(across, latents, tile, self.stride)


class Coder(Layer):
    """One half of an autoencoder: convolutions around stages of resnet blocks.

    widths, kinds: of the stages in the order of their use   up: whether it makes images larger
    """

    inputs: PositiveInt
    outputs: PositiveInt
    widths: tuple
    kinds: tuple
    count: PositiveInt
    groups: PositiveInt
    attention: bool
    up: bool

    def build(self, shape=None):
        widths, last = self.widths, len(self.widths) - 1
        inner, options = widths[0] if self.up else widths[-1], {"dtype": self.dtype_policy}
        self.conv_in = parts.conv(self, self.inputs, widths[0])
        stages, before = [], widths[0]
        for place, (width, kind) in enumerate(zip(widths, self.kinds)):
            resampling = {}
            if place < last and self.up:
                resampling["up"] = built(parts.Upsample(width, **options))
            elif place < last:
                resampling["down"] = built(parts.Downsample(width, (0, 1), **options))
            inputs = [before] + [width] * (self.count - 1)
            attended = self.count if kind in (DOWN[1], UP[1]) else 0
            stages.append(self._stage(inputs, width, attended, **resampling))
            before = width
        self.mid_block = self._stage([inner] * 2, inner, int(self.attention))
        setattr(self, "up_blocks" if self.up else "down_blocks", stages)
        self.conv_norm_out = parts.group_norm(self, before, self.groups, EPSILON)
        self.conv_out = parts.conv(self, before, self.outputs)

    def _stage(self, inputs, width, attended, **resampling):
        options = {"dtype": self.dtype_policy}
        more = self.groups, EPSILON
        resnets = [built(parts.ResnetBlock(n, width, *more, **options)) for n in inputs]
        sizes = dict(width=width, heads=1, head_width=width, groups=self.groups, **options)
        attentions = [built(parts.PixelAttention(**sizes)) for _ in range(attended)]
        return parts.Stage(resnets, attentions, **resampling, **options)

    def call(self, x):
        x = self.conv_in(x)
        middle = [self.mid_block]
        stages = middle + self.up_blocks if self.up else self.down_blocks + middle
        for stage in stages:
            x = stage(x)[-1]
        return self.conv_out(ops.silu(self.conv_norm_out(x)))


class Autoencoder(ImageAutoencoder):
    """The variational autoencoder; see `ImageAutoencoder`. Fields as in diffusers' config.json.

    deprecated_names: whether a file has the names that attention layers had before 2023
    """

    in_channels: PositiveInt = 3
    out_channels: PositiveInt = 3
    down_block_types: tuple = DOWN[:1]
    up_block_types: tuple = UP[:1]
    block_out_channels: Widths = (64,)
    layers_per_block: PositiveInt = 1
    latent_channels: PositiveInt = 4
    norm_num_groups: PositiveInt = 32
    sample_size: object = 32
    scaling_factor: float = 0.18215
    shift_factor: float = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    deprecated_names: bool = False

    class_name = "AutoencoderKL"
    fixed = ImageAutoencoder.fixed | {"act_fn": "silu"}
    unsaved = ("deprecated_names",)

    @property
    def stride(self):
        """Pixels of an image for one of the latents, along an axis."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def weight_map(self):
        names = DEPRECATED if self.deprecated_names else {}
        places = [f"{half}.{p}.attentions.{{i}}" for half in ("encoder", "decoder") for p in PLACES]
        rows = [(f"{p}.{old}", f"{p}.{new}") for p in places for old, new in names.items()]
        return [("", ""), *rows]

    def setup(self):
        self.check_counts("layers_per_block")
        self.check_kinds(down_block_types=DOWN, up_block_types=UP)
        super().setup()

    def build(self, shape=None):
        widths, count = self.block_out_channels, self.layers_per_block
        kinds = [
            per_block(name, getattr(self, name), len(widths))
            for name in ("down_block_types", "up_block_types")
        ]
        more = dict(groups=self.norm_num_groups, attention=self.mid_block_add_attention)
        more |= {"dtype": self.dtype_policy}
        moments, size = 2 * self.latent_channels, self.latent_channels
        down = self.in_channels, moments, widths, kinds[0], count
        self.encoder = built(Coder(*down, up=False, **more))
        up = size, self.out_channels, widths[::-1], kinds[1], count + 1
        self.decoder = built(Coder(*up, up=True, **more))
        if self.use_quant_conv:
            self.quant_conv = parts.conv(self, moments, moments, 1)
        if self.use_post_quant_conv:
            self.post_quant_conv = parts.conv(self, size, size, 1)

    def _encode(self, images):
        x = self.encoder(images)
        x = self.quant_conv(x) if self.use_quant_conv else x
        mean, log_variance = ops.split(x, 2, -1)
        return mean, ops.clip(log_variance, LEAST, MOST)

    def _decode(self, latents):
        return self.decoder(self.post_quant_conv(latents) if self.use_post_quant_conv else latents)

    @classmethod
    def config_from_names(cls, config, names):
        """What the names of a checkpoint's tensors say."""
        return {**config, "deprecated_names": any(n.endswith(".proj_attn.weight") for n in names)}


class TinyBlock(Layer):
    """relu(x + three convolutions with relu between them).  (..., width) -> same"""

    width: PositiveInt

    def build(self, shape=None):
        layers = [parts.conv(self, self.width, self.width) for _ in range(3)]
        self.conv = [layers[0], None, layers[1], None, layers[2]]

    def call(self, x):
        y = self.conv[2](ops.relu(self.conv[0](x)))
        return ops.relu(x + self.conv[4](ops.relu(y)))


class TinyCoder(Layer):
    """One half of the tiny autoencoder: blocks of one resolution after another."""

    inputs: PositiveInt
    outputs: PositiveInt
    widths: tuple
    counts: tuple
    up: bool

    def build(self, shape=None):
        made, before = [], self.inputs
        if self.up:
            made, before = [parts.conv(self, before, self.widths[0]), ops.relu], self.widths[0]
        for place, (width, count) in enumerate(zip(self.widths, self.counts)):
            bare = dict(use_bias=False)
            if place and self.up:
                made += [None, parts.conv(self, before, width, kind=parts.EnlargingConv, **bare)]
            elif not self.up:
                halving = dict(strides=2, zeros=(1, 1), **bare) if place else {}
                made.append(parts.conv(self, before, width, **halving))
            blocks = [TinyBlock(width, dtype=self.dtype_policy) for _ in range(count)]
            made, before = made + [built(block) for block in blocks], width
        self.layers = [*made, parts.conv(self, before, self.outputs)]

    def call(self, x):
        for layer in self.layers:
            x = x if layer is None else layer(x)
        return x


class TinyAutoencoder(ImageAutoencoder):
    """A small autoencoder with the latents of the large one, whose variance it does not know.

    See `ImageAutoencoder`. Fields as in diffusers' config.json.
    """

    in_channels: PositiveInt = 3
    out_channels: PositiveInt = 3
    encoder_block_out_channels: Widths = (64,) * 4
    decoder_block_out_channels: Widths = (64,) * 4
    num_encoder_blocks: Sizes = (1, 3, 3, 3)
    num_decoder_blocks: Sizes = (3, 3, 3, 1)
    latent_channels: PositiveInt = 4
    latent_magnitude: float = 3
    latent_shift: float = 0.5
    force_upcast: bool = False
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    class_name = "AutoencoderTiny"
    fixed = {"act_fn": "relu", "upsample_fn": "nearest", "upsampling_scaling_factor": 2}

    @property
    def stride(self):
        """Pixels of an image for one of the latents, along an axis."""
        return 2 ** (len(self.encoder_block_out_channels) - 1)

    def setup(self):
        self.check_counts("num_encoder_blocks", "num_decoder_blocks")
        super().setup()

    def build(self, shape=None):
        options, latent = {"dtype": self.dtype_policy}, self.latent_channels
        halves = ("encoder", self.in_channels, latent), ("decoder", latent, self.out_channels)
        for half, inputs, outputs in halves:
            widths, name = getattr(self, f"{half}_block_out_channels"), f"num_{half}_blocks"
            counts = per_block(name, getattr(self, name), len(widths))
            coder = TinyCoder(inputs, outputs, widths, counts, half == "decoder", **options)
            setattr(self, half, built(coder))

    def _encode(self, images):
        return self.encoder((images + 1) / 2), None

    def _decode(self, latents):
        return self.decoder(ops.tanh(latents / 3) * 3) * 2 - 1


for _name, _class in (("autoencoder", Autoencoder), ("tiny_autoencoder", TinyAutoencoder)):
    register(Family(_name, (_class.class_name,), _class))
