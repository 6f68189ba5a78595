"""Every op on the running backend: values, dtypes, symbolic shapes and gradients, from one table.

A sample is one call and an independent NumPy expression for it, computed in float64. The op and,
where the backend replaced it, its reference body must both give that value.
"""

import math

import numpy as np
import op_oracles as oracle
import pytest

from khub import backend, dtypes, ops, tree
from khub.ops.op import OPS
from khub.ops.symbolic import KerasTensor

# ruff: noqa: E731


class Sample:
    """`op(*args, **options)` equals `expected(*args, **options)` and has the dtype(s) `gives`.

    fixed: the first axis cannot be unknown in a symbolic call (None: there is no symbolic call)
    smooth: False where the gradient is not that of the expression
    """

    def __init__(
        self, expected, *args, gives="float32", fixed=False, smooth=True, near=1e-6, **options
    ):
        self.expected, self.args, self.options, self.gives = expected, args, options, gives
        self.fixed, self.smooth, self.near = fixed, smooth, near


S = Sample
BATCH = 5  # arrays whose first axis is as long are batches
rng = np.random.default_rng(0)


def normal(*shape):
    """Distinct float32 numbers, none at 0."""
    values = np.sort(rng.normal(size=math.prod(shape))) + 0.01 * np.arange(math.prod(shape))
    values = (values - values.mean()) / values.std() + 0.003
    return rng.permutation(values).reshape(shape).astype("float32")


def uniform(low, high, *shape):
    return rng.uniform(low, high, shape).astype("float32")


def integers(low, high, *shape, dtype="int32"):
    return rng.integers(low, high, shape).astype(dtype)


X, Y, POSITIVE = normal(5, 4, 3), normal(5, 4, 3), uniform(0.2, 3, 5, 4, 3)
INTS, COUNTS = integers(-4, 9, 5, 4, 3), integers(1, 5, 5, 4, 3)
BYTES, WORDS = integers(0, 200, 5, 4, dtype="uint8"), integers(0, 999, 5, 4, dtype="uint16")
BOOLS, OTHERS = X > 0, Y > 0
SPECIAL = np.array([[np.nan, np.inf, -np.inf, 1.5], [0.0, -2.0, np.nan, 3.0]], "float32")
ROWS, LABELS = normal(5, 6), np.array([3, 0, 5, 1, 2], "int32")
SHARES = uniform(0.1, 1, 5, 6)
ONE_HOT = np.eye(6, dtype="float32")[LABELS]

# --- elementwise --------------------------------------------------------------------------------
SAMPLES = {
    name: [S(f, x), S(f, whole)]
    for x, whole, functions in [
        (X, INTS, dict(exp=np.exp, expm1=np.expm1, sin=np.sin, cos=np.cos, tanh=np.tanh)),
        (X, INTS, dict(sinh=np.sinh, cosh=np.cosh, arctan=np.arctan, erf=oracle.erf)),
        (X, INTS, dict(floor=np.floor, ceil=np.ceil)),
        (X / 4, INTS % 2, dict(tan=np.tan, arcsin=np.arcsin, arccos=np.arccos)),
        (X / 4, INTS * 0, dict(erfinv=np.vectorize(oracle.erfinv))),
        (POSITIVE, COUNTS, dict(log=np.log, log1p=np.log1p, log2=np.log2, log10=np.log10)),
        (POSITIVE, COUNTS, dict(sqrt=np.sqrt, rsqrt=lambda x: 1 / np.sqrt(x))),
    ]
    for name, f in functions.items()
}
SAMPLES |= {
    name: [S(f, SPECIAL, gives="bool"), S(f, INTS, gives="bool")]
    for name, f in dict(isnan=np.isnan, isinf=np.isinf, isfinite=np.isfinite).items()
}
SAMPLES |= {
    name: [S(f, X), S(f, INTS, gives="int32")]
    for name, f in dict(
        negative=np.negative, absolute=np.abs, sign=np.sign, square=np.square
    ).items()
}
SAMPLES |= {
    name: [
        S(f, X, Y),
        S(f, X, Y[0]),
        S(f, INTS, COUNTS, gives="int32"),
        S(f, X, 2),
        S(f, INTS, 2.5),
        S(f, 2, INTS, gives="int32"),
        S(f, WORDS, BYTES, gives="uint16"),
        S(f, SPECIAL, 1.0, smooth=False),
    ]
    for name, f in dict(
        add=np.add,
        subtract=np.subtract,
        multiply=np.multiply,
        maximum=np.maximum,
        minimum=np.minimum,
    ).items()
}
SAMPLES |= {
    name: [
        S(f, X, POSITIVE),
        S(f, INTS, COUNTS, gives="int32"),
        S(f, INTS, -3, gives="int32"),
        S(f, WORDS, 7, gives="uint16"),
    ]
    for name, f in dict(floor_divide=np.floor_divide, mod=np.mod).items()
}
SAMPLES |= {
    "divide": [S(np.divide, X, POSITIVE), S(np.divide, INTS, COUNTS), S(np.divide, INTS, 4)],
    "power": [
        S(np.power, POSITIVE, X),
        S(np.power, X, 3),
        S(np.power, COUNTS, COUNTS, gives="int32"),
    ],
    "arctan2": [S(np.arctan2, X, Y), S(np.arctan2, INTS, COUNTS)],
    "squared_difference": [S(lambda a, b: (a - b) ** 2, X, Y)],
    "reciprocal": [S(lambda x: 1 / x, POSITIVE), S(lambda x: 1 / x, COUNTS)],
}
SAMPLES |= {
    name: [
        S(f, INTS, COUNTS, gives="bool"),
        S(f, np.round(X), np.round(Y), gives="bool"),
        S(f, WORDS, 500, gives="bool"),
        S(f, INTS, 2.5, gives="bool"),
    ]
    for name, f in dict(
        equal=np.equal,
        not_equal=np.not_equal,
        greater=np.greater,
        greater_equal=np.greater_equal,
        less=np.less,
        less_equal=np.less_equal,
    ).items()
}
SAMPLES |= {
    name: [S(f, BOOLS, OTHERS, gives="bool"), S(f, INTS, np.round(X), gives="bool")]
    for name, f in dict(
        logical_and=np.logical_and, logical_or=np.logical_or, logical_xor=np.logical_xor
    ).items()
}
SAMPLES |= {
    "logical_not": [S(np.logical_not, x, gives="bool") for x in (BOOLS, INTS, np.round(X))],
    "round": [
        S(np.round, X * 3),
        S(np.round, np.array([0.5, 1.5, -2.5], "float32"), smooth=False),
        S(np.round, X, 2, smooth=False),
        S(np.round, X * 99, decimals=-1, smooth=False),
        S(np.round, INTS, gives="int32"),
    ],
    "clip": [
        S(np.clip, X, -0.5, 0.7),
        S(np.clip, X, None, 0.7),
        S(np.clip, X, -0.5, None),
        S(np.clip, INTS, 0, 3, gives="int32"),
        S(np.clip, WORDS, 3, 500, gives="uint16"),
    ],
    "nan_to_num": [
        S(lambda x: np.nan_to_num(x.astype("float32")), SPECIAL, smooth=False),
        S(np.nan_to_num, SPECIAL, nan=1.0, posinf=2.0, neginf=-3.0, smooth=False),
        S(np.nan_to_num, INTS, gives="int32"),
    ],
    "stop_gradient": [S(np.copy, X, smooth=False), S(np.copy, INTS, gives="int32")],
    "copy": [S(np.copy, X), S(np.copy, BOOLS, gives="bool")],
    "cast": [
        S(lambda x, _: x, X, "float16", gives="float16"),
        S(lambda x, _: x, X, "bfloat16", gives="bfloat16"),
        S(lambda x, _: np.trunc(x), X * 3, "int32", gives="int32"),
        S(lambda x, _: x != 0, INTS, "bool", gives="bool"),
        S(lambda x, _: x, BOOLS, "float32"),
        S(lambda x, _: x, COUNTS, "uint16", gives="uint16"),
    ],
    "saturate_cast": [
        S(lambda x, _: np.clip(x, -128, 127), INTS * 40, "int8", gives="int8"),
        S(lambda x, _: np.trunc(np.clip(x, 0, 255)), X * 200, "uint8", gives="uint8"),
    ],
    "_select": [
        S(np.where, BOOLS, X, Y),
        S(np.where, BOOLS[0], X, Y),
        S(np.where, INTS, X, Y),
        S(np.where, BYTES > 99, WORDS, WORDS[0], gives="uint16"),
    ],
}

# --- making, shaping and joining ------------------------------------------------------------------
SAMPLES |= {
    "arange": [
        S(np.arange, 5, gives="int32", fixed=None),
        S(np.arange, 1, 8, 3, gives="int32", fixed=None),
        S(np.arange, 7, 0, -2, gives="int32", fixed=None),
        S(np.arange, 0.0, 1.0, 0.25, fixed=None),
        S(np.arange, 4, dtype="uint8", gives="uint8", fixed=None),
        S(np.arange, 4, dtype="float32", fixed=None),
    ],
    "linspace": [
        S(np.linspace, -1, 2.5, fixed=None),
        S(np.linspace, 0, 10, 4, endpoint=False, fixed=None),
        S(np.linspace, 0, 10, 6, dtype="int32", gives="int32", fixed=None),
        S(np.linspace, X[0, 0], Y[0, 0], 4, axis=-1, fixed=None, smooth=False),
    ],
    "eye": [S(np.eye, *args, fixed=None) for args in [(3,), (3, 4), (3, 4, 1), (4, 3, -2)]],
    "zeros": [
        S(np.zeros, (2, 3), fixed=None),
        S(np.zeros, 3, dtype="int32", gives="int32", fixed=None),
    ],
    "ones": [
        S(np.ones, [2, 3], fixed=None),
        S(np.ones, (), dtype="bool", gives="bool", fixed=None),
    ],
    "full": [
        S(np.full, (2, 3), 7.5, fixed=None),
        S(np.full, 2, 7, dtype="int32", gives="int32", fixed=None),
        S(np.full, (4, 3), X[0, 0], fixed=None, smooth=False),
    ],
    "zeros_like": [S(np.zeros_like, X), S(np.zeros_like, X, dtype="int32", gives="int32")],
    "ones_like": [S(np.ones_like, INTS, gives="int32"), S(np.ones_like, INTS, dtype="float32")],
    "full_like": [S(np.full_like, X, 2.5), S(np.full_like, INTS, 7, gives="int32")],
    "reshape": [
        S(np.reshape, X, (-1, 12)),
        S(np.reshape, X, -1),
        S(np.reshape, INTS, [-1, 2, 6], gives="int32"),
    ],
    "ravel": [S(np.ravel, X)],
    "transpose": [S(np.transpose, X), S(np.transpose, X, (1, 0, 2)), S(np.transpose, X, [0, 2, 1])],
    "swapaxes": [S(np.swapaxes, X, 0, -1)],
    "moveaxis": [S(np.moveaxis, X, 0, -1), S(np.moveaxis, X, (0, 1), (2, 0))],
    "expand_dims": [S(np.expand_dims, X, axis) for axis in (0, -1, 2, (1, -1))],
    "squeeze": [
        S(np.squeeze, X[:, :1], 1),
        S(np.squeeze, X[:, :1, :1], (1, -1)),
        S(np.squeeze, X[:1, :, :1]),
    ],
    "broadcast_to": [
        S(np.broadcast_to, X[:1, :, :1], (2, 4, 3)),
        S(np.broadcast_to, X[0], (2, 4, 3)),
    ],
    "flip": [
        S(np.flip, X),
        S(np.flip, X, 1),
        S(np.flip, X, (0, 2)),
        S(np.flip, WORDS, 1, gives="uint16"),
    ],
    "tile": [S(np.tile, X, 2), S(np.tile, X, (2, 1, 3)), S(np.tile, X, [2, 1, 1, 2])],
    "repeat": [
        S(np.repeat, X, 2, axis=1),
        S(np.repeat, X, 2),
        S(np.repeat, X, [1, 2, 0, 3], axis=1),
        S(np.repeat, INTS, 3, axis=-1, gives="int32"),
    ],
    "roll": [S(np.roll, X, 1), S(np.roll, X, -2, axis=1), S(np.roll, X, (1, 2), axis=(1, 2))],
    "pad": [
        S(np.pad, X, ((0, 0), (1, 2), (0, 3))),
        S(np.pad, X, 1, fixed=True),
        S(np.pad, X, ((0, 0), (1, 2), (2, 1)), mode="reflect"),
        S(np.pad, X, ((0, 0), (3, 2), (2, 1)), mode="symmetric"),
        S(np.pad, X, ((0, 0), (1, 2), (2, 1)), constant_values=2.5),
        S(np.pad, INTS, ((0, 0), (1, 2), (2, 1)), constant_values=3, gives="int32"),
        S(np.pad, BOOLS, ((0, 0), (1, 2), (2, 1)), gives="bool"),
    ],
    "concatenate": [
        S(np.concatenate, [X, Y]),
        S(np.concatenate, [X, Y[:, :1]], axis=1),
        S(np.concatenate, [X, INTS], axis=-1),
        S(np.concatenate, [WORDS, BYTES], axis=-1, gives="uint16"),
    ],
    "stack": [S(np.stack, [X, Y]), S(np.stack, [X, Y, INTS], axis=-1)],
    "hstack": [S(np.hstack, [X, Y]), S(np.hstack, [X[0, 0], Y[0, 0]])],
    "vstack": [S(np.vstack, [X, Y]), S(np.vstack, [X[0, 0], Y[0, 0]])],
    "split": [
        S(np.split, X, 2, axis=1, gives=("float32",) * 2),
        S(np.split, X, [1, 3], axis=1, gives=("float32",) * 3),
        S(np.split, normal(6, 2), 3, gives=("float32",) * 3),
    ],
    "unstack": [
        S(lambda x, axis: list(np.moveaxis(x, axis, 0)), X, axis=1, gives=("float32",) * 4),
        S(lambda x, num: list(x), X[:3], num=3, gives=("float32",) * 3),
    ],
    "tril": [S(np.tril, X), S(np.tril, X, -1), S(np.tril, WORDS[:4], 1, gives="uint16")],
    "triu": [S(np.triu, X), S(np.triu, INTS, k=1, gives="int32")],
}

# --- indexing and sorting -------------------------------------------------------------------------
PLACES = np.array([[0, 1], [3, 0], [0, 1], [2, 1]], "int32")
FIRST = slice(None)
SAMPLES |= {
    "take": [
        S(np.take, X, np.array([[0, 2], [1, -1]], "int32"), axis=1),
        S(np.take, X, np.array([3, 59, -60], "int32")[:2], fixed=True),
        S(np.take, normal(7, 3), integers(0, 7, 5, 2), axis=0),
        S(np.take, normal(7, 3), integers(-7, 7, 5, 2, dtype="int64"), axis=0),
        S(np.take, X, 2, axis=-1),
        S(np.take, WORDS, BYTES[:, 0] % 4, axis=1, fixed=True, gives="uint16"),
    ],
    "take_along_axis": [
        S(np.take_along_axis, X, integers(-4, 4, 5, 2, 3), axis=1),
        S(np.take_along_axis, INTS, integers(0, 3, 5, 4, 2), axis=-1, gives="int32"),
    ],
    "getitem": [
        *(
            S(lambda x, key: x[key], X, key)
            for key in [
                1,
                slice(0, 2),
                (FIRST, 1),
                (Ellipsis, -1),
                (FIRST, None, slice(1, None, 2)),
                (Ellipsis, slice(None, None, -2)),
                (FIRST, slice(3, 0, -1), None, slice(None, None, -1)),
                (FIRST, np.array([2, -1])),
                (FIRST, [0, 2], slice(1, 3)),
                (FIRST, np.array([0, 1], "uint8"), np.array([1, 2], "int8")),
            ]
        ),
        S(lambda x, key: x[key], X, X > 0, fixed=None),
        S(lambda x, key: x[key], WORDS, (FIRST, slice(None, None, -1)), gives="uint16"),
    ],
    "slice": [
        S(oracle.slice, X, [0, 1, 1], (5, 2, 2), fixed=True),
        S(oracle.slice, X, np.array([0, 2, 0], "int32"), (5, 2, 3), fixed=True),
    ],
    "slice_update": [
        S(oracle.slice_update, X, [0, 1, 0], Y[:, :2]),
        S(oracle.slice_update, X, np.array([2, 0, 1], "int32"), Y[:2, :, :2], fixed=True),
        S(oracle.slice_update, INTS, [0, 0, 0], COUNTS, gives="int32"),
    ],
    "scatter": [
        S(oracle.scatter, PLACES, normal(4), (4, 2)),
        S(oracle.scatter, PLACES[:, :1], normal(4, 3), (4, 3)),
        S(oracle.scatter, PLACES, COUNTS[0, :, 0], (4, 2), gives="int32"),
    ],
    "scatter_update": [
        S(oracle.scatter_update, normal(4, 2), PLACES[1:], normal(3)),
        *(
            S(oracle.scatter_update, POSITIVE[0], PLACES[:, :1], Y[1], reduction=r)
            for r in ("add", "max", "min", "mul")
        ),
        S(oracle.scatter_update, COUNTS[0], PLACES, COUNTS[1, :, 0], "add", gives="int32"),
    ],
    "sort": [S(np.sort, X), S(np.sort, X, 1), S(np.sort, WORDS, gives="uint16")],
    "argsort": [
        S(np.argsort, X, gives="int32"),
        S(np.argsort, X, axis=1, gives="int32"),
        S(lambda x: np.argsort(x, kind="stable"), INTS, gives="int32"),
    ],
    "top_k": [
        S(oracle.top_k, ROWS, 2, gives=("float32", "int32")),
        S(oracle.top_k, integers(0, 99, 3, 4), 4, gives=("int32", "int32")),
    ],
    "in_top_k": [S(oracle.in_top_k, LABELS, ROWS, 3, gives="bool")],
}

# --- reductions and products ----------------------------------------------------------------------
AXES = [dict(), dict(axis=1), dict(axis=(0, -1), keepdims=True), dict(axis=[1, 2])]
SAMPLES |= {
    name: [S(oracle.list_axis(f), x, **axes) for axes in AXES]
    for x, functions in [
        (X, dict(sum=np.sum, mean=np.mean, var=np.var, std=np.std, max=np.max, min=np.min)),
        (POSITIVE, dict(prod=np.prod, logsumexp=oracle.logsumexp)),
    ]
    for name, f in functions.items()
}
SAMPLES["sum"] += [
    S(np.sum, INTS, axis=1, gives="int32"),
    S(np.sum, BOOLS, gives="int32"),
    S(np.sum, BYTES, 1, gives="uint32"),
    S(np.sum, INTS.astype("int8") * 20, gives="int32"),
]
SAMPLES["prod"] += [
    S(np.prod, COUNTS, axis=-1, gives="int32"),
    S(np.prod, COUNTS, axis=-1, dtype="float32"),
    S(np.prod, BYTES[:, :2], axis=-1, gives="uint32"),
]
for name, f in dict(mean=np.mean, var=np.var, std=np.std).items():
    SAMPLES[name] += [S(f, INTS, axis=1, near=2e-6), S(f, BYTES.astype("uint8"), near=2e-6)]
SAMPLES["logsumexp"] += [
    S(oracle.logsumexp, np.array([[-np.inf, 0], [900, 901]], "float32"), 1, smooth=False)
]
for name, f, start in [("max", np.max, 0), ("min", np.min, 300)]:
    SAMPLES[name] += [
        S(f, INTS, axis=1, gives="int32"),
        S(f, WORDS, gives="uint16"),
        S(f, BOOLS, axis=0, gives="bool"),
        S(f, INTS, axis=-1, initial=start, gives="int32"),
        S(f, SPECIAL, axis=-1, smooth=False),
    ]
SAMPLES |= {
    name: [
        S(f, BOOLS, gives="bool"),
        S(f, INTS, (1, 2), gives="bool"),
        S(f, BOOLS, 0, gives="bool"),
    ]
    for name, f in dict(any=np.any, all=np.all).items()
}
SAMPLES |= {
    name: [
        S(f, X, gives="int32"),
        S(f, INTS, 1, gives="int32"),
        S(f, X, -1, keepdims=True, gives="int32"),
        S(f, BOOLS, axis=2, gives="int32"),
        S(f, WORDS, axis=1, gives="int32"),
    ]
    for name, f in dict(argmax=np.argmax, argmin=np.argmin).items()
}
SAMPLES |= {
    name: [
        S(f, X),
        S(f, X, axis=-1),
        S(f, COUNTS, axis=1, gives="int32"),
        S(f, BYTES[:, :2], axis=1, gives="uint32"),
        S(f, COUNTS, axis=1, dtype="float32"),
    ]
    for name, f in dict(cumsum=np.cumsum, cumprod=np.cumprod).items()
}
A, B = normal(5, 4, 3), normal(5, 3, 2)
SAMPLES |= {
    "matmul": [
        S(np.matmul, A, B, near=1e-5),
        S(np.matmul, A, B[0], near=1e-5),
        S(np.matmul, A[0], B[0, :, 0], near=1e-5),
        S(np.matmul, B[0, :, 0], B[1, :, 0], near=1e-5),
        S(np.matmul, INTS, COUNTS[0, :3], gives="int32"),
        S(np.matmul, X, COUNTS[0, :3], near=1e-5),
    ],
    "tensordot": [
        S(np.tensordot, A, B[0], 1, near=1e-5),
        S(np.tensordot, A, B, [[0, 2], [0, 1]], near=1e-5),
        S(np.tensordot, A, B[0], (2, 0), near=1e-5),
        S(np.tensordot, A[0], A[1], near=1e-5),
    ],
    "dot": [
        S(np.dot, A, B[0], near=1e-5),
        S(np.dot, A, B[0, :, 0], near=1e-5),
        S(np.dot, A, B[:2], near=1e-5),
        S(np.dot, X, 2.0),
    ],
    "outer": [S(np.outer, X[0, 0], Y[0, :, 0]), S(np.outer, A[0], B[0])],
    "normalize": [
        S(oracle.normalize, X),
        S(oracle.normalize, X, axis=1),
        S(oracle.normalize, X, order=1),
        S(oracle.normalize, X, axis=-1, order=3, near=3e-6),
    ],
}

# --- neural network -------------------------------------------------------------------------------
WIDE_X = X * 4
SAMPLES |= {
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

CASES = [
    pytest.param(name, sample, id=f"{name}-{i}")
    for name, samples in SAMPLES.items()
    for i, sample in enumerate(samples)
]
# a reference body compiles once, not once for each of its operations
compiled = ops.jit if backend.name == "jax" else lambda function: function
every_case = pytest.mark.parametrize("name, sample", CASES)


# --- the checks -----------------------------------------------------------------------------------
def is_array(x):
    return isinstance(x, np.ndarray)


def exchange(sample, convert):
    """Return (args, options) with `convert` applied to the arrays, except those inside an index."""

    def visit(item):
        if isinstance(item, list) and item and all(map(is_array, item)):
            return [convert(x) for x in item]
        return convert(item) if is_array(item) else item

    return [visit(x) for x in sample.args], {k: visit(v) for k, v in sample.options.items()}


def expected(sample, widened=lambda x: x.astype("float64")):
    args, options = exchange(sample, lambda x: widened(x) if x.dtype == "float32" else x)
    return tree.flatten(sample.expected(*args, **options))


def gives(sample, count):
    return (sample.gives,) * count if isinstance(sample.gives, str) else sample.gives


def assert_close(actual, wanted, sample):
    for a, w, dtype in zip(tree.flatten(actual), wanted, gives(sample, len(wanted)), strict=True):
        assert dtypes.standardize(a.dtype) == dtype
        a = ops.convert_to_numpy(a)
        w = np.asarray(w).astype(dtypes.numpy_dtype(dtype))
        assert a.shape == w.shape
        if dtypes.is_float(dtype):
            a, w = a.astype("float64"), w.astype("float64")
            scale = np.max(np.abs(w[np.isfinite(w)]), initial=1.0)  # sums of large terms cancel
            np.testing.assert_allclose(a, w, rtol=sample.near, atol=sample.near * scale)
        else:
            np.testing.assert_array_equal(a, w)


def test_every_op_has_a_sample():
    assert OPS.keys() == SAMPLES.keys()


@every_case
def test_value_and_dtype(name, sample):
    wanted = expected(sample)
    args, options = exchange(sample, ops.convert_to_tensor)
    assert_close(OPS[name](*args, **options), wanted, sample)
    assert_close(OPS[name](*sample.args, **sample.options), wanted, sample)  # arrays as they are
    reference = getattr(OPS[name], "reference", None)
    if reference not in (None, getattr(OPS[name], "run", None)) and ints_are_labels(name, sample):
        run = compiled(lambda: reference(*args, **options))
        assert_close(run(), wanted, sample)


def ints_are_labels(name, sample):
    """Whether a reference body, which promotes nothing, may be called with these arguments."""
    kinds = {x.dtype.kind for x in tree.flatten(sample.args) if is_array(x)}
    return kinds == {"f"} or name.startswith("sparse") or "int32" in gives(sample, 1)


@pytest.mark.parametrize("name, sample", [c for c in CASES if c.values[1].fixed is not None])
def test_symbolic_call_knows_shape_and_dtype(name, sample):
    def symbol(x):
        unknown = x.shape[:1] == (BATCH,) and not sample.fixed
        return KerasTensor((None, *x.shape[1:]) if unknown else x.shape, str(x.dtype))

    found = tree.flatten(OPS[name](*exchange(sample, symbol)[0], **sample.options))
    shapes = [np.shape(w) for w in expected(sample)]
    if not sample.fixed:  # unknown is what one more row would change
        args, options = exchange(
            sample, lambda x: np.append(x, x[:1], 0) if x.shape[:1] == (BATCH,) else x
        )
        longer = map(np.shape, tree.flatten(sample.expected(*args, **options)))
        pairs = [zip(*both, strict=True) for both in zip(shapes, longer, strict=True)]
        shapes = [tuple(n if n == m else None for n, m in pair) for pair in pairs]
    assert [x.shape for x in found] == shapes
    assert tuple(x.dtype for x in found) == tuple(gives(sample, len(shapes)))


def float_arrays(sample):
    found = []
    exchange(sample, lambda x: found.append(x) if x.dtype == "float32" else None)
    return found


@pytest.mark.skipif(backend.name == "numpy", reason="NumPy has no gradients")
@pytest.mark.parametrize(
    "name, sample",
    [
        c
        for c in CASES
        if c.values[1].smooth and "float32" in gives(c.values[1], 1) and float_arrays(c.values[1])
    ],
)
def test_gradient(name, sample):
    """The slope in a random direction is that of the NumPy expression, by central differences."""
    generator = np.random.default_rng(1)
    arrays = float_arrays(sample)
    direction = [generator.normal(size=x.shape) for x in arrays]
    weights = [generator.normal(size=np.shape(y)) for y in expected(sample)]
    real = [i for i, dtype in enumerate(gives(sample, len(weights))) if dtype == "float32"]

    def loss(tensors):
        left = iter(tensors)
        args, options = exchange(
            sample, lambda x: next(left) if x.dtype == "float32" else ops.convert_to_tensor(x)
        )
        outputs = tree.flatten(OPS[name](*args, **options))
        return sum(ops.sum(ops.multiply(outputs[i], weights[i].astype("float32"))) for i in real)

    def exact(step):
        moves = iter(direction)
        outputs = expected(sample, lambda x: x + step * next(moves))
        return sum(np.sum(outputs[i] * weights[i]) for i in real)

    tensors = [ops.convert_to_tensor(x) for x in arrays]
    if backend.name == "jax" and sample.options.get("reduction") == "mul":
        with pytest.raises(NotImplementedError):  # jax has none: docs/deviations.md
            ops.grad(loss)(tensors)
        return
    run = (
        ops.grad(loss) if name == "getitem" else compiled(ops.grad(loss))
    )  # a mask must be concrete
    gradients = run(tensors)
    parts = [ops.convert_to_numpy(g) * d for g, d in zip(gradients, direction, strict=True)]
    slope, size = (sum(f(p).sum() for p in parts) for f in (np.asarray, np.abs))
    assert slope == pytest.approx((exact(1e-6) - exact(-1e-6)) / 2e-6, abs=1e-5 * size + 1e-6)
