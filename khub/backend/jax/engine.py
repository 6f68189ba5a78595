"""Variables live outside jax; `jit` and the transforms carry them in and out of a trace."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
from jax import custom_gradient, jvp, lax, vmap  # noqa: F401  (this backend's functions)
from jax.lax import stop_gradient

from khub import tree
from khub.backend.jax.arrays import _native
from khub.backend.scope import Scope, local

EAGER = False  # whether jit leaves functions as they are
fused = {}  # optimizer class name -> its update of all Variables in one go
Base = object


# --- Variables -----------------------------------------------------------------------------------
def new_storage(value, trainable, name, own=False):
    with jax.ensure_compile_time_eval():
        array = jax.device_put(value, may_alias=False).block_until_ready()
        # a copy, because jit donates the buffer; memory at a multiple of 64 is shared all the same
        shared = array.unsafe_buffer_pointer() == value.ctypes.data
        return jnp.array(array) if shared else array


def read(storage):
    return storage


def write(storage, value):
    if isinstance(value, jax.core.Tracer):
        raise RuntimeError(
            "A Variable was assigned inside jax.jit, jax.grad or another transform of JAX' own, "
            "which takes pure functions: call the model by stateless_call(), or use khub.jit."
        )
    return jnp.array(value)  # a copy, for the same reason


def set_trainable(storage, trainable):
    pass  # gradients are asked for by Variable


def is_traced(x):
    return False  # inside a trace there is always a scope


def on_device(name):
    kind, _, number = name.partition(":")
    known = {device.id: device for device in jax.devices(kind)}
    if int(number or 0) not in known:
        raise ValueError(f"There is no device {name!r}; jax has {jax.devices(kind)}.")
    return jax.default_device(known[int(number or 0)])


def start_profile(folder):
    jax.profiler.start_trace(folder)
    return jax.profiler.stop_trace


def placeholder(shape, dtype):
    return jnp.zeros(shape, _native(dtype))


def abstract_eval(function, specs):
    return jax.eval_shape(function, *[jax.ShapeDtypeStruct(s, _native(d)) for s, d in specs])


no_gradient, inference, untraced = nullcontext, nullcontext, jax.ensure_compile_time_eval


# --- transforms: a function that reads and assigns Variables becomes a pure one ------------------
def _pure(function, variables, written, seal=None):
    """Return `pure(values, *args) -> (result, new values)`; Variables not given are constants."""
    seal = seal or getattr(local.scope, "seal", None)

    def pure(values, *args, **kwargs):
        with Scope(zip(variables, values, strict=True), seal=seal) as scope:
            result = function(*args, **kwargs)
        for variable in scope.written:
            if variable not in written:
                written[variable] = None
        return _tensors(result), [
            scope.values[v] if v in scope.values else v._uncast() for v in written
        ]

    return pure


def _tensors(result):
    """Variables and numbers that a function returns, as arrays: a trace returns nothing else."""
    return tree.map_structure(lambda x: x.value if hasattr(x, "_storage") else x, result)


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        if local.scope is None:
            variable._storage = value
        else:
            local.scope.set(variable, value)


def _uses(function, *args, **kwargs):
    """Return (read, written) Variables of `function`, found by one trace without compilation."""
    with Scope() as scope:
        jax.eval_shape(lambda *a, **k: _only_arrays(function(*a, **k)), *args, **kwargs)
    return scope.read, scope.written


def _only_arrays(result):
    return [x for x in tree.flatten(_tensors(result)) if isinstance(x, (jax.Array, np.ndarray))]


class _Compiled:
    """A compiled form of a function: its Variables, the jitted pure function of their values."""

    def __init__(self, function, args):
        read, written = _uses(function, *args)
        self.written = list(written)
        self.read = [v for v in read if v not in written]
        # a Variable that is only assigned still gives its buffer away, if it has one
        self.given = [v for v in self.written if v in read or v.is_materialized]
        for variable in (*self.read, *self.given):
            variable.materialize()
        known = {*self.read, *self.given}

        def run(given, read, *leaves):
            with Scope(zip((*self.given, *self.read), (*given, *read), strict=True)) as scope:
                result = _tensors(function(*leaves))
            if not (scope.read.keys() <= known and scope.written.keys() <= written.keys()):
                raise _Stale
            # an array may not leave twice: the next call gives the Variables' buffers away
            taken = set(map(id, read))
            values = [_fresh(scope.get(v), taken) for v in self.written]
            return tree.map_structure(lambda x: _fresh(x, taken), result), values

        self.run = jax.jit(run, donate_argnums=0)

    def __call__(self, leaves):
        given, read = [v._storage for v in self.given], [v._storage for v in self.read]
        result, values = self.run(given, read, *leaves)
        for variable, value in zip(self.written, values, strict=True):
            variable._storage = value
        return result


def _fresh(x, taken):
    if not isinstance(x, jax.Array):
        return x
    if id(x) in taken:
        return jnp.copy(x)
    taken.add(id(x))
    return x


class _Stale(Exception):
    """A new trace reads or assigns other Variables than the first one did."""


_ARRAY = object()
_TRACED = (jax.Array, np.ndarray, np.generic, int, float)


def jit(function):
    compiled = {}

    def call(*args, **kwargs):
        if local.scope is not None:  # inside another trace: part of it
            return function(*args, **kwargs)
        leaves, structure = jax.tree_util.tree_flatten((args, kwargs))
        traced, key = [], [structure]
        for leaf in leaves:
            if type(leaf) is np.ndarray or (
                isinstance(leaf, _TRACED) and not isinstance(leaf, bool)
            ):  # the check against jax.Array takes half a microsecond
                traced.append(leaf)
                key.append(_ARRAY)
            elif hasattr(leaf, "__array__") and not hasattr(leaf, "_storage"):
                traced.append(np.asarray(leaf))
                key.append(_ARRAY)
            else:
                key.append(leaf)
        key = tuple(key)
        entry = compiled.get(key)
        if entry is None:

            def flat(*values):
                values = iter(values)
                filled = [next(values) if k is _ARRAY else k for k in key[1:]]
                args, kwargs = jax.tree_util.tree_unflatten(structure, filled)
                return function(*args, **kwargs)

            entry = compiled[key] = _Compiled(flat, traced)
        try:
            return entry(traced)
        except _Stale:
            del compiled[key]
            return call(*args, **kwargs)

    call.__wrapped__ = function
    return call


compiled = jit


def projects_in_steps():
    """Whether products of a sequence's inputs are faster in the steps of a scan: XLA's CPUs."""
    return jax.default_backend() == "cpu"


def value_and_grad(function, variables, has_aux):
    def call(*args, **kwargs):
        written = {}

        def loss_of(target, *rest):
            if variables is None:
                pure, inputs = _pure(function, (), written, stop_gradient), ((), target, *rest)
            else:
                pure, inputs = _pure(function, variables, written, stop_gradient), (target, *rest)
            result, values = pure(*inputs, **kwargs)
            loss, aux = result if has_aux else (result, None)
            return loss, (aux, values)

        if variables is None:
            target, rest = args[0], args[1:]
        else:
            target, rest = [v._uncast() for v in variables], args
        (loss, (aux, values)), gradients = jax.value_and_grad(loss_of, has_aux=True)(target, *rest)
        _assign(written, values)
        return ((loss, aux) if has_aux else loss), gradients

    return call


def checkpoint(function):
    def call(*args):
        written = {}
        result, values = jax.checkpoint(_pure(function, (), written))((), *args)
        _assign(written, values)
        return result

    return call


def cond(pred, true_fn, false_fn):
    return switch(jnp.asarray(pred, bool).astype("int32"), (false_fn, true_fn))


def switch(index, branches):
    if not isinstance(index, jax.core.Tracer):
        return branches[int(index)]()
    written = {}
    for branch in branches:
        written |= _uses(branch)[1]
    branches = [_pure(branch, (), written) for branch in branches]
    result, values = lax.switch(index, [lambda b=b: b(()) for b in branches])
    _assign(written, values)
    return result


def while_loop(cond, body, loop_vars, maximum_iterations):
    _, written = _uses(body, *loop_vars)
    written = list(written)
    limit = maximum_iterations

    def proceed(state):
        step, values, loop = state
        with Scope(zip(written, values, strict=True)):
            more = jnp.asarray(cond(*loop), bool)
        return more if limit is None else jnp.logical_and(more, step < limit)

    def advance(state):
        step, values, loop = state
        loop, values = _pure(body, written, dict.fromkeys(written))(values, *loop)
        return step + 1, values, tuple(loop)

    start = (jnp.int32(0), [v._uncast() for v in written], loop_vars)
    _, values, loop_vars = lax.while_loop(proceed, advance, start)
    _assign(written, values)
    return loop_vars


def scan(function, init, xs, length, reverse):
    first = None if xs is None else tree.map_structure(lambda x: x[0], xs)
    _, written = _uses(function, init, first)
    written = list(written)

    def step(state, x):
        carry, values = state
        (carry, y), values = _pure(function, written, dict.fromkeys(written))(values, carry, x)
        return (carry, values), y

    start = (init, [v._uncast() for v in written])
    (carry, values), ys = lax.scan(step, start, xs, length if xs is None else None, reverse)
    _assign(written, values)
    return carry, ys
