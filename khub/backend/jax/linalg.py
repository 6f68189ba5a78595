"""Linear algebra and Fourier transforms on JAX arrays."""

import jax
import jax.numpy as jnp
from jax.lax import erfc  # noqa: F401  (this backend's function)
from jax.numpy.linalg import det, inv  # noqa: F401
from jax.numpy.linalg import solve as _solve  # noqa: F401


def cholesky(x, upper=False):
    return jnp.linalg.cholesky(x, upper=upper)


def eig(x):
    return tuple(jnp.linalg.eig(x))


def eigh(x):
    return tuple(jnp.linalg.eigh(x))


def qr(x, mode="reduced"):
    return tuple(jnp.linalg.qr(x, mode))


def svd(x, full_matrices=True, compute_uv=True):
    result = jnp.linalg.svd(x, full_matrices, compute_uv)
    return tuple(result) if compute_uv else result


def lu_factor(x):
    return tuple(jax.scipy.linalg.lu_factor(x))


def _solve_triangular(a, b, lower):
    return jax.scipy.linalg.solve_triangular(a, b, lower=lower)


def _fft(x, axes, inverse):
    return (jnp.fft.ifftn if inverse else jnp.fft.fftn)(x, axes=tuple(range(-axes, 0)))


def _rfft(x, length):
    return jnp.fft.rfft(x, length)


def _irfft(x, length):
    return jnp.fft.irfft(x, length)
