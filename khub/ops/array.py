"""Making, reshaping, joining and indexing arrays (NumPy's meaning, Keras' signatures)."""

from khub.backend import active
from khub.ops.core import convert_to_tensor, shape, where
from khub.ops.op import op, primitive, promote
from khub.ops.symbolic import KerasTensor, reshaped

# ruff: noqa: A002  (the names are NumPy's)


@primitive(operands=0)
def arange(start, stop=None, step=None, dtype=None):
    """Evenly spaced numbers from `start` (else 0) up to `stop`; int32 for Python ints."""


@primitive(operands=0)
def linspace(start, stop, num=50, endpoint=True, retstep=False, dtype=None, axis=0):
    """`num` evenly spaced numbers from `start` to `stop`."""


@primitive(operands=0)
def zeros(shape, dtype=None):
    """A tensor of zeros."""


@primitive(operands=0)
def ones(shape, dtype=None):
    """A tensor of ones."""


@primitive(operands=0)
def full(shape, fill_value, dtype=None):
    """A tensor filled with one value."""


@primitive(operands=0)
def eye(N, M=None, k=0, dtype=None):
    """Ones on the `k`-th diagonal of an (N, M) matrix."""


@primitive()
def zeros_like(x, dtype=None):
    """Zeros in the shape of `x`."""


@primitive()
def ones_like(x, dtype=None):
    """Ones in the shape of `x`."""


@primitive()
def full_like(x, fill_value, dtype=None):
    """`fill_value` in the shape of `x`."""


@primitive(spec=reshaped)
def reshape(x, newshape):
    """`x` in another shape; one size may be -1."""


@primitive()
def transpose(x, axes=None):
    """`x` with its axes permuted, reversed by default."""


@primitive()
def view(x, dtype=None):
    """The bytes of `x` as another dtype; the last axis shrinks or grows with the element size."""


@primitive()
def expand_dims(x, axis):
    """`x` with axes of size 1 at `axis` (an int or several)."""


@primitive()
def squeeze(x, axis=None):
    """`x` without its axes of size 1."""


@primitive()
def broadcast_to(x, shape):
    """`x` repeated along axes of size 1 to `shape`."""


@primitive()
def flip(x, axis=None):
    """`x` reversed along `axis`."""


@primitive()
def tile(x, repeats):
    """`x` repeated as a whole."""


@primitive()
def repeat(x, repeats, axis=None):
    """Each element of `x` repeated."""


@primitive()
def roll(x, shift, axis=None):
    """`x` shifted along `axis`, elements re-entering at the other end."""


@primitive()
def pad(x, pad_width, mode="constant", constant_values=None):
    """`x` with borders: mode "constant", "reflect", "symmetric", ..."""


@primitive(operands="list", dtype=promote)
def concatenate(xs, axis=0):
    """Tensors joined along an existing axis."""


@primitive(operands="list", dtype=promote)
def stack(x, axis=0):
    """Tensors joined along a new axis."""


@primitive()
def split(x, indices_or_sections, axis=0):
    """A list of parts of `x`: that many equal ones, or cut at the indices.

    Raises ValueError when the axis does not divide.
    """


@primitive(operands=2)
def take(x, indices, axis=None):
    """Elements of `x` at `indices` (negative: from the end) along `axis`; None: of the flat `x`."""


@primitive(operands=2)
def take_along_axis(x, indices, axis=None):
    """One element of `x` along `axis` for each index."""


@primitive()
def tril(x, k=0):
    """`x` with zeros above the k-th diagonal."""


@primitive()
def triu(x, k=0):
    """`x` with zeros below the k-th diagonal."""


@primitive()
def sort(x, axis=-1):
    """`x` sorted along `axis`."""


@primitive()
def argsort(x, axis=-1):
    """The int32 indices that sort `x`, stable."""


@primitive()
def top_k(x, k, sorted=True):
    """The `k` largest entries of the last axis and their int32 indices."""


@primitive()
def getitem(x, key):
    """`x[key]`: ints, slices, None, Ellipsis, and integer or boolean tensors."""


@op(spec=lambda x: tuple(KerasTensor((None,), "int32") for _ in x.shape))
def nonzero(x):
    """The int32 indices of the elements that are not 0, one vector an axis."""
    return active.nonzero(x)


@primitive(operands=3)
def slice_update(inputs, start_indices, updates):
    """`inputs` with `updates` written at `start_indices`: one int an axis, numbers or a tensor."""


@primitive()
def slice(inputs, start_indices, shape):
    """The part of `inputs` of this shape at `start_indices`, which may be a tensor."""


@primitive(operands=2)
def scatter(indices, values, shape):
    """Zeros of `shape` with `values` added at `indices` (n, k).  values: (n, ...)"""


@primitive(operands=3)
def scatter_update(inputs, indices, updates, reduction=None):
    """`inputs` with `updates` at `indices` (n, k): set, or reduction "add", "max", "min", "mul"."""


@op()
def swapaxes(x, axis1, axis2):
    """`x` with two axes exchanged."""
    axes = list(range(len(x.shape)))
    axes[axis1], axes[axis2] = axes[axis2], axes[axis1]
    return transpose(x, axes)


@op()
def moveaxis(x, source, destination):
    """`x` with axes moved to new positions."""
    count = len(x.shape)
    source = [a % count for a in ([source] if isinstance(source, int) else source)]
    destination = [
        a % count for a in ([destination] if isinstance(destination, int) else destination)
    ]
    order = [axis for axis in range(count) if axis not in source]
    for place, axis in sorted(zip(destination, source, strict=True)):
        order.insert(place, axis)
    return transpose(x, order)


@op()
def ravel(x):
    """`x` as a vector."""
    return reshape(x, (-1,))


@primitive()
def copy(x):
    """A copy of `x`."""


@op()
def unstack(x, num=None, axis=0):
    """The list of slices along `axis`."""
    count = num if num is not None else x.shape[axis]
    return [squeeze(part, axis) for part in split(x, count, axis)]


@op(operands="list", dtype=promote)
def hstack(xs):
    """Tensors joined along the second axis (the first one for vectors)."""
    return concatenate(xs, 0 if len(xs[0].shape) == 1 else 1)


@op(operands="list", dtype=promote)
def vstack(xs):
    """Tensors joined along the first axis, vectors as rows."""
    return concatenate([expand_dims(x, 0) if len(x.shape) == 1 else x for x in xs], 0)


@op(operands="list", dtype=promote)
def dstack(xs):
    """Tensors joined along the third axis, vectors as (1, n, 1), matrices as (n, m, 1)."""
    deep = [reshape(x, (1, -1, 1)) if len(x.shape) < 2 else x for x in xs]
    return concatenate([expand_dims(x, 2) if len(x.shape) == 2 else x for x in deep], 2)


@op(operands=2, dtype=promote)
def append(x1, x2, axis=None):
    """`x2` behind `x1` along `axis`, both flat if None."""
    if axis is None:
        x1, x2, axis = ravel(x1), ravel(x2), 0
    return concatenate([x1, x2], axis)


@op()
def array_split(x, indices_or_sections, axis=0):
    """A list of parts of `x`, the first ones longer by one where the axis does not divide."""
    if isinstance(indices_or_sections, int):
        length, more = divmod(x.shape[axis], indices_or_sections)
        parts = range(1, indices_or_sections)
        indices_or_sections = [length * i + (i if i < more else more) for i in parts]
    return split(x, indices_or_sections, axis)


@op()
def vsplit(x, indices_or_sections):
    """`split` along the first axis."""
    return split(x, indices_or_sections, 0)


@op()
def hsplit(x, indices_or_sections):
    """`split` along the second axis (the first one for vectors)."""
    return split(x, indices_or_sections, 1 if len(x.shape) > 1 else 0)


@op()
def dsplit(x, indices_or_sections):
    """`split` along the third axis."""
    return split(x, indices_or_sections, 2)


@op()
def flipud(x):
    """`x` reversed along the first axis."""
    return flip(x, 0)


@op()
def fliplr(x):
    """`x` reversed along the second axis."""
    return flip(x, 1)


@op()
def rot90(array, k=1, axes=(0, 1)):
    """`array` turned by `k` quarters in the plane of two axes, from the first to the second."""
    k %= 4
    if k == 2:
        return flip(array, tuple(axes))
    if k == 0:
        return array
    turned = swapaxes(flip(array, axes[1]) if k == 1 else array, *axes)
    return turned if k == 1 else flip(turned, axes[1])


@op(operands=0)
def tri(N, M=None, k=0, dtype=None):
    """Ones at and below the `k`-th diagonal of an (N, M) matrix."""
    return tril(ones((N, N if M is None else M), dtype), k)


@op(operands=0)
def identity(n, dtype=None):
    """Ones on the diagonal of an (n, n) matrix."""
    return eye(n, dtype=dtype)


@op()
def diagonal(x, offset=0, axis1=0, axis2=1):
    """The diagonal of the matrices in two axes.  (..., n, m)  ->  (..., k)"""
    x = moveaxis(x, (axis1, axis2), (-2, -1))
    *lead, rows, columns = shape(x)
    below, right = (-offset, 0) if offset < 0 else (0, offset)
    count = sorted((0, rows - below, columns - right))[1]  # neither below 0 nor over an edge
    places = arange(count) * (columns + 1) + (below * columns + right)
    return take(reshape(x, (*lead, rows * columns)), places, -1)


@op()
def diag(x, k=0):
    """The `k`-th diagonal of a matrix, or a matrix with this one.  (n, m) -> (k,) -> (n, n)"""
    if len(x.shape) == 2:
        return diagonal(x, k)
    rows = expand_dims(pad(x, [(-k, 0) if k < 0 else (0, k)]), -1)
    return where(eye(shape(rows)[0], k=k, dtype="bool"), rows, zeros_like(rows))


@op()
def diagflat(x, k=0):
    """The matrix whose `k`-th diagonal is the flat `x`."""
    return diag(ravel(x), k)


@op(operands="any")
def meshgrid(*x, indexing="xy"):
    """A list of grids, one a vector, in which that vector varies along its own axis.

    indexing: "ij", or "xy", which exchanges the first two axes.
    """
    if indexing not in ("xy", "ij"):
        raise ValueError(f'meshgrid: indexing must be "xy" or "ij", got {indexing!r}.')
    vectors = [ravel(convert_to_tensor(v)) for v in x]
    axes = list(range(len(vectors)))
    if indexing == "xy":
        axes[:2] = axes[:2][::-1]
    whole = [shape(vectors[axis])[0] for axis in axes]
    return [
        broadcast_to(reshape(v, [-1 if i == axis else 1 for i in range(len(axes))]), whole)
        for v, axis in zip(vectors, axes, strict=True)
    ]


@op(operands="any")
def select(condlist, choicelist, default=0):
    """The first choice whose condition holds, elementwise, else `default`."""
    result = default
    for condition, choice in reversed(list(zip(condlist, choicelist, strict=True))):
        result = where(condition, choice, result)
    return result


empty, empty_like, get_item = zeros, zeros_like, getitem
