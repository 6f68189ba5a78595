"""A layer of one's own: its weights, its configuration, its way through plain data and back."""

import json

import keras
import numpy as np
from keras import layers, ops


@keras.saving.register_keras_serializable(package="Programs")
class Affine(layers.Layer):
    """scale * (x @ kernel) + bias, with a count of its calls in training."""

    def __init__(self, units=4, scale=1.0, kernel_initializer="glorot_uniform", **kwargs):
        super().__init__(**kwargs)
        self.units, self.scale = units, scale
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        self.kernel = self.add_weight(
            shape=(input_shape[-1], self.units), initializer=self.kernel_initializer, name="kernel"
        )
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias")
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, inputs, training=False):
        if training:
            self.calls.assign(self.calls + 1)
        return self.scale * ops.matmul(inputs, self.kernel) + self.bias

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        initializer = keras.initializers.serialize(self.kernel_initializer)
        own = {"units": self.units, "scale": self.scale, "kernel_initializer": initializer}
        return {**super().get_config(), **own}


layer = Affine(3, scale=2.0, kernel_initializer="ones", name="first")
x = np.arange(8, dtype="float32").reshape(2, 4)
np.testing.assert_allclose(ops.convert_to_numpy(layer(x)), [[12] * 3, [44] * 3])
for _ in range(3):
    layer(x, training=True)
assert float(layer.calls) == 3 and len(layer.non_trainable_weights) == 1
assert layer.compute_output_shape((None, 4)) == (None, 3)
assert [w.name for w in layer.weights] == ["kernel", "bias", "calls"]

assert keras.saving.get_registered_name(Affine) == "Programs>Affine"
text = json.dumps(keras.saving.serialize_keras_object(layer))
again = keras.saving.deserialize_keras_object(json.loads(text))
assert type(again) is Affine and again.get_config() == layer.get_config()

model = keras.Sequential([keras.Input((4,)), layer, layers.ReLU(), Affine(2)])
copy = keras.Sequential.from_config(json.loads(json.dumps(model.get_config())))
copy.set_weights(model.get_weights())
np.testing.assert_allclose(copy.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6)


class Unknown(Affine):
    """Not registered: found only where it is named."""


config = keras.saving.serialize_keras_object(Unknown(2))
with keras.saving.custom_object_scope({"Unknown": Unknown}):
    assert type(keras.saving.deserialize_keras_object(config)) is Unknown
