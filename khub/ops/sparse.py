"""What the ops do with sparse operands: JAX's BCOO, `tf.SparseTensor`, torch's COO and CSR tensors.

All is said in terms of parts: indices (count, rank), values (count,) and shape. An op that has no
rule here gets dense operands. `khub/ops/op.py` comes here when its fast path does not fit.
"""

import math as _math

from khub import dtypes
from khub.ops import math
from khub.ops.array import concatenate, reshape, take, transpose
from khub.ops.core import cast, convert_to_tensor
from khub.ops.op import OPS, SPARSE, dtype_of
from khub.ops.op import native_sparse as native

# f(0) = 0: only the values change
_OF_VALUES = """
absolute arcsin arcsinh arctan arctanh cbrt ceil celu conj copy deg2rad elu expm1 floor gelu
hard_shrink hard_tanh imag isinf isnan leaky_relu log1p negative rad2deg real relu relu6 round selu
sign silu sin sinh soft_shrink softsign sqrt square stop_gradient tan tanh tanh_shrink trunc
"""


def _is(x):
    return native.is_sparse(x)


def _shape(x):
    return tuple(x.shape)


def _dense(x):
    return native.densify(x) if _is(x) else convert_to_tensor(x)


def _of_values(call, x, *rest):
    indices, values = native.sparse_parts(x)
    return native.make_sparse(indices, call(values, *rest), _shape(x))


def _sum_of(call, x1, x2):
    """add, subtract: sparse if both are; entries of one place are added."""
    if not (_is(x1) and _is(x2)) or _shape(x1) != _shape(x2):
        return call(_dense(x1), _dense(x2))
    (places, one), (others, two) = native.sparse_parts(x1), native.sparse_parts(x2)
    values = concatenate([one, two if call is math.add else -two])
    return native.make_sparse(concatenate([places, others]), values, _shape(x1), merge=True)


def _extreme(call, x1, x2):
    """maximum, minimum: sparse if both are, for max(a, b) = a + relu(b - a)."""
    if not (_is(x1) and _is(x2)):
        return call(_dense(x1), _dense(x2))
    relu = OPS["relu"]
    if call is math.maximum:
        return math.add(x1, relu(math.subtract(x2, x1)))
    return math.subtract(x1, relu(math.subtract(x1, x2)))


def _at_places(call, x1, x2):
    """multiply, divide: the dense operand is read only where the sparse one has entries."""
    if not _is(x1):
        return call(_dense(x1), native.densify(x2)) if call is math.divide else call(x2, x1)
    if call is math.divide and _is(x2):  # 0 / 0 is no zero
        return call(native.densify(x1), native.densify(x2))
    other, shape = _dense(x2), _shape(x1)
    if len(other.shape) > len(shape):
        return call(native.densify(x1), other)
    indices, values = native.sparse_parts(x1)
    if len(other.shape):
        if any(n not in (1, m) for n, m in zip(_shape(other)[::-1], shape[::-1], strict=False)):
            return call(native.densify(x1), other)
        sizes = (1,) * (len(shape) - len(other.shape)) + _shape(other)
        flat = [cast(indices[:, i], "int32") if n != 1 else 0 for i, n in enumerate(sizes)]
        place = sum(at * _math.prod(sizes[i + 1 :]) for i, at in enumerate(flat))
        other = take(reshape(other, -1), place)
    return native.make_sparse(indices, call(values, other), shape)


def _matmul(call, x1, x2):
    if len(x1.shape) == len(x2.shape) == 2:
        dtype = dtypes.result_type(dtype_of(x1), dtype_of(x2))
        x1, x2 = (cast(x, dtype) for x in (x1, x2))
        if _is(x1):
            return native.sparse_matmul(x1, x2)
        return transpose(native.sparse_matmul(transpose(x2), transpose(x1)))
    return call(_dense(x1), _dense(x2))


def _linear(call, x, kernel, bias=None):
    if _is(kernel) or len(x.shape) != 2:
        return call(_dense(x), _dense(kernel), bias)
    y = math.matmul(x, convert_to_tensor(kernel))
    return y if bias is None else y + bias


def _transpose(call, x, axes=None):
    axes = [a % len(x.shape) for a in axes or range(len(x.shape))[::-1]]
    indices, values = native.sparse_parts(x)
    shape = [_shape(x)[a] for a in axes]
    return native.make_sparse(take(indices, axes, axis=1), values, shape, merge=True)


def _reshape(call, x, newshape):
    newshape = [newshape] if isinstance(newshape, int) else list(newshape)
    if -1 in newshape:
        newshape[newshape.index(-1)] = _math.prod(_shape(x)) // -_math.prod(newshape)
    indices, values = native.sparse_parts(x)
    place = sum(indices[:, i] * _math.prod(_shape(x)[i + 1 :]) for i in range(len(x.shape)))
    steps = [_math.prod(newshape[i + 1 :]) for i in range(len(newshape))]
    columns = [place // step % size for step, size in zip(steps, newshape, strict=True)]
    return native.make_sparse(OPS["stack"](columns, axis=1), values, newshape)


def _expand_dims(call, x, axis):
    shape = list(_shape(x))
    for a in [axis] if isinstance(axis, int) else sorted(axis):
        shape.insert(a if a >= 0 else len(shape) + 1 + a, 1)
    return reshape(x, shape)


def _squeeze(call, x, axis=None):
    rank = len(x.shape)
    axes = [i for i, n in enumerate(_shape(x)) if n == 1] if axis is None else axis
    axes = [a % rank for a in ([axes] if isinstance(axes, int) else axes)]
    return reshape(x, [n for i, n in enumerate(_shape(x)) if i not in axes])


def _sum(call, x, axis=None, keepdims=False):
    """sum, mean: sparse, but for a scalar."""
    rank, shape = len(x.shape), _shape(x)
    axes = range(rank) if axis is None else [axis] if isinstance(axis, int) else axis
    axes = [a % rank for a in axes]
    rest = [i for i in range(rank) if i not in axes]
    if not rest:
        return call(native.densify(x), axis, keepdims)
    indices, values = native.sparse_parts(x)
    if call is math.mean:
        values = values / _math.prod(shape[a] for a in axes)
    columns = take(indices, rest, axis=1)
    y = native.make_sparse(columns, values, [shape[i] for i in rest], merge=True)
    return reshape(y, [1 if i in axes else n for i, n in enumerate(shape)]) if keepdims else y


def _concatenate(call, xs, axis=0):
    if not all(map(_is, xs)):
        return call([_dense(x) for x in xs], axis)
    axis %= len(xs[0].shape)
    found, values, start = [], [], 0
    for x in xs:
        indices, own = native.sparse_parts(x)
        shift = [start if i == axis else 0 for i in range(len(x.shape))]
        found.append(indices + convert_to_tensor(shift, indices.dtype))
        values.append(own)
        start += _shape(x)[axis]
    shape = [start if i == axis else n for i, n in enumerate(_shape(xs[0]))]
    return native.make_sparse(concatenate(found), concatenate(values), shape, merge=True)


if native is not None:
    SPARSE |= dict.fromkeys(_OF_VALUES.split(), _of_values)
    SPARSE |= dict.fromkeys(("add", "subtract"), _sum_of)
    SPARSE |= dict.fromkeys(("maximum", "minimum"), _extreme)
    SPARSE |= dict.fromkeys(("multiply", "divide"), _at_places)
    SPARSE |= dict.fromkeys(("sum", "mean"), _sum)
    SPARSE |= {"matmul": _matmul, "linear": _linear, "reshape": _reshape, "squeeze": _squeeze}
    SPARSE |= {"transpose": _transpose, "expand_dims": _expand_dims, "concatenate": _concatenate}
