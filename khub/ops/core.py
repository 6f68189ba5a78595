"""Conversion, dtypes, selection and control flow."""

from functools import partial

from khub import dtypes, tree
from khub.backend import active
from khub.backend.host import here
from khub.backend.scope import Scope
from khub.backend.variable import Variable
from khub.ops.op import OPS, dtype_of, has_sparse, native_sparse, op, primitive, promote, value_of
from khub.ops.symbolic import KerasTensor, any_symbolic, record

# ruff: noqa: A002  (the names are Keras')


def convert_to_tensor(x, dtype=None, sparse=None, ragged=None):
    """Return `x` (array, number, nested list, Variable) as a native tensor of this dtype.

    sparse: False makes a sparse tensor dense; else it stays as it is
    """
    dtype = None if dtype is None else dtypes.standardize(dtype)
    if isinstance(x, KerasTensor):
        return x if dtype in (None, x.dtype) else cast(x, dtype)
    if has_sparse((x,)):
        x = native_sparse.densify(x) if sparse is False else x
        return x if dtype is None else cast(x, dtype)
    return here().convert_to_tensor(value_of(x), dtype)


def convert_to_numpy(x):
    """Return `x` as a NumPy array on the host."""
    x = value_of(x)
    return active.convert_to_numpy(native_sparse.densify(x) if has_sparse((x,)) else x)


def is_tensor(x):
    """Say whether `x` is a tensor of the backend or a symbolic one."""
    return isinstance(x, KerasTensor) or type(x) in here().TENSORS or active.is_tensor(x)


def cast(x, dtype):
    """Return `x` in another dtype."""
    if type(x) in active.TENSORS and dtype in active.NATIVE:
        return active.cast(x, dtype)
    dtype = dtypes.standardize(dtype)
    if isinstance(x, KerasTensor):
        return record(cast, (x, dtype), {}, KerasTensor(x.shape, dtype))
    x, backend = value_of(x), here()
    if has_sparse((x,)):
        return native_sparse.cast_sparse(x, dtype)
    return backend.cast(x if type(x) in backend.TENSORS else backend.convert_to_tensor(x), dtype)


OPS["cast"] = cast


def dtype(x):
    """Return the dtype's name."""
    return dtypes.standardize(x.dtype)


def shape(x):
    """Return the shape as a tuple; an unknown size is None, or a scalar tensor in a trace."""
    plain = isinstance(x, (KerasTensor, Variable)) or has_sparse((x,))
    return tuple(x.shape) if plain else here().shape(x)


def ndim(x):
    """Return the number of axes."""
    return len(x.shape)


def size(x):
    """Return the number of elements."""
    count = 1
    for length in shape(x):
        count = count * length
    return count


@primitive()
def stop_gradient(variable):
    """`variable` as a constant: no gradient flows through it."""


@primitive(operands=3)
def _select(condition, x1, x2):
    """x1 where `condition` holds, else x2; both of one dtype."""


def where(condition, x1=None, x2=None):
    """Elements of `x1` where `condition` holds, else of `x2`; without them, the true indices."""
    tensors = active.TENSORS
    if type(x1) in tensors and type(x2) in tensors and x1.dtype is x2.dtype:
        return _select(condition, x1, x2)
    if x1 is None and x2 is None:
        return here().nonzero(convert_to_tensor(condition))
    tensors, x1, x2 = here().TENSORS, value_of(x1), value_of(x2)
    if not (type(x1) in tensors and type(x2) in tensors and x1.dtype is x2.dtype):
        result = promote(dtype_of(x1), dtype_of(x2))
        x1, x2 = convert_to_tensor(x1, result), convert_to_tensor(x2, result)
    return _select(condition, x1, x2)


def einsum(subscripts, *operands, **kwargs):
    """The sum of products that `subscripts` describes: "bij,bjk->bik"."""
    if any_symbolic(operands):
        return record(einsum, (subscripts, *operands), {})
    operands = [value_of(x) for x in operands]
    result = promote(*[dtype_of(x) for x in operands])
    operands = [here().convert_to_tensor(x, result) for x in operands]
    return here()._einsum(subscripts, operands)


# --- control flow and transforms: functions that may read and assign Variables -------------------
def cond(pred, true_fn, false_fn):
    """Return `true_fn()` where the scalar `pred` holds, else `false_fn()`; only one runs."""
    if isinstance(pred, KerasTensor):
        return record(cond, (pred, true_fn, false_fn), {})
    return here().cond(value_of(pred), true_fn, false_fn)


def while_loop(cond, body, loop_vars, maximum_iterations=None):
    """Apply `body` to `loop_vars` while `cond(*loop_vars)` holds; shapes and dtypes stay."""
    if any_symbolic(loop_vars):
        return record(while_loop, (cond, body, loop_vars, maximum_iterations), {})
    single = not isinstance(loop_vars, (tuple, list))
    variables = tuple(_tensors(x) for x in ((loop_vars,) if single else loop_vars))

    def step(*values):
        result = body(*values)
        return (result,) if single else tuple(result)

    result = here().while_loop(cond, step, variables, maximum_iterations)
    return result[0] if single else type(loop_vars)(result)


def _tensors(structure):
    return tree.map_structure(lambda x: x if is_tensor(x) else convert_to_tensor(x), structure)


def fori_loop(lower, upper, body_fun, init_val):
    """Return the last of `value = body_fun(i, value)` for i from `lower` to `upper` - 1."""

    def body(i, value):
        return i + 1, body_fun(i, value)

    start = (convert_to_tensor(lower, "int32"), init_val)
    if isinstance(lower, int) and isinstance(upper, int):  # only such a loop has gradients on JAX
        length = max(upper - lower, 0)
        return scan(lambda state, _: (body(*state), None), start, length=length)[0][1]
    return while_loop(lambda i, _: i < upper, body, start)[1]


def scan(f, init, xs=None, length=None, reverse=False, unroll=1):
    """Return the last carry and the stacked `y` of `carry, y = f(carry, x)` for each x of `xs`."""
    if any_symbolic((init, xs)):
        return record(scan, (f, init, xs, length, reverse, unroll), {})
    init, xs = _tensors(init), None if xs is None else _tensors(xs)
    if length is None:
        if xs is None:
            raise ValueError("scan needs xs or length.")
        length = shape(tree.flatten(xs)[0])[0]
    return here().scan(f, init, xs, length, reverse)


def map(f, xs):  # noqa: A001  (Keras' name)
    """Apply `f` to each slice of `xs` along the first axis, one after the other, and stack."""
    start = convert_to_tensor(0, "int32")
    return scan(lambda count, x: (count, f(x)), start, xs)[1]


def switch(index, branches, *operands):
    """Return `branches[index](*operands)`, the first or last one for an index out of range."""

    branches = [partial(branch, *operands) for branch in branches]
    if isinstance(index, KerasTensor):
        return record(switch, (index, branches), {})
    return here().switch(OPS["clip"](index, 0, len(branches) - 1), branches)


def associative_scan(f, elems, reverse=False, axis=0):
    """Return the running results of an associative `f(a, b)` along an axis, in log2(n) rounds.

    elems: a tensor or a structure of them; `f` takes and gives such structures.  Blelloch 1990
    """
    elems = tree.map_structure(lambda x: OPS["moveaxis"](_tensors(x), axis, 0), elems)
    if reverse:
        elems = tree.map_structure(lambda x: OPS["flip"](x, 0), elems)
    result = _running(f, elems)
    if reverse:
        result = tree.map_structure(lambda x: OPS["flip"](x, 0), result)
    return tree.map_structure(lambda x: OPS["moveaxis"](x, 0, axis), result)


def _running(f, elems):
    count = tree.flatten(elems)[0].shape[0]
    if count < 2:
        return elems

    def part(x, start, stop=None, step=2):
        return tree.map_structure(lambda leaf: leaf[start:stop:step], x)

    odd = _running(f, f(part(elems, 0, -1), part(elems, 1)))
    before = odd if count % 2 else part(odd, 0, -1, 1)
    later = f(before, part(elems, 2)) if count > 2 else part(elems, 0, 0)
    even = tree.map_structure(lambda a, b: OPS["concatenate"]([a, b], 0), part(elems, 0, 1), later)

    def woven(a, b):
        pairs = OPS["stack"]([a[: count // 2], b], 1)
        flat = OPS["reshape"](pairs, (count // 2 * 2, *a.shape[1:]))
        return OPS["concatenate"]([flat, a[count // 2 :]], 0) if count % 2 else flat

    return tree.map_structure(woven, even, odd)


def custom_gradient(f):
    """Return `f` without its second result, a function that gives its gradient instead.

    f: arguments -> (outputs, gradient function: upstream gradients -> one gradient an argument)
    """

    def call(*args):
        if any_symbolic(args):
            return record(call, args, {})
        return run(*_tensors(list(args)))

    run = active.custom_gradient(f)
    return call


def jvp(fun, primals, tangents, has_aux=False):
    """Return `fun(*primals)`, its derivative in the direction `tangents`, and aux if it has it."""
    primals, tangents = (tuple(_tensors(list(x))) for x in (primals, tangents))
    return active.jvp(fun, primals, tangents, has_aux)


def vectorized_map(function, elements):
    """Apply `function` to each slice of `elements` along the first axis, as one computation."""
    if any_symbolic(elements):
        return record(vectorized_map, (function, elements), {})
    return vmap(function)(elements)


def vmap(function, in_axes=0, out_axes=0):
    """Return `function` mapped over an axis of its arguments; it must not assign Variables."""

    def mapped(*args):
        with Scope() as scope:
            result = function(*args)
        if scope.written:
            names = ", ".join(v.path for v in scope.written)
            raise ValueError(
                f"A function under vmap must not assign Variables, it assigned {names}."
            )
        return result

    run = active.vmap(mapped, in_axes, out_axes)

    def call(*args):
        axes = (in_axes,) * len(args) if isinstance(in_axes, int) else in_axes
        return run(*(x if a is None else _tensors(x) for x, a in zip(args, axes, strict=True)))

    return call


def checkpoint(f):
    """Return the function `f`, which for its gradient computes intermediate values again."""

    def call(*args, **kwargs):
        leaves = tree.flatten((args, kwargs))
        places = [i for i, x in enumerate(leaves) if hasattr(x, "shape") and value_of(x) is x]

        def run(*tensors):
            filled = dict(enumerate(leaves)) | dict(zip(places, tensors, strict=True))
            args_again, kwargs_again = tree.pack_sequence_as((args, kwargs), list(filled.values()))
            return f(*args_again, **kwargs_again)

        return active.checkpoint(run)(*(convert_to_tensor(leaves[i]) for i in places))

    return call


def jit(function):
    """Return `function` compiled; it may read and assign Variables.

    Tensor and number arguments are traced, others (bool, str, None) are part of what is compiled.
    """
    return active.jit(function)


def value_and_grad(function, variables=None, has_aux=False):
    """Return a function that gives `function`'s value and its gradient.

    variables: a list of Variables to differentiate by, in whose order the gradients come; None
    means the first argument.  has_aux: `function` returns (loss, anything), and the value is that
    pair.  A Variable the loss does not depend on has the gradient 0. What the function assigns to a
    Variable is a constant to the gradient.  Raises ValueError unless the loss is a scalar.
    """
    if variables is not None:
        variables = list(variables)

    def checked(*args, **kwargs):
        result = function(*args, **kwargs)
        shape = getattr(result[0] if has_aux else result, "shape", ())
        if len(shape):
            raise ValueError(
                f"A gradient needs a scalar loss, got one of shape {tuple(shape)}: take its mean "
                "or sum."
            )
        return result

    return active.value_and_grad(checked, variables, has_aux)


def grad(function, variables=None, has_aux=False):
    """Return a function that gives `function`'s gradient (and what it returned beside the loss)."""
    both = value_and_grad(function, variables, has_aux)

    def gradient(*args, **kwargs):
        value, gradients = both(*args, **kwargs)
        return (gradients, value[1]) if has_aux else gradients

    return gradient


@op(operands=0)
def saturate_cast(x, dtype):
    """Return `x` in another dtype, values beyond its range moved to the nearest limit."""
    import numpy as np

    from khub.ops.math import clip

    name, source = dtypes.standardize(dtype), dtype_of(x)
    if dtypes.is_integer(name) and source != "bool":
        limits = [np.iinfo(n) for n in (name, source) if dtypes.is_integer(n)]
        x = clip(x, max(int(n.min) for n in limits), min(int(n.max) for n in limits))
    return cast(x, name)


# Python's operators and the ops they are; == and != compare by identity: both are keys of dicts
_UNARY = "neg:negative abs:absolute invert:logical_not"
_COMPARING = "lt:less le:less_equal gt:greater ge:greater_equal"
_BINARY = """
add:add sub:subtract mul:multiply truediv:divide floordiv:floor_divide mod:mod pow:power
matmul:matmul and:logical_and or:logical_or xor:logical_xor
"""


def _bind_operators():
    """Give symbolic tensors and Variables Python's operators; native tensors have their own."""
    from khub.ops import array, math

    def bind(text, make, prefix=""):
        for name, _, function in (pair.partition(":") for pair in text.split()):
            for cls in (KerasTensor, Variable):
                setattr(cls, f"__{prefix}{name}__", make(getattr(math, function)))

    bind(_UNARY, lambda f: lambda a: f(a))
    bind(_BINARY + _COMPARING, lambda f: lambda a, b: f(a, b))
    bind(_BINARY, lambda f: lambda a, b: f(b, a), "r")
    KerasTensor.reshape, KerasTensor.squeeze = array.reshape, array.squeeze
    KerasTensor.__getitem__ = lambda a, key: array.getitem(a, key)
