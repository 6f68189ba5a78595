"""The state of the process, and the symbolic tensors that it made."""

import gc

from khub.backend import variable
from khub.ops.symbolic import is_symbolic


def clear_session(free_memory=True):
    """Give names of layers anew from the first on; free_memory: collect what nobody holds."""
    variable._counters.clear()
    if free_memory:
        gc.collect()


def get_uid(prefix=""):
    """Return how often a name with this prefix was asked for, this time included."""
    variable.unique_name(prefix)
    return variable._counters[prefix] + 1


def is_keras_tensor(x):
    """Say whether `x` is a symbolic tensor, as `Input` makes them."""
    return is_symbolic(x)


def get_source_inputs(tensor):
    """Return the symbolic tensors of `Input` that `tensor` is computed from, each once."""
    found, seen, waiting = [], set(), [tensor]
    while waiting:
        x = waiting.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        parents = x.node.parents if x.node is not None else []
        waiting += reversed(parents)
        found += [] if parents else [x]
    return found
