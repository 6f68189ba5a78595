"""The average of a model's weights over its training, which is tested and kept."""

import math

import khub
from khub import callbacks


class WeightAverage(callbacks.Callback):
    """Keeps an exponential average of all weights and statistics, on the device.

    The model has it while it is evaluated in `fit`, and after `fit`; it trains its own weights.
    momentum: of the average   warmup: steps; after t of them the momentum is multiplied by
    1 - exp(-t / warmup), so that a short training is no average with where it began
    Polyak and Juditsky 1992, doi:10.1137/0330046
    """

    def __init__(self, momentum=0.9999, warmup=2000):
        super().__init__()
        if not 0 <= momentum < 1 or warmup <= 0:
            raise ValueError(
                f"momentum must lie in 0 .. 1 and warmup be positive, got {momentum} and {warmup}."
            )
        self.momentum, self.warmup, self._pairs = momentum, warmup, []

    def on_train_begin(self, logs=None):
        floats = [v for v in self.model.weights if "float" in v.dtype]
        pairs = [(v, khub.Variable(v.numpy(), dtype="float32", trainable=False)) for v in floats]

        def move(share):
            for v, average in pairs:
                average.assign_add((khub.ops.cast(v.value, "float32") - average.value) * share)

        def swap():
            for v, average in pairs:
                own = v.value
                v.assign(khub.ops.cast(average.value, v.dtype))
                average.assign(khub.ops.cast(own, "float32"))

        self._pairs, self._steps, self._done = pairs, 0, 0
        self._move, self._swap = khub.jit(move), khub.jit(swap)

    def on_train_batch_end(self, batch, logs=None):
        self._steps += batch + 1 - self._done  # one call may have been several steps
        self._done = batch + 1
        momentum = self.momentum * (1 - math.exp(-self._steps / self.warmup))
        self._move(khub.ops.convert_to_tensor(1 - momentum, "float32"))

    def on_epoch_begin(self, epoch, logs=None):
        self._done = 0

    def on_test_begin(self, logs=None):
        if self._pairs:
            self._swap()

    def on_test_end(self, logs=None):
        self.on_test_begin()

    def on_train_end(self, logs=None):
        self.on_test_begin()
        self._pairs = []
