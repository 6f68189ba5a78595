"""A loss, metric, initializer, regularizer, constraint and activation of one's own."""

import keras
import numpy as np
from keras import layers, ops

keras.utils.set_random_seed(17)
register = keras.saving.register_keras_serializable(package="Own")


@register
class Huberish(keras.losses.Loss):
    def __init__(self, width=1.0, name="huberish", **kwargs):
        super().__init__(name=name, **kwargs)
        self.width = width

    def call(self, y_true, y_pred):
        return ops.mean(ops.sqrt(1 + ops.square((y_pred - y_true) / self.width)) - 1, axis=-1)


@register
class Worst(keras.metrics.Metric):
    """The largest error so far."""

    def __init__(self, name="worst", **kwargs):
        super().__init__(name=name, **kwargs)
        self.largest = self.add_weight(name="largest", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        error = ops.max(ops.abs(ops.cast(y_true, y_pred.dtype) - y_pred))
        self.largest.assign(ops.maximum(self.largest, error))

    def result(self):
        return self.largest.value


@register
class Diagonal(keras.initializers.Initializer):
    def __init__(self, gain=1.0):
        self.gain = gain

    def __call__(self, shape, dtype=None):
        return self.gain * ops.eye(*shape, dtype=dtype or "float32")

    def get_config(self):
        return {"gain": self.gain}


@register
class Near(keras.regularizers.Regularizer):
    """Keeps weights near a number."""

    def __init__(self, number=0.5):
        self.number = number

    def __call__(self, x):
        return 0.1 * ops.sum(ops.square(x - self.number))

    def get_config(self):
        return {"number": self.number}


@register
class Positive(keras.constraints.Constraint):
    def __call__(self, w):
        return ops.maximum(w, 0.0)


@register
def bend(x):
    return ops.where(x > 0, x, 0.1 * x)


x = np.random.RandomState(0).randn(200, 3).astype("float32")
y = (x @ [[1.0], [2.0], [-1.0]]).astype("float32")
own = {"kernel_initializer": Diagonal(2.0), "kernel_regularizer": Near(), "activation": bend}
first = layers.Dense(4, kernel_constraint=Positive(), **own)
model = keras.Sequential([keras.Input((3,)), first, layers.Dense(1)])
np.testing.assert_allclose(first.get_weights()[0], 2 * np.eye(3, 4))
assert len(model.losses) == 1 and len(first.losses) == 1
model.compile(keras.optimizers.Adam(0.03), loss=Huberish(0.5), metrics=[Worst()])
history = model.fit(x, y, epochs=20, verbose=0).history
assert history["loss"][-1] < 0.6 * history["loss"][0]
assert first.get_weights()[0].min() >= 0  # though the third input counts negatively
worst = np.abs(model.predict(x, verbose=0) - y).max()
np.testing.assert_allclose(model.evaluate(x, y, verbose=0)[1], worst, rtol=1e-4)
copy = keras.Sequential.from_config(model.get_config())
assert copy.layers[0].activation is bend and copy.layers[0].kernel_initializer.gain == 2.0
