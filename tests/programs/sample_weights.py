"""Class weights and sample weights say what counts; weighted metrics follow."""

import keras
import numpy as np
from keras import layers

random = np.random.RandomState(0)
x = random.randn(600, 2).astype("float32")
y = (x[:, 0] + 0.8 * random.randn(600) > 1.3).astype("int32")  # few are positive


def recall(**options):
    keras.utils.set_random_seed(15)
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, activation="sigmoid")])
    metrics = [keras.metrics.Recall(name="recall")]
    model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy", metrics=metrics)
    model.fit(x, y[:, None], epochs=8, batch_size=60, verbose=0, **options)
    return model.evaluate(x, y[:, None], verbose=0, return_dict=True)["recall"]


plain, by_class = recall(), recall(class_weight={0: 1.0, 1: 6.0})
by_sample = recall(sample_weight=np.where(y == 1, 6.0, 1.0))
assert 0.05 < y.mean() < 0.25 and by_class > plain + 0.2, (plain, by_class)
np.testing.assert_allclose(by_class, by_sample, atol=0.02)

# the numbers themselves
model = keras.Sequential([keras.Input((2,)), layers.Dense(1, kernel_initializer="ones")])
model.compile("sgd", "mse", metrics=["mae"], weighted_metrics=["mae"])
rows = np.array([[1, 0], [2, 0], [3, 1], [0, 0]], "float32")
targets = np.array([[0], [0], [0], [1]], "float32")
weights = np.array([1, 0, 2, 1], "float32")
found = model.evaluate(rows, targets, sample_weight=weights, verbose=0, return_dict=True)
error = np.array([1, 2, 4, 1])
np.testing.assert_allclose(found["loss"], (weights * error**2).sum() / 4, rtol=1e-5)
np.testing.assert_allclose(found["mae"], error.mean(), rtol=1e-5)
weighted = (weights * error).sum() / weights.sum()
np.testing.assert_allclose(found["weighted_mae"], weighted, rtol=1e-5)

# weights of single steps of sequences, of one output of two
steps = keras.losses.MeanSquaredError()(
    np.zeros((2, 3, 1)), np.ones((2, 3, 1)), sample_weight=[[1, 1, 0], [0, 0, 0]]
)
np.testing.assert_allclose(float(steps), 2 / 6, rtol=1e-6)
inputs = keras.Input((2,))
outputs = {"a": layers.Dense(1, name="a")(inputs), "b": layers.Dense(1, name="b")(inputs)}
model = keras.Model(inputs, outputs)
model.compile("sgd", {"a": "mse", "b": "mse"}, loss_weights={"a": 0.0, "b": 1.0})
kept = model.get_layer("a").get_weights()[0]
start = model.get_layer("b").get_weights()[0]
model.fit(rows, {"a": targets, "b": targets}, epochs=2, verbose=0)
assert np.array_equal(kept, model.get_layer("a").get_weights()[0])
assert not np.array_equal(start, model.get_layer("b").get_weights()[0])
