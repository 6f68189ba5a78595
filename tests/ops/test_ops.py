"""Every op on the running backend: values, dtypes, symbolic shapes and gradients, from one table.

A sample is one call and an independent NumPy expression for it, computed in float64. The op and,
where the backend replaced it, its reference body must both give that value. The rows are in the
files rows_*.py beside this one.
"""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from ops import rows_image, rows_linalg, rows_signal
from ops.sample import BATCH

from khub import backend, dtypes, ops, tree
from khub.ops.op import OPS
from khub.ops.symbolic import KerasTensor

ROWS = [
    import_module(f"ops.{file.stem}") for file in sorted(Path(__file__).parent.glob("rows_*.py"))
]
BFLOAT16 = dtypes.numpy_dtype("bfloat16")
# not made for it: bits, complex numbers, matrix factors, results that keep float32
NO_BFLOAT16 = {"view", "nextafter", "_complex", "polar", "slogdet", "cast", "view_as_complex"}
NO_BFLOAT16 |= set(rows_linalg.SAMPLES) - {"cdist"} | {n for n in rows_signal.SAMPLES if "ft" in n}
# test_linalg.py: their signs are free; tests/parity/test_keras_image.py: Keras is the oracle
APART = {*ops.image.__all__} - {"elastic_transform", *rows_image.SAMPLES}
APART |= {"eig", "eigh", "lu_factor", "qr", "svd"}
SAMPLES = {name: samples for rows in ROWS for name, samples in rows.SAMPLES.items()}
CASES = [
    pytest.param(name, sample, id=f"{name}-{i}")
    for name, samples in SAMPLES.items()
    for i, sample in enumerate(samples)
]
# a reference body compiles once, not once for each of its operations
compiled = ops.jit if backend.name == "jax" else lambda function: function
every_case = pytest.mark.parametrize("name, sample", CASES)


# --- the checks -----------------------------------------------------------------------------------
def is_array(x):
    return isinstance(x, np.ndarray)


def exchange(sample, convert):
    """Return (args, options) with `convert` applied to the arrays, except those inside an index."""

    def visit(item):
        if isinstance(item, list) and item and all(map(is_array, item)):
            return [convert(x) for x in item]
        return convert(item) if is_array(item) else item

    return [visit(x) for x in sample.args], {k: visit(v) for k, v in sample.options.items()}


def expected(sample, widened=lambda x: x.astype("float64")):
    args, options = exchange(sample, lambda x: widened(x) if x.dtype == "float32" else x)
    return tree.flatten(sample.expected(*args, **options))


def gives(sample, count):
    return (sample.gives,) * count if isinstance(sample.gives, str) else sample.gives


def assert_close(actual, wanted, sample):
    for a, w, dtype in zip(tree.flatten(actual), wanted, gives(sample, len(wanted)), strict=True):
        assert dtypes.standardize(a.dtype) == dtype
        a = ops.convert_to_numpy(a)
        w = np.asarray(w).astype(dtypes.numpy_dtype(dtype))
        assert a.shape == w.shape
        if dtypes.is_float(dtype):
            a, w = (v.astype("complex128" if v.dtype.kind == "c" else "float64") for v in (a, w))
            scale = np.max(np.abs(w[np.isfinite(w)]), initial=1.0)  # sums of large terms cancel
            np.testing.assert_allclose(a, w, rtol=sample.near, atol=sample.near * scale)
        else:
            np.testing.assert_array_equal(a, w)


def test_every_op_has_a_sample():
    assert OPS.keys() - APART == SAMPLES.keys()


def test_every_public_name_is_an_op_or_a_transform():
    """Names without a row are second names of ops, or functions of khub/ops/core.py, or modules."""
    functions = {name: getattr(ops, name) for name in ops.__all__}
    functions = {name: f for name, f in functions.items() if callable(f)}
    core = {name for name, f in functions.items() if f.__module__ == "khub.ops.core"}
    rowless = {n for n, f in functions.items() if f.__name__ not in SAMPLES} - core - APART
    assert rowless == {"vectorize"}  # test_functions.py


def test_second_namespaces_hold_the_same_functions():
    for space in (ops.numpy, ops.nn):
        names = [n for n in ops.__all__ if callable(getattr(ops, n)) and hasattr(space, n)]
        assert len(names) > 50
        assert [n for n in names if getattr(space, n) is not getattr(ops, n)] == []
    assert {"abs", "array", "einsum", "nanmean", "unique", "where"} <= set(ops.numpy.__all__)
    assert not {"erf", "relu", "top_k", "cast", "scan"} & set(ops.numpy.__all__)
    assert ops.nn.normalize is ops.normalize and ops.nn.ctc_loss is ops.ctc_loss


@every_case
def test_value_and_dtype(name, sample):
    wanted = expected(sample)
    args, options = exchange(sample, ops.convert_to_tensor)
    assert_close(OPS[name](*args, **options), wanted, sample)
    assert_close(OPS[name](*sample.args, **sample.options), wanted, sample)  # arrays as they are
    reference = getattr(OPS[name], "reference", None)
    native = getattr(OPS[name], "run", None)
    alone = reference in (None, native, getattr(native, "__wrapped__", None))
    if not alone and ints_are_labels(name, sample):
        run = compiled if sample.fixed is not None else lambda function: function
        assert_close(run(lambda: reference(*args, **options))(), wanted, sample)


def rounded(x):
    return x.astype(BFLOAT16).astype("float64")


@pytest.mark.parametrize("name", [n for n, samples in SAMPLES.items() if n not in NO_BFLOAT16])
def test_bfloat16(name):
    """The result is bfloat16, and near that of the rounded arguments in float64."""
    for sample in SAMPLES[name][:2]:
        count = len(expected(sample))
        if not float_arrays(sample) or "float32" not in gives(sample, count):
            continue
        args, options = exchange(
            sample,
            lambda x: ops.convert_to_tensor(x.astype(BFLOAT16) if x.dtype == "float32" else x),
        )
        if "dtype" in options or {*map(str, sample.args)} & {"float16", "float32"}:
            continue
        with np.errstate(all="ignore"):
            wanted = expected(sample, rounded)
        found = tree.flatten(OPS[name](*args, **options))
        for a, w, dtype in zip(found, wanted, gives(sample, count), strict=True):
            if dtype == "float32":
                assert dtypes.standardize(a.dtype) == "bfloat16"
                a, w = ops.convert_to_numpy(a).astype("float64"), np.asarray(w, "float64")
                scale = np.max(np.abs(w[np.isfinite(w)]), initial=1.0)
                np.testing.assert_allclose(a, w, rtol=0.03, atol=0.03 * scale)


def ints_are_labels(name, sample):
    """Whether a reference body, which promotes nothing, may be called with these arguments."""
    kinds = {x.dtype.kind for x in tree.flatten(sample.args) if is_array(x)}
    return kinds == {"f"} or name.startswith("sparse") or "int32" in gives(sample, 1)


@pytest.mark.parametrize("name, sample", [c for c in CASES if c.values[1].fixed is not None])
def test_symbolic_call_knows_shape_and_dtype(name, sample):
    def symbol(x):
        unknown = x.shape[:1] == (BATCH,) and not sample.fixed
        return KerasTensor((None, *x.shape[1:]) if unknown else x.shape, str(x.dtype))

    found = tree.flatten(OPS[name](*exchange(sample, symbol)[0], **sample.options))
    shapes = [np.shape(w) for w in expected(sample)]
    if not sample.fixed:  # unknown is what one more row would change
        args, options = exchange(
            sample, lambda x: np.append(x, x[:1], 0) if x.shape[:1] == (BATCH,) else x
        )
        longer = map(np.shape, tree.flatten(sample.expected(*args, **options)))
        pairs = [zip(*both, strict=True) for both in zip(shapes, longer, strict=True)]
        shapes = [tuple(n if n == m else None for n, m in pair) for pair in pairs]
    assert [x.shape for x in found] == shapes
    assert tuple(x.dtype for x in found) == tuple(gives(sample, len(shapes)))


def float_arrays(sample):
    found = []
    exchange(sample, lambda x: found.append(x) if x.dtype == "float32" else None)
    return found


@pytest.mark.skipif(backend.name == "numpy", reason="NumPy has no gradients")
@pytest.mark.parametrize(
    "name, sample",
    [
        c
        for c in CASES
        if c.values[1].smooth and "float32" in gives(c.values[1], 1) and float_arrays(c.values[1])
    ],
)
def test_gradient(name, sample):
    """The slope in a random direction is that of the NumPy expression, by central differences."""
    generator = np.random.default_rng(1)
    arrays = float_arrays(sample)
    direction = [generator.normal(size=x.shape) for x in arrays]
    weights = [generator.normal(size=np.shape(y)) for y in expected(sample)]
    real = [i for i, dtype in enumerate(gives(sample, len(weights))) if dtype == "float32"]

    def loss(tensors):
        left = iter(tensors)
        args, options = exchange(
            sample, lambda x: next(left) if x.dtype == "float32" else ops.convert_to_tensor(x)
        )
        outputs = tree.flatten(OPS[name](*args, **options))
        return sum(ops.sum(ops.multiply(outputs[i], weights[i].astype("float32"))) for i in real)

    def exact(step):
        moves = iter(direction)
        outputs = expected(sample, lambda x: x + step * next(moves))
        return sum(np.sum(outputs[i] * weights[i]) for i in real)

    tensors = [ops.convert_to_tensor(x) for x in arrays]
    if backend.name == "jax" and sample.options.get("reduction") == "mul":
        with pytest.raises(NotImplementedError):  # jax has none: docs/deviations.md
            ops.grad(loss)(tensors)
        return
    run = ops.grad(loss) if sample.fixed is None else compiled(ops.grad(loss))  # None: needs values
    gradients = run(tensors)
    parts = [ops.convert_to_numpy(g) * d for g, d in zip(gradients, direction, strict=True)]
    slope, size = (sum(f(p).sum() for p in parts) for f in (np.asarray, np.abs))
    assert slope == pytest.approx((exact(1e-6) - exact(-1e-6)) / 2e-6, abs=1e-5 * size + 1e-6)
