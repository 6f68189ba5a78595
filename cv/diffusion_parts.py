"""Parts of the networks of Stable Diffusion, named as diffusers names them.

Rombach et al. 2022, arXiv:2112.10752; Ho et al. 2020, arXiv:2006.11239; Podell et al. 2023 (XL),
arXiv:2307.01952. Since the names agree, the weight map of all of these networks is ("", "").
"""

import math
from itertools import zip_longest
from typing import Annotated

import numpy as np

from khub import initializers, layers, ops
from khub.fields import PositiveInt
from khub.models import Model

from ..nlp.transformer import built, norm
from ..presets import Presettable
from .backbone import check

MOST = 100  # blocks, or layers of a block: a hostile config.json makes nobody build for ever


def _sizes(name, value):
    """A positive integer, or a tuple of them."""
    one = not isinstance(value, (list, tuple))
    found = (value,) if one else tuple(value)
    if not 0 < len(found) <= MOST:
        raise ValueError(f"{name} has {len(found):,} numbers, one for each block; 1 to {MOST} are.")
    for number in found:
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} must be positive integers, got {number!r}.")
    return value if one else found


def _widths(name, value):
    found = _sizes(name, value)
    return found if isinstance(found, tuple) else (found,)


Sizes, Widths = Annotated[object, _sizes], Annotated[tuple, _widths]


def per_block(name, value, count):
    """A tuple of one value for each block, of a value for all or of as many.

    Raises ValueError when their number is another.
    """
    found = tuple(value) if isinstance(value, (list, tuple)) else (value,) * count
    if len(found) != count:
        raise ValueError(f"{name} has {len(found)} entries for {count} blocks: {value!r}.")
    return found


class DiffusionModel(Presettable, Model):
    """A network of a diffusers folder, whose fields are the keys of its config.json.

    fixed: keys of config.json with the only value that is read
    """

    weight_map = (("", ""),)
    weights_name = "diffusion_pytorch_model"
    class_name = reference_prefix = ""
    ignored = optional = unsaved = ()
    fixed = {}

    def setup(self):
        self.autocast = False  # times keep their dtype
        self.build(None)

    @classmethod
    def config_from_reference(cls, config):
        """Constructor arguments for a config.json of diffusers."""
        check(config, cls.fixed)
        found = {name: config[name] for name, *_ in cls._fields if name in config}
        return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}

    def reference_config(self):
        """Content of config.json that diffusers reads."""
        names = [name for name, *_ in self._fields if name not in self.unsaved]
        own = {name: getattr(self, name) for name in names}
        return {"_class_name": self.class_name, **self.fixed, **own}

    def check_counts(self, *names):
        """Raise ValueError for more layers in a block than any network has."""
        for name in names:
            value = getattr(self, name)
            if max(value if isinstance(value, tuple) else (value,)) > MOST:
                raise ValueError(f"{name} is {value}; at most {MOST} is sane.")

    def check_kinds(self, **known):
        """Raise ValueError for a kind of block, in a field, that is not among those known."""
        for name, kinds in known.items():
            for kind in getattr(self, name, ()):
                if kind not in kinds:
                    raise ValueError(f"{name} must be {' or '.join(kinds)}, got {kind!r}.")

    def check_inputs(self, inputs, needed):
        """Raise TypeError for what is no dict of these names."""
        if not isinstance(inputs, dict) or not inputs.keys() >= set(needed):
            given = f"one of {', '.join(inputs)}" if isinstance(inputs, dict) else type(inputs)
            raise TypeError(f"{self.name} takes a dict of {', '.join(needed)}, got {given}.")


# --- layers --------------------------------------------------------------------------------------
def start():
    """Uniform over +-1 / sqrt(inputs), with which the references' training starts."""
    return initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


def dense(layer, inputs, units, **options):
    """A built Dense of `layer`."""
    made = layers.Dense(units, kernel_initializer=start(), dtype=layer.dtype_policy, **options)
    return built(made, (None, inputs))


def conv(layer, inputs, filters, kernel=3, strides=1, zeros=None, kind=layers.Conv2D, **options):
    """A built convolution of `layer`.  zeros: around the image where it strides, (before, after)"""
    padding = "same" if zeros is None else [zeros, zeros]
    options = {"kernel_initializer": start(), "dtype": layer.dtype_policy, **options}
    made = kind(filters, kernel, strides, padding, "channels_last", **options)
    return built(made, (None, None, None, inputs))


def group_norm(layer, width, groups, epsilon):
    """A built GroupNormalization of `layer`."""
    made = layers.GroupNormalization(groups, epsilon=epsilon, dtype=layer.dtype_policy)
    return built(made, (None, None, None, width))


def sinusoids(x, width, shift=0, cosine_first=True):
    """cos and sin of x at `width` / 2 frequencies from 1 to about 1 / 10,000, side by side.

    x: (n,) -> float32 (n, width).  Ho et al. 2020, arXiv:2006.11239
    """
    half = width // 2
    powers = -math.log(10_000) * np.arange(half, dtype="float32") / (half - shift)
    angles = ops.cast(x, "float32")[:, None] * ops.convert_to_tensor(np.exp(powers))
    parts = [ops.cos(angles), ops.sin(angles)]
    found = ops.concatenate(parts if cosine_first else parts[::-1], -1)
    return ops.pad(found, ((0, 0), (0, 1))) if width % 2 else found


class Embedding(layers.Layer):
    """linear_2(silu(linear_1(x + cond_proj(condition)))).  x: (batch, inputs) -> (batch, units)"""

    inputs: PositiveInt
    units: PositiveInt
    condition: int = None

    def build(self, shape=None):
        self.linear_1 = dense(self, self.inputs, self.units)
        self.linear_2 = dense(self, self.units, self.units)
        if self.condition is not None:
            self.cond_proj = dense(self, self.condition, self.inputs, use_bias=False)

    def call(self, x, condition=None):
        x = x if condition is None else x + self.cond_proj(condition)
        return self.linear_2(ops.silu(self.linear_1(x)))


class ResnetBlock(layers.Layer):
    """x + conv2(silu(norm2(conv1(silu(norm1(x))) + time_emb_proj(time)))).

    x: (batch, height, width, inputs), time: (batch, time_width), None -> (..., outputs)
    scale_shift: the time scales and shifts what norm2 gives
    """

    inputs: PositiveInt
    outputs: PositiveInt
    groups: PositiveInt
    epsilon: float
    time_width: int = None
    scale_shift: bool = False

    def build(self, shape=None):
        self.norm1 = group_norm(self, self.inputs, self.groups, self.epsilon)
        self.conv1 = conv(self, self.inputs, self.outputs)
        if self.time_width is not None:
            units = self.outputs * (1 + self.scale_shift)
            self.time_emb_proj = dense(self, self.time_width, units)
        self.norm2 = group_norm(self, self.outputs, self.groups, self.epsilon)
        self.conv2 = conv(self, self.outputs, self.outputs)
        if self.inputs != self.outputs:
            self.conv_shortcut = conv(self, self.inputs, self.outputs, 1)

    def call(self, x, time=None):
        y = self.conv1(ops.silu(self.norm1(x)))
        if self.time_width is None:
            y = self.norm2(y)
        else:
            time = self.time_emb_proj(time)[:, None, None]
            if self.scale_shift:
                scale, shift = time[..., : self.outputs], time[..., self.outputs :]
                y = self.norm2(y) * (1 + scale) + shift
            else:
                y = self.norm2(y + time)
        x = x if self.inputs == self.outputs else self.conv_shortcut(x)
        return x + self.conv2(ops.silu(y))


class Downsample(layers.Layer):
    """A convolution that halves height and width.  zeros: around the image, (before, after)"""

    width: PositiveInt
    zeros: tuple = (1, 1)

    def build(self, shape=None):
        self.conv = conv(self, self.width, self.width, strides=2, zeros=self.zeros)

    def call(self, x):
        return self.conv(x)


class EnlargingConv(layers.Conv2D):
    """A convolution (3 x 3) of an image with each pixel four times, cut to a size (height, width).

    x: (batch, height, width, n) -> (batch, 2 height, 2 width, filters)
    """

    def call(self, x, size=None):
        batch, height, width, channels = ops.shape(x)
        doubled = size is None or tuple(size) == (2 * height, 2 * width)
        if doubled and height * width >= 256:  # else adding up kernels is the larger part
            y = self._of_parts(x, (batch, 2 * height, 2 * width, self.filters))
            return y if self.bias is None else y + self.bias.value
        wide = ops.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
        x = ops.reshape(wide, (batch, 2 * height, 2 * width, channels))
        return super().call(x if doubled else x[:, : size[0], : size[1]])

    def _of_parts(self, x, shape):
        """The same as four convolutions (2 x 2) of x: the same pixel is under several weights.

        Less than half of the work.  Shi et al. 2016, arXiv:1609.05158
        """
        rows = []
        for below, kernel in enumerate(_added(self.kernel.value)):
            kernels = [ops.swapaxes(k, 0, 1) for k in _added(ops.swapaxes(kernel, 0, 1))]
            zeros = [[(1 - below, below), (1 - right, right)] for right in range(2)]
            row = [ops.conv(x, k, 1, z, self.data_format) for k, z in zip(kernels, zeros)]
            rows.append(ops.stack(row, 3))
        return ops.reshape(ops.stack(rows, 2), shape)


def _added(kernel):
    """The two rows of weights that the pixels of an even and of an odd row of the result have."""
    first, middle, last = kernel[0], kernel[1], kernel[2]
    return ops.stack([first, middle + last]), ops.stack([first + middle, last])


class Upsample(layers.Layer):
    """A convolution of an image with each pixel four times."""

    width: PositiveInt

    def build(self, shape=None):
        self.conv = conv(self, self.width, self.width, kind=EnlargingConv)

    def call(self, x, size=None):
        return self.conv(x, size)


# --- attention -----------------------------------------------------------------------------------
class Attention(layers.Layer):
    """Attention of x to a context, or to itself.

    x: (batch, time, width), context: (batch, source, context_width) -> (batch, time, width)
    upcast: compute scores in float32
    """

    width: PositiveInt
    heads: PositiveInt
    head_width: PositiveInt
    context_width: int = None
    bias: bool = False
    upcast: bool = False

    def build(self, shape=None):
        inner, source = self.heads * self.head_width, self.context_width or self.width
        self.to_q = dense(self, self.width, inner, use_bias=self.bias)
        self.to_k = dense(self, source, inner, use_bias=self.bias)
        self.to_v = dense(self, source, inner, use_bias=self.bias)
        self.to_out = [dense(self, inner, self.width)]

    def call(self, x, context=None):
        context = x if self.context_width is None else context
        batch, time, _ = ops.shape(x)
        parts = self.to_q(x), self.to_k(context), self.to_v(context)
        dtype = ops.dtype(parts[0])
        parts = [ops.reshape(part, (batch, -1, self.heads, self.head_width)) for part in parts]
        if self.upcast:
            parts = [ops.cast(part, "float32") for part in parts]
        y = ops.cast(ops.dot_product_attention(*parts), dtype)
        return self.to_out[0](ops.reshape(y, (batch, time, self.heads * self.head_width)))


class Gate(layers.Layer):
    """h * gelu(g) of the halves h and g of proj(x).  Shazeer 2020, arXiv:2002.05202"""

    width: PositiveInt
    hidden: PositiveInt

    def build(self, shape=None):
        self.proj = dense(self, self.width, 2 * self.hidden)

    def call(self, x):
        both = self.proj(x)
        return both[..., : self.hidden] * ops.gelu(both[..., self.hidden :], approximate=False)


class FeedForward(layers.Layer):
    """A gate to the fourfold width, and back.  x: (..., width) -> same"""

    width: PositiveInt

    def build(self, shape=None):
        options = {"dtype": self.dtype_policy}
        gate = built(Gate(self.width, 4 * self.width, **options))
        self.net = [gate, None, dense(self, 4 * self.width, self.width)]

    def call(self, x):
        return self.net[2](self.net[0](x))


class TransformerBlock(layers.Layer):
    """Attention to itself, to the context, a feed-forward layer, each of what a norm gives.

    x: (batch, time, width), context: (batch, source, context_width) -> (batch, time, width)
    only_context: the first attention, too, is to the context
    """

    width: PositiveInt
    heads: PositiveInt
    head_width: PositiveInt
    context_width: PositiveInt
    only_context: bool = False
    upcast: bool = False

    def build(self, shape=None):
        sizes, options = (self.width, self.heads, self.head_width), {"dtype": self.dtype_policy}
        options["upcast"] = self.upcast
        first = self.context_width if self.only_context else None
        self.norm1, self.norm2, self.norm3 = (norm(self, self.width, 1e-5) for _ in range(3))
        self.attn1 = built(Attention(*sizes, first, **options))
        self.attn2 = built(Attention(*sizes, self.context_width, **options))
        self.ff = built(FeedForward(self.width, dtype=self.dtype_policy))

    def call(self, x, context):
        x = x + self.attn1(self.norm1(x), context)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(layers.Layer):
    """Transformer blocks over the pixels of an image.

    x: (batch, height, width, channels), context: (batch, source, context_width) -> same as x
    linear: the layers before and behind the blocks are kept as Dense, not as convolutions of 1
    """

    channels: PositiveInt
    heads: PositiveInt
    context_width: PositiveInt
    depth: PositiveInt
    groups: PositiveInt
    linear: bool = False
    only_context: bool = False
    upcast: bool = False

    def build(self, shape=None):
        head_width, kernel = self.channels // self.heads, {} if self.linear else {"kernel": 1}
        inner, layer = self.heads * head_width, dense if self.linear else conv
        sizes = inner, self.heads, head_width, self.context_width, self.only_context, self.upcast
        blocks = [TransformerBlock(*sizes, dtype=self.dtype_policy) for _ in range(self.depth)]
        self.norm = group_norm(self, self.channels, self.groups, 1e-6)
        self.proj_in = layer(self, self.channels, inner, **kernel)
        self.transformer_blocks = [built(block) for block in blocks]
        self.proj_out = layer(self, inner, self.channels, **kernel)

    def call(self, x, context):
        batch, height, width, _ = ops.shape(x)
        y = self.proj_in(self.norm(x))
        inner = y.shape[-1]
        y = ops.reshape(y, (batch, height * width, inner))
        for block in self.transformer_blocks:
            y = block(y, context)
        return x + self.proj_out(ops.reshape(y, (batch, height, width, inner)))


class PixelAttention(Attention):
    """x + attention of the pixels of an image to each other.  (batch, height, width, n) -> same"""

    groups: PositiveInt = 32
    epsilon: float = 1e-6
    bias = True

    def build(self, shape=None):
        self.group_norm = group_norm(self, self.width, self.groups, self.epsilon)
        super().build(shape)

    def call(self, x, context=None):
        batch, height, width, channels = shape = ops.shape(x)
        y = super().call(ops.reshape(self.group_norm(x), (batch, height * width, channels)))
        return x + ops.reshape(y, shape)


class Stage(layers.Layer):
    """The layers of one resolution: resnet blocks, attention behind each or some, a resampling.

    call(x, time, context, skips, size) -> list of what each pair gives, then of the resampling
    skips: tensors that are joined to what each resnet block takes, the last one first
    size: height and width behind an upsampling
    """

    def __init__(self, resnets, attentions=(), down=None, up=None, **options):
        super().__init__(**options)
        self.resnets, self.attentions = list(resnets), list(attentions)
        self.downsamplers, self.upsamplers = [down] if down else [], [up] if up else []
        self.build(None)

    def call(self, x, time=None, context=None, skips=None, size=None):
        outputs, skips = [], list(skips or ())
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            x = ops.concatenate([x, skips.pop()], -1) if skips else x
            x = resnet(x, time)
            x = x if attention is None else attention(x, context)
            outputs.append(x)
        outputs += [layer(x) for layer in self.downsamplers]
        return outputs + [layer(x, size) for layer in self.upsamplers]
