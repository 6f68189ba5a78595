"""Forecasting a sum of waves from its past, by an LSTM and by causal convolutions."""

import keras
import numpy as np
from keras import layers

keras.utils.set_random_seed(8)
LENGTH, AHEAD = 24, 3
time = np.arange(900)
series = np.sin(time / 4) + 0.5 * np.sin(time / 11)
series += 0.05 * np.random.RandomState(0).randn(900)
mean, deviation = series[:600].mean(), series[:600].std()
series = ((series - mean) / deviation).astype("float32")
windows = np.lib.stride_tricks.sliding_window_view(series, LENGTH + AHEAD)
past, future = windows[:, :LENGTH, None], windows[:, LENGTH:]
train, test = slice(0, 600), slice(650, None)
naive = np.mean((future[test] - past[test, -1]) ** 2)


def recurrent():
    return keras.Sequential([keras.Input((LENGTH, 1)), layers.LSTM(24), layers.Dense(AHEAD)])


def convolutional():
    inputs = keras.Input((LENGTH, 1))
    x = inputs
    for dilation in (1, 2, 4):
        x = layers.Conv1D(16, 3, padding="causal", dilation_rate=dilation, activation="relu")(x)
    assert x.shape == (None, LENGTH, 16)
    x = layers.Flatten()(layers.Cropping1D((LENGTH - 4, 0))(x))
    return keras.Model(inputs, layers.Dense(AHEAD)(x))


for make in (recurrent, convolutional):
    model = make()
    model.compile(keras.optimizers.Adam(0.01), loss="mse", metrics=["mae"])
    options = {"validation_data": (past[test], future[test]), "batch_size": 64, "verbose": 0}
    history = model.fit(past[train], future[train], epochs=10, **options).history
    assert history["val_loss"][-1] < 0.2 * naive, (make.__name__, history["val_loss"], naive)
    forecast = model.predict(past[test], verbose=0)
    assert forecast.shape == future[test].shape
    np.testing.assert_allclose(
        np.mean((forecast - future[test]) ** 2), history["val_loss"][-1], rtol=1e-3
    )
