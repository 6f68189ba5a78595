"""Sparse arrays as parts: indices (count, rank), values (count,)."""

import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO, JAXSparse

from khub.backend.jax.arrays import _native

SPARSE_ARE_TENSORS = False  # whether their type is that of dense ones


def is_sparse(x):
    return isinstance(x, JAXSparse)


def densify(x):
    return x.todense()


def sparse_parts(x):
    x = x if isinstance(x, BCOO) else BCOO.fromdense(x.todense())
    return x.indices, x.data


def make_sparse(indices, values, shape, merge=False):
    x = BCOO((jnp.asarray(values), jnp.asarray(indices)), shape=tuple(shape))
    return x.sum_duplicates(nse=x.nse) if merge else x


def sparse_matmul(x, y):
    return x @ y


def from_scipy(x, dtype):
    """Return rows of a scipy matrix; entries are padded to a power of two, for few compilations."""
    x = x.tocoo()
    rest = (1 << max(x.nnz - 1, 1).bit_length()) - x.nnz
    places = np.pad(np.stack(x.coords, 1), ((0, rest), (0, 0)), constant_values=max(x.shape))
    return make_sparse(places.astype("int32"), np.pad(x.data, (0, rest)).astype(dtype), x.shape)


def cast_sparse(x, dtype):
    indices, values = sparse_parts(x)
    return make_sparse(indices, values.astype(_native(dtype)), x.shape)
