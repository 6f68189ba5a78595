"""Declaring operations: `@primitive` (every backend has it), `@op` (a replaceable reference body).

A call on native tensors of agreeing dtypes is two or three type checks and the backend's function.
All else (Python numbers, NumPy arrays, Variables, mixed dtypes, symbolic tensors) takes the slow
path once. The wrapper is written out as source text because packing `*args` costs more than the
checks.
"""

import inspect
from functools import cache, update_wrapper

from khub import dtypes, tree
from khub.backend import active
from khub.backend.host import here, host_function
from khub.backend.scope import local
from khub.backend.variable import Variable
from khub.ops.symbolic import KerasTensor, any_symbolic, record

OPS = {}  # name -> the public function
PRIMITIVES = {}  # name -> the declared signature, checked against every backend
SPARSE = {}  # name -> the function (call, *args) for sparse operands (khub/ops/sparse.py)

_TENSORS = active.TENSORS
_SCALARS = (bool, int, float, complex)
_TAKE_NUMBERS = {"add", "subtract", "multiply", "divide", "power", "floor_divide", "mod"}
_TAKE_NUMBERS |= {"equal", "not_equal", "greater", "greater_equal", "less", "less_equal"}


# --- dtype rules: dtypes of the operands -> the dtype they are cast to (None: as they are) -------
def promote(*names):
    """The lattice's result."""
    return dtypes.result_type(*names)


def promote_float(*names):
    """The lattice's result, integers and bool become float."""
    return dtypes.floating(dtypes.result_type(*names))


def full_precision(*names):
    """`promote_float`, in 32 bits at least: half floats have no factors and no transforms."""
    return dtypes.result_type(promote_float(*names), "float32")


def accumulate(name):
    """Sums and products of narrow integers are taken in 32 bits."""
    if name in ("bool", "int8", "int16"):
        return "int32"
    return "uint32" if name in ("uint8", "uint16") else name


def counted(*names):
    """The lattice's result, bool counts as int32."""
    name = dtypes.result_type(*names)
    return "int32" if name == "bool" else name


def boolean(*names):
    """Logical operations read their operands as bool."""
    return "bool"


def _alike(names, *tests):
    tests = [f"{names[0]}.dtype {test}" for test in tests]
    return " and ".join([*tests, *(f"{n}.dtype is {names[0]}.dtype" for n in names[1:])])


_FAST_TEST = {  # rule -> the extra test of the fast path; the backend may promote as we do
    promote: _alike,
    promote_float: lambda names: _alike(names, "in FLOATS"),
    full_precision: lambda names: _alike(names, "in FULL"),
    accumulate: lambda names: f"{names[0]}.dtype in WIDE",
    counted: lambda names: _alike(names, "is not BOOL"),
    boolean: lambda names: " and ".join(f"{n}.dtype is BOOL" for n in names),
}


def dtype_of(x):
    """Return the dtype name of any operand; Python numbers are weak."""
    kind = type(x)
    if kind in _TENSORS:
        return active.dtype_name(x)
    if kind in _SCALARS:
        return "bool" if kind is bool else kind.__name__
    return dtypes.standardize(x.dtype) if hasattr(x, "dtype") else active.array_dtype(x)


def value_of(x):
    """Return a Variable's value, anything else as it is."""
    return x.value if isinstance(x, Variable) else x


def has_sparse(operands):
    """Say whether one of these is a sparse tensor."""
    return _IS_SPARSE is not None and any(map(_IS_SPARSE, operands))


native_sparse = getattr(active, "sparse", None)  # what the backend has for sparse tensors
_IS_SPARSE = None if native_sparse is None else native_sparse.is_sparse


def _on_sparse(call, args):
    """Run an op as it treats sparse operands, or with dense ones in their place."""
    rule = SPARSE.get(call.__name__)
    if rule is not None:
        return rule(call, *map(value_of, args))
    return call(
        *tree.map_structure(lambda x: native_sparse.densify(x) if _IS_SPARSE(x) else x, args)
    )


def _slow(call, run, places, rule, args):
    operands = [args[i] for i in places]
    if any(isinstance(x, KerasTensor) for x in operands) or (
        any(isinstance(x, (list, tuple)) for x in args) and any_symbolic(args)
    ):
        return record(call, args, {}, call.spec and call.spec(*args))
    if has_sparse(operands):
        return _on_sparse(call, args)
    operands = [value_of(x) for x in operands]
    convert = here().convert_to_tensor
    if local.host:
        run = host_function(call)
    if rule is None:
        converted = [x if x is None else convert(x) for x in operands]
    else:
        dtype = rule(*[dtype_of(x) for x in operands if x is not None])
        converted = [x if x is None else convert(x, dtype) for x in operands]
    args = list(args)
    for i, x in zip(places, converted, strict=True):
        args[i] = x
    return run(*args)


def _agree(operands):
    """Whether this is a list of tensors of one dtype."""
    if type(operands) not in (list, tuple) or not operands:
        return False
    dtype = getattr(operands[0], "dtype", None)
    return all(type(x) in _TENSORS and x.dtype is dtype for x in operands)


def _slow_list(call, run, rule, args):
    """The first argument is a list of operands (concatenate, stack, ...)."""
    if any_symbolic(args):
        return record(call, args, {})
    if has_sparse(args[0]):
        return _on_sparse(call, args)
    operands = [value_of(x) for x in args[0]]
    dtype = rule(*[dtype_of(x) for x in operands])
    if local.host:
        run = host_function(call)
    return run([here().convert_to_tensor(x, dtype) for x in operands], *args[1:])


@cache
def _compiled(source):  # ops of the same parameters share it: compiling is most of their cost
    return compile(source, "<khub op>", "exec")


def _wrap(declared, run, operands, rule):
    parameters = [
        p for p in inspect.signature(declared).parameters.values() if p.kind is not p.VAR_KEYWORD
    ]
    names = [p.name for p in parameters]
    space = {"TENSORS": _TENSORS, "Variable": Variable, "run": run}
    space |= {"slow": _slow, "rule": rule, "slow_list": _slow_list}
    space |= {"agree": _agree, "has_sparse": has_sparse, "on_sparse": _on_sparse}
    space |= {"NUMBERS": (int, float), "WIDE": active.WIDE, "BOOL": active.BOOL}
    half = {active.NATIVE[name] for name in ("float16", "bfloat16")}
    space |= {"FLOATS": active.FLOATS, "FULL": active.FLOATS - half}
    heads = []
    for p in parameters:
        if p.default is not p.empty:
            space[f"default_{p.name}"] = p.default
        heads.append(p.name if p.default is p.empty else f"{p.name}=default_{p.name}")
    if len(parameters) < len(inspect.signature(declared).parameters):
        heads.append("**kwargs")  # accepted for Keras' sake, without effect
    everything = ", ".join(names)
    name = declared.__name__
    if operands == "list":
        body = (
            f"    if agree({names[0]}):\n        return run({everything})\n"
            f"    return slow_list(call, run, rule, ({everything},))"
        )
    else:
        tensors = names[:operands] if isinstance(operands, int) else list(operands)
        required = [
            n for n in tensors if f"default_{n}" not in space or space[f"default_{n}"] is not None
        ]
        tests = [
            f"type({n}) in TENSORS" if n in required else f"({n} is None or type({n}) in TENSORS)"
            for n in tensors
        ]
        if rule is not None:
            tests += [text for text in [_FAST_TEST[rule](required)] if text]
        places = tuple(names.index(n) for n in tensors)
        go = f"        return run({everything})\n"
        if _IS_SPARSE is not None and native_sparse.SPARSE_ARE_TENSORS:  # a try costs nothing
            go = (
                f"        try:\n            return run({everything})\n        except Exception:\n"
                f"            if not has_sparse(({', '.join(tensors)},)): raise\n"
                f"        return on_sparse(call, ({everything},))\n"
            )
        number = ""
        if active.WEAK_NUMBERS and name in _TAKE_NUMBERS:
            one, two = tensors
            number = (
                f"    if type({two}) in NUMBERS and type({one}) in TENSORS and "
                f"{one}.dtype in FLOATS:\n{go}"
            )
        unwrap = "".join(  # beside a symbol a Variable stays one: it may change between calls
            f"    if type({n}) is Variable and type({names[0]}) in TENSORS: {n} = {n}.value\n"
            for n in tensors[1:]
        )
        body = (
            f"{unwrap}    if {' and '.join(tests)}:\n{go}{number}"
            f"    return slow(call, run, {places}, rule, ({everything},))"
        )
    exec(_compiled(f"def call({', '.join(heads)}):\n{body}"), space)
    call = update_wrapper(space["call"], declared)
    call.__signature__ = inspect.signature(declared)
    return call


def _anywhere(function):
    """Wrap a function whose tensors may be anywhere in its arguments; its body converts them."""

    def call(*args, **kwargs):
        if any_symbolic((args, kwargs)):
            return record(call, args, kwargs)
        return (host_function(call) if local.host else function)(*args, **kwargs)

    return update_wrapper(call, function)


def _creating(function, run):
    """Wrap a function that takes no tensors."""

    def call(*args, **kwargs):
        return (host_function(call) if local.host else run)(*args, **kwargs)

    return update_wrapper(call, function)


def _declare(function, run, operands, rule, spec=None):
    if operands == "any":
        call = _anywhere(run)
    elif operands:
        call = _wrap(function, run, operands, rule)
    else:
        call = _creating(function, run)
    call.run, call.spec = run, spec
    count = 1 if isinstance(operands, str) else operands
    call.operands = count if isinstance(count, int) else len(count)
    OPS[function.__name__] = call
    return call


def primitive(operands=1, dtype=None, spec=None):
    """Declare an operation that every backend implements; the decorated function is its signature.

    spec: gives the symbolic results, or None where tracing tells them
    operands: how many leading parameters are tensors, or which by name ("list": the first one is a
    list of them, "any": anywhere, 0: none)
    dtype: the rule that says which dtype the operands are cast to
    """

    def decorate(function):
        PRIMITIVES[function.__name__] = inspect.signature(function)
        run = getattr(active, function.__name__, None)
        if run is None:
            raise ImportError(
                f"The {active.__name__} backend lacks the primitive {function.__name__}."
            )
        return _declare(function, run, operands, dtype, spec)

    return decorate


# what the backend does to the reference bodies that it runs
_body = getattr(active, "body", lambda function: function)


def op(operands=1, dtype=None, spec=None):
    """Declare an op whose body is written with other ops; a backend's function of its name wins.

    spec: gives the symbolic results where their shapes depend on values, which tracing cannot tell.
    A backend's function returns NotImplemented for arguments that it leaves to the body.
    """

    def decorate(function):
        native = getattr(active, function.__name__, None)
        run = native or (_body(function) if operands else function)
        if function.__name__ in getattr(active, "PARTIAL", ()):
            native.body = function  # whose gradient a kernel without one has

            def run(*args):
                result = native(*args)
                return function(*args) if result is NotImplemented else result

        call = _declare(function, run, operands, dtype, spec)
        call.reference, call.run = function, run if native else function
        return call

    return decorate
