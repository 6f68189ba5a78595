"""What parity with Keras does not cover of losses, regularizers, constraints and activations."""

import numpy as np
import pytest

import khub
from khub import activations, constraints, losses, ops, regularizers

R = np.random.RandomState(0)
X = R.randn(6, 5).astype("float32")
Y = R.randn(6, 5).astype("float32")


def close(ours, expected, rtol=1e-5):
    np.testing.assert_allclose(ops.convert_to_numpy(ours), expected, rtol=rtol, atol=1e-6)


# --- losses ---------------------------------------------------------------------------------------
def test_names_give_functions_or_objects():
    assert losses.get("mse") is losses.mean_squared_error is losses.get("mean_squared_error")
    assert isinstance(losses.get("MeanSquaredError"), losses.MeanSquaredError)
    assert losses.get(None) is None
    assert losses.deserialize("huber") is losses.huber
    assert losses.deserialize(losses.serialize(losses.huber)) is losses.huber
    with pytest.raises(ValueError, match="mean_squared_error"):
        losses.get("mean_square_error")


def test_a_users_loss():
    class Error(losses.Loss):
        def call(self, y_true, y_pred):
            return ops.mean(y_pred - y_true, axis=-1)

    labels = np.arange(30).reshape(6, 5)
    close(Error()(labels, X), (X - labels).mean())
    close(Error(reduction="sum")(labels, X, np.arange(6)), ((X - labels).mean(1) * range(6)).sum())
    assert Error(name="mine").name == "mine" and Error().name.startswith("error")
    with pytest.raises(ValueError, match="reduction must be one of"):
        Error(reduction="average")


def test_a_loss_of_structures():
    class Both(losses.Loss):
        def call(self, y_true, y_pred):
            return ops.mean(y_pred["a"] - y_true["a"] + y_pred["b"], axis=-1)

    close(Both()({"a": Y}, {"a": X, "b": X}), (2 * X - Y).mean())


def test_weights_of_fewer_axes_belong_to_the_leading_ones():
    x, y, weight = R.randn(3, 4, 5), R.randn(3, 4, 5), R.rand(3)
    expected = (((x - y) ** 2).mean(-1) * weight[:, None]).mean()
    close(losses.MeanSquaredError()(y, x, weight), expected)


def test_wrapper():
    wrapped = losses.LossFunctionWrapper(losses.huber, name="h", delta=0.2)
    close(wrapped(Y, X), ops.convert_to_numpy(losses.Huber(0.2)(Y, X)))
    assert wrapped.get_config()["delta"] == 0.2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_predictions_are_judged_in_float32(dtype):
    half = ops.cast(X, dtype)
    found = losses.MeanSquaredError()(Y, half)
    assert ops.dtype(found) == "float32"
    rounded = ops.convert_to_numpy(half).astype("float32")
    close(found, ((rounded - Y) ** 2).mean(), 1e-6)


def test_crossentropy_is_exact_for_large_logits():
    logits = np.array([[1000.0, -1000.0], [-1000.0, 1000.0]], "float32")
    loss = losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    close(loss(np.array([0, 0]), logits), [0, 2000])
    binary = losses.BinaryCrossentropy(from_logits=True, reduction="none")
    close(binary(np.array([[1.0], [1.0]]), np.array([[500.0], [-500.0]])), [0, 500])


def test_compiled_loss_equals_eager():
    for loss in (losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=1),):
        classes = ops.convert_to_tensor(np.array([0, 1, 2, 3, 4, 1], "int32"))
        logits = ops.convert_to_tensor(X)
        close(khub.jit(loss)(classes, logits), ops.convert_to_numpy(loss(classes, logits)))


# --- regularizers ---------------------------------------------------------------------------------
def test_regularizers():
    close(regularizers.L1(0.1)(X), 0.1 * np.abs(X).sum())
    close(regularizers.L2(0.1)(X), 0.1 * (X**2).sum())
    both = regularizers.L1L2(0.1, 0.2)
    close(both(ops.convert_to_tensor(X)), 0.1 * np.abs(X).sum() + 0.2 * (X**2).sum())
    close(regularizers.L1L2()(ops.convert_to_tensor(X)), 0)
    close(regularizers.get("l2")(khub.Variable(X)), 0.01 * (X**2).sum())
    assert regularizers.get(regularizers.serialize(both)).get_config() == {"l1": 0.1, "l2": 0.2}
    with pytest.raises(ValueError, match="l1 must be"):
        regularizers.L1(-1.0)
    with pytest.raises(ValueError, match="mode"):
        regularizers.OrthogonalRegularizer(mode="x")


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_orthogonal_regularizer(mode):
    x = X if mode == "rows" else X.T
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = np.abs(x @ x.T)[np.triu_indices(len(x), 1)]
    close(regularizers.OrthogonalRegularizer(0.3, mode)(X), 0.3 * cosines.mean())


# --- constraints ----------------------------------------------------------------------------------
def test_constraints():
    norms = np.linalg.norm(X, axis=0, keepdims=True)
    close(constraints.NonNeg()(X), np.maximum(X, 0))
    close(constraints.UnitNorm()(X), X / norms)
    close(constraints.UnitNorm(axis=1)(X), X / np.linalg.norm(X, axis=1, keepdims=True))
    close(constraints.MaxNorm(1.5)(X), X * np.minimum(norms, 1.5) / norms)
    wanted = 0.5 * np.clip(norms, 1, 2) + 0.5 * norms
    close(constraints.MinMaxNorm(1.0, 2.0, rate=0.5)(X), X * wanted / norms)
    assert isinstance(constraints.get("max_norm"), constraints.MaxNorm)
    again = constraints.deserialize(constraints.serialize(constraints.MaxNorm(3, axis=1)))
    assert again.get_config() == {"max_value": 3, "axis": 1}


# --- activations ----------------------------------------------------------------------------------
def sparsemax(z):
    """The projection on the simplex, by bisection."""
    low, high = z.min(-1, keepdims=True) - 1, z.max(-1, keepdims=True)
    for _ in range(60):
        middle = (low + high) / 2
        large = np.maximum(z - middle, 0).sum(-1, keepdims=True) > 1
        low, high = np.where(large, middle, low), np.where(large, high, middle)
    return np.maximum(z - low, 0)


EXPECTED = {
    "exponential": np.exp,
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "soft_shrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
    "hard_shrink": lambda x: np.where(np.abs(x) > 0.5, x, 0),
    "tanh_shrink": lambda x: x - np.tanh(x),
    "squareplus": lambda x: (x + np.sqrt(x * x + 4)) / 2,
    "sparse_plus": lambda x: np.where(x <= -1, 0, np.where(x >= 1, x, (x + 1) ** 2 / 4)),
    "sparse_sigmoid": lambda x: np.clip((x + 1) / 2, 0, 1),
    "sparsemax": lambda x: sparsemax(x.astype("float64")),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_activations(name):
    close(activations.get(name)(ops.convert_to_tensor(X)), EXPECTED[name](X))
    assert activations.serialize(activations.get(name)) == name


def test_activations_with_options():
    x = ops.convert_to_tensor(X)
    expected = np.where(X >= 1.5, 1.5, np.where(X >= 0.2, X, 0.3 * (X - 0.2)))
    close(activations.relu(x, 0.3, 1.5, 0.2), expected)
    close(activations.threshold(x, 0.2, 7), np.where(X > 0.2, X, 7))
    close(activations.glu(x[:, :4]), X[:, :2] / (1 + np.exp(-X[:, 2:4])))
    close(activations.sparsemax(x, axis=0), sparsemax(X.T.astype("float64")).T)
    exact = activations.gelu(ops.convert_to_tensor(np.array([1.0], "float32")))
    close(exact, [0.8413447])
    assert activations.get(None) is activations.linear
    assert activations.get("swish") is activations.silu
    assert activations.deserialize("relu") is activations.relu
    with pytest.raises(ValueError, match="relu"):
        activations.get("rellu")
