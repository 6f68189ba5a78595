"""The JAX backend."""

from khub.backend.jax import sparse  # noqa: F401
from khub.backend.jax.arrays import *  # noqa: F403
from khub.backend.jax.arrays import _complex, _complex_part, _einsum, _select  # noqa: F401
from khub.backend.jax.engine import *  # noqa: F403
from khub.backend.jax.linalg import *  # noqa: F403
from khub.backend.jax.linalg import _fft, _irfft, _rfft, _solve, _solve_triangular  # noqa: F401
from khub.backend.jax.nn import *  # noqa: F403
from khub.backend.jax.random import *  # noqa: F403
