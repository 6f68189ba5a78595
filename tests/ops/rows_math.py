"""Rows of the elementwise ops, reductions and products."""

import numpy as np
from ops import oracles as oracle
from ops.sample import *  # noqa: F403
from ops.sample import S

# ruff: noqa: E731, F405

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
        S(f, BYTES, axis=1, gives="uint8"),
        S(f, BOOLS, axis=1, gives="int32"),
        S(f, COUNTS, axis=1, dtype="float32"),
    ]
    for name, f in dict(cumsum=np.cumsum, cumprod=np.cumprod).items()
}
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

# --- what is derived from the others --------------------------------------------------------------
TINY = np.array([0.0, -0.0, 1.0, -1.0, 3.4028235e38, 1e-45, np.nan, np.inf], "float32")
SAMPLES |= {
    name: [S(f, x), S(f, whole), *more]
    for x, whole, functions in [
        (X, INTS, dict(arcsinh=np.arcsinh, exp2=np.exp2, deg2rad=np.deg2rad, rad2deg=np.rad2deg)),
        (X, INTS, dict(fabs=np.abs, sinc=np.sinc, angle=np.angle)),
        (X, COUNTS, dict(i0=np.i0, cbrt=np.cbrt)),
        (POSITIVE + 1, COUNTS, dict(arccosh=np.arccosh)),
        (X / 4, INTS * 0, dict(arctanh=np.arctanh)),
    ]
    for name, f in functions.items()
    for more in [
        [S(f, np.zeros((5, 2), "float32"), smooth=False)] * (name in ("sinc", "i0", "fabs"))
    ]
}
SAMPLES["angle"] += [S(np.angle, COMPLEX)]
SAMPLES |= {
    name: [S(f, x, gives="bool") for x in (SPECIAL, TINY, INTS)]
    for name, f in dict(isposinf=np.isposinf, isneginf=np.isneginf, signbit=np.signbit).items()
}
SAMPLES["signbit"] += [S(np.signbit, WORDS, gives="bool")]
SAMPLES |= {
    "isreal": [S(np.isreal, x, gives="bool") for x in (COMPLEX, COMPLEX.real + 0j, X, INTS)],
    "real": [S(np.real, COMPLEX), S(np.real, X), S(np.real, BOOLS, gives="bool")],
    "imag": [S(np.imag, COMPLEX), S(np.imag, X), S(np.imag, INTS, gives="int32")],
    "conj": [
        S(np.conj, COMPLEX, gives="complex64"),
        S(np.conj, X),
        S(np.conj, INTS, gives="int32"),
    ],
    "_complex": [S(lambda a, b: a + 1j * b, X, Y, gives="complex64", smooth=False)],
    "_complex_part": [
        S(lambda z, part: getattr(np, part)(z), COMPLEX, "imag"),
        S(lambda z, part: getattr(np, part)(z), COMPLEX, "conj", gives="complex64"),
    ],
    "trunc": [
        S(np.trunc, X * 3),
        S(np.trunc, SPECIAL, smooth=False),
        S(np.trunc, INTS, gives="int32"),
        S(np.trunc, WORDS, gives="uint16"),
        S(lambda x: x, BOOLS, gives="bool"),
    ],
}
SAMPLES |= {
    name: [
        S(f, X, Y),
        S(f, X, Y[0]),
        S(f, INTS, COUNTS, gives="int32"),
        S(f, WORDS, BYTES, gives="uint16"),
        S(f, SPECIAL, 1.0, smooth=False),
        S(f, 1, SPECIAL, smooth=False),
    ]
    for name, f in dict(fmax=np.fmax, fmin=np.fmin).items()
}
SAMPLES |= {
    "fmod": [
        S(np.fmod, X * 4, POSITIVE),
        S(np.fmod, INTS, COUNTS, gives="int32"),
        S(np.fmod, INTS, -3, gives="int32"),
        S(np.fmod, WORDS, 7, gives="uint16"),
    ],
    "hypot": [
        S(np.hypot, X, Y),
        S(np.hypot, INTS, COUNTS),
        S(
            np.hypot,
            np.array([3e38, 0, np.inf], "float32"),
            np.array([1e38, 0, 1], "float32"),
            smooth=False,
        ),
    ],
    "heaviside": [
        S(np.heaviside, X, 0.5),
        S(np.heaviside, INTS, 0.5),
        S(np.heaviside, SPECIAL, Y[0, :2, :1], smooth=False),
        S(np.heaviside, INTS, COUNTS),
    ],
    "divide_no_nan": [
        S(oracle.divide_no_nan, X, np.where(Y > 1, 0, Y), smooth=False),
        S(oracle.divide_no_nan, X, POSITIVE),
        S(oracle.divide_no_nan, COUNTS, INTS),
        S(oracle.divide_no_nan, X, 0),
    ],
    "ldexp": [
        S(np.ldexp, X, INTS),
        S(np.ldexp, INTS, COUNTS),
        S(np.ldexp, X, 3),
        S(np.ldexp, COUNTS, BYTES[:, :3].astype("int8")[:, None] % 9 - 4),
    ],
    "nextafter": [
        S(oracle.nextafter, X, Y, near=0, smooth=False),
        *(S(oracle.nextafter, TINY, end, near=0, smooth=False) for end in (2.0, 0.0, -np.inf)),
        S(oracle.nextafter, X.astype("float16"), np.float16(1), near=0, gives="float16"),
    ],
    "isclose": [
        S(np.isclose, X, X + 1e-6, gives="bool"),
        S(np.isclose, X, X * 1.01, rtol=0.02, gives="bool"),
        S(np.isclose, SPECIAL, SPECIAL, gives="bool"),
        S(np.isclose, SPECIAL, SPECIAL[::-1], equal_nan=True, gives="bool"),
        S(np.isclose, INTS, COUNTS, atol=1.5, gives="bool"),
    ],
    "allclose": [
        S(np.allclose, X, X + 1e-7, gives="bool"),
        S(np.allclose, X, Y, gives="bool"),
        S(np.allclose, SPECIAL, SPECIAL, equal_nan=True, gives="bool"),
    ],
}
INFINITE = np.array([-np.inf, np.inf, 0], "float32")
SAMPLES |= {
    name: [
        S(f, X, Y),
        S(f, INTS, COUNTS),
        S(f, X * 80, Y[0]),
        S(f, INFINITE, INFINITE[[0, 1, 0]], smooth=False),
    ]
    for name, f in dict(logaddexp=np.logaddexp, logaddexp2=np.logaddexp2).items()
}
SAMPLES |= {
    name: [
        S(f, INTS, COUNTS, gives="int32"),
        S(f, INTS, 6, gives="int32"),
        S(f, WORDS, BYTES, gives="uint16"),
        S(f, INTS * 0, COUNTS, gives="int32"),
    ]
    for name, f in dict(gcd=np.gcd, lcm=lambda a, b: np.lcm(a.astype("int64"), b)).items()
}
SAMPLES |= {
    name: [
        S(f, INTS, COUNTS, gives="int32"),
        S(f, WORDS, BYTES, gives="uint16"),
        S(f, BOOLS, OTHERS, gives="bool"),
        S(f, INTS, 5, gives="int32"),
    ]
    for name, f in dict(
        bitwise_and=np.bitwise_and, bitwise_or=np.bitwise_or, bitwise_xor=np.bitwise_xor
    ).items()
}
SAMPLES |= {
    name: [
        S(f, INTS, COUNTS, gives="int32"),
        S(f, INTS, 3, gives="int32"),
        S(f, WORDS, COUNTS[:, :, 0].astype("uint8"), gives="uint16"),
    ]
    for name, f in dict(
        bitwise_left_shift=np.left_shift, bitwise_right_shift=np.right_shift
    ).items()
}
SAMPLES["bitwise_not"] = [
    S(np.invert, INTS, gives="int32"),
    S(np.invert, BOOLS, gives="bool"),
    S(np.invert, BYTES, gives="uint8"),
    S(np.invert, WORDS, gives="uint16"),
]
SAMPLES["square"] += [S(np.abs, BOOLS, gives="int32")]
SAMPLES["mod"] += [S(lambda a, b: a * 0, BOOLS, BOOLS | True, gives="int32")]
