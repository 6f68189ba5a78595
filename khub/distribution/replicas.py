"""What torch's processes and TensorFlow's devices have in common: each runs the whole program.

Each computes some rows of a batch. Gradients, logs and what is assigned to Variables that have an
`aggregation` are summed over all, weighted by the share of the rows: all have the same numbers.
"""

import math
import threading

from khub import ops, tree
from khub.backend import active
from khub.backend.scope import sparse_gradients
from khub.backend.variable import Variable
from khub.distribution import engine


class _Now(threading.local):
    index = 0  # of this replica
    share = None  # of the rows of the batch; None outside of a step
    depth = 0  # of gradients inside of gradients


now = _Now()


def cut(size, count, index):
    """Return (rows of a replica as a slice, their number); the first row where it has none."""
    length = math.ceil(size / count)  # as torch.chunk and DTensor have it
    own = max(0, min(length, size - index * length))
    return slice(index * length, index * length + own) if own else slice(1), own


def step(run, argument, count, index, whole=None):
    """Run a step on the rows of replica `index`; return its result and the number of its rows.

    argument: a list of one batch, or what `predict` has; whole: the number of all replicas' rows
    where the argument has this one's alone
    """
    size = next(x for x in tree.flatten(argument) if x is not None).shape[0]
    rows, own = (slice(None), size) if whole else cut(size, count, index)
    now.index, now.share = index, own / (whole or size)
    try:
        result = run(tree.map_structure(lambda x: x if x is None else x[rows], argument))
        if isinstance(argument, list):
            values = [ops.cast(x, "float32") for x in result.values()]
            result = dict(zip(result, engine().total(values, now.share), strict=True))
        return result, own
    finally:
        now.share = None


_assign, _value_and_grad = Variable.assign, active.value_and_grad


def _assign_total(self, value):
    if now.share is not None and self.aggregation in ("sum", "mean"):
        value = ops.convert_to_tensor(value, self.dtype)
        if self.aggregation == "sum":
            old = self._uncast()
            value = old + engine().total([(value - old) * (now.share > 0)])[0]
        else:
            value = engine().total([value], now.share)[0]
    return _assign(self, value)


def _total_gradients(function, variables, has_aux):
    own = _value_and_grad(function, variables, has_aux)

    def call(*args, **kwargs):
        now.depth += 1
        try:
            with sparse_gradients(False):
                result, gradients = own(*args, **kwargs)
        finally:
            now.depth -= 1
        return result, gradients if now.depth else engine().total(gradients, now.share)

    return own if variables is None or now.share is None else call


HOOKS = [(Variable, "assign", _assign_total), (active, "value_and_grad", _total_gradients)]
