"""The same model fed by arrays, a generator, a PyDataset and, where torch is, a DataLoader."""

import importlib.util
import math

import keras
import numpy as np
from keras import layers

keras.utils.set_random_seed(20)
x = np.random.RandomState(0).randn(90, 4).astype("float32")
y = (x @ np.array([[1], [-1], [2], [0.5]])).astype("float32")


def linear():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
    return model


class Rows(keras.utils.PyDataset):
    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size, self.epochs = size, 0

    def __len__(self):
        return math.ceil(len(x) / self.size)

    def __getitem__(self, index):
        rows = slice(index * self.size, (index + 1) * self.size)
        return x[rows], y[rows]

    def on_epoch_end(self):
        self.epochs += 1


def batches(endless):
    while True:
        for start in range(0, 90, 30):
            yield x[start : start + 30], y[start : start + 30]
        if not endless:
            return


model, rows = linear(), Rows(20)
history = model.fit(rows, epochs=20, validation_data=Rows(45), verbose=0).history
assert history["val_loss"][-1] < 0.05 and rows.epochs >= 19
expected = model.evaluate(x, y, verbose=0, return_dict=True)
sources = [Rows(30), batches(endless=False)]
if importlib.util.find_spec("torch"):
    from torch.utils.data import DataLoader, StackDataset

    sources.append(DataLoader(StackDataset(x, y), batch_size=30))
for source in sources:
    found = model.evaluate(source, verbose=0, return_dict=True)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4)
outputs = model.predict(x, batch_size=7, verbose=0)
np.testing.assert_allclose(outputs, model.predict(Rows(30), verbose=0), atol=1e-5)
some = model.predict(batches(endless=True), steps=4, verbose=0)
assert some.shape == (120, 1)
np.testing.assert_allclose(some[:90], outputs, atol=1e-5)

endless = linear()
history = endless.fit(batches(endless=True), steps_per_epoch=6, epochs=12, verbose=0).history
assert history["loss"][-1] < 0.1 and len(history["loss"]) == 12
single = linear()
before = single.test_on_batch(x, y, return_dict=True)["loss"]
for _ in range(20):
    single.train_on_batch(x, y)
assert single.test_on_batch(x, y, return_dict=True)["loss"] < before
np.testing.assert_allclose(single.predict_on_batch(x[:5]), single.predict(x[:5], verbose=0))
