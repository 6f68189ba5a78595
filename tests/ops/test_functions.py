"""What a row of the table cannot say: functions of functions, compiled calls, refused arguments."""

import numpy as np
import pytest
from ops import oracles

import khub
from khub import backend, ops
from khub.ops.symbolic import KerasTensor

X = np.arange(12, dtype="float32").reshape(3, 4)
Q = np.ones((1, 2, 1, 8), "float32")


def scalar(a, b=1.0):
    return a * b + 1


VECTORIZED = [  # function, options, arguments, expected
    (scalar, {}, (X,), X + 1),
    (scalar, {}, (X[:1], X[:, :1]), X[:1] * X[:, :1] + 1),
    (scalar, {}, (2.0, X[0, 0]), np.float32(1)),
    (lambda v: ops.max(v), dict(signature="(n)->()"), (X,), X.max(-1)),
    (
        ops.matmul,
        dict(signature="(n,m),(m)->(n)"),
        (X, np.stack([X[0], X[1]])),
        np.stack([X @ X[0], X @ X[1]]),
    ),
    (lambda a, power: a**power, dict(excluded={1}), (X, 2), X**2),
]


@pytest.mark.parametrize("function, options, args, wanted", VECTORIZED)
def test_vectorize(function, options, args, wanted):
    found = ops.vectorize(function, **options)(*args)
    np.testing.assert_allclose(ops.convert_to_numpy(found), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "function, wanted",
    [
        (lambda x: ops.unique(x, size=4, fill_value=9), [1, 2, 3, 9]),
        (lambda x: ops.unique(x, size=2, return_counts=True)[1], [2, 1]),
        (lambda x: ops.bincount(x, minlength=5), [0, 2, 1, 1, 0]),
        (lambda x: ops.searchsorted(ops.sort(x), x), [3, 0, 0, 2]),
        (lambda x: ops.nanquantile(x, 0.5), 1.5),
        (lambda x: ops.gcd(x, 6), [3, 1, 1, 2]),
        (lambda x: ops.diagflat(x)[1], [0, 1, 0, 0]),
        (lambda x: ops.histogram(x, 2)[0], [2, 2]),
    ],
)
def test_compiled(function, wanted):
    found = ops.jit(function)(ops.convert_to_tensor([3, 1, 1, 2]))
    np.testing.assert_allclose(ops.convert_to_numpy(found), wanted)


def test_unknown_sizes_stay_unknown():
    x = KerasTensor((None, 3), "int32")
    assert ops.unique(x).shape == (None,)
    assert [y.shape for y in ops.unique(x, axis=0, return_inverse=True)] == [(None, 3), (None,)]
    assert [y.shape for y in ops.nonzero(x)] == [(None,)] * 2
    assert ops.bincount(x).shape == (None, None) and ops.bincount(x).dtype == "int32"


REFUSED = [  # call, words of the message
    (lambda: ops.quantile(X, 0.5, method="nearly"), ["method", "'nearly'", "midpoint"]),
    (lambda: ops.correlate(X[0], X[1], "all"), ["mode", "'all'", "full"]),
    (lambda: ops.searchsorted(X[0], X[1], side="mid"), ["side", "'mid'", "left"]),
    (lambda: ops.meshgrid(X[0], indexing="yx"), ["indexing", "'yx'", "ij"]),
    (lambda: ops.cross(X, X), ["2 or 3", "4"]),
    (lambda: ops.histogram(X, 3), ["vector", "(3, 4)"]),
    (lambda: ops.average(X, weights=X[0]), ["axis", "(4,)", "(3, 4)"]),
    (lambda: ops.ctc_decode(Q[0], [2], "best"), ["strategy", "'best'", "greedy"]),
    (lambda: ops.ctc_decode(Q[0], [2], "beam_search", 2, 3), ["top_paths=3", "2"]),
    (lambda: ops.adaptive_max_pool(Q, (1, 2, 3)), ["output_size", "(1, 2, 3)"]),
    (lambda: ops.space_to_depth(Q, 2, "first"), ["data_format", "'first'"]),
]


@pytest.mark.parametrize("call, words", REFUSED)
def test_a_wrong_argument_is_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert [word for word in words if word not in str(error.value)] == []


def test_ldexp_takes_integers():
    with pytest.raises(TypeError, match="float32"):
        ops.ldexp(X, 2.5)


RANDOM = np.random.default_rng(0)
LONG = [RANDOM.normal(size=(2, 700, heads, 8)).astype("float32") for heads in (4, 2, 2)]
BIAS = RANDOM.normal(size=(1, 4, 700, 700)).astype("float32")
SEEN = RANDOM.random((2, 1, 1, 700)) > 0.4
SEEN[1] = False  # attends nowhere


@pytest.mark.parametrize(
    "options",
    [{}, {"mask": SEEN, "scale": 0.3}, {"is_causal": True}, {"bias": BIAS}],
    ids=["plain", "mask", "causal", "bias"],
)
def test_attention_of_many_queries(options):
    found = khub.jit(lambda *qkv: ops.dot_product_attention(*qkv, **options))(*LONG)
    want = oracles.attention(*LONG, **options)
    np.testing.assert_allclose(ops.convert_to_numpy(found), want, atol=1e-5)


@pytest.mark.skipif(backend.name == "jax", reason="JAX says so when the kernel runs on a GPU")
def test_a_flash_kernel_is_used_or_refused():
    if backend.name == "torch":
        found = ops.dot_product_attention(Q, Q, Q, flash_attention=True)
        np.testing.assert_allclose(ops.convert_to_numpy(found), Q, rtol=1e-6)
        return
    with pytest.raises(ValueError, match="flash"):
        ops.dot_product_attention(Q, Q, Q, flash_attention=True)
