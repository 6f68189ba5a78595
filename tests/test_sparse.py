"""Sparse operands give what dense ones give, sparse where the op allows it."""

import numpy as np
import pytest

import khub
from khub import layers, ops
from khub.backend import active, name

pytestmark = pytest.mark.skipif(name == "numpy", reason="NumPy has no sparse arrays")
scipy = pytest.importorskip("scipy.sparse")

A = np.array([[0, 2, 0, -1], [3, 0, 0, 0], [0, 0, 0, 4]], "float32")
B = np.array([[1, 0, 0, 5], [0, 0, 2, 0], [0, 0, 0, -4]], "float32")
D = np.arange(12, dtype="float32").reshape(3, 4) + 1
D_ROW, D_T = D[0], np.ascontiguousarray(D.T)

# op and its operands, upper case S before what is passed sparse -> whether the result is sparse
UNARY = [
    "negative",
    "absolute",
    "square",
    "sign",
    "sin",
    "tanh",
    "floor",
    "round",
    "expm1",
    "relu",
    "leaky_relu",
    "sinh",
]
CASES = [(op, ["SA"], {}, True) for op in UNARY] + [
    ("exp", ["SA"], {}, False),
    ("cos", ["SA"], {}, False),
    ("add", ["SA", "SB"], {}, True),
    ("add", ["SA", "D"], {}, False),
    ("add", ["D", "SA"], {}, False),
    ("subtract", ["SA", "SB"], {}, True),
    ("subtract", ["SA", "D"], {}, False),
    ("maximum", ["SA", "SB"], {}, True),
    ("minimum", ["SA", "SB"], {}, True),
    ("minimum", ["SA", "D"], {}, False),
    ("multiply", ["SA", "SB"], {}, True),
    ("multiply", ["SA", "D"], {}, True),
    ("multiply", ["D", "SA"], {}, True),
    ("multiply", ["SA", "D_ROW"], {}, True),
    ("divide", ["SA", "D"], {}, True),
    ("divide", ["SA", "D_ROW"], {}, True),
    ("matmul", ["SA", "D_T"], {}, False),
    ("matmul", ["D_T", "SA"], {}, False),
    ("linear", ["SA", "D_T"], {}, False),
    ("reshape", ["SA"], dict(newshape=(2, -1)), True),
    ("transpose", ["SA"], {}, True),
    ("expand_dims", ["SA"], dict(axis=1), True),
    ("sum", ["SA"], {}, False),
    ("sum", ["SA"], dict(axis=0), True),
    ("sum", ["SA"], dict(axis=-1, keepdims=True), True),
    ("softmax", ["SA"], {}, False),
    ("where", ["SA", "D", "SB"], {}, False),
]


def sparse(x):
    return active.sparse.from_scipy(scipy.csr_matrix(x), x.dtype.name)


def dense(x):
    return ops.convert_to_numpy(ops.convert_to_tensor(x, sparse=False))


@pytest.mark.parametrize("op, operands, options, remains", CASES)
def test_results_equal_dense_ones(op, operands, options, remains):
    values = {"A": A, "B": B, "D": D, "D_ROW": D_ROW, "D_T": D_T}
    given = [sparse(values[o[1:]]) if o[0] == "S" else values[o] for o in operands]
    expected = getattr(ops, op)(*[values[o.removeprefix("S")] for o in operands], **options)
    found = getattr(ops, op)(*given, **options)
    np.testing.assert_allclose(dense(found), dense(expected), rtol=1e-6)
    assert tuple(found.shape) == tuple(expected.shape)
    if name != "torch":  # whose own functions say what is sparse
        assert active.sparse.is_sparse(found) == remains


def test_numbers_lists_and_dtypes():
    x = sparse(A)
    np.testing.assert_array_equal(dense(ops.multiply(x, 2)), A * 2)
    np.testing.assert_array_equal(dense(ops.add(x, 2.0)), A + 2)
    np.testing.assert_array_equal(dense(ops.divide(x, 2)), A / 2)
    np.testing.assert_array_equal(dense(ops.concatenate([x, x], 1)), np.concatenate([A, A], 1))
    np.testing.assert_array_equal(dense(ops.concatenate([x, D], 0)), np.concatenate([A, D], 0))
    assert ops.dtype(ops.cast(x, "float16")) == "float16" and active.sparse.is_sparse(
        ops.cast(x, "int32")
    )
    assert ops.shape(x) == (3, 4) and active.sparse.is_sparse(ops.convert_to_tensor(x))
    assert not active.sparse.is_sparse(ops.convert_to_tensor(x, sparse=False))


def test_torch_csr():
    if name != "torch":
        pytest.skip("a layout of torch")
    x, layer = ops.convert_to_tensor(A).to_sparse_csr(), layers.Dense(2)
    np.testing.assert_allclose(dense(layer(x)), dense(layer(A)), rtol=1e-5)
    np.testing.assert_allclose(dense(ops.exp(x)), np.exp(A), rtol=1e-5)
    np.testing.assert_allclose(dense(ops.transpose(x)), A.T)


def test_errors_about_dense_tensors_stay_as_they_are():
    with pytest.raises(Exception) as caught:
        ops.matmul(ops.ones((2, 3)), ops.ones((2, 3)))
    assert "sparse" not in str(caught.value).lower()


def test_layers():
    integers = np.array([[0, 1], [2, 0]], "int32")
    layer = layers.Embedding(5, 3)
    np.testing.assert_array_equal(dense(layer(sparse(integers))), dense(layer(integers)))
    layer = layers.Dense(3, activation="relu")
    np.testing.assert_allclose(dense(layer(sparse(A))), dense(layer(A)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(dense(layers.Add()([sparse(A), sparse(B)])), A + B)


def test_scipy_matrices_in_a_model():
    inputs = layers.Input((4,), sparse=True)
    assert inputs.sparse
    hidden = layers.Dense(5, activation="tanh")(inputs)
    model = khub.Model(inputs, layers.Dense(1)(hidden))
    again = type(model).from_config(model.get_config())
    assert again.layers[0].get_config()["sparse"] is True
    again.set_weights(model.get_weights())
    x = np.random.RandomState(0).rand(50, 4) * (np.random.RandomState(1).rand(50, 4) > 0.6)
    y = x.sum(1, keepdims=True).astype("float32")
    for each in (model, again):
        each.compile("sgd", "mse")
    model.fit(scipy.csr_matrix(x), y, epochs=2, batch_size=16, shuffle=False, verbose=0)
    again.fit(x, y, epochs=2, batch_size=16, shuffle=False, verbose=0)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    found = model.predict(scipy.coo_matrix(x), verbose=0)
    np.testing.assert_allclose(found, again.predict(x, verbose=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
@pytest.mark.parametrize("constrained", [False, True])
def test_gradients_of_rows_give_the_same_embedding(optimizer, constrained, monkeypatch):
    x = np.array([[1, 2, 1], [4, 4, 4], [0, 1, 7]], "int32")
    y = np.random.RandomState(0).rand(3, 2).astype("float32")
    seen, results = [], []
    for sparse_ones in (True, False):
        khub.utils.set_random_seed(3)
        constraint = "non_neg" if constrained else None
        model = khub.Sequential(
            [
                layers.Input((3,), dtype="int32"),
                layers.Embedding(40, 4, embeddings_constraint=constraint),
                layers.Flatten(),
                layers.Dense(2),
            ]
        )
        model.compile(optimizer, "mse", run_eagerly=True)
        model.optimizer.takes_rows = model.optimizer.takes_rows and sparse_ones
        apply = model.optimizer.apply

        def spy(gradients, variables, apply=apply):
            seen.extend(map(active.sparse.is_sparse, gradients[:1]))
            return apply(gradients, variables)

        monkeypatch.setattr(model.optimizer, "apply", spy)
        model.fit(x, y, epochs=3, batch_size=2, verbose=0, shuffle=False)
        results.append(model.get_weights() + [v.numpy() for v in model.optimizer.variables])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    rows = optimizer != "adam" and name in ("torch", "tensorflow")
    assert seen == [rows] * 6 + [False] * 6


def test_embedding_trains_by_rows_in_a_compiled_step():
    model = khub.Sequential([layers.Embedding(50, 3), layers.Flatten(), layers.Dense(1)])
    model.compile("adagrad", "mse")
    x = np.arange(12).reshape(6, 2)
    model.predict(x, verbose=0)
    before = model.layers[0].embeddings.numpy()
    model.fit(x, np.ones((6, 1)), batch_size=3, epochs=2, verbose=0)
    changed = (model.layers[0].embeddings.numpy() != before).any(1)
    assert changed[:12].all() and not changed[12:].any()
