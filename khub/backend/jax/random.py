"""Random numbers on JAX: `seed` is a key."""

import jax
import jax.numpy as jnp
import numpy as np

from khub.backend.jax.arrays import _native, cast

SEED_DTYPE = "uint32"


def make_generator(seed):
    return jnp.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], jnp.uint32)


def next_seed(seeds):
    state = seeds.state.value
    seeds.state.assign(state + _ONE)
    return state


_ONE = np.array([0, 1], np.uint32)


def random_uniform(shape, minval, maxval, dtype, seed):
    wide = dtype if dtype == "float64" else "float32"
    return cast(jax.random.uniform(seed, shape, _native(wide), minval, maxval), dtype)


def random_normal(shape, mean, stddev, dtype, seed):
    return cast(mean + stddev * jax.random.normal(seed, shape, jnp.float32), dtype)


def random_integers(shape, minval, maxval, dtype, seed):
    return jax.random.randint(seed, shape, minval, maxval, _native(dtype))


def random_gamma(alpha, seed):
    return jax.random.gamma(seed, alpha)


def random_binomial(counts, probabilities, seed):
    return jax.random.binomial(seed, counts, probabilities)
