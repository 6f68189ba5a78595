"""Every layer: arguments, inputs, and the shape that must come out. Used here and against Keras."""

import re
from pathlib import Path

import numpy as np


class Int(tuple):
    """The shape of an integer input."""


class Tokens(tuple):
    """The shape of an integer input from 0 to 4."""


def array(shape, seed=0):
    random = np.random.RandomState(seed)
    if isinstance(shape, Tokens):
        return random.randint(0, 5, shape).astype("int32")
    if isinstance(shape, Int):
        return random.randint(0, 100, shape).astype("int32")
    return random.randn(*shape).astype("float32")


def inputs(shapes, seed=0):
    """Arrays of these shapes: one, or a list of them."""
    if isinstance(shapes, list):
        return type(shapes)(array(shape, seed + i) for i, shape in enumerate(shapes))
    return array(shapes, seed)


def merge(**options):
    return [
        (options, [(2, 3), (2, 3)], (2, 3)),
        (options, [(2, 4, 3), (2, 1, 3)], (2, 4, 3)),
        (options, [(2, 3, 3), (2, 3)], (2, 3, 3)),
    ]


def pools(count):
    space = (7, 6, 5)[:count]
    return [
        (dict(pool_size=2), (2, *space, 3), (2, *[n // 2 for n in space], 3)),
        (
            dict(pool_size=3, strides=2, padding="same"),
            (2, *space, 3),
            (2, *[-(-n // 2) for n in space], 3),
        ),
        (
            dict(pool_size=(3, 2, 2)[:count], strides=1, data_format="channels_first"),
            (2, 3, *space),
            (2, 3, *[n - k + 1 for n, k in zip(space, (3, 2, 2))]),
        ),
    ]


def wholes(count):
    space = (4, 3, 2)[:count]
    return [
        ({}, (2, *space, 3), (2, 3)),
        (dict(keepdims=True), (2, *space, 3), (2, *[1] * count, 3)),
        (dict(data_format="channels_first"), (2, 3, *space), (2, 3)),
    ]


class Several(list):
    """Inputs that go to `call` as arguments of their own."""


def several(*shapes):
    return Several(shapes)


def adaptive(count):
    space, out = (7, 6, 5)[:count], (3, 6, 2)[:count]
    return [
        (dict(output_size=2), (2, *space, 3), (2, *[2] * count, 3)),
        (dict(output_size=out, data_format="channels_first"), (2, 3, *space), (2, 3, *out)),
    ]


def sequences():
    return [
        (dict(units=3), (2, 5, 4), (2, 3)),
        (dict(units=3, return_sequences=True, go_backwards=True), (2, 5, 4), (2, 5, 3)),
        (dict(units=2, unroll=True, stateful=True, bias_initializer="ones"), (2, 5, 4), (2, 2)),
    ]


SAMPLES = {  # class -> (arguments, shape or shapes of the inputs, shape of the output)
    "Dense": [
        (dict(units=3), (2, 4), (2, 3)),
        (dict(units=3, activation="gelu", use_bias=False), (2, 5, 4), (2, 5, 3)),
        (
            dict(
                units=2,
                activation="softmax",
                kernel_initializer="he_normal",
                bias_initializer="ones",
                kernel_regularizer="l2",
                bias_regularizer="l1",
                activity_regularizer="l2",
                kernel_constraint="max_norm",
                bias_constraint="non_neg",
            ),
            (3, 4),
            (3, 2),
        ),
    ],
    "EinsumDense": [
        (dict(equation="ab,bc->ac", output_shape=3), (2, 4), (2, 3)),
        (
            dict(equation="abc,cde->abde", output_shape=(None, 2, 3), bias_axes="de"),
            (2, 5, 4),
            (2, 5, 2, 3),
        ),
        (
            dict(
                equation="abcd,cde->abe", output_shape=(None, 6), bias_axes="e", activation="relu"
            ),
            (2, 3, 4, 5),
            (2, 3, 6),
        ),
        (
            dict(equation="...x,xy->...y", output_shape=7, bias_axes="y"),
            (2, 3, 5, 4),
            (2, 3, 5, 7),
        ),
        (dict(equation="abc,cd->abd", output_shape=(5, 3), bias_axes="bd"), (2, 5, 4), (2, 5, 3)),
    ],
    "Embedding": [
        (dict(input_dim=5, output_dim=3), Tokens((2, 4)), (2, 4, 3)),
        (
            dict(input_dim=6, output_dim=2, mask_zero=True, embeddings_initializer="normal"),
            Tokens((3,)),
            (3, 2),
        ),
        (
            dict(
                input_dim=5,
                output_dim=2,
                embeddings_regularizer="l2",
                embeddings_constraint="unit_norm",
            ),
            Tokens((2, 2, 2)),
            (2, 2, 2, 2),
        ),
    ],
    "Activation": [
        (dict(activation="relu"), (2, 3), (2, 3)),
        (dict(activation="softmax"), (2, 3, 4), (2, 3, 4)),
        (dict(activation="gelu"), (5,), (5,)),
    ],
    "ReLU": [
        ({}, (2, 3), (2, 3)),
        (dict(max_value=1.0, negative_slope=0.2, threshold=0.3), (4, 5), (4, 5)),
        (dict(negative_slope=0.1), (4, 5), (4, 5)),
    ],
    "LeakyReLU": [({}, (2, 3), (2, 3)), (dict(negative_slope=0.05), (2, 3, 2), (2, 3, 2))],
    "ELU": [({}, (2, 3), (2, 3)), (dict(alpha=0.5), (2, 3), (2, 3))],
    "PReLU": [
        ({}, (2, 3), (2, 3)),
        (
            dict(alpha_initializer="uniform", shared_axes=(1, 2), alpha_regularizer="l1"),
            (2, 4, 5, 3),
            (2, 4, 5, 3),
        ),
        (dict(alpha_initializer="ones", alpha_constraint="non_neg"), (2, 4, 3), (2, 4, 3)),
    ],
    "Softmax": [
        ({}, (2, 3), (2, 3)),
        (dict(axis=1), (2, 3, 4), (2, 3, 4)),
        (dict(axis=(1, 2)), (2, 3, 4), (2, 3, 4)),
    ],
    "Identity": [({}, (2, 3), (2, 3)), ({}, Int((2,)), (2,))],
    "Masking": [({}, (2, 3, 4), (2, 3, 4)), (dict(mask_value=2.0), (2, 3, 4), (2, 3, 4))],
    "Lambda": [(dict(function="tanh"), (2, 3), (2, 3))],
    "Dropout": [
        (dict(rate=0.5), (2, 3), (2, 3)),
        (dict(rate=0.2, noise_shape=(None, 1, 4), seed=3), (2, 3, 4), (2, 3, 4)),
        (dict(rate=0.0), (2,), (2,)),
    ],
    "GaussianNoise": [(dict(stddev=0.5), (2, 3), (2, 3)), (dict(stddev=0.1, seed=1), (4,), (4,))],
    "ActivityRegularization": [
        ({}, (2, 3), (2, 3)),
        (dict(l1=0.1, l2=0.2), (2, 3, 2), (2, 3, 2)),
    ],
    "LayerNormalization": [
        ({}, (2, 4), (2, 4)),
        (dict(axis=(1, 2), epsilon=1e-5), (2, 3, 4), (2, 3, 4)),
        (dict(axis=1, center=False, gamma_initializer="uniform"), (2, 3, 4), (2, 3, 4)),
        (dict(scale=False, beta_initializer="normal", beta_regularizer="l2"), (2, 3, 4), (2, 3, 4)),
        (dict(axis=[3, 1], gamma_constraint="non_neg"), (2, 3, 4, 5), (2, 3, 4, 5)),
    ],
    "RMSNormalization": [
        ({}, (2, 4), (2, 4)),
        (dict(epsilon=1e-3), (2, 3, 4), (2, 3, 4)),
        (dict(axis=1), (2, 3, 4), (2, 3, 4)),
        (dict(axis=(1, 2)), (2, 3, 4), (2, 3, 4)),
    ],
    "BatchNormalization": [
        ({}, (6, 4), (6, 4)),
        (dict(axis=1, momentum=0.5, epsilon=1e-2), (2, 3, 4, 2), (2, 3, 4, 2)),
        (
            dict(
                center=False,
                gamma_initializer="uniform",
                moving_mean_initializer="normal",
                momentum=0.9,
            ),
            (2, 3, 4),
            (2, 3, 4),
        ),
        (dict(scale=False, beta_initializer="normal"), (2, 3, 4), (2, 3, 4)),
    ],
    "GroupNormalization": [
        (dict(groups=2), (2, 3, 4), (2, 3, 4)),
        (dict(groups=-1, axis=1), (2, 3, 4), (2, 3, 4)),
        (dict(groups=1, center=False, epsilon=1e-5), (2, 3, 3, 4), (2, 3, 3, 4)),
        (dict(groups=3, axis=-2, scale=False, beta_initializer="normal"), (2, 6, 4), (2, 6, 4)),
    ],
    "UnitNormalization": [
        ({}, (2, 4), (2, 4)),
        (dict(axis=(1, 2)), (2, 3, 4), (2, 3, 4)),
        (dict(axis=1), (2, 3, 4), (2, 3, 4)),
    ],
    "Conv1D": [
        (dict(filters=4, kernel_size=3), (2, 7, 3), (2, 5, 4)),
        (
            dict(filters=4, kernel_size=3, strides=2, padding="same", activation="relu"),
            (2, 7, 3),
            (2, 4, 4),
        ),
        (dict(filters=2, kernel_size=3, padding="causal", dilation_rate=2), (2, 7, 3), (2, 7, 2)),
        (
            dict(filters=4, kernel_size=2, data_format="channels_first", groups=2, use_bias=False),
            (2, 6, 5),
            (2, 4, 4),
        ),
    ],
    "Conv2D": [
        (dict(filters=4, kernel_size=3), (2, 6, 5, 3), (2, 4, 3, 4)),
        (
            dict(
                filters=4,
                kernel_size=(3, 2),
                strides=(2, 1),
                padding="same",
                kernel_regularizer="l2",
            ),
            (2, 6, 5, 3),
            (2, 3, 5, 4),
        ),
        (
            dict(filters=6, kernel_size=2, groups=3, dilation_rate=2, activation="tanh"),
            (2, 6, 5, 3),
            (2, 4, 3, 6),
        ),
        (dict(filters=2, kernel_size=3, data_format="channels_first"), (2, 3, 5, 6), (2, 2, 3, 4)),
        (
            dict(filters=2, kernel_size=2, bias_initializer="ones", activity_regularizer="l2"),
            (1, 3, 3, 2),
            (1, 2, 2, 2),
        ),
    ],
    "Conv3D": [
        (dict(filters=2, kernel_size=2), (2, 4, 3, 3, 2), (2, 3, 2, 2, 2)),
        (
            dict(filters=2, kernel_size=(3, 1, 2), strides=2, padding="same", use_bias=False),
            (2, 4, 3, 3, 2),
            (2, 2, 2, 2, 2),
        ),
    ],
    "MaxPooling1D": pools(1),
    "MaxPooling2D": pools(2),
    "MaxPooling3D": pools(3),
    "AveragePooling1D": pools(1),
    "AveragePooling2D": pools(2),
    "AveragePooling3D": pools(3),
    "GlobalMaxPooling1D": wholes(1),
    "GlobalMaxPooling2D": wholes(2),
    "GlobalMaxPooling3D": wholes(3),
    "GlobalAveragePooling1D": wholes(1),
    "GlobalAveragePooling2D": wholes(2),
    "GlobalAveragePooling3D": wholes(3),
    "Flatten": [
        ({}, (2, 3, 4), (2, 12)),
        (dict(data_format="channels_first"), (2, 3, 4, 2), (2, 24)),
        ({}, (2,), (2, 1)),
    ],
    "Reshape": [
        (dict(target_shape=(4, 3)), (2, 12), (2, 4, 3)),
        (dict(target_shape=(-1, 2)), (2, 3, 4), (2, 6, 2)),
    ],
    "Permute": [
        (dict(dims=(2, 1)), (2, 3, 4), (2, 4, 3)),
        (dict(dims=(3, 1, 2)), (2, 3, 4, 5), (2, 5, 3, 4)),
    ],
    "RepeatVector": [(dict(n=3), (2, 4), (2, 3, 4))],
    "Add": merge(),
    "Subtract": merge(),
    "Multiply": merge(),
    "Average": merge() + [({}, [(2, 3)] * 3, (2, 3))],
    "Maximum": merge() + [({}, [(2, 3)] * 3, (2, 3))],
    "Minimum": merge(),
    "Concatenate": [
        ({}, [(2, 3), (2, 4)], (2, 7)),
        (dict(axis=1), [(2, 3, 2), (2, 1, 2), (2, 2, 2)], (2, 6, 2)),
    ],
    "Dot": [
        (dict(axes=1), [(2, 3), (2, 3)], (2, 1)),
        (dict(axes=(1, 2), normalize=True), [(2, 3, 4), (2, 5, 3)], (2, 4, 5)),
        (dict(axes=-1), [(2, 5, 3), (2, 3)], (2, 5)),
    ],
    "Conv1DTranspose": [
        (dict(filters=4, kernel_size=3), (2, 5, 3), (2, 7, 4)),
        (
            dict(filters=2, kernel_size=3, strides=2, padding="same", kernel_regularizer="l2"),
            (2, 5, 3),
            (2, 10, 2),
        ),
        (dict(filters=2, kernel_size=4, strides=3, output_padding=1), (2, 4, 3), (2, 14, 2)),
    ],
    "Conv2DTranspose": [
        (dict(filters=4, kernel_size=(3, 2)), (2, 4, 3, 3), (2, 6, 4, 4)),
        (
            dict(filters=2, kernel_size=3, strides=(2, 1), padding="same", activation="relu"),
            (2, 4, 3, 3),
            (2, 8, 3, 2),
        ),
        (
            dict(filters=2, kernel_size=2, strides=2, data_format="channels_first", use_bias=False),
            (2, 3, 4, 3),
            (2, 2, 8, 6),
        ),
    ],
    "Conv3DTranspose": [
        (dict(filters=2, kernel_size=2, strides=2), (1, 2, 3, 2, 2), (1, 4, 6, 4, 2))
    ],
    "DepthwiseConv1D": [
        (dict(kernel_size=3), (2, 6, 3), (2, 4, 3)),
        (
            dict(kernel_size=2, strides=2, padding="same", depth_multiplier=2, activation="tanh"),
            (2, 6, 3),
            (2, 3, 6),
        ),
    ],
    "DepthwiseConv2D": [
        (dict(kernel_size=3, depthwise_regularizer="l2"), (2, 5, 4, 3), (2, 3, 2, 3)),
        (
            dict(kernel_size=2, depth_multiplier=2, data_format="channels_first", use_bias=False),
            (2, 3, 5, 4),
            (2, 6, 4, 3),
        ),
    ],
    "SeparableConv1D": [
        (dict(filters=4, kernel_size=3), (2, 6, 3), (2, 4, 4)),
        (dict(filters=4, kernel_size=2, padding="same", depth_multiplier=2), (2, 6, 3), (2, 6, 4)),
    ],
    "SeparableConv2D": [
        (dict(filters=4, kernel_size=3, strides=2, padding="same"), (2, 5, 4, 3), (2, 3, 2, 4)),
        (
            dict(
                filters=2,
                kernel_size=2,
                depth_multiplier=2,
                depthwise_constraint="non_neg",
                pointwise_regularizer="l1",
                activation="relu",
            ),
            (2, 5, 4, 3),
            (2, 4, 3, 2),
        ),
    ],
    "AdaptiveMaxPooling1D": adaptive(1),
    "AdaptiveMaxPooling2D": adaptive(2),
    "AdaptiveMaxPooling3D": adaptive(3),
    "AdaptiveAveragePooling1D": adaptive(1),
    "AdaptiveAveragePooling2D": adaptive(2),
    "AdaptiveAveragePooling3D": adaptive(3),
    "AlphaDropout": [
        (dict(rate=0.5), (2, 3), (2, 3)),
        (dict(rate=0.2, noise_shape=(None, 1, 4), seed=3), (2, 3, 4), (2, 3, 4)),
    ],
    "GaussianDropout": [(dict(rate=0.5), (2, 3), (2, 3)), (dict(rate=0.1, seed=1), (4,), (4,))],
    "SpatialDropout1D": [(dict(rate=0.5), (2, 3, 4), (2, 3, 4))],
    "SpatialDropout2D": [
        (dict(rate=0.5), (2, 3, 4, 2), (2, 3, 4, 2)),
        (dict(rate=0.2, data_format="channels_first", seed=3), (2, 3, 4, 2), (2, 3, 4, 2)),
    ],
    "SpatialDropout3D": [(dict(rate=0.5), (2, 3, 4, 2, 3), (2, 3, 4, 2, 3))],
    "Cropping1D": [({}, (2, 6, 3), (2, 4, 3)), (dict(cropping=(2, 0)), (2, 6, 3), (2, 4, 3))],
    "Cropping2D": [
        (dict(cropping=1), (2, 5, 6, 3), (2, 3, 4, 3)),
        (
            dict(cropping=((1, 0), (0, 2)), data_format="channels_first"),
            (2, 3, 5, 6),
            (2, 3, 4, 4),
        ),
    ],
    "Cropping3D": [
        ({}, (2, 4, 5, 3, 2), (2, 2, 3, 1, 2)),
        (dict(cropping=(1, 0, 1)), (2, 4, 5, 3, 2), (2, 2, 5, 1, 2)),
    ],
    "ZeroPadding1D": [
        ({}, (2, 3, 4), (2, 5, 4)),
        (dict(padding=(0, 2)), (2, 3, 4), (2, 5, 4)),
        (dict(padding=2, data_format="channels_first"), (2, 3, 4), (2, 3, 8)),
    ],
    "ZeroPadding2D": [
        ({}, (2, 3, 4, 2), (2, 5, 6, 2)),
        (
            dict(padding=((1, 0), (0, 2)), data_format="channels_first"),
            (2, 3, 4, 2),
            (2, 3, 5, 4),
        ),
    ],
    "ZeroPadding3D": [
        ({}, (2, 3, 4, 2, 1), (2, 5, 6, 4, 1)),
        (dict(padding=(1, 0, 2)), (2, 3, 4, 2, 1), (2, 5, 4, 6, 1)),
    ],
    "UpSampling1D": [({}, (2, 3, 4), (2, 6, 4)), (dict(size=3), (2, 3, 4), (2, 9, 4))],
    "UpSampling2D": [
        ({}, (2, 3, 4, 2), (2, 6, 8, 2)),
        (dict(size=(3, 2), data_format="channels_first"), (2, 3, 4, 2), (2, 3, 12, 4)),
        (dict(size=2, interpolation="bilinear"), (2, 3, 4, 2), (2, 6, 8, 2)),
        (
            dict(size=(2, 3), interpolation="bicubic", data_format="channels_first"),
            (2, 3, 4, 2),
            (2, 3, 8, 6),
        ),
    ],
    "UpSampling3D": [({}, (2, 2, 3, 2, 2), (2, 4, 6, 4, 2))],
    "Attention": [
        ({}, [(2, 5, 4), (2, 3, 4)], (2, 5, 4)),
        (dict(use_scale=True), [(2, 5, 4), (2, 3, 6), (2, 3, 4)], (2, 5, 6)),
        (dict(use_scale=True, score_mode="concat"), [(2, 5, 4), (2, 3, 4)], (2, 5, 4)),
    ],
    "AdditiveAttention": [
        ({}, [(2, 5, 4), (2, 3, 4)], (2, 5, 4)),
        (dict(use_scale=False), [(2, 5, 4), (2, 3, 6), (2, 3, 4)], (2, 5, 6)),
    ],
    "MultiHeadAttention": [
        (dict(num_heads=2, key_dim=3), several((2, 5, 4), (2, 5, 4)), (2, 5, 4)),
        (
            dict(num_heads=3, key_dim=2, value_dim=5, output_shape=7, use_bias=False),
            several((2, 5, 4), (2, 3, 6), (2, 3, 8)),
            (2, 5, 7),
        ),
        (
            dict(num_heads=2, key_dim=3, attention_axes=(2,), kernel_regularizer="l2"),
            several((2, 3, 5, 4), (2, 3, 6, 4)),
            (2, 3, 5, 4),
        ),
        (
            dict(num_heads=2, key_dim=3, output_shape=(2, 3)),
            several((2, 4, 5, 4), (2, 4, 5, 4)),
            (2, 4, 5, 2, 3),
        ),
        (
            dict(num_heads=2, key_dim=3, sliding_window=2, use_gate=True),
            several((2, 5, 4), (2, 5, 4)),
            (2, 5, 4),
        ),
    ],
    "GroupQueryAttention": [
        (
            dict(head_dim=3, num_query_heads=4, num_key_value_heads=2),
            several((2, 5, 4), (2, 3, 4)),
            (2, 5, 4),
        ),
        (
            dict(
                head_dim=2, num_query_heads=3, num_key_value_heads=1, use_bias=False, use_gate=True
            ),
            several((2, 5, 4), (2, 3, 6), (2, 3, 8)),
            (2, 5, 4),
        ),
    ],
    "SimpleRNN": [
        *sequences(),
        (dict(units=3, activation="relu", use_bias=False), (2, 5, 4), (2, 3)),
    ],
    "LSTM": [
        *sequences(),
        (dict(units=3, unit_forget_bias=False, recurrent_regularizer="l2"), (2, 5, 4), (2, 3)),
    ],
    "GRU": [
        *sequences(),
        (dict(units=3, reset_after=False, recurrent_activation="hard_sigmoid"), (2, 5, 4), (2, 3)),
    ],
    "ReversibleEmbedding": [
        (dict(input_dim=5, output_dim=3), Tokens((2, 4)), (2, 4, 3)),
        (
            dict(input_dim=5, output_dim=2, tie_weights=False, mask_zero=True, logit_soft_cap=2.0),
            Tokens((3,)),
            (3, 2),
        ),
    ],
    "ConvLSTM1D": [(dict(filters=3, kernel_size=2), (2, 4, 5, 2), (2, 4, 3))],
    "ConvLSTM2D": [
        (
            dict(filters=2, kernel_size=(3, 2), strides=2, padding="same", return_sequences=True),
            (2, 3, 5, 4, 2),
            (2, 3, 3, 2, 2),
        ),
        (
            dict(filters=2, kernel_size=2, data_format="channels_first", go_backwards=True),
            (2, 3, 2, 5, 4),
            (2, 2, 4, 3),
        ),
    ],
    "ConvLSTM3D": [
        (dict(filters=2, kernel_size=2, use_bias=False), (1, 2, 3, 3, 2, 2), (1, 2, 2, 1, 2))
    ],
}
CASES = [(name, *sample) for name, samples in SAMPLES.items() for sample in samples]
IDS = [f"{name}-{i}" for name, samples in SAMPLES.items() for i in range(len(samples))]

# Layers made of layers: class -> (arguments, made by a function of the library; shape; output).
HELD = {
    "Bidirectional": [
        (lambda k: dict(layer=k.layers.LSTM(3)), (2, 5, 4), (2, 6)),
        (
            lambda k: dict(layer=k.layers.GRU(3, return_sequences=True), merge_mode="ave"),
            (2, 5, 4),
            (2, 5, 3),
        ),
    ],
    "TimeDistributed": [
        (lambda k: dict(layer=k.layers.Dense(3)), (2, 5, 4), (2, 5, 3)),
        (lambda k: dict(layer=k.layers.Conv1D(3, 2)), (2, 3, 5, 4), (2, 3, 4, 3)),
    ],
    "SpectralNormalization": [
        (lambda k: dict(layer=k.layers.Dense(3)), (2, 4), (2, 3)),
        (lambda k: dict(layer=k.layers.Conv1D(3, 2), power_iterations=2), (2, 5, 4), (2, 4, 3)),
    ],
    "RNN": [
        (lambda k: dict(cell=k.layers.SimpleRNNCell(3)), (2, 5, 4), (2, 3)),
        (
            lambda k: dict(cell=[k.layers.LSTMCell(3), k.layers.GRUCell(2)], return_sequences=True),
            (2, 5, 4),
            (2, 5, 2),
        ),
    ],
}
PARTS = {"SimpleRNNCell", "LSTMCell", "GRUCell", "StackedRNNCells"}  # of rows of RNN
BASES = {"Layer", "InputLayer", "Wrapper", "DataLayer"}  # abstract, or the start of a model


def elsewhere():
    """Names of the layers that have tables of their own: files tests/layers/* and *_samples.py."""
    folder = Path(__file__).parent
    files = [*folder.glob("layers/test_*.py"), *folder.glob("*_samples.py")]
    files = [file for file in files if file.name not in ("layer_samples.py", "test_bad_input.py")]
    return set(re.findall(r"\w+", " ".join(file.read_text() for file in files)))


def call(layer, arrays, **options):
    """Call the layer: on one input, a list of them, or as many arguments."""
    return layer(*arrays, **options) if isinstance(arrays, Several) else layer(arrays, **options)


def untested():
    """Names of the layers that have no row."""
    return core_layers() - SAMPLES.keys() - HELD.keys() - PARTS - BASES - elsewhere()


def core_layers():
    """The names of all layers of khub.layers (not those that models define for themselves)."""
    import khub
    from khub.saving import registry

    classes = [c for c in registry.registered("layers").values() if isinstance(c, type)]
    names = {c.__name__ for c in classes if c.__module__.startswith("khub.layers.")}
    return {name for name in names if hasattr(khub.layers, name)}
