"""Layers of transformers of images. Vaswani et al. 2017, arXiv:1706.03762."""

import math

import numpy as np

from khub import initializers, layers, ops
from khub.fields import Activation, PositiveInt, Rate
from khub.ops.symbolic import KerasTensor

KEYS = {  # fields of a backbone -> their keys in config.json of transformers
    "patch_size": "patch_size",
    "activation": "hidden_act",
    "qkv_bias": "qkv_bias",
    "epsilon": "layer_norm_eps",
}


class QKV(layers.Dense):
    """Query, key and value of all heads; torchvision has other names for its weights."""


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
    activation: Activation = "gelu"
    gated: bool = False

    def build(self, shape):
        self.fc1 = dense(self, shape[-1], self.hidden * (1 + self.gated))
        self.fc2 = dense(self, self.hidden, shape[-1])

    def call(self, x):
        x = self.fc1(x)
        if self.gated:
            return self.fc2(ops.silu(x[..., : self.hidden]) * x[..., self.hidden :])
        return self.fc2(self.activation(x))


class LayerScale(layers.Layer):
    """x * gamma, a factor for each channel. Touvron et al. 2021, arXiv:2103.17239

    axis: of channels   after: axes of 1 that the weight has behind its own
    """

    start: float
    axis: int = -1
    after: tuple = ()

    def build(self, shape):
        start = initializers.Constant(self.start)
        self.gamma = self.add_weight((shape[self.axis], *self.after), start, name="gamma")

    def call(self, x):
        return x * ops.reshape(self.gamma, (-1,) if self.axis == -1 else (-1, 1, 1))


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
        return self.attend(x)

    def attend(self, x, bias=None):
        """bias: added to the scores"""
        batch, time, width = ops.shape(x)
        qkv = ops.reshape(self.qkv(x), (batch, time, 3, self.heads, width // self.heads))
        y = ops.dot_product_attention(*(qkv[:, :, i] for i in range(3)), bias=bias)
        return self.proj(ops.reshape(y, (batch, time, width)))


class Block(layers.Layer):
    """x + ls1(attn(norm1(x))), then the same with ls2, mlp and norm2.  x: (..., width) -> same"""

    attn: layers.Layer
    mlp: layers.Layer
    epsilon: float
    drop_path: Rate = 0.0
    layer_scale: float = None

    def build(self, shape):
        own = {"dtype": self.dtype_policy}
        scales = [LayerScale(self.layer_scale, **own) for _ in range(2) if self.layer_scale]
        for part in (self.attn, self.mlp, *scales):
            part.build(shape)
        self.norm1, self.norm2 = (norm(self, shape[-1], self.epsilon) for _ in range(2))
        self.ls1, self.ls2 = scales or (None, None)
        self.drop = layers.Dropout(self.drop_path, (None, *(1,) * (len(shape) - 1)), **own)

    def compute_output_spec(self, x, training=None):
        return KerasTensor(x.shape, self.compute_dtype)  # tracing all blocks takes a second

    def call(self, x, training=None):
        halves = (self.norm1, self.attn, self.ls1), (self.norm2, self.mlp, self.ls2)
        for normalize, branch, scale in halves:
            y = branch(normalize(x))
            y = y if scale is None else scale(y)
            x = x + (self.drop(y, training=training) if self.drop_path else y)
        return x


def transformers_names(theirs, ours, inner):
    """Names in transformers of the layers of `Block`s, those of attention first.  inner: its"""
    heads = tuple(f"{theirs}.attention.{inner}.{part}" for part in ("query", "key", "value"))
    return (
        (heads, f"{ours}.attn.qkv"),
        (f"{theirs}.attention.output.dense", f"{ours}.attn.proj"),
        (f"{theirs}.layernorm_before", f"{ours}.norm1"),
        (f"{theirs}.layernorm_after", f"{ours}.norm2"),
        (f"{theirs}.intermediate.dense", f"{ours}.mlp.fc1"),
        (f"{theirs}.output.dense", f"{ours}.mlp.fc2"),
    )


def cubic(size, new, antialias):
    """The matrix (new, size) of PyTorch's bicubic resampling along one axis."""
    a, stretch = (-0.5, max(size / new, 1)) if antialias else (-0.75, 1)
    centres = (np.arange(new) + 0.5) * size / new - 0.5
    d = np.abs(np.arange(-2, size + 2) - centres[:, None]) / stretch
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
    rows, columns = (cubic(*sizes, antialias).astype("float32") for sizes in zip(grid, new))
    table = ops.einsum("jw,hwc->hjc", columns, ops.reshape(table, (*grid, -1)))
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
        for name, count in (self.extra | {"pos_embed": time}).items():
            setattr(self, name, self.add_weight((1, count, width), start, name=name))

    def call(self, x):
        batch, rows, columns, width = ops.shape(x)
        first, table = self.positioned, ops.convert_to_tensor(self.pos_embed)
        places = table[:, first:]
        if (rows, columns) != tuple(self.grid):
            places = resampled(places, self.grid, (rows, columns), self.antialias)
            places = ops.cast(places, x.dtype)
        x = ops.reshape(x, (batch, rows * columns, width)) + places
        if not self.extra:
            return x
        tokens = ops.concatenate([getattr(self, name) for name in self.extra], axis=1)
        if first:
            positions = [tokens[:, :first] + table[:, :first], tokens[:, first:]]
            tokens = ops.concatenate(positions, axis=1)
        tokens = ops.broadcast_to(tokens, (batch, tokens.shape[1], width))
        return ops.concatenate([tokens, x], axis=1)
