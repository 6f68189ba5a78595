"""The NumPy backend: the reference for testing the others. It does everything but gradients."""

from khub.backend.numpy.arrays import *  # noqa: F403
from khub.backend.numpy.arrays import _complex, _complex_part, _einsum, _select  # noqa: F401
from khub.backend.numpy.engine import *  # noqa: F403
from khub.backend.numpy.linalg import *  # noqa: F403
from khub.backend.numpy.linalg import _fft, _irfft, _rfft, _solve, _solve_triangular  # noqa: F401
from khub.backend.numpy.nn import *  # noqa: F403
from khub.backend.numpy.random import *  # noqa: F403
