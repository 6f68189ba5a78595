"""Random tensors, and the seeds behind them.

A `SeedGenerator` gives each draw its own seed; its stream is reproducible on one backend.
Initial weights come from the host (`khub.initializers`) instead: they are equal everywhere.
"""

import multiprocessing
import os
import secrets
import zlib

import numpy as np

from khub import dtypes, ops
from khub.backend import active
from khub.backend.host import here
from khub.backend.scope import local
from khub.backend.variable import Variable

_global = {"seed": None, "drawn": 0, "generator": None}


def set_global_seed(seed):
    """Restart every stream that has no seed of its own."""
    if not isinstance(seed, (int, np.integer)):
        raise ValueError(f"The seed must be an integer, got {seed!r}.")
    _global.update(seed=int(seed), drawn=0, generator=None)


def next_initial_seed():
    """Return the next seed of the process-wide stream, the same on every backend."""
    if _global["seed"] is None:
        _global["seed"] = secrets.randbits(32)
    _global["drawn"] += 1
    return int(np.random.SeedSequence([_global["seed"], _global["drawn"]]).generate_state(1)[0])


class SeedGenerator:
    """Gives a new seed at each draw.

    seed: int or None (from the global seed)
    """

    def __init__(self, seed=None, name=None, **kwargs):
        if seed is not None and not isinstance(seed, (int, np.integer)):
            raise ValueError(f"SeedGenerator needs an integer seed or None, got {seed!r}.")
        self._given = seed
        self.seed = next_initial_seed() if seed is None else int(seed)
        self.name = name or "seed_generator"
        self.native = None  # the framework's own generator, where it has one
        self._host = None, None  # the generator of NumPy's numbers, and the process it belongs to
        bits = np.array([self.seed >> 32 & 0xFFFFFFFF, self.seed & 0xFFFFFFFF], np.uint32)
        bits = (
            bits.view("int32") if active.SEED_DTYPE == "int32" else bits.astype(active.SEED_DTYPE)
        )
        self.state = Variable(bits, trainable=False, name=f"{self.name}_state")

    def next(self, ordered=True):
        """Return the backend's seed for one draw, and move on."""
        if local.host:
            return self._on_host()
        if active.EAGER and local.scope is not None and local.scope.gives(self.state):
            return self._from_state()
        return active.next_seed(self)

    def _from_state(self):
        """Return a generator for the state that a call without side effects was given."""
        high, low = (int(part) for part in ops.convert_to_numpy(self.state.value))
        self.state.assign(np.array([high, low + 1]))
        return active.make_generator(high << 32 | low)

    def _on_host(self):
        """Return this process's NumPy generator: each worker draws its own numbers."""
        generator, process = self._host
        if process != os.getpid():
            worker = multiprocessing.parent_process() is not None
            name = multiprocessing.current_process().name
            generator = here().make_generator([self.seed, zlib.crc32(name.encode()) * worker])
            self._host = generator, os.getpid()
        return generator

    def get_config(self):
        """Return the constructor's arguments."""
        return {"seed": self._given}

    @classmethod
    def from_config(cls, config):
        """Build a generator from `get_config()`'s result."""
        return cls(**config)


def global_seed_generator():
    """Return the generator that draws without a seed use."""
    if _global["generator"] is None:
        _global["generator"] = SeedGenerator(name="global_seed_generator")
    return _global["generator"]


def _seed(seed):
    if seed is None:
        return global_seed_generator().next()
    if isinstance(seed, SeedGenerator):
        return seed.next()
    if isinstance(seed, (int, np.integer)):
        return here().make_generator(int(seed))
    raise ValueError(f"seed must be an int, a SeedGenerator or None, got {seed!r}.")


def uniform(shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
    """Numbers spread evenly over [minval, maxval)."""
    return here().random_uniform(
        tuple(shape), minval, maxval, dtypes.standardize(dtype), _seed(seed)
    )


def normal(shape, mean=0.0, stddev=1.0, dtype=None, seed=None):
    """Numbers from a normal distribution."""
    return here().random_normal(tuple(shape), mean, stddev, dtypes.standardize(dtype), _seed(seed))


def truncated_normal(shape, mean=0.0, stddev=1.0, dtype=None, seed=None):
    """Numbers from a normal distribution cut at two standard deviations."""
    dtype = dtypes.standardize(dtype)
    edge = 0.9544997361036416  # the share of a normal distribution within two deviations
    spread = uniform(shape, -edge, edge, "float32", seed)
    return ops.cast(mean + stddev * (2**0.5) * ops.erfinv(spread), dtype)


def randint(shape, minval, maxval, dtype="int32", seed=None):
    """Integers from [minval, maxval)."""
    return here().random_integers(
        tuple(shape), minval, maxval, dtypes.standardize(dtype), _seed(seed)
    )


def gamma(shape, alpha, dtype=None, seed=None):
    """Numbers from gamma distributions of rate 1; alpha: their shape parameters, broadcast."""
    dtype = dtypes.standardize(dtype)
    alpha = ops.broadcast_to(ops.convert_to_tensor(alpha, "float32"), tuple(shape))
    return ops.cast(here().random_gamma(alpha, _seed(seed)), dtype)


def beta(shape, alpha, beta, dtype=None, seed=None):
    """Numbers from beta distributions: X / (X + Y) of two gamma distributions."""
    both = ops.stack(
        [ops.broadcast_to(ops.cast(a, "float32"), tuple(shape)) for a in (alpha, beta)]
    )
    x, y = ops.unstack(gamma(both.shape, both, "float32", seed))
    return ops.cast(x / (x + y), dtypes.standardize(dtype))


def binomial(shape, counts, probabilities, dtype=None, seed=None):
    """How many of `counts` trials succeed, each with the given probability."""
    shape = tuple(shape)
    counts, probabilities = (
        ops.broadcast_to(ops.convert_to_tensor(x, "float32"), shape)
        for x in (counts, probabilities)
    )
    found = here().random_binomial(counts, probabilities, _seed(seed))
    return ops.cast(found, dtypes.standardize(dtype))


def categorical(logits, num_samples, dtype="int32", seed=None):
    """Class indices drawn with probabilities softmax(logits).

    (batch, classes) -> (batch, num_samples)
    """
    logits = ops.convert_to_tensor(logits)
    batch, classes = logits.shape
    noise = uniform((batch, num_samples, classes), 1e-20, 1.0, "float32", seed)
    gumbel = -ops.log(-ops.log(noise))
    return ops.cast(ops.argmax(ops.expand_dims(logits, 1) + gumbel, axis=-1), dtype)


def shuffle(x, axis=0, seed=None):
    """`x` with its slices along `axis` in random order."""
    x = ops.convert_to_tensor(x)
    order = ops.argsort(uniform((x.shape[axis],), dtype="float32", seed=seed))
    return ops.take(x, order, axis=axis)


def dropout(inputs, rate, noise_shape=None, seed=None):
    """Each element zeroed with probability `rate`, the others divided by 1 - rate."""
    if rate <= 0:
        return inputs
    keep = 1.0 - rate
    if hasattr(here(), "random_dropout"):
        return here().random_dropout(inputs, rate, noise_shape, _seed(seed))
    shape = ops.shape(inputs) if noise_shape is None else noise_shape
    kept = uniform(shape, dtype="float32", seed=seed) < keep
    return ops.where(kept, inputs / keep, ops.zeros_like(inputs))
