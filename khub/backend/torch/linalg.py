"""Linear algebra and Fourier transforms on torch tensors."""

import torch

det, inv, _solve, erfc = torch.linalg.det, torch.linalg.inv, torch.linalg.solve, torch.erfc
_rfft, _irfft = torch.fft.rfft, torch.fft.irfft


def _plain(function):
    """Give a plain tuple, not a named one."""
    return lambda *args: tuple(function(*args))


eig, eigh = _plain(torch.linalg.eig), _plain(torch.linalg.eigh)
qr, slogdet = _plain(torch.linalg.qr), _plain(torch.linalg.slogdet)


def cholesky(x, upper=False):
    return torch.linalg.cholesky(x, upper=upper)


def svd(x, full_matrices=True, compute_uv=True):
    return tuple(torch.linalg.svd(x, full_matrices)) if compute_uv else torch.linalg.svdvals(x)


def lu_factor(x):
    factors, pivots = torch.linalg.lu_factor(x)
    return factors, pivots - 1  # LAPACK counts rows from 1


def _solve_triangular(a, b, lower):
    return torch.linalg.solve_triangular(a, b, upper=not lower)


def _fft(x, axes, inverse):
    return (torch.fft.ifftn if inverse else torch.fft.fftn)(x, dim=tuple(range(-axes, 0)))
