"""Complex numbers: every op that has a meaning for them, values and dtypes as NumPy's."""

import numpy as np
import pytest

from khub import backend, dtypes, ops, tree
from khub.ops.symbolic import KerasTensor

KINDS = ["complex64"] if backend.name == "jax" else ["complex64", "complex128"]  # 64 bits are off
NEAR = {"complex64": 2e-5, "complex128": 1e-12}
R = np.random.RandomState(0)


def Z(*shape):
    return R.randn(*shape) + 1j * R.randn(*shape)


X, Y, SMALL = Z(3, 4), Z(3, 4), Z(3, 4) / 4
SQUARE, COLUMNS, REAL = Z(2, 3, 3) + 2 * np.eye(3), Z(2, 3, 2), R.randn(3, 4)
HERMITIAN = SQUARE @ np.conj(np.swapaxes(SQUARE, 1, 2)) + np.eye(3)
NOT_FINITE = np.array([[1 + 0j, 2 + 1j, np.nan + 1j, complex(1, np.nan), complex(np.inf, -1)]])


def finite(x, nan, posinf, neginf):
    return np.nan_to_num(x, nan=nan, posinf=posinf, neginf=neginf)


ONE = """absolute abs angle real imag conj conjugate negative square exp exp2 expm1 log log10 log2
    sqrt reciprocal sin cos tan sinh cosh tanh sum prod mean cumsum cumprod isreal transpose ravel
    copy zeros_like ones_like count_nonzero logical_not flip fliplr flipud rot90 diag trace tril
    triu var std"""
SMALL_ONE = "arcsin arccos arctan arcsinh arccosh arctanh log1p"
TWO = "add subtract multiply divide true_divide power equal not_equal"
CASES = {  # op -> (NumPy's function, arguments), ...
    **{name: [(getattr(np, name), X)] for name in ONE.split()},
    **{name: [(getattr(np, name), SMALL)] for name in SMALL_ONE.split()},
    **{
        name: [
            (getattr(np, name), X, Y),
            (getattr(np, name), X, Y[0]),
            (getattr(np, name), X, REAL),
        ]
        for name in TWO.split()
    },
    **{name: [(getattr(np, name), NOT_FINITE)] for name in ("isnan", "isinf", "isfinite")},
    **{
        name: [(getattr(np, name), X, Y)] for name in ("logical_and", "logical_or", "vdot", "inner")
    },
    "add-number": [(np.add, X, 2.5), (np.add, X, 1j), (np.add, REAL, 1j)],
    "multiply-number": [(np.multiply, X, 2), (np.multiply, X, 1j), (np.multiply, REAL, 2j)],
    "power-number": [(np.power, X, 2), (np.power, X, 0.5)],
    "rsqrt": [(lambda x: 1 / np.sqrt(x), X)],
    "matmul": [(np.matmul, SQUARE, COLUMNS), (np.matmul, SQUARE, COLUMNS.real)],
    "dot": [(np.dot, X, Y.T.copy()), (np.dot, X, Y[0])],
    "outer": [(np.outer, X[0], Y[1])],
    "kron": [(np.kron, X, Y[:2])],
    "tensordot": [(lambda x, y, axes: np.tensordot(x, y, axes), SQUARE, COLUMNS, [[0, 2], [0, 1]])],
    "einsum": [(np.einsum, "bij,bjk->bik", SQUARE, COLUMNS)],
    "sum-axis": [(lambda x, axis: np.sum(x, axis), X, 1)],
    "mean-axis": [(lambda x, axis: np.mean(x, axis), X, 0)],
    "reshape": [(np.reshape, X, (2, 6))],
    "concatenate": [(lambda xs: np.concatenate(xs), [X, Y]), (np.concatenate, [X, REAL])],
    "stack": [(np.stack, [X, Y])],
    "take": [(lambda x, i, axis: np.take(x, i, axis), X, np.array([0, 2]), 1)],
    "where": [(np.where, REAL > 0, X, Y), (np.where, REAL > 0, X, REAL)],
    "roll": [(np.roll, X, 1)],
    "tile": [(np.tile, X, (2, 1))],
    "repeat": [(lambda x, n, axis: np.repeat(x, n, axis), X, 2, 1)],
    "pad": [(np.pad, X, ((1, 0), (0, 2)))],
    "expand_dims": [(np.expand_dims, X, 1)],
    "squeeze": [(np.squeeze, X[:1])],
    "broadcast_to": [(np.broadcast_to, X[0], (2, 4))],
    "diagonal": [(np.diagonal, X)],
    "getitem": [(lambda x, key: x[key], X, (slice(None), slice(None, None, -1)))],
    "isclose": [(np.isclose, X, X + 1e-9), (np.isclose, X, Y)],
    "diff": [(np.diff, X)],
    "det": [(np.linalg.det, SQUARE)],
    "inv": [(np.linalg.inv, SQUARE)],
    "solve": [(np.linalg.solve, SQUARE, COLUMNS)],
    "cholesky": [(np.linalg.cholesky, HERMITIAN)],
    "norm": [(np.linalg.norm, X)],
    "view_as_real": [(lambda z: np.stack([z.real, z.imag], -1), X)],
    "view_as_complex": [(lambda x: x[..., 0] + 1j * x[..., 1], R.randn(3, 4, 2))],
    "polar": [(lambda r, a: r * np.exp(1j * a), np.abs(REAL), REAL.T.reshape(3, 4))],
    "nan_to_num": [(np.nan_to_num, X), (finite, NOT_FINITE, 0.0, 9.0, -9.0)],
}


def narrowed(x, kind):
    """The array in complex64 or float32, complex128 or float64; integers as they are."""
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "fc":
        return x
    return x.astype(kind if x.dtype.kind == "c" else {"complex64": "float32"}.get(kind, "float64"))


def tensor(x):
    return ops.convert_to_tensor(x) if isinstance(x, np.ndarray) else x


def symbol(x):
    is_number = isinstance(x, np.ndarray) and x.dtype.kind in "fc"
    return KerasTensor(x.shape, str(x.dtype)) if is_number else x


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name, function, args",
    [
        pytest.param(name.split("-")[0], function, args, id=f"{name}-{i}")
        for name, cases in CASES.items()
        for i, (function, *args) in enumerate(cases)
    ],
)
def test_values_and_dtypes(name, function, args, kind):
    given = tree.map_structure(lambda x: narrowed(x, kind), args)
    wanted = np.asarray(function(*tree.map_structure(lambda x: narrowed(x, "complex128"), given)))
    dtype = str(np.asarray(function(*given)).dtype)
    dtype = {"int64": "int32"}.get(dtype, dtype)  # counts
    found = getattr(ops, name)(*tree.map_structure(tensor, given))
    assert dtypes.standardize(found.dtype) == dtype
    found = ops.convert_to_numpy(found)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=NEAR[kind], atol=NEAR[kind])
    if name not in ("getitem", "einsum"):
        made = getattr(ops, name)(*tree.map_structure(symbol, given))
        assert (made.shape, made.dtype) == (wanted.shape, dtype)
