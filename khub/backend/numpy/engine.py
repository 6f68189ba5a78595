"""Variables, transforms and control flow on NumPy, which has neither traces nor gradients."""

from contextlib import nullcontext
from functools import partial, wraps

import numpy as np

from khub import dtypes, tree
from khub.backend import eager
from khub.backend.eager import while_loop
from khub.backend.numpy.arrays import FLOATS

EAGER = True  # whether jit leaves functions as they are
fused = {}  # optimizer class name -> its update of all Variables in one go
Base = object  # what a Layer inherits from
_HALF = frozenset(map(dtypes.numpy_dtype, ("bfloat16", *dtypes.FLOAT8)))


def new_storage(value, trainable, name, own=False):
    return value if own else np.array(value)


def read(storage):
    return storage


def write(storage, value):
    return np.array(value)


def set_trainable(storage, trainable):
    pass  # a NumPy array has no such property


def is_traced(x):
    return False


def placeholder(shape, dtype):
    return np.broadcast_to(np.zeros((), dtypes.numpy_dtype(dtype)), shape)


def abstract_eval(function, specs):
    with np.errstate(all="ignore"):
        return function(*[_sample(shape, dtypes.numpy_dtype(dtype)) for shape, dtype in specs])


def _sample(shape, dtype):
    """Values that every operation takes: zeros, or matrices that can be inverted."""
    full = len(shape) > 1 and dtype in FLOATS
    return np.broadcast_to(np.eye(*shape[-2:], 0, dtype), shape) if full else np.zeros(shape, dtype)


def body(function):
    """Bring float32 results of a body back: bfloat16 beside Python floats is float32."""

    @wraps(function)
    def run(*args, **kwargs):
        result = function(*args, **kwargs)
        dtype = getattr(args[0], "dtype", None) if args else None
        if dtype not in _HALF:
            return result
        return tree.map_structure(lambda y: y.astype(dtype) if y.dtype == "float32" else y, result)

    return run


def on_device(name):
    if name.partition(":")[0] != "cpu":
        raise ValueError(f"The numpy backend computes on the CPU alone, not on {name!r}.")
    return nullcontext()


no_gradient = inference = untraced = device_scope = nullcontext


def jit(function):
    return function


checkpoint = jit  # without gradients there is nothing to compute again


def value_and_grad(function, variables, has_aux):
    raise NotImplementedError(
        "The numpy backend computes no gradients; set KHUB_BACKEND to jax, torch or tensorflow "
        "to train."
    )


def custom_gradient(function):
    return lambda *args: function(*args)[0]


def jvp(function, primals, tangents, has_aux):
    return value_and_grad(function, None, has_aux)  # says that there are no derivatives


def cond(pred, true_fn, false_fn):
    return true_fn() if pred else false_fn()


def switch(index, branches):
    return branches[int(index)]()


def vmap(function, in_axes, out_axes):
    def mapped(*args):
        axes = (in_axes,) * len(args) if isinstance(in_axes, int) else in_axes
        given = list(zip(args, axes, strict=True))
        length = next(tree.flatten(a)[0].shape[axis] for a, axis in given if axis is not None)

        def part(x, axis, i):
            take = partial(np.take, indices=i, axis=axis)
            return x if axis is None else tree.map_structure(take, x)

        results = [function(*(part(*one, i) for one in given)) for i in range(length)]
        return tree.map_structure(lambda *xs: np.stack(xs, out_axes), *results)

    return mapped


scan = partial(eager.scan, stack=np.stack)
