"""Layers that act in training only: dropout and noise."""

from khub import ops, random
from khub.fields import Rate
from khub.layers.layer import Layer


class Dropout(Layer):
    """Zeroes each element with probability `rate` in training and scales the others up.

    noise_shape: shape of the drawn mask, 1 (or None: as the input) where it is shared
    """

    rate: Rate
    noise_shape: tuple = None
    seed: int = None
    supports_masking = True

    def setup(self):
        if self.rate > 0:
            self.seed_generator = random.SeedGenerator(self.seed)
        self.built = True
        self._prepare()

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        shape = self.noise_shape
        if shape is not None:
            shape = [
                n if n is not None else s for n, s in zip(shape, ops.shape(inputs), strict=True)
            ]
        return random.dropout(inputs, self.rate, shape, self.seed_generator)


class GaussianNoise(Layer):
    """Adds normal noise of deviation `stddev` in training."""

    stddev: Rate
    seed: int = None
    supports_masking = True

    def setup(self):
        self.seed_generator = random.SeedGenerator(self.seed)

    def call(self, inputs, training=False):
        if not training or self.stddev == 0:
            return inputs
        shape, dtype = ops.shape(inputs), self.compute_dtype
        return inputs + random.normal(shape, 0.0, self.stddev, dtype, self.seed_generator)


class ActivityRegularization(Layer):
    """Adds an L1 and L2 penalty on its input to the loss."""

    l1: float = 0.0
    l2: float = 0.0
    supports_masking = True

    def setup(self):
        from khub.regularizers import L1L2

        self.activity_regularizer = L1L2(self.l1, self.l2)

    def get_config(self):
        config = super().get_config()
        del config["activity_regularizer"]  # made of l1 and l2
        return config

    def call(self, inputs):
        return inputs
