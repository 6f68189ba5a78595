"""Normalization layers."""

from khub import ops
from khub.fields import Initializers, Penalties, Rate, Weights
from khub.layers.layer import InputSpec, Layer

__all__ = ["BatchNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization"]
__all__ += ["UnitNormalization"]


def _layout(axis, input_shape):
    """The shape of weights over `axis`; that in which they broadcast, None if it is the same."""
    rank = len(input_shape)
    axes = sorted(a % rank for a in ((axis,) if isinstance(axis, int) else axis))
    wide = [n if a in axes else 1 for a, n in enumerate(input_shape)]
    last = axes == list(range(rank - len(axes), rank))
    return [input_shape[a] for a in axes], None if last else wide


class LayerNormalization(Layer):
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta over `axis`.  arXiv:1607.06450

    Weights: gamma and beta, in the shape of the normalized axes
    """

    _keras_keys = {"rms_scaling": False}

    axis: object = -1
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    options: Weights(beta="zeros", gamma="ones")
    supports_masking = True

    def build(self, input_shape):
        shape, self._shape = _layout(self.axis, input_shape)
        self.gamma = self.add_weight(shape, name="gamma") if self.scale else None
        self.beta = self.add_weight(shape, name="beta") if self.center else None

    def call(self, inputs):
        gamma, beta = self.gamma, self.beta
        if self._shape is not None:  # the normalized axes are not the last ones
            gamma, beta = (w if w is None else ops.reshape(w, self._shape) for w in (gamma, beta))
        return ops.layer_normalization(inputs, gamma, beta, self.axis, self.epsilon)


class RMSNormalization(Layer):
    """x / sqrt(mean(x**2) + epsilon) * scale over `axis`.  arXiv:1910.07467

    Weights: scale, in the shape of the normalized axis
    """

    axis: int = -1
    epsilon: float = 1e-6
    supports_masking = True

    def build(self, input_shape):
        shape, self._shape = _layout(self.axis, input_shape)
        self.scale = self.add_weight(shape, "ones", name="scale")

    def call(self, x):
        scale = self.scale if self._shape is None else ops.reshape(self.scale, self._shape)
        return ops.rms_normalization(x, scale, self.axis, self.epsilon)


class BatchNormalization(Layer):
    """Normalizes by the batch's mean and variance in training, else by running averages.

    arXiv:1502.03167

    axis: the features'; momentum: of the running averages.
    renorm: whether training corrects the batch's moments by r and d towards averages of their own
    (arXiv:1702.03275); renorm_clipping: limits "rmin" and "rmax" of r, "dmax" of abs(d)
    Weights: gamma, beta, moving_mean, moving_variance (n,); with renorm also moving_stddev,
    renorm_mean, renorm_stddev (n,)
    """

    axis: int = -1
    momentum: Rate = 0.99
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    starts: Initializers(beta="zeros", gamma="ones", moving_mean="zeros", moving_variance="ones")
    penalties: Penalties("beta", "gamma")
    renorm: bool = False
    renorm_clipping: dict = None
    renorm_momentum: Rate = 0.99
    synchronized: bool = False
    supports_masking = True

    def setup(self):
        if self.renorm:
            self.renorm_clipping = dict(self.renorm_clipping or {})
        if unknown := sorted(set(self.renorm_clipping or ()) - {"rmin", "rmax", "dmax"}):
            raise ValueError(f"renorm_clipping takes 'rmin', 'rmax' and 'dmax', got {unknown}.")

    def build(self, input_shape):
        size = input_shape[self.axis]
        self.gamma = self.add_weight((size,), name="gamma") if self.scale else None
        self.beta = self.add_weight((size,), name="beta") if self.center else None
        mean, deviation = self.moving_mean_initializer, self._initial_deviation
        starts = {"moving_mean": mean, "moving_variance": self.moving_variance_initializer}
        if self.renorm:
            starts |= dict(moving_stddev=deviation, renorm_mean=mean, renorm_stddev=deviation)
        for name, start in starts.items():
            kept = dict(trainable=False, autocast=False, aggregation="mean", name=name)
            setattr(self, name, self.add_weight((size,), start, **kept))
        self.input_spec = InputSpec(ndim=len(input_shape), axes={self.axis: size})
        self._reduced = [a for a in range(len(input_shape)) if a != self.axis % len(input_shape)]

    def call(self, inputs, training=None, mask=None):
        gamma, beta = self.gamma, self.beta
        if training and self.trainable:
            mean, variance = self._moments(inputs, mask)
            if self.renorm:
                gamma, beta = self._renormalize(mean, variance)
            else:
                self._follow(self.moving_variance, variance, self.momentum)
            self._follow(self.moving_mean, mean, self.momentum)
        else:
            mean, variance = self.moving_mean.value, self.moving_variance.value
        if mean.dtype != inputs.dtype:
            mean, variance = (ops.cast(x, ops.dtype(inputs)) for x in (mean, variance))
        return ops.batch_normalization(inputs, mean, variance, self.axis, beta, gamma, self.epsilon)

    @staticmethod
    def _follow(moving, now, momentum):
        now = ops.cast(ops.stop_gradient(now), moving.dtype)
        moving.assign(moving.value * momentum + now * (1 - momentum))

    def _initial_deviation(self, shape, dtype):
        return ops.sqrt(self.moving_variance_initializer(shape, dtype))

    def _renormalize(self, mean, variance):
        """Move the averages; return the gamma and beta that have r and d in them."""
        limits, name, dtype = self.renorm_clipping or {}, ops.dtype(mean), self.moving_mean.dtype
        mean, variance = (ops.cast(ops.stop_gradient(x), dtype) for x in (mean, variance))
        deviation, usual = ops.sqrt(variance + self.epsilon), self.renorm_stddev.value
        most = limits.get("dmax", float("inf"))
        r = ops.clip(deviation / usual, limits.get("rmin", 0.0), limits.get("rmax", float("inf")))
        d = ops.clip((mean - self.renorm_mean.value) / usual, -most, most)
        self._follow(self.renorm_mean, mean, self.renorm_momentum)
        self._follow(self.renorm_stddev, deviation, self.renorm_momentum)
        self._follow(self.moving_stddev, deviation, self.momentum)
        square = ops.square(self.moving_stddev.value)
        self.moving_variance.assign(ops.relu(square - self.epsilon))
        r, d = ops.cast(r, name), ops.cast(d, name)
        if self.gamma is not None:
            r, d = r * self.gamma, d * self.gamma
        return r, d if self.beta is None else d + self.beta

    def _moments(self, inputs, mask):
        if mask is None:
            return ops.moments(inputs, self._reduced)
        ones = [1] * (len(inputs.shape) - len(mask.shape))
        weights = ops.reshape(ops.cast(mask, inputs.dtype), (*mask.shape, *ones))
        weights = ops.broadcast_to(weights, inputs.shape)
        count = ops.maximum(ops.sum(weights, axis=self._reduced), 1)  # 1 where nothing is
        mean = ops.sum(inputs * weights, axis=self._reduced) / count
        shape = [1] * len(inputs.shape)
        shape[self.axis] = -1
        centred = inputs - ops.reshape(mean, shape)
        return mean, ops.sum(ops.square(centred) * weights, axis=self._reduced) / count


class UnitNormalization(Layer):
    """Scales each row to length 1 over `axis`."""

    axis: object = -1
    supports_masking = True

    def call(self, inputs):
        return ops.normalize(inputs, self.axis)


class GroupNormalization(Layer):
    """Normalizes groups of channels within each example.  arXiv:1803.08494

    groups: -1 means one group a channel.  Weights: gamma, beta (n,)
    """

    groups: int = 32
    axis: int = -1
    epsilon: float = 1e-3
    center: bool = True
    scale: bool = True
    options: Weights(beta="zeros", gamma="ones")
    supports_masking = True

    def build(self, input_shape):
        size = input_shape[self.axis]
        self._count = size if self.groups == -1 else self.groups
        if size % self._count:
            raise ValueError(f"{size} channels do not divide into {self._count} groups.")
        self.gamma = self.add_weight((size,), name="gamma") if self.scale else None
        self.beta = self.add_weight((size,), name="beta") if self.center else None

    def call(self, inputs):
        weights = self.gamma, self.beta
        return ops.group_normalization(inputs, self._count, *weights, self.axis, self.epsilon)
