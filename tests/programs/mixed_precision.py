"""Computing in 16 bits while weights stay in 32."""

import keras
import numpy as np
from keras import layers

keras.utils.set_random_seed(19)
assert keras.config.dtype_policy().name == "float32"
x = np.random.RandomState(0).randn(256, 6).astype("float32")
y = (x[:, 0] - x[:, 1] > 0).astype("int32")

keras.config.set_dtype_policy("mixed_bfloat16")
try:
    inputs = keras.Input((6,))
    hidden = layers.Dense(32, activation="relu")
    normalization = layers.LayerNormalization()
    last = layers.Dense(2, activation="softmax", dtype="float32")
    model = keras.Model(inputs, last(normalization(hidden(inputs))))
finally:
    keras.config.set_dtype_policy("float32")
assert hidden.dtype_policy.name == "mixed_bfloat16"
assert (hidden.compute_dtype, hidden.variable_dtype) == ("bfloat16", "float32")
assert all(keras.backend.standardize_dtype(w.dtype) == "float32" for w in model.weights)
assert hidden.output.dtype == "bfloat16" and last.output.dtype == model.output.dtype == "float32"
model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(x, y, epochs=10, verbose=0).history
assert history["accuracy"][-1] > 0.95
assert model.predict(x[:4], verbose=0).dtype == "float32"
np.testing.assert_allclose(model.predict(x[:4], verbose=0).sum(1), 1, atol=1e-3)

# float16 has a short range: its gradients are scaled
half = keras.Sequential(
    [keras.Input((6,)), layers.Dense(8, dtype="mixed_float16"), layers.Dense(1, dtype="float32")]
)
scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05), initial_scale=1024.0)
half.compile(scaled, "mse")
history = half.fit(x, x[:, :1], epochs=5, verbose=0).history
assert history["loss"][-1] < 0.3 * history["loss"][0]

policy = keras.DTypePolicy("float16")
layer = layers.Dense(3, dtype=policy)
layer.build((None, 6))
assert keras.backend.standardize_dtype(layer.kernel.dtype) == "float16"
assert layer.get_config()["dtype"]["config"]["name"] == "float16"
