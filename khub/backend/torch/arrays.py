"""Conversion, arrays and mathematics on torch tensors."""

import builtins
import math
import os
from functools import wraps

import numpy as np
import torch

from khub import config, dtypes, tree
from khub.backend.scope import local
from khub.choices import choose

# ruff: noqa: A001, A002, F401  (imported names are this backend's functions)

SAME = """
all any arccos arccosh arcsin arcsinh arctan arctan2 arctanh broadcast_to ceil cos cosh divide erf
erfinv exp expm1 floor hstack i0 isfinite isinf isnan log log1p log2 log10 logical_and logical_not
logical_or logical_xor mean ravel rsqrt sin sinh sqrt stack swapaxes tan tanh vstack
"""  # functions of one name and meaning in torch
globals().update({name: getattr(torch, name) for name in SAME.split()})
copy, stop_gradient, moveaxis = torch.clone, torch.detach, torch.movedim
equal, not_equal, _complex = torch.eq, torch.ne, torch.complex
tile = torch.Tensor.tile

TENSORS = {torch.Tensor, torch.nn.Parameter}
NATIVE = {name: getattr(torch, name) for name in dtypes.ALL}
FLOATS = frozenset(NATIVE[name] for name in (*dtypes.FLOATS, *dtypes.COMPLEX))
BOOL = torch.bool
WEAK_NUMBERS = True  # native functions take a Python number at the other operand's dtype
WIDE = frozenset(
    NATIVE[n] for n in dtypes.ALL if n not in ("bool", "int8", "int16", "uint8", "uint16")
)

_NAMES = {native: name for name, native in NATIVE.items()}
_NUMBERS = (bool, int, float, complex)
_UNSIGNED = frozenset((torch.uint16, torch.uint32, torch.uint64))
_INTEGERS = frozenset(NATIVE[name] for name in (*dtypes.UNSIGNED, *dtypes.SIGNED))
# NumPy knows these from ml_dtypes, which torch does not accept: their bits pass as integers.
_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
_AS_BITS = frozenset(map(dtypes.numpy_dtype, _BITS))


# --- devices -------------------------------------------------------------------------------------
def _home():
    """The device that the environment names, else the GPU; None is where torch makes tensors."""
    names = map(os.environ.get, ("KHUB_TORCH_DEVICE", "KERAS_TORCH_DEVICE"))
    name = next(filter(None, names), "cuda" if torch.cuda.is_available() else None)
    return name and torch.device(name)


_HOME, _META = _home(), torch.device("meta")


def place():
    """Return the device of new tensors in this thread; None is where torch makes them."""
    return _META if local.shapes else local.device or _HOME


def moved(x):
    """A tensor of the host, brought to the device that new tensors have."""
    device = place()
    return x if device is None or not x.is_cpu else x.to(device)


# --- conversion ----------------------------------------------------------------------------------
def is_tensor(x):
    if isinstance(x, torch.Tensor):
        TENSORS.add(type(x))
        return True
    return False


def dtype_name(x):
    return _NAMES[x.dtype]


def array_dtype(x):
    leaves = tree.flatten(x)
    kinds = set(map(type, leaves))
    if kinds <= {int, float, bool}:
        return "int" if kinds in ({int}, {int, bool}) else "bool" if kinds == {bool} else "float"
    if _hold_tensors(leaves):
        return dtypes.result_type(*(getattr(leaf, "dtype", type(leaf)) for leaf in leaves))
    return dtypes.standardize(np.asarray(x).dtype)


def _hold_tensors(leaves):
    return [x for x in leaves if is_tensor(x) or hasattr(x, "_storage")] != []


def convert_to_tensor(x, dtype=None):
    native = None if dtype is None else NATIVE[dtype]
    kind = type(x)
    if kind in TENSORS or is_tensor(x):
        return moved(x if native is None or x.dtype is native else x.to(native))
    if kind in _NUMBERS:
        dtype = native or NATIVE[dtypes.result_type(kind)]
        return torch.scalar_tensor(x, dtype=dtype, device=place())
    if kind in (list, tuple):
        if dtype is None:
            weak = array_dtype(x)
            dtype = {"int": "int32", "float": config.floatx()}.get(weak, weak)
        if _hold_tensors(tree.flatten(x)):
            return torch.stack([convert_to_tensor(item, dtype) for item in x])
        return _from_numpy(np.asarray(x)).to(place(), NATIVE[dtype])
    if hasattr(x, "_storage"):  # a Variable
        return convert_to_tensor(x.value, dtype)
    if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
        x = torch.from_dlpack(x)
    else:
        x = _from_numpy(np.asarray(x))
    return moved(x if native is None else x.to(native))


def _from_numpy(x):
    if not x.flags.writeable or builtins.min(x.strides, default=0) < 0:
        x = x.copy()  # torch shares memory, or refuses
    if x.dtype in _AS_BITS:
        return torch.as_tensor(x.view(_BITS[x.dtype.name])).view(NATIVE[x.dtype.name])
    return torch.as_tensor(x)


def convert_to_numpy(x):
    if type(x) in TENSORS or is_tensor(x):
        return _to_numpy(x)
    if isinstance(x, (list, tuple)):
        x = [y if type(y) in _NUMBERS else convert_to_numpy(y) for y in x]
    return np.asarray(x)


def _to_numpy(x):
    x = x.detach().resolve_conj()
    x = x.clone() if x.device.type == "cpu" else x.cpu()
    name = _NAMES[x.dtype]
    if name in _BITS:
        return x.view(NATIVE[_BITS[name]]).numpy().view(dtypes.numpy_dtype(name))
    return x.numpy()


def cast(x, dtype):
    native = NATIVE[dtype]
    return x if x.dtype is native else x.to(native)


def shape(x):
    return tuple(x.shape)


def _wide(function):
    """Compute in int64 and come back where torch lacks the kernel: of uint16, uint32, uint64, bool.

    Products on a GPU, which knows none of integers, are computed in float64, exact below 2 ** 53.
    Orders and divisions of uint64 are right below 2 ** 63.
    """

    @wraps(function)
    def run(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except NotImplementedError:
            found = {x.dtype for x in tree.flatten((args, kwargs)) if is_tensor(x)}
            narrow = found & _UNSIGNED or found & {BOOL}
            if not narrow and not (found and found <= _INTEGERS):
                raise
            narrow = next(iter(narrow or found - {torch.int64} or found))
        wide = torch.float64 if narrow is torch.int64 else torch.int64

        def exchange(old, new, values):
            return tree.map_structure(
                lambda x: x.to(new) if is_tensor(x) and x.dtype is old else x, values
            )

        args, kwargs = exchange(narrow, wide, (args, kwargs))
        return exchange(wide, narrow, run(*args, **kwargs))

    return run


# --- making arrays -------------------------------------------------------------------------------
def _native(dtype):
    return NATIVE[dtypes.standardize(dtype)]


def _native_or_none(dtype):
    return None if dtype is None else NATIVE[dtypes.standardize(dtype)]


def arange(start, stop=None, step=None, dtype=None):
    numbers = [n for n in (start, stop, step) if n is not None]
    natural = dtypes.result_type(*(getattr(n, "dtype", type(n)) for n in numbers))
    dtype = natural if dtype is None else dtypes.standardize(dtype)
    if stop is None:
        start, stop = 0, start
    exact = "float64" if dtypes.is_float(natural) else "int64"  # range in it, then cast
    wide = NATIVE[dtype if dtypes.is_float(dtype) else exact]
    step = 1 if step is None else step
    return torch.arange(start, stop, step, dtype=wide, device=place()).to(NATIVE[dtype])


def linspace(start, stop, num=50, endpoint=True, retstep=False, dtype=None, axis=0):
    native = _native(dtype)
    ends = [convert_to_tensor(x).double() for x in (start, stop)]
    start, stop = torch.broadcast_tensors(*ends)
    intervals = num - 1 if endpoint else num
    weights = torch.arange(num, dtype=torch.float64, device=start.device) / (intervals or 1)
    weights = weights.reshape(-1, *[1] * start.dim())
    result = torch.movedim(torch.lerp(start, stop, weights), 0, axis).to(native)
    return (result, (stop - start) / intervals) if retstep else result


def zeros(shape, dtype=None):
    return torch.zeros(shape, dtype=_native(dtype), device=place())


def ones(shape, dtype=None):
    return torch.ones(shape, dtype=_native(dtype), device=place())


def full(shape, fill_value, dtype=None):
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if type(fill_value) in _NUMBERS:
        return torch.full(shape, fill_value, dtype=_native(dtype), device=place())
    return convert_to_tensor(fill_value, dtypes.standardize(dtype)).broadcast_to(shape).clone()


def eye(N, M=None, k=0, dtype=None):
    columns = torch.arange(N if M is None else M, device=place())
    return (columns == torch.arange(N, device=place())[:, None] + k).to(_native(dtype))


def zeros_like(x, dtype=None):
    return torch.zeros_like(x, dtype=_native_or_none(dtype))


def ones_like(x, dtype=None):
    return torch.ones_like(x, dtype=_native_or_none(dtype))


def full_like(x, fill_value, dtype=None):
    return full(x.shape, fill_value, dtype_name(x) if dtype is None else dtype)


# --- shapes --------------------------------------------------------------------------------------
def view(x, dtype=None):
    return x.contiguous().view(_native(dtype))


def reshape(x, newshape):  # the methods reshape and permute take twice these functions' time
    return torch.reshape(x, (newshape,) if isinstance(newshape, int) else newshape)


def transpose(x, axes=None):
    return torch.permute(x, tuple(range(x.dim() - 1, -1, -1)) if axes is None else axes)


def expand_dims(x, axis):
    if isinstance(axis, int):
        return x.unsqueeze(axis)
    count = x.dim() + len(axis)
    for place in sorted(a % count for a in axis):
        x = x.unsqueeze(place)
    return x


def squeeze(x, axis=None):
    if axis is None:
        return x.squeeze()
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    result = x.squeeze(axes)
    if result.dim() != x.dim() - len(axes):  # torch leaves longer axes as they are
        raise ValueError(f"squeeze needs axes of size 1, got axis={axis} of {tuple(x.shape)}.")
    return result


@_wide
def flip(x, axis=None):
    axes = range(x.dim()) if axis is None else (axis,) if isinstance(axis, int) else axis
    return torch.flip(x, tuple(axes))


@_wide
def repeat(x, repeats, axis=None):
    if axis is None:
        x, axis = x.reshape(-1), 0
    if isinstance(repeats, int):
        return torch.repeat_interleave(x, repeats, axis)
    if isinstance(repeats, (list, tuple, np.ndarray)):  # known now, and so is the result's length
        total = int(np.broadcast_to(repeats, (x.shape[axis],)).sum())
        repeats = convert_to_tensor(np.asarray(repeats), "int64")
        return torch.repeat_interleave(x, repeats, axis, output_size=total)
    return torch.repeat_interleave(x, repeats.long(), axis)


@_wide
def roll(x, shift, axis=None):
    if isinstance(axis, int) or axis is None:
        return torch.roll(x, shift, axis)
    return torch.roll(x, (shift,) * len(axis) if isinstance(shift, int) else shift, axis)


def pad(x, pad_width, mode="constant", constant_values=None):
    borders = np.broadcast_to(np.asarray(pad_width), (x.dim(), 2)).tolist()
    if mode == "constant":
        flat = [n for border in reversed(borders) for n in border]
        return torch.nn.functional.pad(x, flat, value=constant_values)
    known = ("constant", "reflect", "symmetric", "edge", "wrap", "circular")
    mode = choose("mode", mode, known).replace("circular", "wrap")
    for axis, border in enumerate(borders):
        if border != [0, 0]:
            places = np.pad(np.arange(x.shape[axis]), border, mode)
            x = take(x, convert_to_tensor(places), axis)
    return x


def concatenate(xs, axis=0):
    return torch.cat([x.reshape(-1) for x in xs]) if axis is None else torch.cat(xs, axis)


def split(x, indices_or_sections, axis=0):
    if not isinstance(indices_or_sections, int):
        return list(torch.tensor_split(x, tuple(map(int, indices_or_sections)), axis))
    if x.shape[axis] % indices_or_sections:
        raise ValueError(
            f"{indices_or_sections} equal parts cannot be made of axis {axis} of {tuple(x.shape)}."
        )
    return list(torch.tensor_split(x, indices_or_sections, axis))


def unstack(x, num=None, axis=0):
    return list(x.unbind(axis))


# --- indexing ------------------------------------------------------------------------------------
def _from_end(indices, size):
    """Return int64 indices with the negative ones counted from the end."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


@_wide
def take(x, indices, axis=None):
    if axis is None:
        x, axis = x.reshape(-1), 0
    axis = axis % x.dim()
    indices = indices if indices.dtype is torch.int32 else indices.long()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    if axis == 0 and x.dim() == 2 and x.is_floating_point():
        rows_only = local.sparse_gradients and x.is_leaf  # its gradient is the fastest
        return torch.nn.functional.embedding(indices, x, sparse=rows_only)
    result = x.index_select(axis, indices.reshape(-1))
    return result.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def bincount(x, weights=None, minlength=0, sparse=False):
    if weights is not None or x.dim() != 1 or x.is_meta:
        return NotImplemented
    return torch.bincount(x.long(), minlength=minlength).to(torch.int32)


@_wide
def take_along_axis(x, indices, axis=None):
    if axis is None:
        x, indices, axis = x.reshape(-1), indices.reshape(-1), 0
    return torch.take_along_dim(x, _from_end(indices, x.shape[axis]), axis)


@_wide
def _select(condition, x1, x2):
    return torch.where(condition if condition.dtype is BOOL else condition.to(BOOL), x1, x2)


@_wide
def nonzero(x):
    return tuple(index.to(torch.int32) for index in torch.nonzero(x, as_tuple=True))


def getitem(x, key):
    items = list(key) if type(key) is tuple else [key]
    for i, item in enumerate(items):
        if isinstance(item, builtins.slice):
            if item.step is not None and item.step < 0:  # torch steps forward only
                x, items[i] = _backwards(x, items, i)
        elif isinstance(item, (list, np.ndarray, torch.Tensor)) or hasattr(item, "_storage"):
            items[i] = convert_to_tensor(item)
            if items[i].dtype is not BOOL:
                items[i] = items[i].long()
    return x[tuple(items)]


def _backwards(x, items, i):
    """Return `x` flipped along the axis that items[i] slices, and the same slice of that."""
    used = [_axes_used(item) for item in items]
    axis = builtins.sum(used[:i]) + (x.dim() - builtins.sum(used)) * (Ellipsis in items[:i])
    size = x.shape[axis]
    places = range(size)[items[i]]
    start = size - 1 - places.start
    return flip(x, axis), builtins.slice(start, start - len(places) * places.step, -places.step)


def _axes_used(item):
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if getattr(item, "dtype", None) in (BOOL, np.dtype(bool)) else 1


def _partial(whole, part):
    """Return the axes where `part` (a shape) is shorter than `whole`; the others start at 0."""
    return [axis for axis, size in enumerate(part) if size != whole[axis]]


def _known(start):
    """Whether a place can be read at once: an int, or a tensor on the CPU that nothing traces."""
    return isinstance(start, int) or (
        type(start) is torch.Tensor
        and start.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(start)
    )


@_wide
def slice(inputs, start_indices, shape):
    for axis in _partial(inputs.shape, shape):
        start, size = start_indices[axis], shape[axis]
        if _known(start):
            inputs = inputs.narrow(axis, int(start), size)
        else:
            inputs = inputs.index_select(axis, start + torch.arange(size, device=inputs.device))
    return inputs


@_wide
def slice_update(inputs, start_indices, updates):
    axes = _partial(inputs.shape, updates.shape)
    parts = [torch.arange(updates.shape[axis], device=inputs.device) for axis in axes]
    places = [start_indices[axis] + part for axis, part in zip(axes, parts, strict=True)]
    updates = updates.to(inputs.dtype)
    if not axes:
        return updates.clone()
    if len(axes) == 1:
        return inputs.index_copy(axes[0], places[0].long(), updates)
    grid = torch.meshgrid(*places, indexing="ij")
    moved = torch.movedim(inputs, axes, tuple(range(len(axes))))
    values = torch.movedim(updates, axes, tuple(range(len(axes))))
    return torch.movedim(moved.index_put(grid, values), tuple(range(len(axes))), axes)


def scatter(indices, values, shape):
    return scatter_update(values.new_zeros(shape), indices, values, "add")


@_wide
def scatter_update(inputs, indices, updates, reduction=None):
    updates = updates.to(inputs.dtype)
    if reduction in (None, "add"):
        return inputs.index_put(indices.long().unbind(-1), updates, accumulate=reduction == "add")
    name = {"max": "amax", "min": "amin", "mul": "prod"}[reduction]
    lead, rest = inputs.shape[: indices.shape[-1]], inputs.shape[indices.shape[-1] :]
    strides = [math.prod(lead[axis + 1 :]) for axis in range(len(lead))]
    flat = builtins.sum(
        _from_end(part, size) * stride
        for part, size, stride in zip(indices.unbind(-1), lead, strides, strict=True)
    ).reshape(-1)
    updates = updates.broadcast_to((*indices.shape[:-1], *rest)).reshape(-1, *rest)
    places = flat.reshape(-1, *[1] * len(rest)).expand_as(updates)
    return inputs.reshape(-1, *rest).scatter_reduce(0, places, updates, name).reshape(inputs.shape)


# --- sorting -------------------------------------------------------------------------------------
@_wide
def sort(x, axis=-1):
    return torch.sort(x.reshape(-1) if axis is None else x, -1 if axis is None else axis)[0]


@_wide
def argsort(x, axis=-1):
    if axis is None:
        x, axis = x.reshape(-1), -1
    return torch.sort(x, dim=axis, stable=True)[1].to(torch.int32)


@_wide
def top_k(x, k, sorted=True):
    values, indices = torch.topk(x, k, sorted=sorted)
    return values, indices.to(torch.int32)


@_wide
def searchsorted(sorted_sequence, values, side="left"):
    if side not in ("left", "right"):
        raise ValueError(f'searchsorted: side must be "left" or "right", got {side!r}.')
    return torch.searchsorted(sorted_sequence, values, side=side).to(torch.int32)


# --- mathematics ---------------------------------------------------------------------------------
SAME = """
absolute add bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor
deg2rad diag diagonal exp2 fmax fmin fmod gcd greater greater_equal hypot kron lcm less less_equal
logaddexp logaddexp2 matmul maximum minimum multiply negative nextafter rad2deg sign signbit sinc
square subtract tril triu trunc
"""  # those that lack dtypes
globals().update({name: _wide(getattr(torch, name)) for name in SAME.split()})
mod, power = _wide(torch.remainder), _wide(torch.pow)


@_wide
def floor_divide(x1, x2):
    return torch.div(x1, x2, rounding_mode="floor")  # torch.floor_divide has no gradient


@_wide
def round(x, decimals=0):
    if x.is_floating_point():
        return torch.round(x, decimals=decimals)
    return x if decimals >= 0 else torch.round(x.double(), decimals=decimals).to(x.dtype)


def _bound(limit):
    return limit if limit is None or type(limit) in _NUMBERS else convert_to_tensor(limit)


@_wide
def clip(x, x_min, x_max):
    if x_min is None and x_max is None:
        return x
    result = torch.clamp(x, _bound(x_min), _bound(x_max))
    return result if result.dtype is x.dtype else result.to(x.dtype)


@_wide
def sum(x, axis=None, keepdims=False):
    return torch.sum(x, axis, keepdims, dtype=x.dtype)


def prod(x, axis=None, keepdims=False, dtype=None):
    return _prod(_as(x, dtype), axis, keepdims)


@_wide
def _prod(x, axis, keepdims):
    axes = range(x.dim()) if axis is None else (axis,) if isinstance(axis, int) else axis
    for place in sorted((a % x.dim() for a in axes), reverse=True):
        x = torch.prod(x, place, keepdims, dtype=x.dtype)
    return x


def _as(x, dtype):
    return x if dtype is None else cast(x, dtypes.standardize(dtype))


def _running(function):
    along = _wide(lambda x, axis: function(x, axis, dtype=x.dtype))

    def run(x, axis=None, dtype=None):
        x = _as(x, dtype)
        return along(x.reshape(-1), 0) if axis is None else along(x, axis)

    return run


cumsum, cumprod = map(_running, (torch.cumsum, torch.cumprod))


def var(x, axis=None, keepdims=False):
    return torch.var(x, axis, correction=0, keepdim=keepdims)


def logsumexp(x, axis=None, keepdims=False):
    return torch.logsumexp(x, tuple(range(x.dim())) if axis is None else axis, keepdims)


@_wide
def max(x, axis=None, keepdims=False, initial=None):
    result = torch.amax(x, () if axis is None else axis, keepdims)
    return result if initial is None else torch.clamp(result, min=initial)


@_wide
def min(x, axis=None, keepdims=False, initial=None):
    result = torch.amin(x, () if axis is None else axis, keepdims)
    return result if initial is None else torch.clamp(result, max=initial)


@_wide
def argmax(x, axis=None, keepdims=False):
    return torch.argmax(_countable(x), axis, keepdims).to(torch.int32)


@_wide
def argmin(x, axis=None, keepdims=False):
    return torch.argmin(_countable(x), axis, keepdims).to(torch.int32)


def _countable(x):
    return x.to(torch.uint8) if x.dtype is BOOL else x


@_wide
def tensordot(x1, x2, axes=2):
    if not isinstance(axes, int):
        axes = [[a] if isinstance(a, int) else list(a) for a in axes]
    return torch.tensordot(x1, x2, axes)


@_wide
def _einsum(subscripts, operands):
    return torch.einsum(subscripts, *operands)


def _complex_part(x, part):
    return getattr(torch, part)(x).resolve_conj()
