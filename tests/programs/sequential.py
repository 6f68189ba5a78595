"""A Sequential model: built late, extended, taken apart for its features."""

import keras
import numpy as np
from keras import layers

keras.utils.set_random_seed(2)
random = np.random.RandomState(0)
x = random.randn(400, 8).astype("float32")
y = (x[:, 0] * x[:, 1] > 0).astype("int32")

model = keras.Sequential(name="small")
model.add(layers.Dense(32, activation="tanh", name="first"))
model.add(layers.Dropout(0.1))
model.add(layers.Dense(5))
assert len(model.layers) == 3 and not model.built
model.pop()
model.add(layers.Dense(2, name="scores"))
assert model(x[:3]).shape == (3, 2)
assert [tuple(w.shape) for w in model.weights] == [(8, 32), (32,), (32, 2), (2,)]
assert model.count_params() == 8 * 32 + 32 + 32 * 2 + 2

loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, metrics=["accuracy"])
model.optimizer.learning_rate = 0.02
history = model.fit(x, y, epochs=40, batch_size=50, validation_split=0.2, verbose=0)
assert list(history.epoch) == list(range(40))
assert history.history["accuracy"][-1] > 0.9 and history.history["val_accuracy"][-1] > 0.8
loss, accuracy = model.evaluate(x, y, verbose=0)
assert accuracy > 0.9 and loss < 0.4

known = keras.Sequential([keras.Input((8,)), *model.layers])
np.testing.assert_allclose(known.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
steps = known.inputs
for layer in known.layers:
    steps = [*steps, layer(steps[-1])]
outputs = keras.Model(known.inputs, steps[1:])(x[:4])
assert [tuple(y.shape) for y in outputs] == [(4, 32), (4, 32), (4, 2)]
scores = keras.ops.convert_to_numpy(outputs[2])
np.testing.assert_allclose(scores, model.predict(x[:4], verbose=0), atol=1e-5)
