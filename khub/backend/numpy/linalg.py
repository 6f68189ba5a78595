"""Linear algebra and Fourier transforms on NumPy arrays."""

import numpy as np
from numpy.linalg import det, inv, qr  # noqa: F401  (this backend's functions)
from numpy.linalg import solve as _solve  # noqa: F401


def _plain(function):
    """Give a plain tuple, not a named one."""
    return lambda *args: tuple(function(*args))


eigh, slogdet = _plain(np.linalg.eigh), _plain(np.linalg.slogdet)


def cholesky(x, upper=False):
    return np.linalg.cholesky(x, upper=upper)


def eig(x):
    values, vectors = np.linalg.eig(x)
    dtype = np.result_type(x, np.complex64)
    return values.astype(dtype), vectors.astype(dtype)


def svd(x, full_matrices=True, compute_uv=True):
    result = np.linalg.svd(x, full_matrices, compute_uv)
    return tuple(result) if compute_uv else result


def _solve_triangular(a, b, lower):
    return np.linalg.solve(np.tril(a) if lower else np.triu(a), b)


def lu_factor(x):
    """Gaussian elimination with the largest pivots, of all matrices at once."""
    x, (rows, columns) = x.copy(), x.shape[-2:]
    count = min(rows, columns)
    pivots = np.zeros((*x.shape[:-2], count), "int32")
    for i in range(count):
        pivot = i + np.argmax(np.abs(x[..., i:, i]), -1)
        pivots[..., i] = pivot
        place = np.broadcast_to(pivot[..., None, None], (*x.shape[:-2], 1, columns))
        other = np.take_along_axis(x, place, -2)
        np.put_along_axis(x, place, x[..., i : i + 1, :].copy(), -2)
        x[..., i, :] = other[..., 0, :]
        below = x[..., i + 1 :, i : i + 1]
        head = x[..., i : i + 1, i : i + 1]
        below[...] = np.divide(below, head, out=np.zeros_like(below), where=head != 0)
        x[..., i + 1 :, i + 1 :] -= below * x[..., i : i + 1, i + 1 :]
    return x, pivots


def _fft(x, axes, inverse):
    function = np.fft.ifftn if inverse else np.fft.fftn
    return function(x, axes=tuple(range(-axes, 0))).astype(x.dtype)


def _rfft(x, length):
    return np.fft.rfft(x, length).astype(np.result_type(x, np.complex64))


def _irfft(x, length):
    return np.fft.irfft(x, length).astype(x.real.dtype)
