"""Random numbers on NumPy: `seed` is a Generator."""

import numpy as np

from khub.backend.numpy.arrays import cast

SEED_DTYPE = "int64"


def make_generator(seed):
    return np.random.Generator(np.random.Philox(seed))


def next_seed(seeds):
    if seeds.native is None:
        seeds.native = make_generator(seeds.seed)
    return seeds.native


def random_uniform(shape, minval, maxval, dtype, seed):
    return cast(minval + (maxval - minval) * seed.random(shape, np.float32), dtype)


def random_normal(shape, mean, stddev, dtype, seed):
    return cast(mean + stddev * seed.standard_normal(shape, np.float32), dtype)


def random_integers(shape, minval, maxval, dtype, seed):
    return cast(seed.integers(minval, maxval, shape), dtype)


def random_gamma(alpha, seed):
    return seed.standard_gamma(alpha).astype("float32")


def random_binomial(counts, probabilities, seed):
    return seed.binomial(counts.astype("int64"), probabilities).astype("float32")
