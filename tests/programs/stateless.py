"""Training without side effects: calls, updates and metrics as functions of plain values.

The gradient of the linear model is worked out by hand, so that this runs where nothing derives it.
"""

import keras
import numpy as np
from keras import layers, ops

keras.utils.set_random_seed(23)
random = np.random.RandomState(0)
x = random.randn(128, 3).astype("float32")
y = ops.convert_to_tensor((x @ [[1.0], [-2.0], [0.5]] + 3).astype("float32"))
x = ops.convert_to_tensor(x)

model = keras.Sequential([keras.Input((3,)), layers.Dropout(0.5), layers.Dense(1)])
optimizer = keras.optimizers.Adam(0.1)
optimizer.build(model.trainable_variables)
metric = keras.metrics.MeanSquaredError()

trainable = [ops.copy(v.value) for v in model.trainable_variables]
other = [v.value for v in model.non_trainable_variables]
state = [ops.copy(v.value) for v in optimizer.variables]
start = model.get_weights()


def gradients(trainable, other):
    """Of the mean squared error, with respect to kernel and bias."""
    outputs, other = model.stateless_call(trainable, other, x, training=False)
    error = 2 * (outputs - y) / x.shape[0]
    return [ops.matmul(ops.transpose(x), error), ops.sum(error, axis=0)], other


losses = []
for _ in range(150):
    slopes, other = gradients(trainable, other)
    trainable, state = optimizer.stateless_apply(state, slopes, trainable)
    outputs, _ = model.stateless_call(trainable, other, x)
    metric_state = [ops.zeros(v.shape, v.dtype) for v in metric.variables]
    metric_state = metric.stateless_update_state(metric_state, y, outputs)
    losses.append(ops.convert_to_numpy(metric.stateless_result(metric_state)))
assert losses[-1] < 1e-2 < losses[0], losses[::30]
for before, now in zip(start, model.get_weights()):  # nothing was written yet
    np.testing.assert_array_equal(before, now)
assert int(optimizer.iterations) == 0
for variable, value in zip(model.trainable_variables, trainable):
    variable.assign(value)
np.testing.assert_allclose(model.get_weights()[0], [[1], [-2], [0.5]], atol=0.1)

# a random layer's state goes in and out
first, new = model.stateless_call(trainable, other, x, training=True)
again, _ = model.stateless_call(trainable, other, x, training=True)
later, _ = model.stateless_call(trainable, new, x, training=True)
first, again, later = map(ops.convert_to_numpy, (first, again, later))
np.testing.assert_array_equal(first, again)
assert not np.allclose(first, later)
