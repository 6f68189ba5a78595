"""Symbolic tensors: what `Input` makes, and the nodes of ops and layers that are called on them."""

import itertools

from khub import dtypes, tree
from khub.backend import active
from khub.backend.scope import Scope
from khub.backend.variable import unique_name


class KerasTensor:
    """A tensor without values: shape (None where unknown), dtype, and the node that makes it."""

    __array_priority__ = 100

    def __init__(
        self, shape, dtype="float32", sparse=False, ragged=False, record_history=True, name=None,
        **kwargs,
    ):  # fmt: skip
        self.shape = tuple(shape)
        self.dtype = dtypes.standardize(dtype)
        self.sparse = sparse
        self.ragged = ragged
        self.name = name or unique_name("keras_tensor")
        self.node = None  # set by `record`
        self.mask = None  # a symbol too, where a layer made one

    @property
    def ndim(self):
        """The number of axes."""
        return len(self.shape)

    def __repr__(self):
        return f"<KerasTensor shape={self.shape}, dtype={self.dtype}, name={self.name}>"

    def __bool__(self):
        raise TypeError("A symbolic KerasTensor has no truth value; use khub.cond or ops.where.")

    def __array__(self, dtype=None, copy=None):
        raise ValueError(f"{self!r} is symbolic and has no values; use khub.ops inside a model.")

    def __iter__(self):
        if not self.shape or self.shape[0] is None:
            raise TypeError(f"{self!r} cannot be iterated: its first axis is unknown.")
        return (self[i] for i in range(self.shape[0]))


class Node:
    """One call of an op or layer on symbolic tensors."""

    _numbers = itertools.count()

    def __init__(self, function, args, kwargs, outputs):
        self.function, self.args, self.kwargs, self.outputs = function, args, kwargs, outputs
        self.number = next(self._numbers)  # calls of a layer are told apart by their order
        self.parents = [leaf for leaf in tree.flatten((args, kwargs)) if is_symbolic(leaf)]


def is_symbolic(x):
    """Say whether `x` is a symbolic tensor."""
    return isinstance(x, KerasTensor)


def any_symbolic(structure):
    """Say whether a symbolic tensor is anywhere inside."""
    return any(map(is_symbolic, tree.flatten(structure)))


# A None axis is traced at two sizes; output axes that differ are None. Batch axes are small, other
# axes large enough for a network that halves them five times.
_BATCH_SIZES, _SIZES = (2, 3), (96, 160)


def output_spec(function, args, kwargs):
    """Return `function(*args, **kwargs)` with KerasTensors for tensors, computing nothing."""
    leaves = tree.flatten((args, kwargs))
    symbols = [i for i, leaf in enumerate(leaves) if is_symbolic(leaf)]
    unknown = any(None in leaves[i].shape for i in symbols)

    def run(*tensors):
        values = list(leaves)
        for i, tensor in zip(symbols, tensors, strict=True):
            values[i] = tensor
        new_args, new_kwargs = tree.pack_sequence_as((args, kwargs), values)
        with Scope(abstract=lambda v: active.placeholder(v.shape, v.dtype)):
            return function(*new_args, **new_kwargs)

    def trace(which):
        def size(axis, length):
            return length if length is not None else (_SIZES if axis else _BATCH_SIZES)[which]

        specs = [
            (tuple(size(*item) for item in enumerate(leaves[i].shape)), leaves[i].dtype)
            for i in symbols
        ]
        return active.abstract_eval(run, specs)

    outputs = trace(0)
    if not unknown:
        return tree.map_structure(_symbol, outputs)
    return tree.map_structure(_symbol, outputs, trace(1))


def map_shapes(function, shape):
    """Return what `function` makes of each shape in a structure of them."""
    if isinstance(shape, dict):
        return {k: map_shapes(function, v) for k, v in shape.items()}
    if all(n is None or hasattr(n, "__index__") for n in shape):
        return function(tuple(shape))
    return type(shape)(map_shapes(function, s) for s in shape)


def reshaped(x, newshape):
    """Return the symbol `x` in a new shape; None where tracing tells it, as of known sizes.

    A size that is -1 need not divide those at which unknown axes are traced.
    """
    if None not in x.shape:
        return None
    shape = (newshape,) if isinstance(newshape, int) else newshape
    return KerasTensor([None if n == -1 else n for n in shape], x.dtype)


def _symbol(one, two=None):
    if not hasattr(one, "shape"):
        return one
    shape = tuple(
        a if a == b else None
        for a, b in zip(one.shape, (one if two is None else two).shape, strict=True)
    )
    return KerasTensor(shape, dtypes.standardize(one.dtype))


def record(function, args, kwargs, outputs=None):
    """Make the node of one call and return its outputs, by abstract evaluation if not given."""
    if outputs is None:
        outputs = output_spec(function, args, kwargs)
    node = Node(function, args, kwargs, outputs)
    for leaf in tree.flatten(outputs):
        if is_symbolic(leaf):
            leaf.node = node
    return outputs
