"""Linear algebra on matrices, or stacks of them: (..., rows, columns)."""

import math as numbers

import ml_dtypes

from khub import dtypes
from khub.ops import math
from khub.ops.array import *  # noqa: F403
from khub.ops.core import cast, jvp, where  # noqa: F401
from khub.ops.core import shape as shape_of
from khub.ops.numeric import slogdet
from khub.ops.op import full_precision, op, primitive, promote_float

# ruff: noqa: A002, F405  (the names are NumPy's, many of them array's)

__all__ = ["cholesky", "cholesky_inverse", "det", "eig", "eigh", "inv", "jvp", "lstsq", "lu_factor"]
__all__ += ["matrix_rank", "norm", "pinv", "qr", "solve", "solve_triangular", "svd"]


# --- factors -------------------------------------------------------------------------------------
@primitive(dtype=full_precision)
def cholesky(x, upper=False):
    """The triangle L with L L^H = x, or U with U^H U = x.  x: Hermitian, positive definite"""


@primitive(dtype=full_precision)
def eig(x):
    """The complex eigenvalues, and the eigenvectors as columns.  -> (..., n), (..., n, n)"""


@primitive(dtype=full_precision)
def eigh(x):
    """The rising eigenvalues of Hermitian matrices, and the eigenvectors as columns."""


@primitive(dtype=full_precision)
def lu_factor(x):
    """L (without its ones) and U in one matrix; the int32 row each row changed places with."""


@primitive(dtype=full_precision)
def qr(x, mode="reduced"):
    """Orthonormal columns Q and the upper triangle R.  mode: "reduced" or "complete" Q"""


@primitive(dtype=full_precision)
def svd(x, full_matrices=True, compute_uv=True):
    """U, the falling singular values, V^H with x = U diag(s) V^H; the values alone if asked for."""


# --- equations -----------------------------------------------------------------------------------
@primitive(dtype=full_precision)
def det(x):
    """The determinant.  (..., n, n) -> (...)"""


@primitive(dtype=full_precision)
def inv(x):
    """The inverse.  (..., n, n) -> same"""


@primitive(operands=2, dtype=full_precision)
def _solve(a, b):
    """x with a x = b.  (..., n, n), (..., n, m) -> (..., n, m)"""


@primitive(operands=2, dtype=full_precision)
def _solve_triangular(a, b, lower):
    """x with a x = b, where only one triangle of a is read."""


def _columns(solver, a, b, *rest):
    """Call `solver`; `b` may be vectors."""
    if len(b.shape) == len(a.shape) - 1:
        return squeeze(solver(a, expand_dims(b, -1), *rest), -1)
    return solver(a, b, *rest)


@op(operands=2, dtype=full_precision)
def solve(a, b):
    """x with a x = b.  (..., n, n), (..., n) or (..., n, m)  ->  like b"""
    return _columns(_solve, a, b)


@op(operands=2, dtype=full_precision)
def solve_triangular(a, b, lower=False):
    """x with a x = b for triangular a, whose other triangle is not read."""
    return _columns(_solve_triangular, a, b, lower)


@op(dtype=full_precision)
def cholesky_inverse(x, upper=False):
    """The inverse of the matrix whose `cholesky` is x."""
    unit = broadcast_to(eye(x.shape[-1], dtype=dtypes.standardize(x.dtype)), shape_of(x))
    half = _solve_triangular(x, unit, not upper)
    other = math.conj(swapaxes(half, -1, -2))
    return math.matmul(half, other) if upper else math.matmul(other, half)


@op(dtype=full_precision)
def logdet(x):
    """log |det x|.  (..., n, n) -> (...)"""
    return slogdet(x)[1]


# --- through singular values ---------------------------------------------------------------------
def _small(x, share):
    """The share of the largest singular value that counts as 0."""
    precision = float(ml_dtypes.finfo(dtypes.numpy_dtype(dtypes.standardize(x.dtype))).eps)
    return share * max(x.shape[-2:]) * precision


@op(dtype=full_precision)
def pinv(x, rcond=None):
    """The pseudo-inverse; singular values below `rcond` times the largest count as 0."""
    u, s, vh = svd(x, full_matrices=False)
    rcond = _small(x, 10) if rcond is None else rcond
    kept = math.greater(s, math.multiply(math.max(s, -1, True), rcond))
    inverse = where(kept, math.divide(1.0, where(kept, s, ones_like(s))), zeros_like(s))
    scaled = math.multiply(math.conj(swapaxes(vh, -1, -2)), _beside(inverse, vh))
    return math.matmul(scaled, math.conj(swapaxes(u, -1, -2)))


def _beside(s, matrix):
    return cast(expand_dims(s, -2), dtypes.standardize(matrix.dtype))


@op(operands=2, dtype=full_precision)
def lstsq(a, b, rcond=None):
    """The shortest x with the least |a x - b|.  (m, n), (m,) or (m, k)  ->  (n,) or (n, k)"""
    return _columns(lambda a, b: math.matmul(pinv(a, rcond), b), a, b)


@op(dtype=full_precision)
def matrix_rank(x, tol=None):
    """The int32 number of singular values above `tol`."""
    s = svd(x, compute_uv=False)
    tol = math.multiply(math.max(s, -1, True), _small(x, 1)) if tol is None else tol
    return cast(math.sum(cast(math.greater(s, tol), "int32"), -1), "int32")


# --- norms ---------------------------------------------------------------------------------------
@op(dtype=promote_float)
def norm(x, ord=None, axis=None, keepdims=False):
    """The norm of vectors (one axis) or matrices (two): NumPy's `ord`s; of all elements by default.

    Raises ValueError for an `ord` that vectors or matrices do not have.
    """
    rank = len(x.shape)
    if axis is None and ord is None:
        return _root_of_squares(x, None, keepdims)
    axes = tuple(range(rank)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    axes = tuple(a % rank for a in axes)
    if len(axes) == 1:
        return _vector_norm(x, ord, axes[0], keepdims)
    if len(axes) != 2:
        raise ValueError(f"norm: one or two axes have an ord, got axis={axis!r} of {rank} axes.")
    result = _matrix_norm(moveaxis(x, axes, (-2, -1)), ord)
    return expand_dims(result, tuple(sorted(axes))) if keepdims else result


def _root_of_squares(x, axis, keepdims=False):
    return math.sqrt(math.sum(math.square(math.absolute(x)), axis, keepdims))


def _vector_norm(x, ord, axis, keepdims):
    size = math.absolute(x)
    if ord in (None, 2):
        return _root_of_squares(x, axis, keepdims)
    if ord in (numbers.inf, -numbers.inf):
        return (math.max if ord > 0 else math.min)(size, axis, keepdims)
    if ord == 0:
        present = cast(math.not_equal(size, 0), dtypes.standardize(size.dtype))
        return math.sum(present, axis, keepdims)
    if isinstance(ord, str):
        raise ValueError(f"norm: ord={ord!r} is one of matrices, got one axis: {axis}.")
    return math.power(math.sum(math.power(size, ord), axis, keepdims), 1.0 / ord)


def _matrix_norm(x, ord):
    if ord in (None, "fro"):
        return _root_of_squares(x, (-2, -1))
    if ord in (1, -1, numbers.inf, -numbers.inf):
        sums = math.sum(math.absolute(x), -2 if abs(ord) == 1 else -1)
        return (math.max if ord > 0 else math.min)(sums, -1)
    reductions = {2: math.max, -2: math.min, "nuc": math.sum}
    if ord not in reductions:
        raise ValueError(f'norm: matrices have ord 1, 2, inf, "fro", "nuc", got {ord!r}.')
    values = svd(x, compute_uv=False)  # 32 bits at least
    return cast(reductions[ord](values, -1), dtypes.standardize(math.real(x).dtype))
