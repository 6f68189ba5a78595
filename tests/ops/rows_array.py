"""Rows of the ops that make, shape, join, index and sort."""

import numpy as np
from ops import oracles as oracle
from ops.sample import *  # noqa: F403
from ops.sample import S

# ruff: noqa: E731, F405

# --- making, shaping and joining ------------------------------------------------------------------
SAMPLES = {
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
        S(
            oracle.top_k,
            np.random.default_rng(0).permutation(12).reshape(3, 4).astype("int32"),
            4,
            gives=("int32", "int32"),
        ),
    ],
    "in_top_k": [S(oracle.in_top_k, LABELS, ROWS, 3, gives="bool")],
}

# --- parts, corners and diagonals -----------------------------------------------------------------
SQUARE = normal(4, 6)
SAMPLES |= {
    "view": [
        S(lambda x, d: x.view(d), INTS, "float32", smooth=False, near=0),
        S(lambda x, d: x.view(d), INTS, "uint8", gives="uint8"),
        S(lambda x, d: x.view(d), WORDS, "int32", gives="int32"),
        S(lambda x, d: x.astype("float32").view(d), X, "int32", gives="int32"),
    ],
    "nonzero": [
        S(np.nonzero, INTS[0] % 3, gives=("int32",) * 2, fixed=None),
        S(np.nonzero, BOOLS, gives=("int32",) * 3, fixed=None),
    ],
    "append": [
        S(np.append, X, Y[0]),
        S(np.append, X, Y[:, :1], axis=1),
        S(np.append, X, INTS, axis=-1),
        S(np.append, INTS, 2, gives="int32"),
    ],
    "array_split": [
        S(np.array_split, X, 3, axis=1, gives=("float32",) * 3),
        S(np.array_split, X, 2, axis=-1, gives=("float32",) * 2),
        S(np.array_split, X, [1, 2], axis=1, gives=("float32",) * 3),
        S(np.array_split, X, 3, gives=("float32",) * 3, fixed=True),
    ],
    "vsplit": [S(np.vsplit, SQUARE, 2, gives=("float32",) * 2)],
    "hsplit": [
        S(np.hsplit, X, 2, gives=("float32",) * 2),
        S(np.hsplit, X[0, :, 0], [1], gives=("float32",) * 2),
    ],
    "dsplit": [S(np.dsplit, X, [1], gives=("float32",) * 2)],
    "dstack": [
        S(np.dstack, [X, Y]),
        S(np.dstack, [ROWS, ROWS]),
        S(np.dstack, [X[0, 0], INTS[0, 0]]),
    ],
    "flipud": [S(np.flipud, X), S(np.flipud, WORDS, gives="uint16")],
    "fliplr": [S(np.fliplr, X), S(np.fliplr, INTS, gives="int32")],
    "rot90": [
        *(S(np.rot90, X, k) for k in (0, 1, 2, -1)),
        S(np.rot90, INTS, 3, axes=(2, 1), gives="int32"),
    ],
    "tri": [
        S(np.tri, 3, fixed=None),
        S(np.tri, 3, 4, 1, fixed=None),
        S(np.tri, 4, 3, -1, dtype="int32", gives="int32", fixed=None),
    ],
    "identity": [
        S(np.identity, 3, fixed=None),
        S(np.identity, 2, "bool", gives="bool", fixed=None),
    ],
    "diagonal": [
        S(np.diagonal, X, fixed=True),
        S(np.diagonal, X, 1, 1, 2),
        S(np.diagonal, X, -2, axis1=-2, axis2=-1),
        S(np.diagonal, SQUARE, 9),
        S(np.diagonal, WORDS, 1, gives="uint16", fixed=True),
    ],
    "diag": [
        *(S(np.diag, SQUARE, k) for k in (0, 2, -1)),
        *(S(np.diag, SQUARE[0], k) for k in (0, 2, -1)),
        S(np.diag, np.array([1, 0, 3]).astype("int32"), gives="int32"),
        S(np.diag, BOOLS[0, 0], 1, gives="bool"),
        S(np.diag, SPECIAL[0], smooth=False),
    ],
    "diagflat": [S(np.diagflat, X[0, :2]), S(np.diagflat, INTS[0, 0], -1, gives="int32")],
    "meshgrid": [
        S(np.meshgrid, X[0, 0], Y[0, :, 0], gives=("float32",) * 2),
        S(
            np.meshgrid,
            X[0, 0],
            INTS[0, 0],
            Y[0, :2, 0],
            indexing="ij",
            gives=("float32", "int32", "float32"),
        ),
        S(np.meshgrid, INTS[0, 0], gives=("int32",)),
    ],
    "select": [
        S(np.select, [X > 1, X > 0], [X, Y], 5.0),
        S(np.select, [BOOLS, OTHERS], [INTS, COUNTS], gives="int32"),
        S(np.select, [BOOLS, OTHERS], [INTS, X], 1),
    ],
}
