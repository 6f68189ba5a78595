"""Learning rates that change by step, built in and of one's own, and optimizers with their help."""

import keras
import numpy as np
from keras import layers, ops

keras.utils.set_random_seed(18)
schedules = keras.optimizers.schedules


class WarmUp(schedules.LearningRateSchedule):
    """Rises over some steps, then falls with the root of the step."""

    def __init__(self, peak, steps):
        self.peak, self.steps = peak, steps

    def __call__(self, step):
        step = ops.cast(step, "float32") + 1
        return self.peak * ops.minimum(step / self.steps, ops.sqrt(self.steps / step))

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps}


def values(schedule, steps):
    return np.array([float(schedule(step)) for step in steps])


steps = np.arange(0, 40, 5)
np.testing.assert_allclose(
    values(schedules.ExponentialDecay(0.1, 10, 0.5), steps), 0.1 * 0.5 ** (steps / 10), rtol=1e-5
)
cosine = values(schedules.CosineDecay(1.0, 20, alpha=0.1), steps)
np.testing.assert_allclose(
    cosine, 0.9 * (1 + np.cos(np.pi * np.minimum(steps, 20) / 20)) / 2 + 0.1, rtol=1e-5
)
pieces = schedules.PiecewiseConstantDecay([10, 20], [1.0, 0.5, 0.1])
assert np.allclose(values(pieces, [0, 10, 11, 20, 21]), [1, 1, 0.5, 0.5, 0.1])

x = np.random.RandomState(0).randn(256, 4).astype("float32")
y = x @ np.array([[1], [-2], [3], [0]], "float32")
for optimizer in (
    keras.optimizers.Adam(WarmUp(0.2, 10)),
    keras.optimizers.SGD(schedules.CosineDecay(0.1, 100), momentum=0.9, nesterov=True),
    keras.optimizers.AdamW(0.1, weight_decay=1e-3, clipnorm=1.0),
    keras.optimizers.RMSprop(0.05, use_ema=True, ema_momentum=0.5),
):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    model.compile(optimizer, "mse")
    history = model.fit(x, y, epochs=15, batch_size=32, verbose=0).history
    assert history["loss"][-1] < 0.05, (optimizer.name, history["loss"])
    assert int(optimizer.iterations) == 15 * 8

adam = keras.optimizers.Adam(WarmUp(0.2, 10))
variable = keras.Variable([1.0, 2.0])
adam.build([variable])
adam.apply([ops.ones(2)])
np.testing.assert_allclose(ops.convert_to_numpy(variable), [1 - 0.02, 2 - 0.02], rtol=1e-4)
np.testing.assert_allclose(float(adam.learning_rate), 0.04, rtol=1e-5)
config = keras.optimizers.serialize(keras.optimizers.SGD(schedules.CosineDecay(0.1, 100)))
assert (
    keras.optimizers.deserialize(config).get_config()["learning_rate"]["config"]["decay_steps"]
    == 100
)
