"""Factors of matrices, which have free signs, multiply back; loops and gradients of one's own."""

import numpy as np
import pytest
from ops.rows_linalg import COLUMNS, DEFINITE, GENERAL, TALL, WIDE

import khub
from khub import ops

BACKEND = khub.backend.name
trains = pytest.mark.skipif(BACKEND == "numpy", reason="no gradients")


def numpy(structure):
    return khub.tree.map_structure(ops.convert_to_numpy, structure)


def adjoint(x):
    return np.conj(np.swapaxes(x, -1, -2))


def unit(x):
    return np.broadcast_to(np.eye(x.shape[-1]), (*x.shape[:-2], x.shape[-1], x.shape[-1]))


def check_eig(x, values, vectors):
    assert values.dtype == vectors.dtype == "complex64"
    yield x @ vectors, vectors * values[..., None, :]


def check_eigh(x, values, vectors):
    assert (np.diff(values) >= 0).all()
    yield (vectors * values[..., None, :]) @ adjoint(vectors), x
    yield adjoint(vectors) @ vectors, unit(vectors)


def check_qr(x, q, r):
    yield q @ r, x
    yield adjoint(q) @ q, unit(q)
    yield np.tril(r, -1), np.zeros_like(r)


def check_svd(x, u, s, vh):
    count = s.shape[-1]
    assert (np.diff(s) <= 0).all() and (s >= 0).all()
    yield (u[..., :count] * s[..., None, :]) @ vh[..., :count, :], x
    yield adjoint(u) @ u, unit(u)
    yield vh @ adjoint(vh), unit(adjoint(vh))


def check_values(x, s):
    yield s, np.linalg.svd(x, compute_uv=False)


def check_lu(x, factors, pivots):
    rows, columns = x.shape[-2:]
    count = min(rows, columns)
    lower = np.tril(factors, -1)[..., :count] + np.eye(rows, count)
    product = lower @ np.triu(factors)[..., :count, :]
    for index in np.ndindex(x.shape[:-2]):
        moved = x[index].copy()
        for row, other in enumerate(pivots[index]):
            moved[[row, other]] = moved[[other, row]]
        yield product[index], moved


FACTORS = [
    ("eig", GENERAL, {}, check_eig),
    ("eigh", DEFINITE, {}, check_eigh),
    ("qr", TALL, {}, check_qr),
    ("qr", WIDE, {}, check_qr),
    ("qr", TALL, {"mode": "complete"}, check_qr),
    ("svd", TALL, {}, check_svd),
    ("svd", WIDE, {"full_matrices": False}, check_svd),
    ("svd", TALL, {"compute_uv": False}, check_values),
    ("lu_factor", GENERAL, {}, check_lu),
]


@pytest.mark.parametrize("name, x, options, check", FACTORS, ids=[str(f[:1]) for f in FACTORS])
def test_factors_multiply_back(name, x, options, check):
    found = getattr(ops.linalg, name)(x, **options)
    results = numpy(found)
    results = results if isinstance(results, tuple) else (results,)
    for one, other in check(x, *results):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=2e-5)
    symbol = khub.KerasTensor((None, *x.shape[1:]), "float32")
    symbols = khub.tree.flatten(getattr(ops.linalg, name)(symbol, **options))
    for one, value in zip(symbols, results, strict=True):
        assert one.shape == (None, *value.shape[1:]) and one.dtype == str(value.dtype)


@trains
@pytest.mark.parametrize("name", ["eigh", "svd"])
def test_gradient_of_eigenvalues(name):
    """The sum of the eigenvalues of a definite matrix is its trace, whose gradient is the unit."""
    take = (lambda x: ops.eigh(x)[0]) if name == "eigh" else (lambda x: ops.svd(x)[1])
    gradient = khub.grad(lambda x: ops.sum(take(x)))(ops.convert_to_tensor(DEFINITE[0]))
    np.testing.assert_allclose(numpy(gradient), np.eye(3), atol=1e-4)


ERRORS = [
    (lambda: ops.norm(COLUMNS, ord="fro", axis=1), "ord='fro' is one of matrices"),
    (lambda: ops.norm(COLUMNS, ord=5, axis=(1, 2)), "got 5"),
    (lambda: ops.norm(COLUMNS, ord=2), "one or two axes"),
    (lambda: ops.stft(COLUMNS[0], 4, 2, 2), "fft_length must be at least"),
    (
        lambda: ops.stft(COLUMNS[0], 1, 1, 1, window="flat"),
        "one of hann, hamming, blackman, got 'flat'",
    ),
    (lambda: ops.rearrange(COLUMNS, "a b -> b a"), "has 2 axes, the tensor has 3"),
    (lambda: ops.rearrange(COLUMNS, "a b c -> a b"), "same names"),
    (lambda: ops.rearrange(COLUMNS, "a (b d) c -> a b d c"), "all but one"),
    (lambda: ops.rearrange(COLUMNS, "a (b d) c -> a b d c", b=2), "an axis of 3"),
    (lambda: ops.view_as_complex(TALL), "last axis must be 2"),
]


@pytest.mark.parametrize("act, words", ERRORS, ids=[words for _, words in ERRORS])
def test_errors(act, words):
    with pytest.raises(ValueError, match=words):
        act()


# --- loops ---------------------------------------------------------------------------------------
def test_map_and_switch():
    np.testing.assert_allclose(numpy(ops.map(lambda x: x * x, TALL)), TALL**2, rtol=1e-6)
    branches = [lambda x: x + 1, lambda x: x * 2, lambda x: -x]
    for index, place in ((0, 0), (1, 1), (2, 2), (-3, 0), (9, 2)):
        found = ops.switch(ops.convert_to_tensor(index), branches, ops.convert_to_tensor(TALL))
        np.testing.assert_allclose(numpy(found), branches[place](TALL), rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("reverse", [False, True])
def test_associative_scan(length, reverse):
    x = np.random.RandomState(0).randn(3, length).astype("float32")
    found = ops.associative_scan(lambda a, b: a + b, x, reverse=reverse, axis=1)
    wanted = np.cumsum(x[:, ::-1], 1)[:, ::-1] if reverse else np.cumsum(x, 1)
    np.testing.assert_allclose(numpy(found), wanted, atol=1e-5)


def test_associative_scan_of_pairs():
    """Affine maps x -> a x + b compose to the linear recurrence."""
    a, b = np.random.RandomState(1).uniform(0.5, 1, (2, 6, 2)).astype("float32")

    def after(one, two):
        return one[0] * two[0], one[1] * two[0] + two[1]

    found, wanted = numpy(ops.associative_scan(after, (a, b)))[1], []
    for one, two in zip(a, b):
        wanted.append(two if not wanted else one * wanted[-1] + two)
    np.testing.assert_allclose(found, np.stack(wanted), rtol=1e-5)


@ops.custom_gradient
def softly(x):
    grown = ops.exp(x)

    def gradient(*args, upstream=None):
        (upstream,) = args or (upstream,)
        return upstream * 7.0 * (1 - 1 / (1 + grown))

    return ops.log(1 + grown), gradient


def test_value_beside_a_custom_gradient():
    np.testing.assert_allclose(numpy(softly(TALL)), np.log1p(np.exp(TALL)), rtol=1e-5)


@trains
@pytest.mark.parametrize("compiled", [False, True])
def test_custom_gradient(compiled):
    step = khub.grad(lambda x: ops.sum(softly(x)))
    gradient = (khub.jit(step) if compiled else step)(ops.convert_to_tensor(TALL))
    np.testing.assert_allclose(numpy(gradient), 7 / (1 + np.exp(-TALL)), rtol=1e-5)


@trains
def test_jvp():
    direction = np.ones_like(TALL)
    value, slope, aux = ops.linalg.jvp(
        lambda x: (x * x, {"twice": 2 * x}), (TALL,), (direction,), has_aux=True
    )
    np.testing.assert_allclose(numpy(value), TALL**2, rtol=1e-6)
    np.testing.assert_allclose(numpy(slope), 2 * TALL, rtol=1e-6)
    np.testing.assert_allclose(numpy(aux["twice"]), 2 * TALL, rtol=1e-6)


@pytest.mark.skipif(BACKEND != "numpy", reason="about NumPy")
def test_numpy_has_no_derivatives():
    with pytest.raises(NotImplementedError, match="no gradients"):
        ops.jvp(lambda x: x, (TALL,), (TALL,))
