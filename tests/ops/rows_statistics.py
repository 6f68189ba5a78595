"""Rows of statistics, searching, counting, integrals, sets, windows."""

import numpy as np
from ops import oracles as oracle
from ops.sample import *  # noqa: F403
from ops.sample import S

# ruff: noqa: F405

AXES = [dict(), dict(axis=1), dict(axis=(0, -1), keepdims=True), dict(axis=[1, 2])]
GAPS = np.where(uniform(0, 1, 5, 4, 3) > 0.6, np.nan, X)
GAPS[:, 0, 0] = X[:, 0, 0]
GAPS[2, :, 1] = np.nan  # nothing but NaN
LOST = dict(smooth=False, near=2e-6)

# --- averages and quantiles -----------------------------------------------------------------------
SAMPLES = {
    "average": [
        S(np.average, X),
        S(np.average, X, axis=(0, 2)),
        S(np.average, X, 1, POSITIVE[0, :, 0]),
        S(np.average, X, -1, POSITIVE, near=3e-6),
        S(np.average, INTS, None, COUNTS),
        S(np.average, INTS, axis=1),
    ],
    "ptp": [S(oracle.list_axis(np.ptp), X, **axes) for axes in AXES],
    "count_nonzero": [
        S(np.count_nonzero, x, axis, gives="int32")
        for x, axis in [(INTS, None), (INTS, 1), (BOOLS, (0, 2)), (np.round(X), -1), (WORDS % 3, 1)]
    ],
    "corrcoef": [
        S(np.corrcoef, ROWS, near=3e-6),
        S(np.corrcoef, INTS[:, :, 0], near=3e-6),
        S(np.corrcoef, ROWS[0]),
    ],
}
SAMPLES["ptp"] += [S(np.ptp, INTS, 1, gives="int32"), S(np.ptp, WORDS, gives="uint16")]
for name, f, share in [("quantile", np.quantile, 1), ("percentile", np.percentile, 100)]:
    without, q = getattr(np, f"nan{name}"), np.array([0.1, 0.5, 1], "float32")
    SAMPLES[name] = [
        S(f, X, 0.3 * share, near=3e-6),
        S(f, X, 0.3 * share, axis=1, keepdims=True, near=3e-6),
        S(f, X, [0.0, 0.25 * share, 0.9 * share], axis=(0, 2), near=3e-6),
        S(f, X, [0.25 * share, share], axis=-1, keepdims=True),
        S(f, INTS, 0.4 * share, axis=1, near=3e-6),
        S(f, SPECIAL, 0.5 * share, axis=1, smooth=False),
        *(
            S(f, X, 0.35 * share, axis=0, method=m)
            for m in ("lower", "higher", "midpoint", "nearest")
        ),
    ]
    SAMPLES[f"nan{name}"] = [
        S(without, GAPS, 0.3 * share, **LOST),
        S(without, GAPS, [0.25 * share, share], axis=1, **LOST),
        S(without, GAPS, 0.3 * share, axis=1, method="lower", keepdims=True, **LOST),
        S(without, INTS, 0.5 * share, axis=-1),
    ]
SAMPLES |= {
    "median": [
        *(S(oracle.list_axis(np.median), X, **axes) for axes in AXES),
        S(np.median, INTS, 1),
        S(np.median, SPECIAL, 1, smooth=False),
    ],
    "nanmedian": [S(oracle.list_axis(np.nanmedian), GAPS, **axes, **LOST) for axes in AXES]
    + [S(np.nanmedian, INTS, 1)],
}

# --- reductions without NaN -----------------------------------------------------------------------
SAMPLES |= {
    f"nan{name}": [
        S(oracle.list_axis(getattr(np, f"nan{name}")), GAPS, **axes, **LOST) for axes in AXES
    ]
    for name in ("sum", "prod", "mean", "var", "std", "max", "min")
}
for name in ("mean", "var", "std"):
    SAMPLES[f"nan{name}"] += [S(getattr(np, name), INTS, 1, near=2e-6)]
for name in ("sum", "prod"):
    SAMPLES[f"nan{name}"] += [
        S(getattr(np, name), INTS, 1, gives="int32"),
        S(getattr(np, name), BYTES, 1, gives="uint32"),
        S(getattr(np, name), BOOLS, gives="int32"),
    ]
    SAMPLES[f"nancum{name}"] = [
        S(getattr(np, f"nancum{name}"), GAPS, near=2e-6, smooth=False),
        S(getattr(np, f"nancum{name}"), GAPS, axis=1, smooth=False),
        S(getattr(np, f"cum{name}"), INTS, axis=-1, gives="int32"),
        S(getattr(np, f"cum{name}"), BYTES, axis=-1, gives="uint8"),
    ]
for name in ("max", "min"):
    SAMPLES[f"nan{name}"] += [
        S(getattr(np, name), INTS, 1, gives="int32"),
        S(getattr(np, name), WORDS, gives="uint16"),
    ]
    SAMPLES[f"nanarg{name}"] = [
        S(getattr(oracle, f"nanarg{name}"), x, **options, gives="int32")
        for x, options in [
            (GAPS, dict()),
            (GAPS, dict(axis=1)),
            (GAPS, dict(axis=-1, keepdims=True)),
            (INTS, dict(axis=1)),
        ]
    ]

# --- products, differences, integrals -------------------------------------------------------------
SAMPLES |= {
    "inner": [
        S(np.inner, A, B[0].T.copy(), near=1e-5),
        S(np.inner, X, Y[:2], near=1e-5),
        S(np.inner, X, 2.0),
        S(np.inner, INTS[0], COUNTS[1], gives="int32"),
    ],
    "vdot": [
        S(np.vdot, X, Y, near=1e-5, fixed=True),
        S(np.vdot, COMPLEX, COMPLEX + 1, near=1e-5, gives="complex64", fixed=True),
        S(np.vdot, INTS, COUNTS, gives="int32", fixed=True),
    ],
    "kron": [
        S(np.kron, X[0], Y[1, :2], near=1e-6),
        S(np.kron, X[0, 0], Y[0]),
        S(np.kron, INTS[0], COUNTS[0], gives="int32"),
    ],
    "cross": [
        S(np.cross, X, Y, near=3e-6),
        S(oracle.cross, X[..., :2], Y[..., :2]),
        S(oracle.cross, X, Y[..., :2]),
        S(np.cross, A[:, :3], B[:, :, :1], axis=1, near=3e-6),
        S(np.cross, X, Y, axisc=1, near=3e-6),
        S(np.cross, INTS, COUNTS, gives="int32"),
    ],
    "trace": [
        S(np.trace, X, near=2e-6),
        S(np.trace, X, 1, axis1=1, axis2=2),
        S(np.trace, INTS, gives="int32"),
        S(np.trace, BYTES, gives="uint32"),
        S(lambda x: x.astype(int).trace(), BOOLS[0], gives="int32"),
    ],
    "slogdet": [
        S(np.linalg.slogdet, A[:, :3], gives=("float32",) * 2, near=1e-5),
        S(
            np.linalg.slogdet,
            COUNTS[0, :3] + np.eye(3, dtype="int32") * 4,
            gives=("float32",) * 2,
            near=1e-5,
        ),
    ],
    "vander": [
        S(np.vander, X[0, 0]),
        S(np.vander, X[0, 0], 2, increasing=True),
        S(np.vander, X[0, 0], 5, near=2e-6),
        S(np.vander, INTS[0, 0], gives="int32"),
        S(np.vander, INTS[0, 0], 1, gives="int32"),
    ],
    "correlate": [
        S(np.correlate, a, v, mode, near=3e-6)
        for a, v in [
            (ROWS[0], X[0, 0]),
            (X[0, 0], ROWS[0]),
            (ROWS[0], X[0, :, 0]),
            (X[0, :, 0], ROWS[0]),
        ]
        for mode in ("valid", "same", "full")
    ]
    + [S(np.correlate, INTS[0, :, 0], COUNTS[0, 0])],
    "diff": [
        S(np.diff, X),
        S(np.diff, X, 2, axis=1),
        S(np.diff, X, 0),
        S(np.diff, INTS, axis=0, gives="int32"),
        S(np.diff, BOOLS, gives="bool"),
        S(np.diff, WORDS, gives="uint16"),
    ],
    "trapezoid": [
        S(np.trapezoid, X),
        S(np.trapezoid, X, dx=0.5, axis=1),
        S(np.trapezoid, X, Y[0, 0]),
        S(np.trapezoid, X, Y, axis=1, near=2e-6),
        S(np.trapezoid, INTS, axis=0),
    ],
    "logspace": [
        S(np.logspace, 0, 3, 4, fixed=None),
        S(np.logspace, -1, 2.5, num=5, endpoint=False, base=2, fixed=None),
        S(np.logspace, 0, 3, 4, dtype="int32", gives="int32", fixed=None),
        S(np.logspace, X[0, 0], Y[0, 0], 4, axis=-1, near=3e-6),
    ],
    "geomspace": [
        S(np.geomspace, 1, 1000, 4, fixed=None),
        S(np.geomspace, -1, -8, 4, endpoint=False, fixed=None),
        S(np.geomspace, 1, 256, 9, dtype="int32", gives="int32", fixed=None),
        S(np.geomspace, POSITIVE[0, 0], POSITIVE[1, 0], 4, near=3e-6),
        S(np.geomspace, -POSITIVE[0, 0], -POSITIVE[1, 0], 4, axis=1, near=3e-6),
    ],
}

# --- searching, counting, sets --------------------------------------------------------------------
EDGES = np.sort(X[0, :, 0])
SAMPLES |= {
    "argpartition": [
        S(lambda x, kth, axis=-1: np.argsort(x, axis), X, 1, gives="int32"),
        S(lambda x, kth, axis=-1: np.argsort(x, axis), X, 2, axis=1, gives="int32"),
    ],
    "searchsorted": [
        S(np.searchsorted, EDGES, X, gives="int32"),
        S(np.searchsorted, np.array([1, 2, 2, 3], "int32"), INTS, gives="int32"),
        S(np.searchsorted, np.array([1, 2, 2, 3], "int32"), INTS, side="right", gives="int32"),
        S(np.searchsorted, np.sort(WORDS[0]), BYTES, gives="int32"),
        S(np.searchsorted, EDGES, 0.5, gives="int32"),
    ],
    "digitize": [
        S(np.digitize, X, EDGES, gives="int32"),
        S(np.digitize, INTS, np.array([0, 2, 5], "int32"), gives="int32"),
        S(np.digitize, INTS, np.array([0.5, 2, 5.5], "float32"), gives="int32"),
    ],
    "isin": [
        S(np.isin, INTS, COUNTS[0], gives="bool"),
        S(np.isin, INTS, COUNTS[0, 0], invert=True, gives="bool"),
        S(np.isin, np.round(X), np.array([0, 1], "int32"), gives="bool"),
    ],
    "unravel_index": [
        S(np.unravel_index, np.arange(5, dtype="int32") * 4, (2, 3, 4), gives=("int32",) * 3),
        S(np.unravel_index, np.array(7, "int32"), (3, 4), gives=("int32",) * 2),
        S(np.unravel_index, BYTES, (20, 10), gives=("uint8",) * 2),
    ],
    "bincount": [
        S(oracle.bincount, COUNTS[0, :, 0], gives="int32", fixed=None),
        S(oracle.bincount, COUNTS[:, :, 0], minlength=9, gives="int32", fixed=None),
        S(oracle.bincount, COUNTS[0, :, 0], weights=POSITIVE[0, :, 0], fixed=None),
        S(oracle.bincount, COUNTS[:, :, 0], weights=INTS[:, :, 0], gives="int32", fixed=None),
        S(oracle.bincount, BYTES[0], gives="int32", fixed=None),
        S(oracle.bincount, COUNTS[0, :0, 0], minlength=3, gives="int32", fixed=None),
    ],
    "histogram": [
        S(np.histogram, x, *more, gives=("int32", "float32"), smooth=False)
        for x, *more in [
            (X.ravel(),),
            (X.ravel(), 4),
            (X.ravel(), 3, (-0.5, 1.0)),
            (INTS.ravel(), 5),
            (np.ones(3, "float32"), 2),
        ]
    ],
    "unique": [
        S(
            oracle.unique,
            x,
            **options,
            gives=("int32",) * count if name == "i" else ("float32", "int32"),
        )
        for x, name, count, options in [
            (INTS, "i", 1, dict()),
            (INTS[0], "i", 4, dict(return_index=True, return_inverse=True, return_counts=True)),
            (np.round(X), "f", 2, dict(return_inverse=True)),
            (SPECIAL, "f", 2, dict(return_counts=True)),
            (INTS[:, 0], "i", 1, dict(size=5)),
            (
                INTS[:, 0],
                "i",
                3,
                dict(size=30, fill_value=-9, return_counts=True, return_index=True),
            ),
            (
                COUNTS[:, 0] // 3,
                "i",
                4,
                dict(axis=0, return_index=True, return_inverse=True, return_counts=True),
            ),
            (COUNTS[:, 0] // 3, "i", 2, dict(axis=1, return_inverse=True)),
            (COUNTS[0] // 3, "i", 2, dict(axis=0, size=3, return_counts=True)),
        ]
        for options in [options | dict(fixed=None, smooth=False)]
    ],
}
SAMPLES |= {
    name: [S(getattr(np, name), points, fixed=None) for points in (7, 8, 1)]
    for name in ("bartlett", "blackman", "hamming", "hanning")
}
SAMPLES["kaiser"] = [S(np.kaiser, 7, 3.5, fixed=None), S(np.kaiser, 4, 14, fixed=None)]
