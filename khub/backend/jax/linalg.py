"""Linear algebra and Fourier transforms on JAX arrays."""

import jax
import jax.numpy as jnp
from jax.lax import erfc  # noqa: F401  (this backend's function)
from jax.numpy.fft import irfft as _irfft  # noqa: F401
from jax.numpy.fft import rfft as _rfft  # noqa: F401
from jax.numpy.linalg import det, inv  # noqa: F401
from jax.numpy.linalg import solve as _solve  # noqa: F401
from jax.scipy.linalg import lu_factor  # noqa: F401


def _plain(function):
    """Give a plain tuple, not a named one."""
    return lambda *args: tuple(function(*args))


eig, eigh = _plain(jnp.linalg.eig), _plain(jnp.linalg.eigh)
qr, slogdet = _plain(jnp.linalg.qr), _plain(jnp.linalg.slogdet)


def cholesky(x, upper=False):
    return jnp.linalg.cholesky(x, upper=upper)


def svd(x, full_matrices=True, compute_uv=True):
    result = jnp.linalg.svd(x, full_matrices, compute_uv)
    return tuple(result) if compute_uv else result


def _solve_triangular(a, b, lower):
    return jax.scipy.linalg.solve_triangular(a, b, lower=lower)


def _fft(x, axes, inverse):
    return (jnp.fft.ifftn if inverse else jnp.fft.fftn)(x, axes=tuple(range(-axes, 0)))
