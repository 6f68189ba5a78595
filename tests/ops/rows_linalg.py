"""Rows of linear algebra whose results have no free signs; the others are in test_linalg.py."""

import numpy as np
from ops.sample import *  # noqa: F403
from ops.sample import S

# ruff: noqa: E731, F405

GENERAL = normal(5, 3, 3) + 2 * np.eye(3, dtype="float32")
DEFINITE = (GENERAL @ np.swapaxes(GENERAL, 1, 2) + np.eye(3)).astype("float32")
LOWER = np.linalg.cholesky(DEFINITE.astype("float64")).astype("float32")
TALL, WIDE = normal(5, 4, 3), normal(5, 2, 4)
LOW_RANK = (normal(5, 4, 2) @ normal(5, 2, 3)).astype("float32")
VECTORS, COLUMNS = normal(5, 3), normal(5, 3, 2)
NEAR = {"near": 2e-5}


def norms():
    for ord in (None, 1, 2, 3, 0, np.inf, -np.inf, -1):
        for keepdims in (False, True):
            yield S(
                lambda x, **o: np.linalg.norm(x, **o),
                X,
                ord=ord,
                axis=1,
                keepdims=keepdims,
                smooth=ord != 0,
                near=1e-5,
            )
    for ord in (None, "fro", "nuc", 1, -1, 2, -2, np.inf, -np.inf):
        yield S(lambda x, **o: np.linalg.norm(x, **o), X, ord=ord, axis=(1, 2), near=2e-5)
    yield S(lambda x, **o: np.linalg.norm(x, **o), X, ord=1, axis=(2, 0), keepdims=True, fixed=True)
    yield S(lambda x, **o: np.linalg.norm(x, **o), X)
    yield S(lambda x, **o: np.linalg.norm(x, **o), X, keepdims=True)


def solved(a, b, **_):
    return np.linalg.solve(a, b[..., None])[..., 0] if b.ndim < a.ndim else np.linalg.solve(a, b)


SAMPLES = {
    "cholesky": [
        S(np.linalg.cholesky, DEFINITE, smooth=False, **NEAR),
        S(
            lambda x, upper: np.swapaxes(np.linalg.cholesky(x), 1, 2),
            DEFINITE,
            upper=True,
            smooth=False,
            **NEAR,
        ),
    ],
    "cholesky_inverse": [
        S(lambda x: np.linalg.inv(np.tril(x) @ np.swapaxes(np.tril(x), 1, 2)), LOWER, near=1e-4),
        S(
            lambda x, upper: np.linalg.inv(np.swapaxes(np.triu(x), 1, 2) @ np.triu(x)),
            np.ascontiguousarray(np.swapaxes(LOWER, 1, 2)),
            upper=True,
            near=1e-4,
        ),
    ],
    "det": [S(np.linalg.det, GENERAL, **NEAR)],
    "inv": [S(np.linalg.inv, GENERAL, near=1e-4), S(np.linalg.inv, GENERAL[0], near=1e-4)],
    "logdet": [S(lambda x: np.linalg.slogdet(x)[1], GENERAL, **NEAR)],
    "_solve": [S(np.linalg.solve, GENERAL, COLUMNS, near=1e-4)],
    "solve": [
        S(solved, GENERAL, COLUMNS, near=1e-4),
        S(solved, GENERAL, VECTORS, near=1e-4),
        S(np.linalg.solve, GENERAL[0], VECTORS[0], near=1e-4),
    ],
    "_solve_triangular": [
        S(lambda a, b, lower: np.linalg.solve(np.tril(a), b), GENERAL, COLUMNS, True, near=1e-4)
    ],
    "solve_triangular": [
        S(lambda a, b: solved(np.triu(a), b), GENERAL, COLUMNS, near=1e-4),
        S(lambda a, b, lower: solved(np.tril(a), b), GENERAL, VECTORS, lower=True, near=1e-4),
    ],
    "pinv": [
        S(np.linalg.pinv, TALL, smooth=False, near=1e-4),
        S(np.linalg.pinv, WIDE, smooth=False, near=1e-4),
        S(lambda x: np.linalg.pinv(x, 1e-5), LOW_RANK, smooth=False, near=1e-3),
    ],
    "lstsq": [
        S(lambda a, b: np.linalg.pinv(a) @ b, TALL, normal(5, 4, 2), smooth=False, near=1e-4),
        S(lambda a, b: np.linalg.pinv(a) @ b, TALL[0], normal(4), smooth=False, near=1e-4),
    ],
    "matrix_rank": [
        S(np.linalg.matrix_rank, TALL, gives="int32"),
        S(lambda x: np.linalg.matrix_rank(x, 1e-4), LOW_RANK, gives="int32"),
        S(np.linalg.matrix_rank, TALL, tol=1.5, gives="int32"),
    ],
    "norm": list(norms()),
    "cdist": [
        S(lambda x, y: np.linalg.norm(x[..., :, None, :] - y[..., None, :, :], axis=-1), TALL, Y)
    ],
}
