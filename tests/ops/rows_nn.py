"""Rows of the neural-network ops."""

import numpy as np
from ops import oracles as oracle
from ops.sample import *  # noqa: F403
from ops.sample import S

# ruff: noqa: E731, F405

# --- neural network -------------------------------------------------------------------------------
WIDE_X = X * 4
SAMPLES = {
    name: [S(f, WIDE_X), *(S(f, WIDE_X, **options) for options in more), S(f, INTS)]
    for name, f, *more in [
        ("leaky_relu", lambda x, negative_slope=0.2: np.where(x > 0, x, x * negative_slope)),
        ("elu", lambda x, alpha=1: np.where(x > 0, x, alpha * np.expm1(x)), dict(alpha=0.5)),
        ("selu", oracle.selu),
        (
            "celu",
            lambda x, alpha=1: np.where(x > 0, x, alpha * np.expm1(x / alpha)),
            dict(alpha=0.5),
        ),
        ("gelu", oracle.gelu, dict(approximate=False)),
        ("sigmoid", oracle.sigmoid),
        ("silu", lambda x: x * oracle.sigmoid(x)),
        ("log_sigmoid", lambda x: -np.logaddexp(0, -x)),
        ("softplus", lambda x: np.logaddexp(0, x)),
        ("softsign", lambda x: x / (1 + np.abs(x))),
        ("hard_sigmoid", lambda x: np.clip(x / 6 + 0.5, 0, 1)),
        ("hard_silu", lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
        ("hard_tanh", lambda x: np.clip(x, -1, 1)),
        ("tanh_shrink", lambda x: x - np.tanh(x)),
        ("squareplus", lambda x, b=4: (x + np.sqrt(x**2 + b)) / 2, dict(b=0.5)),
        ("sparse_plus", lambda x: np.where(x > 1, x, np.maximum(x + 1, 0) ** 2 / 4)),
        ("sparse_sigmoid", lambda x: np.clip((x + 1) / 2, 0, 1)),
        (
            "soft_shrink",
            lambda x, threshold=0.5: np.sign(x) * np.maximum(np.abs(x) - threshold, 0),
            dict(threshold=1.5),
        ),
        (
            "hard_shrink",
            lambda x, threshold=0.5: np.where(np.abs(x) > threshold, x, 0),
            dict(threshold=1.5),
        ),
        ("mish", lambda x: x * np.tanh(np.logaddexp(0, x))),
    ]
}
SAMPLES["leaky_relu"] += [S(lambda x, s: np.where(x > 0, x, s * x), X, 0.5)]
SAMPLES["softplus"] += [S(lambda x: np.logaddexp(0, x), X * 50)]
SAMPLES |= {
    name: [S(f, WIDE_X), S(f, INTS, gives="int32")]
    for name, f in dict(
        relu=lambda x: np.maximum(x, 0), relu6=lambda x: np.minimum(np.maximum(x, 0), 6)
    ).items()
}
SAMPLES |= {
    name: [S(f, WIDE_X), S(f, WIDE_X, axis=1), S(f, X, axis=(1, 2)), S(f, X * 60), S(f, INTS)]
    for name, f in dict(softmax=oracle.softmax, log_softmax=oracle.log_softmax).items()
}
SAMPLES |= {
    "one_hot": [
        S(oracle.one_hot, LABELS, 6),
        S(oracle.one_hot, LABELS, 4, dtype="int32", gives="int32"),
        S(oracle.one_hot, integers(-2, 7, 5, 2), 6, axis=1),
    ],
    "multi_hot": [
        S(lambda x, n: oracle.one_hot(x, n).max(-2), integers(0, 7, 5, 3), 7),
        S(lambda x, n: oracle.one_hot(x, n), np.array(2, "int32"), 4),
        S(lambda x, n: oracle.one_hot(x, n).max(0), integers(0, 7, 3), 7),
        S(lambda x, n: oracle.one_hot(x, n).max(1), integers(0, 7, 5, 3, 2), 7),
        S(lambda x, n, axis: oracle.one_hot(x, n).max(1).T, integers(0, 7, 5, 3), 7, axis=0),
    ],
    "psnr": [
        S(lambda a, b, m: 10 * np.log10(m**2 / np.mean((a - b) ** 2)), X, Y, 2.5),
        S(lambda a, b, m: 10 * np.log10(m**2 / np.mean((a - b) ** 2)), INTS, COUNTS, 255),
    ],
    "polar": [
        S(lambda r, a: r * np.exp(1j * a), X, Y, gives="complex64"),
        S(lambda r, a: r * np.exp(1j * a), COUNTS, INTS, gives="complex64"),
    ],
    "threshold": [
        S(lambda x, t, d: np.where(x > t, x, d), X, 0.5, 9.0),
        S(lambda x, t, d: np.where(x > t, x, d), INTS, 2, 9, gives="int32"),
        S(lambda x, t, d: np.where(x > t, x, d), INTS, 2.5, 9.5),
    ],
    "glu": [
        S(oracle.glu, ROWS),
        S(oracle.glu, X, axis=1),
        S(oracle.glu, INTS, axis=1),
    ],
    "sparsemax": [
        S(oracle.sparsemax, X),
        S(oracle.sparsemax, X * 3, axis=1),
        S(oracle.sparsemax, INTS, smooth=False),
        S(oracle.sparsemax, np.ones((5, 3), "float32"), smooth=False),
    ],
    "categorical_crossentropy": [
        S(oracle.categorical, ONE_HOT, ROWS, from_logits=True),
        S(oracle.categorical, ONE_HOT, SHARES),
        S(oracle.categorical, ONE_HOT.T, SHARES.T, axis=0, fixed=True),
    ],
    "sparse_categorical_crossentropy": [
        S(oracle.sparse, LABELS, ROWS, from_logits=True),
        S(oracle.sparse, LABELS, SHARES),
        S(oracle.sparse, LABELS[:, None], ROWS * 9, from_logits=True),
        S(oracle.sparse, LABELS.astype("float32"), ROWS, from_logits=True, smooth=False),
        S(oracle.sparse, integers(0, 4, 5, 3), X, from_logits=True, axis=1),
    ],
    "binary_crossentropy": [
        S(oracle.binary, ONE_HOT, ROWS * 9, from_logits=True),
        S(oracle.binary, ONE_HOT, SHARES * 0.9),
        S(oracle.binary, ONE_HOT, np.round(SHARES), smooth=False, near=1e-5),
        S(oracle.binary, ONE_HOT.astype("int32"), ROWS, from_logits=True),
    ],
    "moments": [
        S(oracle.moments, X, [0], gives=("float32",) * 2),
        S(oracle.moments, X, (0, 1), keepdims=True, gives=("float32",) * 2),
        S(oracle.moments, X + 100, -1, gives=("float32",) * 2, near=1e-4),
    ],
    "batch_normalization": [
        S(oracle.batch_norm, X, Y[0, 0], POSITIVE[0, 0], -1),
        S(oracle.batch_norm, X, Y[0, 0], POSITIVE[0, 0], -1, Y[1, 0], Y[2, 0], near=2e-6),
        S(oracle.batch_norm, X, Y[0, :, 0], POSITIVE[0, :, 0], 1, scale=Y[1, :, 0], epsilon=0.1),
    ],
    "layer_normalization": [
        S(oracle.layer_norm, X, near=2e-5),
        S(oracle.layer_norm, ROWS, SHARES[0], ROWS[0], epsilon=1e-3, near=3e-6),
        S(oracle.layer_norm, X, Y[0], None, axis=[1, 2], epsilon=1e-3, near=3e-6),
        S(oracle.layer_norm, X, axis=1, epsilon=1e-3, near=3e-6),
        S(oracle.layer_norm, ROWS * 100 + 1e4, epsilon=1e-3, near=3e-4),
    ],
    "group_normalization": [
        S(oracle.group_norm, normal(2, 3, 4, 6), 2, near=3e-6),
        S(oracle.group_norm, normal(2, 6, 4), 3, normal(6), normal(6), axis=1, near=3e-6),
        S(oracle.group_norm, ROWS * 10 + 100, 1, beta=ROWS[0], axis=-1, epsilon=0.1, near=1e-4),
    ],
    "rms_normalization": [
        S(oracle.rms_norm, ROWS, epsilon=1e-3, near=2e-6),
        S(oracle.rms_norm, ROWS, SHARES[0], near=2e-6),
        S(oracle.rms_norm, X, Y[0, 0], axis=-1, epsilon=1e-5, near=2e-6),
    ],
    "linear": [
        S(lambda x, k: x @ k, A, B[0], near=1e-5),
        S(lambda x, k, b: x @ k + b, A, B[0], B[0, 0], near=1e-5),
        S(lambda x, k, b: x @ k + b, INTS, B[0], B[0, 0], near=1e-5),
        S(lambda x, k, b: x @ k + b, ROWS, normal(6, 7), normal(7), near=1e-5),
    ],
}
Q, K, V = normal(5, 4, 6, 8), normal(5, 7, 6, 8), normal(5, 7, 6, 8)
MASK = uniform(0, 1, 1, 1, 4, 7) > 0.4
MASK[..., 2, :] = False  # attends nowhere
SAMPLES["dot_product_attention"] = [
    S(oracle.attention, *qkv, near=1e-5, **options)
    for qkv, options in [
        ((Q, K, V), dict()),
        ((Q, K, V), dict(mask=MASK)),
        ((Q, K, V), dict(flash_attention=False)),
        ((Q, K, V), dict(mask=MASK, bias=normal(1, 6, 4, 7), scale=0.5)),
        ((Q, K, V), dict(bias=normal(1, 1, 4, 7), is_causal=True)),
        ((Q, K, V), dict(mask=MASK, is_causal=True)),
        ((Q, Q, V[:, :4]), dict(is_causal=True)),
        ((Q, K, V), dict(attn_logits_soft_cap=2.0, mask=MASK, is_causal=True)),
        ((Q, K[:, :, :2], V[:, :, :2]), dict(mask=MASK)),
        ((Q, K[:, :, :3], V[:, :, :3]), dict(is_causal=True)),
    ]
]
IMAGE, LINE, CUBE = normal(5, 7, 8, 4), normal(5, 9, 4), normal(2, 4, 6, 4, 2)
SAMPLES["conv"] = [
    S(oracle.conv, *args, near=1e-5, **options)
    for *args, options in [
        (IMAGE, normal(3, 3, 4, 6), dict()),
        (IMAGE, normal(3, 2, 4, 6), dict(padding="same")),
        (IMAGE, normal(3, 3, 4, 6), dict(strides=2, padding="same")),
        (IMAGE, normal(4, 3, 4, 6), dict(strides=(2, 3), padding="same")),
        (IMAGE, normal(3, 3, 4, 6), dict(dilation_rate=2, padding="same")),
        (IMAGE, normal(2, 3, 2, 6), dict(strides=(1, 2))),
        (IMAGE, normal(3, 3, 1, 8), dict(padding="same")),
        (IMAGE.transpose(0, 3, 1, 2), normal(3, 3, 4, 6), dict(data_format="channels_first")),
        (LINE, normal(3, 4, 6), dict()),
        (LINE, normal(4, 2, 6), dict(strides=2, padding="same")),
        (IMAGE, normal(3, 3, 1, 8), dict(strides=2, padding=((1, 1), (1, 1)))),
        (IMAGE, normal(3, 9, 4, 6), dict(strides=2, padding=[[0, 2], 1])),
        (LINE, normal(3, 4, 6), dict(padding=[(2, 0)])),
        (CUBE, normal(3, 2, 2, 2, 3), dict(strides=2, padding=((1, 1), (0, 1), (2, 0)))),
        (LINE, normal(3, 4, 6), dict(dilation_rate=3)),
        (CUBE, normal(3, 2, 2, 2, 3), dict(strides=(1, 2, 1), padding="same")),
    ]
]
SAMPLES["conv_transpose"] = [
    S(oracle.conv_transpose, *args, near=1e-5, **options)
    for *args, options in [
        (IMAGE, normal(3, 3, 6, 4), dict()),
        (IMAGE, normal(3, 3, 6, 4), dict(strides=2)),
        (IMAGE, normal(3, 3, 6, 4), dict(strides=2, padding="same")),
        (IMAGE, normal(2, 4, 6, 4), dict(strides=(3, 2), padding="same")),
        (IMAGE, normal(1, 2, 6, 4), dict(strides=3)),
        (IMAGE, normal(3, 3, 6, 4), dict(strides=2, padding="same", output_padding=1)),
        (IMAGE, normal(3, 3, 6, 4), dict(dilation_rate=2)),
        (IMAGE.transpose(0, 3, 1, 2), normal(3, 3, 6, 4), dict(data_format="channels_first")),
        (LINE, normal(4, 6, 4), dict(strides=2, padding="same")),
        (CUBE, normal(2, 3, 2, 3, 2), dict(strides=2)),
    ]
]
SAMPLES |= {
    "depthwise_conv": [
        S(oracle.depthwise, IMAGE, normal(3, 3, 4, 2), padding="same", near=1e-5),
        S(oracle.depthwise, LINE, normal(3, 4, 1), strides=2, near=1e-5),
    ],
    "separable_conv": [
        S(
            oracle.separable,
            IMAGE,
            normal(3, 3, 4, 2),
            normal(1, 1, 8, 3),
            near=1e-5,
            padding="same",
        )
    ],
}
POOLS = [
    (IMAGE, 2, dict()),
    (IMAGE, 3, dict(padding="same")),
    (IMAGE, (2, 3), dict(strides=(1, 2), padding="same")),
    (IMAGE, 2, dict(strides=2, padding="same")),
    (IMAGE.transpose(0, 3, 1, 2), 3, dict(strides=2, data_format="channels_first")),
    (LINE, 2, dict(padding="same")),
    (CUBE, 2, dict(strides=1, padding="same")),
]
for name, f in dict(max_pool=oracle.max_pool, average_pool=oracle.average_pool).items():
    SAMPLES[name] = [S(f, x, size, **options) for x, size, options in POOLS]
SAMPLES["max_pool"] += [S(oracle.max_pool, INTS, 2, gives="int32")]


# --- windows that adapt, patches and blocks -------------------------------------------------------
ADAPTIVE = [
    (IMAGE, 3, dict()),
    (IMAGE, (7, 2), dict()),
    (IMAGE.transpose(0, 3, 1, 2), (1, 5), dict(data_format="channels_first")),
    (LINE, 4, dict()),
    (CUBE, (2, 4, 3), dict()),
]
for name, f in dict(average=np.mean, max=np.max).items():
    SAMPLES[f"adaptive_{name}_pool"] = [
        S(oracle.adaptive(f), x, size, **options) for x, size, options in ADAPTIVE
    ]
SAMPLES["adaptive_average_pool"] += [S(oracle.adaptive(np.mean), INTS, 3)]
SAMPLES["adaptive_max_pool"] += [S(oracle.adaptive(np.max), INTS, 3, gives="int32")]
FIRST = IMAGE.transpose(0, 3, 1, 2)
WINDOWS = [
    dict(kernel_size=2),
    dict(kernel_size=(3, 2), stride=2, padding=1),
    dict(kernel_size=(2, 3), dilation=(2, 1), padding=(0, 2), stride=(1, 2)),
]
SAMPLES["unfold"] = [S(oracle.unfold, FIRST, **window) for window in WINDOWS]
SAMPLES["unfold"] += [S(oracle.unfold, INTS[:, None], 2, gives="int32")]
SAMPLES["fold"] = [
    S(oracle.fold, oracle.unfold(FIRST, **window), (7, 8), near=3e-6, **window)
    for window in WINDOWS
]
SAMPLES["fold"] += [S(oracle.fold, oracle.unfold(INTS[:, None], 2), (4, 3), 2, gives="int32")]
BLOCKS = normal(5, 6, 4, 3)
SAMPLES |= {
    "space_to_depth": [
        S(oracle.space_to_depth, BLOCKS, 2),
        S(oracle.space_to_depth, BLOCKS.transpose(0, 3, 1, 2), 2, data_format="channels_first"),
    ],
    "depth_to_space": [
        S(oracle.depth_to_space, normal(5, 2, 3, 8), 2),
        S(oracle.depth_to_space, normal(5, 18, 2, 1), 3, data_format="channels_first"),
    ],
}

# --- connectionist temporal classification --------------------------------------------------------
TARGETS = np.array([[1, 2], [1, 1], [2, 0], [2, 2], [0, 0]], "int32")
SIZES, TIMES = np.array([2, 2, 1, 2, 0], "int32"), np.array([5, 4, 3, 2, 5], "int32")
LOGITS = normal(5, 5, 3) * 2
SAMPLES |= {
    "ctc_loss": [
        S(
            oracle.ctc_loss, TARGETS, LOGITS, SIZES, TIMES, near=3e-6, smooth=False
        ),  # one is infinite
        S(oracle.ctc_loss, TARGETS[:3], LOGITS[:3], SIZES[:3], TIMES[:3], near=3e-6),
        S(
            oracle.ctc_loss,
            TARGETS[:3] % 2,
            LOGITS[:3],
            SIZES[:3],
            TIMES[:3],
            mask_index=2,
            near=3e-6,
        ),
    ],
    "ctc_decode": [
        S(oracle.ctc_greedy, LOGITS, TIMES, gives=("int32", "float32"), smooth=False),
        S(oracle.ctc_greedy, LOGITS, TIMES, mask_index=2, gives=("int32", "float32"), smooth=False),
        S(
            oracle.ctc_greedy,
            LOGITS,
            TIMES,
            merge_repeated=False,
            gives=("int32", "float32"),
            smooth=False,
        ),
        *(
            S(
                oracle.ctc_beam,
                LOGITS,
                TIMES,
                "beam_search",
                beam_width=40,
                gives=("int32", "float32"),
                smooth=False,
                near=3e-6,
                **options,
            )
            for options in [
                dict(top_paths=3),
                dict(top_paths=2, mask_index=2),
                dict(merge_repeated=False, mask_index=1),
            ]
        ),
    ],
}
