"""The PyTorch backend: eager, on tensors as they are; a Layer is an nn.Module."""

from khub.backend.torch import sparse  # noqa: F401
from khub.backend.torch.arrays import *  # noqa: F403
from khub.backend.torch.arrays import _complex, _complex_part, _einsum, _select  # noqa: F401
from khub.backend.torch.engine import *  # noqa: F403
from khub.backend.torch.fused import fused  # noqa: F401
from khub.backend.torch.image import joined, resize_pixels, sample_images  # noqa: F401
from khub.backend.torch.linalg import *  # noqa: F403
from khub.backend.torch.linalg import _fft, _irfft, _rfft, _solve, _solve_triangular  # noqa: F401
from khub.backend.torch.module import Base  # noqa: F401
from khub.backend.torch.nn import *  # noqa: F403
from khub.backend.torch.recurrent import recurrent  # noqa: F401
