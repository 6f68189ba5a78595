"""Sparse operands give what they give in Keras, sparse where theirs is (JAX and TensorFlow)."""

import os

import numpy as np
import pytest

KERAS = os.environ["KERAS_BACKEND"]
keras = pytest.importorskip("keras")

import khub  # noqa: E402
from khub.backend import active  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ["KHUB_BACKEND"] not in ("jax", "tensorflow"),
    reason="Keras has sparse operands on JAX and TensorFlow only",
)
scipy = pytest.importorskip("scipy.sparse")

A = np.array([[0, 2, 0, -1], [3, 0, 0, 0], [0, 0, 0, 4]], "float32")
B = np.array([[1, 0, 0, 5], [0, 0, 2, 0], [0, 0, 0, -4]], "float32")
D = np.arange(12, dtype="float32").reshape(3, 4) + 1
SPARSE_A, SPARSE_B = scipy.csr_matrix(A), scipy.csr_matrix(B)

ONE = [
    "negative",
    "absolute",
    "square",
    "sign",
    "sin",
    "tanh",
    "floor",
    "ceil",
    "round",
    "expm1",
    "exp",
    "cos",
    "conj",
    "real",
    "imag",
    "arctan",
    "arcsinh",
    "sinh",
    "tan",
    "isfinite",
    "reciprocal",
    "cosh",
]
TWO = ["add", "subtract", "multiply", "maximum", "minimum", "divide"]
CASES = [(name, (SPARSE_A,), {}) for name in ONE]
CASES += [(name, (SPARSE_A, SPARSE_B), {}) for name in TWO]
CASES += [(name, (SPARSE_A, D), {}) for name in TWO]
CASES += [(name, (D, SPARSE_A), {}) for name in ("add", "subtract", "multiply", "maximum")]
CASES += [(name, (SPARSE_A, 2.0), {}) for name in ("add", "multiply", "divide", "maximum")]
CASES += [
    ("matmul", (SPARSE_A, D.T.copy()), {}),
    ("matmul", (D.T.copy(), SPARSE_A), {}),
    ("matmul", (SPARSE_A, scipy.csr_matrix(B.T)), {}),
    ("sum", (SPARSE_A,), dict(axis=0)),
    ("sum", (SPARSE_A,), dict(axis=1, keepdims=True)),
    ("reshape", (SPARSE_A,), dict(newshape=(4, 3))),
    ("transpose", (SPARSE_A,), {}),
    ("expand_dims", (SPARSE_A,), dict(axis=0)),
    ("cast", (SPARSE_A,), dict(dtype="int32")),
    ("take", (D, scipy.csr_matrix(np.array([[0, 1], [2, 0]], "int32"))), dict(axis=0)),
    ("convert_to_tensor", (SPARSE_A,), dict(sparse=True)),
    ("convert_to_tensor", (SPARSE_A,), dict(sparse=False)),
]


@pytest.mark.parametrize("name, operands, options", CASES)
def test_results_and_their_kind(name, operands, options):
    def run(library):
        given = [
            active.sparse.from_scipy(x, x.dtype.name) if scipy.issparse(x) else x for x in operands
        ]  # the frameworks' own tensors: both libraries take them
        return getattr(library.ops, name)(*given, **options)

    ours, theirs = run(khub), run(keras)
    assert active.sparse.is_sparse(ours) == active.sparse.is_sparse(theirs)
    assert tuple(ours.shape) == tuple(theirs.shape)
    wanted = active.sparse.densify(theirs) if active.sparse.is_sparse(theirs) else theirs
    np.testing.assert_allclose(khub.ops.convert_to_numpy(ours), np.asarray(wanted), rtol=1e-6)
    assert khub.ops.dtype(ours) == keras.backend.standardize_dtype(theirs.dtype)


def test_a_model_with_sparse_inputs_trains_as_in_keras():
    found = []
    for library in (khub, keras):
        inputs = library.Input((4,), sparse=True)
        model = library.Model(inputs, library.layers.Dense(2)(inputs))
        model.set_weights([np.ones((4, 2), "float32"), np.zeros(2, "float32")])
        model.compile("sgd", "mse")
        model.fit(SPARSE_A, D[:, :2], epochs=2, verbose=0)
        found.append([*model.get_weights(), model.predict(SPARSE_B, verbose=0)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
