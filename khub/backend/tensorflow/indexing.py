"""Reading and writing parts of a tensor by index, as NumPy does."""

import builtins
import math
from functools import reduce

import numpy as np
import tensorflow as tf

from khub.backend.tensorflow.convert import *  # noqa: F403

# ruff: noqa: A001, A002, F405  (the names are NumPy's, others those of convert)

_SLICE = builtins.slice


def _permuted(x, order):
    return raw.Transpose(x, vector(order))


def _select(condition, x1, x2):
    return raw.SelectV2(condition if condition.dtype is BOOL else raw.Cast(condition, BOOL), x1, x2)


def _positive(indices, size):
    """Indices in a dtype that kernels take, counted from the start; those out of range stay so."""
    if indices.dtype in UNSIGNED:
        return raw.Cast(indices, tf.int64)
    indices = indices if indices.dtype in (tf.int32, tf.int64) else raw.Cast(indices, tf.int32)
    size = raw.Cast(size, indices.dtype) if type(size) in TENSORS else size
    return raw.SelectV2(raw.Less(indices, 0), raw.AddV2(indices, size), indices)


def take(x, indices, axis=None):
    if axis is None:
        x, axis = raw.Reshape(x, constant((-1,))), 0
    return raw.GatherV2(x, _positive(indices, shape(x)[axis]), axis)


def take_along_axis(x, indices, axis=None):
    if axis is None:
        x, indices, axis = raw.Reshape(x, constant((-1,))), raw.Reshape(indices, constant((-1,))), 0
    rank = len(x.shape)
    axis %= rank
    order = [*range(axis), *range(axis + 1, rank), axis]
    back = [*range(axis), rank - 1, *range(axis, rank - 1)]
    if axis != rank - 1:
        x, indices = _permuted(x, order), _permuted(indices, order)
    if tuple(x.shape[:-1]) != tuple(indices.shape[:-1]):
        lead = tf.broadcast_dynamic_shape(vector(shape(x)[:-1]), vector(shape(indices)[:-1]))
        x = raw.BroadcastTo(x, raw.ConcatV2([lead, vector(shape(x)[-1:])], 0))
        indices = raw.BroadcastTo(indices, raw.ConcatV2([lead, vector(shape(indices)[-1:])], 0))
    result = raw.GatherV2(x, _positive(indices, shape(x)[-1]), rank - 1, rank - 1)
    return result if axis == rank - 1 else _permuted(result, back)


def getitem(x, key):
    begin, end, steps = [], [], []
    no_begin = no_end = ellipsis = new = single = 0
    parts = key if type(key) is tuple else (key,)
    for place, part in enumerate(parts):
        first, last, step, bit = 0, 0, 1, 1 << place
        if isinstance(part, _SLICE):
            first, last = part.start or 0, part.stop or 0
            step = 1 if part.step is None else part.step
            no_begin |= bit * (part.start is None)
            no_end |= bit * (part.stop is None)
        elif part is None:
            new |= bit
        elif part is Ellipsis:
            ellipsis |= bit
        elif _is_index(part):
            first, last = part, part + 1
            single |= bit
        else:
            return _pick(x, parts)
        begin.append(first)
        end.append(last)
        steps.append(step)
    if new and no_begin & no_end | new == 2 ** len(parts) - 1 and steps == [1] * len(parts):
        return reduce(raw.ExpandDims, [i for i, part in enumerate(parts) if part is None], x)
    return raw.StridedSlice(
        x, vector(begin), vector(end), vector(steps), no_begin, no_end, ellipsis, new, single
    )


def _is_index(part):
    if type(part) in TENSORS:
        return len(part.shape) == 0 and part.dtype is not BOOL
    return isinstance(part, (int, np.integer)) and not isinstance(part, bool)


def _pick(x, parts):
    """NumPy's indexing by arrays: they are broadcast together, and numbers count as arrays."""
    plain = (_SLICE, type(None), type(...))
    arrays = [i for i, part in enumerate(parts) if not isinstance(part, plain)]
    parts = [convert_to_tensor(p) if i in arrays else p for i, p in enumerate(parts)]
    flat = []
    for i, part in enumerate(parts):
        flat += nonzero(part) if i in arrays and part.dtype is BOOL else [part]
    taken = len(x.shape) - len([part for part in flat if part is not None and part is not Ellipsis])
    if not builtins.any(part is Ellipsis for part in flat):
        flat.append(Ellipsis)
    place = next(i for i, part in enumerate(flat) if part is Ellipsis)
    flat[place : place + 1] = [_SLICE(None)] * taken
    axes = [i for i, part in enumerate(flat) if type(part) in TENSORS]
    x = getitem(x, tuple(_SLICE(None) if i in axes else part for i, part in enumerate(flat)))
    sizes = shape(x)
    indices = [_positive(flat[axis], sizes[axis]) for axis in axes]
    if len(axes) == 1:
        return raw.GatherV2(x, indices[0], axes[0])
    indices = [raw.Cast(i, tf.int64) for i in indices]
    zero = reduce(raw.AddV2, map(raw.ZerosLike, indices))  # broadcasts each to the common shape
    rest = [axis for axis in range(len(x.shape)) if axis not in axes]
    count, rank = len(axes), len(zero.shape)
    result = raw.GatherNd(
        _permuted(x, [*axes, *rest]), raw.Pack([raw.AddV2(i, zero) for i in indices], rank)
    )
    first = axes[0]
    if axes != list(range(first, first + count)):
        return result
    order = range(len(result.shape))  # neighbouring arrays: their axes stand where the arrays stood
    return _permuted(result, [*order[rank : rank + first], *order[:rank], *order[rank + first :]])


def slice(inputs, start_indices, shape):
    return raw.Slice(inputs, vector(start_indices), vector(shape))


def slice_update(inputs, start_indices, updates):
    begin = vector(start_indices)
    end = raw.AddV2(begin, vector(shape(updates)))
    steps = constant((1,) * len(inputs.shape))
    return raw.TensorStridedSliceUpdate(inputs, begin, end, steps, cast(updates, inputs.dtype.name))


def scatter(indices, values, shape):
    return raw.ScatterNd(_rows_of(indices, shape), values, vector(shape))


def _rows_of(indices, sizes):
    return raw.Cast(_positive(indices, vector(sizes[: indices.shape[-1]])), tf.int32)


def scatter_update(inputs, indices, updates, reduction=None):
    rows, updates = _rows_of(indices, shape(inputs)), cast(updates, inputs.dtype.name)
    if reduction == "mul":
        depth, sizes = indices.shape[-1], shape(inputs)
        steps = [math.prod(sizes[i + 1 : depth]) for i in range(depth)]
        flat = raw.Sum(raw.Mul(rows, vector(steps)), constant((-1,)))
        factors = raw.UnsortedSegmentProd(updates, flat, math.prod(sizes[:depth]))
        return raw.Mul(inputs, raw.Reshape(factors, vector(sizes)))
    kernels = {
        None: raw.TensorScatterUpdate,
        "add": raw.TensorScatterAdd,
        "max": raw.TensorScatterMax,
        "min": raw.TensorScatterMin,
    }
    return kernels[reduction](inputs, rows, updates)
