"""Initial values: alike on every backend, rightly distributed, the same for the same seed."""

import hashlib

import numpy as np
import pytest

import khub
from khub import initializers, ops
from khub.saving import registry

SAMPLES = {  # class -> options, shape
    "Zeros": ({}, (3, 4)),
    "Ones": ({}, (3, 4)),
    "Constant": ({"value": 2.5}, (3, 4)),
    "Identity": ({"gain": 2.0}, (3, 4)),
    "RandomNormal": ({"mean": 1.0, "stddev": 0.3}, (300, 200)),
    "RandomUniform": ({"minval": -1.0, "maxval": 3.0}, (300, 200)),
    "TruncatedNormal": ({"mean": 1.0, "stddev": 0.3}, (300, 200)),
    "VarianceScaling": ({"scale": 3.0, "distribution": "untruncated_normal"}, (300, 200)),
    "GlorotUniform": ({}, (300, 200)),
    "GlorotNormal": ({}, (300, 200)),
    "HeUniform": ({}, (300, 200)),
    "HeNormal": ({}, (300, 200)),
    "LecunUniform": ({}, (300, 200)),
    "LecunNormal": ({}, (300, 200)),
    "Orthogonal": ({"gain": 2.0}, (300, 200)),
    "STFT": ({}, (16, 1, 9)),
}
RANDOM = [name for name, (_, shape) in SAMPLES.items() if shape == (300, 200)]
MOMENTS = {  # class -> mean, variance
    "RandomNormal": (1, 0.09),
    "RandomUniform": (1, 16 / 12),
    "TruncatedNormal": (1, 0.09 * 0.7737413),
    "VarianceScaling": (0, 3 / 300),
    "GlorotUniform": (0, 1 / 250),
    "GlorotNormal": (0, 1 / 250),
    "HeUniform": (0, 2 / 300),
    "HeNormal": (0, 2 / 300),
    "LecunUniform": (0, 1 / 300),
    "LecunNormal": (0, 1 / 300),
    "Orthogonal": (0, 4 / 300),
}


def make(name, **more):
    return getattr(initializers, name)(**SAMPLES[name][0], **more)


def values(initializer, shape, dtype=None):
    return ops.convert_to_numpy(initializer(shape, dtype=dtype))


def test_every_initializer_has_a_sample():
    own = initializers.Initializer.__module__  # others are a model's
    registered = registry.registered("initializers").values()
    found = {c.__name__ for c in registered if c.__module__ == own}
    assert found - {"Initializer", "Host"} == SAMPLES.keys()


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_shape_and_dtype(name, dtype):
    x = make(name)(SAMPLES[name][1], dtype=dtype)
    assert tuple(x.shape) == SAMPLES[name][1]
    assert ops.dtype(x) == dtype or khub.backend.name == "jax" and dtype == "float64"


@pytest.mark.parametrize("name", RANDOM)
def test_the_seed_decides(name):
    shape = SAMPLES[name][1]
    given = make(name, seed=3)
    np.testing.assert_array_equal(values(given, shape), values(given, shape))
    np.testing.assert_array_equal(values(given, shape), values(given.clone(), shape))
    assert not np.array_equal(values(given, shape), values(make(name, seed=4), shape))
    free = make(name)
    assert not np.array_equal(values(free, shape), values(free, shape))
    khub.random.set_global_seed(5)
    first = values(free, shape)
    khub.random.set_global_seed(5)
    np.testing.assert_array_equal(first, values(free, shape))


@pytest.mark.parametrize("name", RANDOM)
def test_moments(name):
    x = values(make(name, seed=1), SAMPLES[name][1])
    mean, variance = MOMENTS[name]
    assert x.mean() == pytest.approx(mean, abs=5 * (variance / x.size) ** 0.5)
    assert x.var() == pytest.approx(variance, rel=0.03)


def test_bounds():
    x = values(initializers.TruncatedNormal(stddev=0.5, seed=0), (1000, 1000))
    assert np.abs(x).max() <= 1 and np.abs(x).max() > 0.999
    x = values(initializers.RandomUniform(-1.0, 3.0, seed=0), (1000, 1000))
    assert -1 <= x.min() < -0.999 and 2.999 < x.max() < 3


EXPECTED = "b44b896b"  # of the bytes of all random initializers' values, on every backend


def test_values_are_equal_on_every_backend():
    digest = hashlib.sha256()
    for name in RANDOM:
        if name != "Orthogonal":  # goes through the machine's LAPACK
            digest.update(values(make(name, seed=7), (31, 17)).tobytes())
    assert digest.hexdigest()[:8] == EXPECTED


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (2, 3, 4)])
def test_orthogonal(shape):
    x = values(initializers.Orthogonal(gain=2.0, seed=1), shape, "float64").reshape(-1, shape[-1])
    x = x.T if x.shape[0] < x.shape[1] else x
    np.testing.assert_allclose(x.T @ x, 4 * np.eye(x.shape[1]), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "axes", "fans"),
    [
        ((), (None, None), (1, 1)),
        ((5,), (None, None), (5, 5)),
        ((5, 7), (None, None), (5, 7)),
        ((3, 2, 5, 7), (None, None), (30, 42)),
        ((3, 4, 5), ((0,), (1, 2)), (3, 20)),
    ],
)
def test_fans(shape, axes, fans):
    assert initializers.compute_fans(shape, *axes) == fans


def test_stft_is_a_windowed_fourier_transform():
    frame = np.random.RandomState(0).randn(16)
    window = np.hanning(17)[:16]
    for periodic, w in ((True, window), (False, np.hanning(16))):
        parts = [
            values(initializers.STFT(side, "hann", None, periodic), (16, 1, 9))[:, 0].T @ frame
            for side in ("real", "imag")
        ]
        np.testing.assert_allclose(parts[0] + 1j * parts[1], np.fft.rfft(frame * w), atol=1e-4)


def test_other_values():
    np.testing.assert_array_equal(values(initializers.get(np.arange(3.0)), (2, 3)), [[0, 1, 2]] * 2)
    np.testing.assert_array_equal(values(initializers.Identity(3.0), (2, 3)), 3 * np.eye(2, 3))


def test_errors_say_what_is_wrong():
    for make_it, match in [
        (lambda: initializers.RandomNormal(seed="x"), "seed"),
        (lambda: initializers.VarianceScaling(scale=0), "scale"),
        (lambda: initializers.VarianceScaling(mode="fan"), "fan_in, fan_out, fan_avg"),
        (lambda: initializers.VarianceScaling(distribution="x"), "distribution"),
        (lambda: initializers.Identity()((3,)), "matrices"),
        (lambda: initializers.Orthogonal()((3,)), "two axes"),
        (lambda: initializers.STFT(window="x"), "hann, hamming"),
        (lambda: initializers.get("glorot_unifrom"), "glorot_uniform"),
    ]:
        with pytest.raises(ValueError, match=match):
            make_it()


@pytest.mark.parametrize("name", SAMPLES)
def test_config(name):
    options, shape = SAMPLES[name]
    one = make(name)
    again = initializers.deserialize(initializers.serialize(one))
    assert type(again) is type(one) and again.get_config() == one.get_config()
    assert type(initializers.get(registry.snake_case(name))) is type(one)
    assert options.items() <= one.get_config().items()


def test_a_users_initializer_makes_a_variable():
    class Twos(initializers.Initializer):
        def __call__(self, shape, dtype=None):
            return ops.full(shape, 2.0, dtype)

    np.testing.assert_array_equal(khub.Variable(Twos(), (2, 2)).numpy(), np.full((2, 2), 2.0))
    variable = khub.Variable(initializers.GlorotUniform(seed=3), (4, 4))
    expected = initializers.GlorotUniform(seed=3).sample((4, 4), "float32", 3)
    np.testing.assert_array_equal(variable.numpy(), expected)


def test_a_seed_generator_gives_new_values_at_each_call():
    one = initializers.RandomNormal(seed=khub.SeedGenerator(2))
    first = values(one, (4,))
    assert not np.array_equal(first, values(one, (4,)))
    again = initializers.RandomNormal(seed=khub.SeedGenerator(2))
    np.testing.assert_array_equal(first, values(again, (4,)))
