"""Stable Diffusion's networks of Keras' layers, written from the paper: arXiv:2112.10752."""

import numpy as np

WIDTHS, CONTEXT = (80, 160, 320, 320), 192  # Stable Diffusion 1.5, a quarter as wide
HEADS, GROUPS = 8, 16
TEXT = dict(width=192, layers=12, heads=3, tokens=77, words=49408)
DECODER = (128, 128, 64, 32)  # the autoencoder's, a quarter as wide
DECODER_GROUPS = 8


class Keras:
    """Networks as functional models of Keras, for batches of fixed size."""

    def __init__(self, keras):
        self.k, self.layers, self.ops = keras, keras.layers, keras.ops

    def conv(self, x, width, kernel=3, stride=1, **options):
        return self.layers.Conv2D(width, kernel, stride, padding="same", **options)(x)

    def group_norm(self, x, groups, epsilon):
        return self.layers.GroupNormalization(groups, epsilon=epsilon)(x)

    def layer_norm(self, x):
        return self.layers.LayerNormalization(epsilon=1e-5)(x)

    def resnet(self, x, time, width, groups, epsilon):
        y = self.conv(self.ops.silu(self.group_norm(x, groups, epsilon)), width)
        if time is not None:
            y = y + self.ops.expand_dims(self.layers.Dense(width)(time), (1, 2))
        y = self.conv(self.ops.silu(self.group_norm(y, groups, epsilon)), width)
        return (x if x.shape[-1] == width else self.conv(x, width, 1)) + y

    def attention(self, x, context, heads, **options):
        batch, time, width = x.shape
        query, key, value = (
            self.ops.reshape(
                self.layers.Dense(width, use_bias=bool(options))(y),
                (batch, -1, heads, width // heads),
            )
            for y in (x, context, context)
        )
        y = self.ops.dot_product_attention(query, key, value, **options)
        return self.layers.Dense(width)(self.ops.reshape(y, (batch, time, width)))

    def transformer(self, x, context):
        batch, height, wide, width = x.shape
        y = self.conv(self.group_norm(x, GROUPS, 1e-6), width, 1)
        y = self.ops.reshape(y, (batch, height * wide, width))
        z = self.layer_norm(y)
        y = y + self.attention(z, z, HEADS)
        y = y + self.attention(self.layer_norm(y), context, HEADS)
        z = self.layers.Dense(8 * width)(self.layer_norm(y))
        z = z[..., : 4 * width] * self.ops.gelu(z[..., 4 * width :], approximate=False)
        y = y + self.layers.Dense(width)(z)
        return x + self.conv(self.ops.reshape(y, x.shape), width, 1)

    def unet(self, batch, size):
        """[latents, times, context] -> noise"""
        ops, dense, inputs = self.ops, self.layers.Dense, self.k.Input
        latents, times = inputs(batch_shape=(batch, size, size, 4)), inputs(batch_shape=(batch,))
        context = inputs(batch_shape=(batch, TEXT["tokens"], CONTEXT))
        first = WIDTHS[0] // 2
        angles = np.exp(-np.log(1e4) * np.arange(first) / first).astype("float32")
        turns = ops.expand_dims(times, 1) * angles
        time = dense(4 * WIDTHS[0])(ops.concatenate([ops.cos(turns), ops.sin(turns)], -1))
        time = ops.silu(dense(4 * WIDTHS[0])(ops.silu(time)))
        x = self.conv(latents, WIDTHS[0])
        skips = [x]
        for stage, width in enumerate(WIDTHS):
            for _ in range(2):
                x = self.resnet(x, time, width, GROUPS, 1e-5)
                x = self.transformer(x, context) if stage < 3 else x
                skips.append(x)
            if stage < 3:
                x = self.conv(x, width, 3, 2)
                skips.append(x)
        x = self.transformer(self.resnet(x, time, WIDTHS[-1], GROUPS, 1e-5), context)
        x = self.resnet(x, time, WIDTHS[-1], GROUPS, 1e-5)
        for stage, width in enumerate(WIDTHS[::-1]):
            for _ in range(3):
                joined = ops.concatenate([x, skips.pop()], -1)
                x = self.resnet(joined, time, width, GROUPS, 1e-5)
                x = self.transformer(x, context) if stage > 0 else x
            x = self.conv(self.layers.UpSampling2D(2)(x), width) if stage < 3 else x
        x = self.conv(ops.silu(self.group_norm(x, GROUPS, 1e-5)), 4)
        return self.k.Model([latents, times, context], x)

    def decoder(self, size):
        """latents -> images, 8 times as large"""
        latents, groups, epsilon = (
            self.k.Input(batch_shape=(1, size, size, 4)),
            DECODER_GROUPS,
            1e-6,
        )
        x = self.conv(self.conv(latents, 4, 1), DECODER[0])
        x = self.resnet(x, None, DECODER[0], groups, epsilon)
        y = self.ops.reshape(self.group_norm(x, groups, epsilon), (1, size * size, DECODER[0]))
        y = self.attention(y, y, 1, is_causal=False)
        x = self.resnet(x + self.ops.reshape(y, x.shape), None, DECODER[0], groups, epsilon)
        for stage, width in enumerate(DECODER):
            for _ in range(3):
                x = self.resnet(x, None, width, groups, epsilon)
            x = self.conv(self.layers.UpSampling2D(2)(x), width) if stage < 3 else x
        return self.k.Model(
            latents, self.conv(self.ops.silu(self.group_norm(x, groups, epsilon)), 3)
        )

    def text_encoder(self, batch):
        """tokens -> hidden states"""
        tokens = self.k.Input(batch_shape=(batch, TEXT["tokens"]), dtype="int32")
        width = TEXT["width"]
        places = self.layers.Embedding(TEXT["tokens"], width)(self.ops.arange(TEXT["tokens"]))
        x = self.layers.Embedding(TEXT["words"], width)(tokens) + places
        for _ in range(TEXT["layers"]):
            y = self.layer_norm(x)
            x = x + self.attention(y, y, TEXT["heads"], is_causal=True)
            y = self.layers.Dense(4 * width)(self.layer_norm(x))
            x = x + self.layers.Dense(width)(y * self.ops.sigmoid(1.702 * y))
        return self.k.Model(tokens, self.layer_norm(x))
