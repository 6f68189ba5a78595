"""Linear algebra and Fourier transforms on torch tensors."""

import torch

det, inv, _solve, erfc = torch.linalg.det, torch.linalg.inv, torch.linalg.solve, torch.erfc


def cholesky(x, upper=False):
    return torch.linalg.cholesky(x, upper=upper)


def eig(x):
    return tuple(torch.linalg.eig(x))


def eigh(x):
    return tuple(torch.linalg.eigh(x))


def qr(x, mode="reduced"):
    return tuple(torch.linalg.qr(x, mode))


def svd(x, full_matrices=True, compute_uv=True):
    return tuple(torch.linalg.svd(x, full_matrices)) if compute_uv else torch.linalg.svdvals(x)


def lu_factor(x):
    factors, pivots = torch.linalg.lu_factor(x)
    return factors, pivots - 1  # LAPACK counts rows from 1


def _solve_triangular(a, b, lower):
    return torch.linalg.solve_triangular(a, b, upper=not lower)


def _fft(x, axes, inverse):
    return (torch.fft.ifftn if inverse else torch.fft.fftn)(x, dim=tuple(range(-axes, 0)))


def _rfft(x, length):
    return torch.fft.rfft(x, length)


def _irfft(x, length):
    return torch.fft.irfft(x, length)
