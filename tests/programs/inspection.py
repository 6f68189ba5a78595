"""Looking at a model: summary, layers, configuration; and making it again from it."""

import json

import keras
import numpy as np
from keras import layers, ops

inputs = keras.Input((8, 8, 3), name="image")
x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
x = layers.BatchNormalization(name="norm")(x)
x = layers.GlobalAveragePooling2D(name="pool")(x)
side = ops.mean(inputs, axis=(1, 2)) * 2.0
x = layers.Concatenate(name="both")([x, side])
outputs = layers.Dense(2, kernel_regularizer="l2", name="last")(x)
model = keras.Model(inputs, outputs, name="looker")

lines = []
model.summary(print_fn=lambda text, **_: lines.append(text))
text = "\n".join(lines)
total = (3 * 3 * 3 * 4 + 4) + 4 * 4 + (7 * 2 + 2)
for piece in ("looker", "conv", "norm", "last", "(None, 6, 6, 4)", str(total), str(total - 8)):
    assert piece in text, piece
assert model.count_params() == total
names = [layer.name for layer in model.layers]
assert names[:4] == ["image", "conv", "norm", "pool"] and names[-2:] == ["both", "last"]
assert model.get_layer("conv") is model.get_layer(index=1)
assert [w.path for w in model.trainable_weights][:2] == ["conv/kernel", "conv/bias"]

rows = np.random.RandomState(0).rand(5, 8, 8, 3).astype("float32")
expected = model.predict(rows, verbose=0)
by_config = keras.Model.from_config(json.loads(json.dumps(model.get_config())))
by_json = keras.models.model_from_json(model.to_json())
clone = keras.models.clone_model(model)
for copy in (by_config, by_json, clone):
    assert copy.name == "looker" and [tuple(w.shape) for w in copy.weights] == [
        tuple(w.shape) for w in model.weights
    ]
    assert not np.allclose(copy.predict(rows, verbose=0), expected)
    copy.set_weights(model.get_weights())
    np.testing.assert_allclose(copy.predict(rows, verbose=0), expected, atol=1e-5)
    assert len(copy.losses) == 1


def wider(layer):
    config = layer.get_config()
    if layer.name == "conv":
        config["filters"] = 9
    return layer.__class__.from_config(config)


changed = keras.models.clone_model(model, clone_function=wider)
assert changed.get_layer("conv").get_weights()[0].shape == (3, 3, 3, 9)
assert changed.get_layer("last").get_weights()[0].shape == (12, 2)
chain = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(2)], name="chain")
again = keras.models.clone_model(chain)
assert again.name == "chain" and again.output_shape == (None, 2)
assert not np.array_equal(again.get_weights()[0], chain.get_weights()[0])
part = keras.Model(model.input, model.get_layer("pool").output)
assert part.predict(rows, verbose=0).shape == (5, 4)
