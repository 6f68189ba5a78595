"""Variables, gradients, control flow and random numbers on PyTorch."""

import threading
import weakref
from contextlib import nullcontext
from functools import partial, wraps

import numpy as np
import torch
from torch.nn import Parameter
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from khub import tree
from khub.backend import eager
from khub.backend.scope import Resumed, Scope, Setting, local, within
from khub.backend.torch.arrays import NATIVE, TENSORS, convert_to_tensor, moved, place

compiling, EAGER = torch.compiler.is_dynamo_compiling, True  # jit leaves functions as they are


class _Depth(threading.local):
    gradients = 0  # how many value_and_grad calls this one is inside of
    maps = 0  # how many vmap calls
    graphs = 0  # how many graphs are written down, which hold no generator but torch's own


_depth = _Depth()


def on_device(name):
    return Setting("place", torch.device(name.replace("gpu", "cuda")))


# --- Variables -----------------------------------------------------------------------------------
def _copy(target, value):
    """Torch transposes matrices in blocks, what has more axes element by element."""
    if value.dim() in (2, 4) and value.is_contiguous():
        axis = _outputs(value)
        rows = target.movedim(axis, 0)
        if rows.is_contiguous():
            target, value = rows.flatten(1), value.movedim(axis, 0).flatten(1)
    target.copy_(value)


def _outputs(kernel):
    """The axis torch's layers have first: (units, n), OHWI; of a depthwise kernel (n, H, W)."""
    return -2 if kernel.shape[-1] == 1 else -1


def new_storage(value, trainable, name, own=False):
    """own: whether the value's memory may become the Variable's, if layers want it so."""
    value = convert_to_tensor(value)
    # A wide product of few rows is a third faster where the kernel lies as it is (measured: MKL).
    wide = value.dim() == 2 and value.shape[1] >= 2 * value.shape[0] and value.is_cpu
    turned = name.endswith("kernel") and value.dim() in (2, 4) and not wide
    axis = _outputs(value) if turned else 0
    rows = value.movedim(axis, 0)
    # torch's own memory begins at multiples of 64; elsewhere a product's last bits are others
    if not own or value.data_ptr() % 64 or not rows.is_contiguous():
        tensor = torch.empty_like(rows, memory_format=torch.contiguous_format).movedim(0, axis)
        _copy(tensor, value)
        value = tensor
    if not trainable or not (value.is_floating_point() or value.is_complex()):
        return value
    return Parameter(value)


def read(storage):
    return storage


def write(storage, value):
    value = value.detach()
    if isinstance(storage, Parameter):  # optimizers, modules and hooks hold on to it
        with torch.no_grad():
            _copy(storage, value)
        return storage
    return value.clone() if value.device == storage.device else value.to(storage.device)


def set_trainable(storage, trainable):
    if isinstance(storage, Parameter):
        storage.requires_grad_(trainable)


def is_traced(x):
    return False


def start_profile(folder):
    """Begin to write down what the framework does, for TensorBoard; return what ends it."""
    written = torch.profiler.tensorboard_trace_handler(folder)
    profiler = torch.profiler.profile(on_trace_ready=written)
    profiler.start()
    return profiler.stop


def placeholder(shape, dtype):
    return torch.empty(shape, dtype=NATIVE[dtype], device="meta")


class _OnMeta(TorchDispatchMode):
    """Takes the shape alone of tensors with values: constants of a layer among placeholders."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = args, kwargs or {}
        args, kwargs = pytree.tree_map_only(torch.Tensor, lambda x: x.to("meta"), given)
        return function(*args, **kwargs)


def abstract_eval(function, specs):
    def run(mode):
        with torch.device("meta"), Setting("shapes", True), torch.no_grad(), mode:
            return function(*[placeholder(shape, dtype) for shape, dtype in specs])

    try:
        return run(nullcontext())
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
        return run(_OnMeta())  # slower, and seldom needed


no_gradient, inference = torch.no_grad, torch.inference_mode
untraced = partial(torch.inference_mode, False)  # Variables outlive an inference


# --- transforms ----------------------------------------------------------------------------------
def jit(function):
    @wraps(function)
    def call(*args, **kwargs):
        if kwargs or len(args) != 1 or type(args[0]) not in TENSORS or place() is not None:
            args, kwargs = _tensors((args, kwargs))
        return function(*args, **kwargs)

    return call


def _tensors(structure):
    """Arrays of numbers as tensors, which torch's own operators do not take, on the device."""

    def tensor(x):
        if type(x) is np.ndarray and x.dtype.kind not in "OUSM":
            return convert_to_tensor(x)
        return moved(x) if type(x) in TENSORS else x

    return tree.map_structure(tensor, structure)


def value_and_grad(function, variables, has_aux):
    def call(*args, **kwargs):
        scope, watched = None, []
        args, kwargs = _tensors((args, kwargs))
        if _depth.maps:
            return _mapped_value_and_grad(function, variables, has_aux, args, kwargs)
        if variables is None:
            leaves = [_leaf(convert_to_tensor(x)) for x in tree.flatten(args[0])]
            args = (tree.pack_sequence_as(args[0], leaves), *args[1:])
        elif local.scope is not None:
            leaves = [_leaf(local.scope.get(v)) for v in variables]
            scope = Scope(zip(variables, leaves, strict=True), seal=torch.Tensor.detach)
        else:
            leaves = [v._storage if v._storage is not None else v.materialize() for v in variables]
            watched = [x for x in leaves if not x.requires_grad]
            for x in watched:
                x.requires_grad_()
        _depth.gradients += 1
        try:
            with torch.enable_grad():
                result = within(scope, function, args, kwargs)
                loss = result[0] if has_aux else result
                gradients = [None] * len(leaves)
                if loss.requires_grad and leaves:
                    gradients = torch.autograd.grad(
                        loss, leaves, create_graph=_depth.gradients > 1, allow_unused=True
                    )
        finally:
            _depth.gradients -= 1
            for x in watched:
                x.requires_grad_(False)
        gradients = [
            torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True)
        ]
        if variables is None:
            gradients = tree.pack_sequence_as(args[0], gradients)
        if _depth.gradients == 0:
            result = tree.map_structure(
                lambda x: x.detach() if isinstance(x, torch.Tensor) else x, result
            )
        return result, gradients

    return call


def _mapped_value_and_grad(function, variables, has_aux, args, kwargs):
    """Inside vmap, where autograd's own functions cannot be called."""

    def run(target):
        if variables is None:
            result = function(target, *args[1:], **kwargs)
        else:
            with Scope(zip(variables, target, strict=True), seal=torch.Tensor.detach):
                result = function(*args, **kwargs)
        return (result[0] if has_aux else result), result

    target = args[0] if variables is None else [v.value for v in variables]
    gradients, (_, result) = torch.func.grad_and_value(run, has_aux=True)(target)
    return result, gradients


def _leaf(x):
    return x if x.requires_grad and _depth.gradients else x.detach().requires_grad_()


def custom_gradient(function):
    def call(*args):
        kept = {}

        class Custom(torch.autograd.Function):
            @staticmethod
            def forward(context, *tensors):
                outputs, kept["gradient"] = function(*tensors)
                kept["outputs"] = outputs
                return tuple(tree.flatten(outputs))

            @staticmethod
            def backward(context, *upstream):
                gradients = kept["gradient"](*upstream)
                return tuple(gradients) if isinstance(gradients, (tuple, list)) else gradients

        flat = Custom.apply(*args)
        return tree.pack_sequence_as(kept["outputs"], list(flat))

    return call


def jvp(function, primals, tangents, has_aux):
    return torch.func.jvp(function, primals, tangents, has_aux=has_aux)


def checkpoint(function):
    from torch.utils.checkpoint import checkpoint as recompute

    def call(*args):
        states = [(g, g.get_state()) for g in _generators]
        then, before, after = Resumed(), {}, {}
        first = True

        def run(*args):
            nonlocal first
            if first:
                first = False
                with Scope() as scope:
                    result = function(*args)
                for variable in scope.written:
                    before[variable] = variable._uncast().detach().clone()
                    after[variable] = scope.values[variable]
                return result
            now = [(g, g.get_state()) for g in _generators]
            for generator in _generators:  # the same dropout as in the first run
                generator.manual_seed(generator.initial_seed())
            for generator, state in states:
                generator.set_state(state)
            try:  # torch leaves by an exception as soon as it has what it needs
                with then, Scope(before):  # and the same values of Variables
                    return function(*args)
            finally:
                for generator, state in now:
                    generator.set_state(state)

        result = recompute(run, *args, use_reentrant=False, preserve_rng_state=True)
        for variable, value in after.items():
            variable.assign(value)
        return result

    return call


def vmap(function, in_axes, out_axes):
    mapped = torch.vmap(function, in_dims=in_axes, out_dims=out_axes, randomness="different")

    def call(*args):
        _depth.maps += 1
        try:
            return mapped(*args)
        finally:
            _depth.maps -= 1

    return call


def cond(pred, true_fn, false_fn):
    return true_fn() if _holds(pred) else false_fn()


def switch(index, branches):
    return branches[0 if index.is_meta else int(index)]()


def _holds(pred):
    return getattr(pred, "is_meta", False) or bool(pred)  # shapes alone: any branch tells them


def while_loop(cond, body, loop_vars, maximum_iterations):
    if any(getattr(x, "is_meta", False) for x in tree.flatten(loop_vars)):
        maximum_iterations = 1
    return eager.while_loop(lambda *x: _holds(cond(*x)), body, loop_vars, maximum_iterations)


def scan(function, init, xs, length, reverse):
    if type(length) is int:
        return eager.scan(function, init, xs, length, reverse, torch.stack)
    from khub.export.torch import scan  # torch.export leaves the length open

    return scan(function, init, xs, reverse)


# --- random numbers: `seed` is a Generator, one for each SeedGenerator, so that no seed is read ba
SEED_DTYPE = "int64"
_generators = weakref.WeakSet()


def _random_device():
    device = place()
    return "cpu" if device is None or device.type == "meta" else device.type


class _Generator(torch.Generator):
    """One that can be referred to weakly, which torch's own could not be before 2.13."""


def make_generator(seed):
    generator = _Generator(_random_device()).manual_seed(seed)
    _generators.add(generator)
    return generator


def next_seed(seeds):
    if _depth.graphs:
        return None
    if seeds.native is None or seeds.native.device.type != _random_device():
        seeds.native = make_generator(seeds.seed)
    return seeds.native


def _empty(shape, dtype):
    return torch.empty(shape, dtype=dtype, device=place())


def random_uniform(shape, minval, maxval, dtype, seed):
    return _empty(shape, NATIVE[dtype]).uniform_(minval, maxval, generator=seed)


def random_normal(shape, mean, stddev, dtype, seed):
    return _empty(shape, NATIVE[dtype]).normal_(mean, stddev, generator=seed)


def random_integers(shape, minval, maxval, dtype, seed):
    numbers = _empty(shape, torch.int64).random_(minval, maxval, generator=seed)
    return numbers.to(NATIVE[dtype])


def random_gamma(alpha, seed):
    return alpha if alpha.is_meta else torch._standard_gamma(alpha, generator=seed)


def random_binomial(counts, probabilities, seed):
    return torch.binomial(counts, probabilities, generator=seed)


def random_dropout(inputs, rate, noise_shape, seed):
    shape = inputs.shape if noise_shape is None else noise_shape
    keep = inputs.new_empty(shape).bernoulli_(1 - rate, generator=seed)
    return inputs * keep.div_(1 - rate)
