"""Recurrent layers: states that stay, a cell of one's own, both directions."""

import keras
import numpy as np
from keras import layers, ops

keras.utils.set_random_seed(6)
x = np.random.RandomState(0).randn(4, 10, 3).astype("float32")

# a long sequence in two parts: the state goes from one to the next
whole = layers.LSTM(5, return_state=True)
parts = layers.LSTM(5, stateful=True)
expected, h, c = whole(x)
parts(x)
parts.set_weights(whole.get_weights())
parts.reset_state()
parts(x[:, :6])
found = parts(x[:, 6:])
np.testing.assert_allclose(ops.convert_to_numpy(found), ops.convert_to_numpy(expected), atol=1e-5)
np.testing.assert_allclose(ops.convert_to_numpy(h), ops.convert_to_numpy(expected), atol=1e-6)
continued = whole(x, initial_state=[h, c])[0]
assert not np.allclose(ops.convert_to_numpy(continued), ops.convert_to_numpy(expected))


class Leaky(layers.Layer):
    """state = keep * state + tanh(x @ kernel)"""

    def __init__(self, units, keep=0.5, **kwargs):
        super().__init__(**kwargs)
        self.units, self.keep, self.state_size = units, keep, units

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")

    def call(self, inputs, states):
        state = self.keep * states[0] + ops.tanh(ops.matmul(inputs, self.kernel))
        return state, [state]


cell = Leaky(6)
steps = layers.RNN(cell, return_sequences=True)(x)
state, kernel = np.zeros((4, 6)), ops.convert_to_numpy(cell.kernel)
for t in range(10):
    state = 0.5 * state + np.tanh(x[:, t] @ kernel)
    np.testing.assert_allclose(ops.convert_to_numpy(steps)[:, t], state, atol=1e-5)

model = keras.Sequential(
    [
        keras.Input((None, 3)),
        layers.Bidirectional(layers.GRU(4, return_sequences=True)),
        layers.Bidirectional(layers.SimpleRNN(4), merge_mode="sum"),
        layers.Dense(1),
    ]
)
assert model.output_shape == (None, 1) and model.layers[0].output.shape == (None, None, 8)
assert model.predict(x, verbose=0).shape == model.predict(x[:, :3], verbose=0).shape == (4, 1)
stacked = layers.RNN([layers.LSTMCell(4), Leaky(2)], return_state=True)
output, *states = stacked(x)
assert output.shape == (4, 2) and len(states) == 2
