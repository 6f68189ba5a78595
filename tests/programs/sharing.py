"""Layers used more than once share their weights, and their gradients add up."""

import keras
import numpy as np
from keras import layers, ops

keras.utils.set_random_seed(21)
shared = layers.Dense(6, activation="tanh", name="shared")
first, second = keras.Input((6,)), keras.Input((6,))
a, b = shared(first), shared(second)
assert shared.count_params() == 6 * 6 + 6 and a is not b
model = keras.Model([first, second], layers.Dense(1)(layers.Add()([a, shared(b)])))
assert len(model.layers) == 5 and len(model.weights) == 4
x = np.random.RandomState(0).randn(3, 6).astype("float32")
kernel, bias = shared.get_weights()
last = model.layers[-1].get_weights()


def dense(x):
    return np.tanh(x @ kernel + bias)


expected = (dense(x) + dense(dense(x))) @ last[0] + last[1]
np.testing.assert_allclose(model.predict([x, x], verbose=0), expected, atol=1e-5)

# one kernel used twice: d/dw of (w x) + (w x) is twice that of w x
one, two = layers.Dense(1, use_bias=False, name="w"), keras.Input((6,))
twice = keras.Model(two, layers.Add()([one(two), one(two)]))
twice.compile(keras.optimizers.SGD(0.1), loss=lambda y_true, y_pred: ops.mean(y_pred, axis=-1))
before = one.get_weights()[0]
twice.fit(x, np.zeros((3, 1)), batch_size=3, verbose=0)
np.testing.assert_allclose(one.get_weights()[0], before - 0.2 * x.mean(0)[:, None], atol=1e-5)


class Tied(layers.Layer):
    """An autoencoder whose decoder is the encoder's kernel, transposed."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.encoder = layers.Dense(units)

    def build(self, input_shape):
        self.encoder.build(input_shape)
        self.bias = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="bias")

    def call(self, inputs):
        codes = self.encoder(inputs)
        return ops.matmul(codes, ops.transpose(self.encoder.kernel)) + self.bias


data = np.random.RandomState(1).randn(300, 2) @ np.random.RandomState(2).randn(2, 6)
data = data.astype("float32")
tied = keras.Sequential([keras.Input((6,)), Tied(2)])
assert len(tied.weights) == 3
tied.compile(keras.optimizers.Adam(0.02), "mse")
history = tied.fit(data, data, epochs=25, verbose=0).history
assert history["loss"][-1] < 0.05 * data.var(), history["loss"]

# two models on the same layer see each other's training
head = keras.Sequential([keras.Input((6,)), shared, layers.Dense(1)])
head.compile(keras.optimizers.SGD(0.5), "mse")
before = model.predict([x, x], verbose=0)
head.fit(x, np.ones((3, 1)), verbose=0)
assert not np.allclose(before, model.predict([x, x], verbose=0))
