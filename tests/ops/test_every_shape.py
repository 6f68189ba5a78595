"""Elementwise ops and reductions on scalars, nothing, vectors, broadcasts and many elements."""

import numpy as np
import pytest
from ops import rows_math, rows_nn
from ops.test_ops import SAMPLES, float_arrays

from khub import backend, dtypes, ops, tree
from khub.ops.op import OPS

SHAPES = [(), (0,), (3, 0, 2), (7,), (1, 1), (2, 3, 1, 2, 2), (130, 129)]
BROADCASTS = [((), (3,)), ((4, 1), (3,)), ((2, 1, 3), (4, 1)), ((0, 1), (1, 3)), ((1,), (70, 65))]
if backend.name == "jax":  # every shape compiles
    SHAPES, BROADCASTS = [(), (3, 0, 2), (130, 129)], [((2, 1, 3), (4, 1)), ((0, 1), (1, 3))]
AXES = {  # ops whose result depends on the place of an element: no elementwise ones
    *("softmax", "log_softmax", "sparsemax", "glu", "normalize", "flip", "fliplr", "flipud"),
    *("cumsum", "cumprod", "nancumsum", "nancumprod", "transpose", "sort", "diagonal", "tril"),
    *("triu", "roll", "rot90", "vander", "real_if_close", "unwrap", "fftshift", "ifftshift"),
}
REDUCTIONS = ["sum", "prod", "mean", "max", "min", "any", "all", "var", "std", "logsumexp", "amax"]
REDUCTIONS += ["nansum", "nanmax", "count_nonzero", "ptp", "median"]
EMPTY = {"sum", "prod", "any", "all", "nansum", "count_nonzero"}  # what has a value for nothing


def elementwise(count):
    """Ops of `count` float arrays of one shape, whose result has it too."""
    for name in [*rows_math.SAMPLES, *rows_nn.SAMPLES]:
        samples = SAMPLES[name]
        sample = samples[0]
        arrays = float_arrays(sample)
        plain = len(sample.args) == len(arrays) == count and not sample.options
        if not plain or name in AXES or not isinstance(sample.gives, str):
            continue
        shapes = {a.shape for a in arrays}
        with np.errstate(all="ignore"):
            outputs = tree.flatten(sample.expected(*arrays))
        if len(outputs) == 1 and np.shape(outputs[0]) in shapes and len(shapes) == 1:
            one = [a.ravel()[:1] for a in arrays]  # is the first result that of the first numbers?
            with np.errstate(all="ignore"):
                alone = np.asarray(sample.expected(*one))
            same = np.allclose(alone.ravel(), np.ravel(outputs[0])[:1], equal_nan=True)
            if same and alone.shape == (1,):
                yield name


def check(name, shapes):
    sample = SAMPLES[name][0]
    arrays = [
        np.resize(a, shape).astype("float32")
        for a, shape in zip(float_arrays(sample), shapes, strict=True)
    ]
    found = OPS[name](*map(ops.convert_to_tensor, arrays))
    whole = np.broadcast_shapes(*shapes)
    assert tuple(found.shape) == whole and dtypes.standardize(found.dtype) == sample.gives
    if 0 in whole:
        return
    with np.errstate(all="ignore"):
        wide = [np.broadcast_to(a, whole).reshape(-1).astype("float64") for a in arrays]
        wanted = np.asarray(sample.expected(*wide)).reshape(whole)
    near = max(1e-5, sample.near)
    found = ops.convert_to_numpy(found)
    np.testing.assert_allclose(found, wanted.astype(found.dtype), rtol=near, atol=near)


ONE, TWO = list(elementwise(1)), list(elementwise(2))


def test_the_tables_are_not_empty():
    assert len(ONE) > 60 and len(TWO) > 15


@pytest.mark.parametrize("name", ONE)
def test_one_operand(name):
    for shape in SHAPES:
        check(name, [shape])


@pytest.mark.parametrize("name", TWO)
def test_two_operands(name):
    for shapes in [*[(shape, shape) for shape in SHAPES[:3]], *BROADCASTS]:
        check(name, shapes)
        check(name, shapes[::-1])


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name):
    """Over nothing, everything, one axis and several; of scalars, large and empty arrays."""
    function = {"logsumexp": lambda x, **o: np.log(np.sum(np.exp(x), **o))}.get(name)
    function = function or getattr(np, name)
    x = np.random.RandomState(0).uniform(0.9, 1.1, (60, 33, 5))
    rows = [(x[0, 0, 0], None), (x, None), (x, 1), (x, -1), (x[:, :0], 2), (x[:, :1], (0, 2))]
    rows += [(x[:0], 0)] if name in EMPTY else []
    for array, axis in rows:
        if name in ("ptp", "median") and isinstance(axis, tuple):
            continue
        array = np.asarray(array, "float32")
        for keepdims in (False, True) if name != "count_nonzero" else (False,):
            options = {"keepdims": keepdims} if name != "count_nonzero" else {}
            found = ops.convert_to_numpy(getattr(ops, name)(array, axis=axis, **options))
            wanted = np.asarray(function(array.astype("float64"), axis=axis, **options))
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-5)
