"""Callbacks: stop early, set the rate of each epoch, write one's own."""

import keras
import numpy as np
from keras import layers

keras.utils.set_random_seed(16)
x = np.random.RandomState(0).randn(120, 3).astype("float32")
y = x.sum(1, keepdims=True)


def regressor(rate=0.1):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


class Recorder(keras.callbacks.Callback):
    """Keeps the losses of batches and stops below a bound."""

    def __init__(self, bound):
        super().__init__()
        self.bound, self.losses, self.events = bound, [], []

    def on_train_begin(self, logs=None):
        self.events.append(("begin", self.params["epochs"], self.params["steps"]))

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])

    def on_epoch_end(self, epoch, logs=None):
        self.events.append((epoch, sorted(logs)))
        if logs["loss"] < self.bound:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        self.events.append("end")


recorder = Recorder(0.01)
history = regressor().fit(
    x, y, epochs=50, batch_size=30, callbacks=[recorder], validation_split=0.2, verbose=0
)
epochs = len(history.epoch)
assert 1 < epochs < 50 and history.history["loss"][-1] < 0.01 <= history.history["loss"][-2]
assert len(recorder.losses) == 4 * epochs
assert recorder.events[0] == ("begin", 50, 4) and recorder.events[-1] == "end"
assert recorder.events[1] == (0, ["loss", "val_loss"])

schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5 if epoch else rate)
history = regressor().fit(x, y, epochs=4, callbacks=[schedule], verbose=0).history
np.testing.assert_allclose(history["learning_rate"], [0.1, 0.05, 0.025, 0.0125], rtol=1e-6)

model = regressor(rate=0.0)  # it cannot improve
stop = keras.callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True)
before = model.get_weights()
history = model.fit(x, y, epochs=20, callbacks=[stop], verbose=0, shuffle=False)
assert len(history.epoch) == 3 and stop.stopped_epoch == 2
np.testing.assert_array_equal(before[0], model.get_weights()[0])

seen = []
call = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: seen.append(epoch))
regressor().fit(x, y, epochs=5, initial_epoch=2, callbacks=[call], verbose=0)
assert seen == [2, 3, 4]
diverging = regressor(rate=1e12)
nan = keras.callbacks.TerminateOnNaN()
assert len(diverging.fit(x, y, epochs=30, callbacks=[nan], verbose=0).epoch) < 30
