"""Every op in every dtype: the rows of the table, their arrays cast, held to the same NumPy lines.

The result's dtype is that of the NumPy backend, which tests/parity holds to Keras.
"""

import numpy as np
import pytest
from ops.test_ops import CASES, SAMPLES, exchange, ints_are_labels

from khub import backend, dtypes, ops, tree
from khub.backend.host import on_host
from khub.ops.op import OPS

FLOATS = ["bfloat16", "float16", "float64"]
INTEGERS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int64"]
KINDS = {"float32": FLOATS, "int32": [*INTEGERS, "bool"], "complex64": ["complex128"]}
if backend.name == "jax":  # 64 bits are off; each kind of each op compiles, the others are slow
    SHORT = ["bfloat16", "uint8"]
    KINDS = {"float32": FLOATS[:2], "int32": ["uint8", "uint16", "uint32", "int8", "int16", "bool"]}
else:
    SHORT = [kind for kinds in KINDS.values() for kind in kinds]
NEAR = {"bfloat16": 0.04, "float16": 5e-3, "float64": 1e-12, "complex128": 1e-12}

SEGMENTS = {f"segment_{kind}" for kind in ("sum", "max", "min", "prod")}
# (op, or op and row) -> why a dtype means nothing there
MEANINGLESS = {
    "bool": {
        "there is no difference of truth values": {"negative", "subtract", "sign", "cross", "ptp"},
        "divisors, bits and places are of numbers": {
            *("gcd", "lcm", "bitwise_left_shift", "bitwise_right_shift", "top_k"),
        },
        "indices and labels are numbers": {
            *("take_along_axis", "scatter", "slice", "slice_update", "scatter_update", *SEGMENTS),
        },
        "NumPy's line turns 1 into -2": {"bitwise_not"},
        "TensorFlow and torch have none": {"relu", "relu6", "max_pool"},
    },
    "all": {
        "the number of bytes changes": {"view"},
        "the row is about the limits of one dtype": {
            *("nan_to_num-0", "nextafter", "segment_max-3", "segment_min-3"),
            *("matrix_rank-1", "pinv-2", "min-7"),
        },
        "epsilon is below the resolution of half floats, as in Keras": {"binary_crossentropy-2"},
        "the body of others, which cast before": {"_rfft", "_irfft", "_fft"},
    },
    "half": {"the edges of bins are rounded": {"histogram"}},
    "unsigned": {"an index of the row is negative": {"take_along_axis-0"}},
}


def left_out(name, row, kind):
    """Return why there is no such case, None where there is one."""
    sort = "bool" if kind == "bool" else "unsigned" if kind.startswith("u") else None
    sort = "half" if kind in NEAR and kind.endswith("16") else sort
    groups = ["all", *([sort] if sort else [])]
    for group in groups:
        for reason, names in MEANINGLESS[group].items():
            if name in names or f"{name}-{row}" in names:
                return reason
    numbers = [v for v in tree.flatten([*SAMPLES[name][row].args, SAMPLES[name][row].options])]
    numbers = [v for v in numbers if type(v) in (int, float)]
    small = {"bool": (0, 1), "unsigned": (0, 255)}.get(sort)
    if small and any(not small[0] <= v <= small[1] for v in numbers if abs(v) < 1e6):
        return "a number beyond the dtype"
    return None


def given(x, kind):
    """An array of the row in the dtype, where that is of its sort."""
    if kind not in KINDS.get(str(x.dtype), ()):
        return x
    if kind == "bool":
        return x != 0
    return (np.abs(x) if kind.startswith("u") else x).astype(dtypes.numpy_dtype(kind))


def widened(x, kind):
    """The same numbers as NumPy computes with them exactly."""
    y = given(x, kind)
    if y is x:
        return x.astype("float64") if x.dtype == "float32" else x
    return y.astype(
        {"i": "int64", "u": "int64", "b": "int64", "c": "complex128"}.get(y.dtype.kind, "float64")
    )


def check(name, row, kind):
    sample = SAMPLES[name][row]
    with np.errstate(all="ignore"):
        args, options = exchange(sample, lambda x: widened(x, kind))
        wanted = tree.flatten(sample.expected(*args, **options))
        args, options = exchange(sample, lambda x: given(x, kind))
        with on_host():
            names = [dtypes.standardize(y.dtype) for y in tree.flatten(OPS[name](*args, **options))]
    args, options = exchange(sample, lambda x: ops.convert_to_tensor(given(x, kind)))
    agree(OPS[name](*args, **options), wanted, names, kind, sample)
    reference, native = (getattr(OPS[name], each, None) for each in ("reference", "run"))
    alone = reference in (None, native, getattr(native, "__wrapped__", None))
    if not alone and kind in FLOATS and ints_are_labels(name, sample) and backend.name != "jax":
        agree(reference(*args, **options), wanted, names, kind, sample, exact=False)


def agree(found, wanted, names, kind, sample, exact=True):
    for y, w, dtype in zip(tree.flatten(found), wanted, names, strict=True):
        assert not exact or dtypes.standardize(y.dtype) == dtype, (kind, dtype)
        y, w = ops.convert_to_numpy(y), np.asarray(w).astype(dtypes.numpy_dtype(dtype))
        if not dtypes.is_float(dtype):
            np.testing.assert_array_equal(y, w, err_msg=kind)
            continue
        near = max(NEAR.get(kind, 0), 1e-5 if dtype in ("float32", "complex64") else 0)
        near = max(near, NEAR.get(dtype, 0), sample.near if sample.near > 1e-6 else 0)
        y, w = (v.astype("complex128" if v.dtype.kind == "c" else "float64") for v in (y, w))
        scale = np.max(np.abs(w[np.isfinite(w)]), initial=1.0)
        np.testing.assert_allclose(y, w, rtol=near, atol=near * scale, err_msg=kind)


def cases(name):
    for row, sample in enumerate(SAMPLES[name]):
        sorts = set()
        exchange(sample, lambda x, sorts=sorts: sorts.add(str(x.dtype)))
        for sort in KINDS.keys() & sorts:
            yield from ((row, kind) for kind in KINDS[sort] if not left_out(name, row, kind))


def run(name, chosen):
    with np.errstate(all="ignore"):
        for row, kind in chosen:
            check(name, row, kind)


NAMES = [name for name in SAMPLES if any(cases(name))]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", NAMES)
def test_every_op_in_every_dtype(name):
    seen, rows = set(), []
    for row, kind in cases(name):
        if kind in SHORT and (backend.name != "jax" or kind not in seen):
            rows.append((row, kind))
            seen.add(kind)
    run(name, rows)


@pytest.mark.slow
@pytest.mark.skipif(backend.name != "jax", reason="the others did it in the test above")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", NAMES)
def test_the_dtypes_that_take_long(name):
    run(name, [(row, kind) for row, kind in cases(name) if kind not in SHORT])


def test_what_is_left_out_exists():
    """No reason outlives its op."""
    ids = {p.id for p in CASES} | set(SAMPLES)
    named = {n for group in MEANINGLESS.values() for names in group.values() for n in names}
    assert named <= ids
