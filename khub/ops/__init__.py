"""Operations on tensors: NumPy-like, neural-network, control flow."""

from khub.ops import core, ctc, image, linalg, math, nn, sparse
from khub.ops.array import *  # noqa: F403
from khub.ops.core import *  # noqa: F403
from khub.ops.ctc import ctc_decode, ctc_loss
from khub.ops.linalg import *  # noqa: F403
from khub.ops.linalg import logdet
from khub.ops.math import *  # noqa: F403
from khub.ops.nn import *  # noqa: F403
from khub.ops.numeric import *  # noqa: F403
from khub.ops.op import OPS
from khub.ops.signal import *  # noqa: F403
from khub.ops.statistics import *  # noqa: F403

abs = math.absolute  # noqa: A001
true_divide = math.divide
core._bind_operators()
array = core.convert_to_tensor  # and no longer the module, which `from khub.ops.array` still finds
nn.ctc_decode, nn.ctc_loss = ctc_decode, ctc_loss

__all__ = sorted(
    name
    for name, item in vars().items()
    if not name.startswith("_")
    and (getattr(item, "__name__", "") in OPS or getattr(item, "__module__", "") == core.__name__)
    or name in ("vectorize", "numpy", "math", "nn", "linalg", "image")
)

from khub.ops import numpy  # noqa: E402  (it lists what is above)
