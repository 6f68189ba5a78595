"""Operations on tensors: NumPy-like, neural-network, control flow."""

from khub.ops import array, core, math, nn
from khub.ops.array import *  # noqa: F403
from khub.ops.core import *  # noqa: F403
from khub.ops.math import *  # noqa: F403
from khub.ops.nn import *  # noqa: F403
from khub.ops.op import OPS

abs = math.absolute  # noqa: A001
true_divide = math.divide
identity = array.eye
core._bind_operators()

__all__ = sorted(
    name
    for name, item in vars().items()
    if not name.startswith("_")
    and (name in OPS or getattr(item, "__module__", "") == "khub.ops.core")
    or name in ("abs", "true_divide", "identity", "swish", "hard_swish", "array", "math", "nn")
)
