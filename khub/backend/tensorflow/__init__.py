"""The TensorFlow backend: eager ops, `tf.function` for `jit`; a Layer is a trackable object."""

from khub.backend.tensorflow import sparse  # noqa: F401
from khub.backend.tensorflow.arrays import *  # noqa: F403
from khub.backend.tensorflow.arrays import _complex, _complex_part, _einsum, _select  # noqa: F401
from khub.backend.tensorflow.engine import *  # noqa: F403
from khub.backend.tensorflow.fused import fused  # noqa: F401
from khub.backend.tensorflow.image import project_images, resize_pixels  # noqa: F401
from khub.backend.tensorflow.linalg import *  # noqa: F403
from khub.backend.tensorflow.linalg import _fft, _irfft, _rfft, _solve, _solve_triangular  # noqa: F401
from khub.backend.tensorflow.nn import *  # noqa: F403
