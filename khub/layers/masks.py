"""Masks that travel with tensors: which timesteps of a batch are real.

Frameworks' tensors cannot all carry an attribute, so masks are kept beside them, by identity, for
as long as the tensor lives.
"""

import weakref

MASKS = {}  # id of a tensor -> (weak reference to it, its mask)


def set_mask(x, mask):
    """Let `mask` (batch, time) travel with the tensor `x`; None takes it away."""
    key = id(x)
    if mask is None:
        MASKS.pop(key, None)
    else:
        # looked up now: at the interpreter's end the module is empty
        MASKS[key] = (weakref.ref(x, lambda _, forget=MASKS.pop: forget(key, None)), mask)


def get_mask(x):
    """Return the mask that travels with `x`, else None."""
    entry = MASKS.get(id(x)) if MASKS else None
    return entry[1] if entry is not None and entry[0]() is x else None
