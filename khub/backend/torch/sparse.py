"""Sparse torch tensors (COO, CSR, ...) as parts: indices (count, rank), values (count,)."""

import numpy as np
import torch

from khub.backend.torch.arrays import NATIVE, moved

SPARSE_ARE_TENSORS = True  # whether their type is that of dense ones


def is_sparse(x):
    return isinstance(x, torch.Tensor) and x.layout is not torch.strided


def densify(x):
    return x.to_dense()


def sparse_parts(x):
    x = x.to_sparse_coo().coalesce()
    return x.indices().t(), x.values()


def make_sparse(indices, values, shape, merge=False):
    indices, values = (moved(torch.as_tensor(part)) for part in (indices, values))
    x = torch.sparse_coo_tensor(indices.t(), values, tuple(shape), check_invariants=False)
    return x.coalesce() if merge else x


def sparse_matmul(x, y):
    return torch.sparse.mm(x.to_sparse_coo(), y)


def sparse_rows(x):
    """Return (row numbers, each once; rows) of a gradient of rows."""
    x = x.coalesce()
    return x.indices()[0], x.values()


def write_rows(storage, rows, values):
    storage.detach().index_copy_(0, rows, values)


def from_scipy(x, dtype):
    x = x.tocoo()
    return make_sparse(np.stack(x.coords, 1).astype("int64"), x.data.astype(dtype), x.shape, True)


def cast_sparse(x, dtype):
    return x.to(NATIVE[dtype])
