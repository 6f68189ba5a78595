"""Layers inside layers inside a model, which adds losses and keeps metrics of its own."""

import keras
import numpy as np
from keras import layers, ops

keras.utils.set_random_seed(3)


class Sparse(layers.Layer):
    """Passes its input on and asks for few active units."""

    def __init__(self, rate=1e-2, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, inputs):
        self.add_loss(self.rate * ops.mean(ops.abs(inputs)))
        return inputs


class Block(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.layers = [layers.Dense(units, activation="relu") for _ in range(2)]
        self.sparse = Sparse()
        self.dropout = layers.Dropout(0.1)

    def call(self, inputs, training=False):
        x = inputs
        for layer in self.layers:
            x = layer(x)
        return self.dropout(self.sparse(x), training=training)


class Regressor(keras.Model):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = [Block(24) for _ in range(blocks)]
        self.last = layers.Dense(1, kernel_regularizer=keras.regularizers.L2(1e-3))

    def call(self, inputs, training=False):
        x = inputs
        for block in self.blocks:
            x = block(x, training=training)
        return self.last(x)


x = np.random.RandomState(0).uniform(-1, 1, (300, 4)).astype("float32")
y = np.abs(x).sum(1, keepdims=True)
model = Regressor(2)
model(x[:2])
assert len(model.losses) == 3  # one of each block, one of the kernel
assert len(model.trainable_weights) == 2 * 2 * 2 + 2 and len(model.layers) == 3
same, other = (model(x[:5], training=training) for training in (False, True))
assert not np.allclose(ops.convert_to_numpy(same), ops.convert_to_numpy(other))
model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
history = model.fit(x, y, epochs=60, verbose=0).history
assert history["loss"][-1] < 0.3 * history["loss"][0]
loss, mae = model.evaluate(x, y, verbose=0)
error = y - model.predict(x, verbose=0)
np.testing.assert_allclose(mae, np.abs(error).mean(), rtol=1e-4)
assert loss > (error**2).mean() and mae < 0.3
