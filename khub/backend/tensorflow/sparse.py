"""`tf.SparseTensor` as parts: indices (count, rank), values (count,)."""

import numpy as np
import optree
import tensorflow as tf

from khub.backend.tensorflow.convert import NATIVE, cast

# inside this namespace a sparse tensor is a container, so that `jit` takes it apart
optree.register_pytree_node(
    tf.SparseTensor,
    lambda x: ((x.indices, x.values), tuple(x.shape)),
    lambda shape, parts: make_sparse(*parts, shape),
    namespace="khub",
)

SPARSE_ARE_TENSORS = False  # whether their type is that of dense ones


def is_sparse(x):
    return isinstance(x, (tf.SparseTensor, tf.IndexedSlices))


def densify(x):
    return tf.convert_to_tensor(x) if isinstance(x, tf.IndexedSlices) else tf.sparse.to_dense(x)


def sparse_parts(x):
    x = tf.sparse.from_dense(tf.convert_to_tensor(x)) if isinstance(x, tf.IndexedSlices) else x
    return x.indices, x.values


def make_sparse(indices, values, shape, merge=False):
    shape = tuple(shape)
    if merge and None not in shape:
        steps = np.cumprod((1, *shape[:0:-1]), dtype="int64")[::-1]
        places, group = tf.unique(tf.reduce_sum(indices * steps, 1))
        values = tf.math.unsorted_segment_sum(values, group, tf.size(places))
        indices = tf.stack([places // step % size for step, size in zip(steps, shape)], 1)
        return tf.sparse.reorder(tf.SparseTensor(indices, values, shape))
    shape = shape if None not in shape else [-1 if n is None else n for n in shape]
    return tf.SparseTensor(cast(tf.convert_to_tensor(indices), "int64"), values, shape)


def sparse_matmul(x, y):
    if is_sparse(y):
        return tf.sparse.from_dense(sparse_matmul(x, densify(y)))
    return tf.sparse.sparse_dense_matmul(x, y)


def sparse_rows(x):
    """Return (row numbers, each once; rows) of a gradient of rows."""
    rows, group = tf.unique(x.indices)
    return rows, tf.math.unsorted_segment_sum(x.values, group, tf.size(rows))


def write_rows(storage, rows, values):
    tf.raw_ops.ResourceScatterUpdate(resource=storage.handle, indices=rows, updates=values)


def from_scipy(x, dtype):
    x = x.tocoo()
    return tf.sparse.reorder(make_sparse(np.stack(x.coords, 1), x.data.astype(dtype), x.shape))


def cast_sparse(x, dtype):
    return tf.cast(x, NATIVE[dtype])
