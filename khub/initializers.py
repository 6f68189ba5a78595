"""Initial values of Variables, computed on the host: equal bit for bit on every backend.

An initializer draws a seed when a Variable is made and computes the values (`sample`) when it is
first read. The generator is NumPy's Philox, keyed by that seed.
"""

import math
from typing import Annotated, ClassVar

import numpy as np

from khub import dtypes
from khub.backend import active
from khub.choices import choose
from khub.cosine_windows import COEFFICIENTS, cosine_window
from khub.fields import Choice, Configurable, Positive
from khub.saving import registry

_TRUNCATED_STDDEV = 0.8796256610342398  # of a unit normal distribution cut at two deviations
_CHUNK = 1 << 18  # numbers that stay in the cache while they are drawn


class Initializer(Configurable):
    """Base of initializers: a function of (shape, dtype) that gives a tensor."""

    _kind: ClassVar = "initializers"

    def __call__(self, shape, dtype=None):
        raise NotImplementedError(f"{type(self).__name__} must define __call__(shape, dtype=None).")

    def clone(self):
        """Return an initializer made of the same arguments."""
        return self.from_config(self.get_config())


class Host(Initializer):
    """An initializer whose values NumPy computes."""

    def draw_seed(self):
        """Return the seed of the next `sample`."""
        return 0

    def sample(self, shape, dtype, seed):
        """Return the values as a NumPy array; the same seed gives the same values."""
        dtype = dtypes.standardize(dtype)
        values = self._values(tuple(shape), np.dtype("f8" if dtype == "float64" else "f4"), seed)
        return np.asarray(values).astype(dtypes.numpy_dtype(dtype), copy=False)

    def __call__(self, shape, dtype=None):
        dtype = dtypes.standardize(dtype)
        return active.convert_to_tensor(self.sample(shape, dtype, self.draw_seed()), dtype)


class Zeros(Host):
    """0 everywhere."""

    def _values(self, shape, dtype, seed):
        return np.zeros(shape, dtype)


class Ones(Host):
    """1 everywhere."""

    def _values(self, shape, dtype, seed):
        return np.ones(shape, dtype)


class Constant(Host):
    """`value` (a number, or an array that broadcasts to the shape) everywhere."""

    value: object = 0.0

    def sample(self, shape, dtype, seed):
        """Return `value` in the given shape."""
        value = np.asarray(active.convert_to_numpy(self.value))
        value = value.astype(dtypes.numpy_dtype(dtypes.standardize(dtype)))
        return np.broadcast_to(value, tuple(shape))

    def get_config(self):
        """Return the constructor's arguments; an array becomes a list."""
        number = isinstance(self.value, (bool, int, float, complex))
        return {"value": self.value if number else active.convert_to_numpy(self.value).tolist()}


class Identity(Host):
    """`gain` on the diagonal of a matrix, else 0."""

    gain: float = 1.0

    def _values(self, shape, dtype, seed):
        if len(shape) != 2:
            raise ValueError(f"Identity makes matrices, got the shape {shape}.")
        return np.eye(*shape, dtype=dtype) * dtype.type(self.gain)


# --- random --------------------------------------------------------------------------------------
def _seed(name, value):
    if value is None or hasattr(value, "next") or isinstance(value, (int, np.integer)):
        return int(value) if isinstance(value, np.integer) else value
    raise ValueError(f"{name} must be an integer, a SeedGenerator or None, got {value!r}.")


Seed = Annotated[object, _seed]


def _generator(seed):
    return np.random.Generator(np.random.Philox(key=seed % (1 << 128)))


def _uniform(shape, low, high, dtype, seed):
    values = _generator(seed).random(shape, dtype)
    values *= dtype.type(high - low)
    values += dtype.type(low)
    return values


def _normal(shape, mean, stddev, dtype, seed):
    return _scaled(_generator(seed).standard_normal(shape, dtype), mean, stddev)


def _truncated_normal(shape, mean, stddev, dtype, seed):
    """Numbers beyond two standard deviations (4.6 %) are drawn again."""
    generator, values = _generator(seed), np.empty(math.prod(shape), dtype)
    for start in range(0, values.size, _CHUNK):
        part = values[start : start + _CHUNK]
        generator.standard_normal(dtype=dtype, out=part)
        outside = np.flatnonzero(np.abs(part) > 2)
        while outside.size:
            part[outside] = generator.standard_normal(outside.size, dtype)
            outside = outside[np.abs(part[outside]) > 2]
    return _scaled(values, mean, stddev).reshape(shape)


def _scaled(values, mean, stddev):
    values = np.asarray(values)
    values *= values.dtype.type(stddev)
    values += values.dtype.type(mean)
    return values


class _Random(Host):
    """seed: int (the same values at each call), SeedGenerator, or None (from the global seed)"""

    seed: Seed = None

    def draw_seed(self):
        """Return the user's seed, else the next one of the stream."""
        if isinstance(self.seed, int):
            return self.seed
        from khub import random

        if self.seed is None:
            return random.next_initial_seed()
        # host-side, unlike the generator's own draws: the same on every backend
        drawn = self.seed.initial_draws = getattr(self.seed, "initial_draws", 0) + 1
        return int(np.random.SeedSequence([self.seed.seed, drawn]).generate_state(1)[0])


class RandomNormal(_Random):
    """Numbers from a normal distribution."""

    mean: float = 0.0
    stddev: float = 0.05

    def _values(self, shape, dtype, seed):
        return _normal(shape, self.mean, self.stddev, dtype, seed)


class TruncatedNormal(_Random):
    """Numbers from a normal distribution, those beyond two standard deviations drawn again."""

    mean: float = 0.0
    stddev: float = 0.05

    def _values(self, shape, dtype, seed):
        return _truncated_normal(shape, self.mean, self.stddev, dtype, seed)


class RandomUniform(_Random):
    """Numbers spread evenly over [minval, maxval)."""

    minval: float = -0.05
    maxval: float = 0.05

    def _values(self, shape, dtype, seed):
        return _uniform(shape, self.minval, self.maxval, dtype, seed)


def _distribution(name, value):
    value = choose(name, value, ("truncated_normal", "normal", "untruncated_normal", "uniform"))
    return "truncated_normal" if value == "normal" else value


class VarianceScaling(_Random):
    """Random numbers of variance scale / n, n the number of inputs, outputs, or their mean.

    mode: "fan_in", "fan_out" or "fan_avg"
    distribution: "truncated_normal", "untruncated_normal" or "uniform"
    input_axes, output_axes: the axes whose product is the number of inputs and outputs; without
    both, a kernel is (*window, inputs, outputs)
    """

    scale: Positive = 1.0
    mode: Choice("fan_in", "fan_out", "fan_avg") = "fan_in"
    distribution: Annotated[str, _distribution] = "truncated_normal"
    seed: Seed = None
    input_axes: object = None
    output_axes: object = None

    def _values(self, shape, dtype, seed):
        inputs, outputs = compute_fans(shape, self.input_axes, self.output_axes)
        count = {"fan_in": inputs, "fan_out": outputs, "fan_avg": (inputs + outputs) / 2}[self.mode]
        stddev = math.sqrt(self.scale / max(1.0, count))
        if self.distribution == "uniform":
            limit = math.sqrt(3) * stddev
            return _uniform(shape, -limit, limit, dtype, seed)
        if self.distribution == "untruncated_normal":
            return _normal(shape, 0.0, stddev, dtype, seed)
        return _truncated_normal(shape, 0.0, stddev / _TRUNCATED_STDDEV, dtype, seed)


def compute_fans(shape, input_axes=None, output_axes=None):
    """Return the number of inputs and outputs of a kernel of this shape."""
    if input_axes is not None and output_axes is not None:
        return tuple(math.prod(shape[axis] for axis in axes) for axes in (input_axes, output_axes))
    if len(shape) < 2:
        return (*shape, *shape) if shape else (1, 1)
    window = math.prod(shape[:-2])
    return shape[-2] * window, shape[-1] * window


class _Scaling(VarianceScaling):
    _settings: ClassVar = ()

    def __init__(self, seed=None, input_axes=None, output_axes=None):
        super().__init__(*self._settings, seed, input_axes, output_axes)


class GlorotUniform(_Scaling):
    """Uniform, variance 2 / (inputs + outputs).  Glorot & Bengio 2010"""

    _settings: ClassVar = (1.0, "fan_avg", "uniform")


class GlorotNormal(_Scaling):
    """Truncated normal, variance 2 / (inputs + outputs).  Glorot & Bengio 2010"""

    _settings: ClassVar = (1.0, "fan_avg", "truncated_normal")


class HeUniform(_Scaling):
    """Uniform, variance 2 / inputs.  arXiv:1502.01852"""

    _settings: ClassVar = (2.0, "fan_in", "uniform")


class HeNormal(_Scaling):
    """Truncated normal, variance 2 / inputs.  arXiv:1502.01852"""

    _settings: ClassVar = (2.0, "fan_in", "truncated_normal")


class LecunUniform(_Scaling):
    """Uniform, variance 1 / inputs.  LeCun et al. 1998"""

    _settings: ClassVar = (1.0, "fan_in", "uniform")


class LecunNormal(_Scaling):
    """Truncated normal, variance 1 / inputs.  LeCun et al. 1998"""

    _settings: ClassVar = (1.0, "fan_in", "truncated_normal")


class Orthogonal(_Random):
    """A random matrix with orthonormal columns (rows if it is wide), times `gain`.  arXiv:1312.6120

    More than two axes: all but the last one count as rows.
    """

    gain: float = 1.0

    def _values(self, shape, dtype, seed):
        if len(shape) < 2:
            raise ValueError(f"Orthogonal needs at least two axes, got the shape {shape}.")
        rows, columns = math.prod(shape[:-1]), shape[-1]
        q, r = np.linalg.qr(_normal((max(rows, columns), min(rows, columns)), 0, 1, dtype, seed))
        q *= np.where(np.diagonal(r) < 0, -1, 1).astype(dtype)  # makes the distribution uniform
        return dtype.type(self.gain) * (q.T if rows < columns else q).reshape(shape)


class STFT(Host):
    """The kernel (frame length, 1, frequencies) of a convolution that is a Fourier transform.

    side: "real" or "imag"   scaling: "density" (by the root of the sum of squares of the window),
    "spectrum" (by its sum) or None   window: "hann", "hamming", "blackman", an array or None
    """

    side: Choice("real", "imag") = "real"
    window: object = "hann"
    scaling: Choice(None, "density", "spectrum") = "density"
    periodic: bool = False

    def setup(self):
        """Check the window's name."""
        if isinstance(self.window, str):
            self.window = choose("window", self.window, COEFFICIENTS)

    def _window(self, length):
        if not isinstance(self.window, str):
            return np.asarray(self.window, "float64")
        return cosine_window(self.window, length, self.periodic)

    def _values(self, shape, dtype, seed):
        length, _, frequencies = shape
        period = max(1, 2 * (frequencies - 1))
        turns = np.outer(np.arange(length), np.arange(frequencies)) / period
        kernel = (np.cos if self.side == "real" else np.sin)(-2 * math.pi * turns)
        if self.window is not None:
            window = self._window(length)
            if window.shape != (length,):
                raise ValueError(f"window must have the shape ({length},), got {window.shape}.")
            norms = {None: 1, "density": np.linalg.norm(window), "spectrum": np.abs(window).sum()}
            kernel *= window[:, None] / norms[self.scaling]
        return np.broadcast_to(kernel[:, None, :].astype(dtype), shape)


# --- names ---------------------------------------------------------------------------------------
IdentityInitializer, OrthogonalInitializer, STFTInitializer = Identity, Orthogonal, STFT
zeros, ones, constant, identity = Zeros, Ones, Constant, Identity
orthogonal, stft = Orthogonal, STFT
random_normal, random_uniform, truncated_normal = RandomNormal, RandomUniform, TruncatedNormal
variance_scaling, glorot_uniform, glorot_normal = VarianceScaling, GlorotUniform, GlorotNormal
he_uniform, he_normal, lecun_uniform, lecun_normal = HeUniform, HeNormal, LecunUniform, LecunNormal
for _class, *_aliases in (
    (Zeros, "zero"),
    (Ones, "one"),
    (RandomNormal, "normal"),
    (RandomUniform, "uniform"),
    (Identity, "IdentityInitializer"),
    (Orthogonal, "OrthogonalInitializer"),
    (STFT, "STFTInitializer"),
):
    registry.register("initializers", _class, *_aliases)


def get(identifier):
    """Return the initializer that a name, array, config, class or function stands for."""
    if isinstance(identifier, np.ndarray) or type(identifier) in active.TENSORS:
        return Constant(identifier)
    return registry.get("initializers", identifier)


def serialize(initializer):
    """Return the initializer as plain data."""
    return registry.serialize(initializer)


def deserialize(config, custom_objects=None):
    """Return the initializer that `serialize` described."""
    return registry.deserialize(config, custom_objects, "initializers")
