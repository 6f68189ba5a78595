"""The NumPy-like operations under `ops.numpy`, the second name that Keras has for them."""

from khub import ops
from khub.ops.op import OPS

_FILES = {f"khub.ops.{name}" for name in ("array", "math", "statistics", "numeric")}
_OWN = "erf erfinv in_top_k logsumexp rsqrt scatter scatter_update slice slice_update"
_OWN += " squared_difference top_k unstack"  # in these files, but not NumPy's
_MORE = ("array", "einsum", "ndim", "size", "vectorize", "where")  # NumPy's, but in other files

__all__ = sorted(
    name
    for name, item in vars(ops).items()
    if name in _MORE
    or (name[0] != "_" and name not in _OWN.split() and getattr(item, "__module__", "") in _FILES)
    and getattr(item, "__name__", "") in OPS
)
globals().update({name: getattr(ops, name) for name in __all__})
