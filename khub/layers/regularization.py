"""Layers that act in training only: dropout and noise."""

from khub import ops, random
from khub.backend import windows
from khub.fields import DataFormat, Rate
from khub.layers.layer import InputSpec, Layer

__all__ = ["ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise"]
__all__ += ["SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"]


class _Noise(Layer):
    """What acts in training only, with random numbers of its own; `rate` 0 does nothing."""

    supports_masking = True

    def setup(self):
        if self.rate > 0:
            self.seed_generator = random.SeedGenerator(self.seed)
        self.built = True
        self._prepare()

    def call(self, inputs, training=False):
        return self.disturb(inputs) if training and self.rate else inputs

    def _noise_shape(self, inputs):
        """The shape of what is drawn: 1 where a number is shared."""
        shape = ops.shape(inputs)
        if self.noise_shape is None:
            return shape
        return [s if n is None else n for n, s in zip(self.noise_shape, shape, strict=True)]


class Dropout(_Noise):
    """Zeroes each element with probability `rate` in training and scales the others up.

    noise_shape: shape of the drawn mask, 1 (or None: as the input) where it is shared
    """

    rate: Rate
    noise_shape: tuple = None
    seed: int = None

    def disturb(self, inputs):
        shape = None if self.noise_shape is None else self._noise_shape(inputs)
        return random.dropout(inputs, self.rate, shape, self.seed_generator)


class AlphaDropout(_Noise):
    """Dropout that keeps the mean and variance of SELU's outputs.  arXiv:1706.02515"""

    rate: Rate
    noise_shape: tuple = None
    seed: int = None

    def disturb(self, inputs):
        low = -1.7580993408473766  # SELU's limit at minus infinity: -scale * alpha
        scale = ((1 - self.rate) * (1 + self.rate * low**2)) ** -0.5
        drawn = random.uniform(self._noise_shape(inputs), seed=self.seed_generator)
        kept = ops.cast(drawn >= self.rate, self.compute_dtype)
        return (inputs * kept + low * (1 - kept)) * scale - scale * low * self.rate


class GaussianDropout(_Noise):
    """Multiplies by normal noise of mean 1 and variance rate / (1 - rate).  JMLR 15, 1929 (2014)"""

    rate: Rate
    seed: int = None

    def disturb(self, inputs):
        deviation = (self.rate / (1 - self.rate)) ** 0.5
        shape, dtype = ops.shape(inputs), self.compute_dtype
        return inputs * random.normal(shape, 1.0, deviation, dtype, self.seed_generator)


class _SpatialDropout(_Noise):
    _space = 2
    data_format = "channels_last"

    def setup(self):
        super().setup()
        # the first call checks the rank
        self.built, self.input_spec = False, InputSpec(ndim=self._space + 2)

    def disturb(self, inputs):
        (batch, *sizes), ones = ops.shape(inputs), [1] * self._space
        first = windows.channels_first(self.data_format)
        shape = (batch, sizes[0], *ones) if first else (batch, *ones, sizes[-1])
        return random.dropout(inputs, self.rate, shape, self.seed_generator)

    def get_config(self):
        config = super().get_config()  # as Keras has it
        del config["trainable"]
        if self.dtype_policy.name == self.dtype:
            config["dtype"] = self.dtype
        return config


class SpatialDropout1D(_SpatialDropout):
    """Drops whole channels of (batch, time, channels), alike at every step.  arXiv:1411.4280"""

    _space = 1

    rate: Rate
    seed: int = None


class SpatialDropout2D(_SpatialDropout):
    """Drops whole channels of images, alike at every place.  arXiv:1411.4280"""

    rate: Rate
    data_format: DataFormat = None
    seed: int = None


class SpatialDropout3D(SpatialDropout2D):
    """Drops whole channels of volumes, alike at every place.  arXiv:1411.4280"""

    _space = 3


class GaussianNoise(_Noise):
    """Adds normal noise of deviation `stddev` in training."""

    stddev: Rate
    seed: int = None
    rate = property(lambda self: self.stddev)

    def disturb(self, inputs):
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
