"""The dtype of every NumPy-like op for every dtype of operands: Keras' rules, JAX's lattice."""

import numpy as np
import pytest

from khub import backend, dtypes, ops
from khub.ops.op import accumulate, counted
from khub.ops.symbolic import KerasTensor

NAMES = ["bool", "uint8", "uint16", "uint32", "int8", "int16", "int32", "int64"]
NAMES += ["bfloat16", "float16", "float32", "float64"]
NARROWED = {"int64": "int32", "float64": "float32", "uint64": "uint32", "complex128": "complex64"}
narrow = (lambda n: NARROWED.get(n, n)) if backend.name == "jax" else lambda n: n  # 64 bits are off

UNARY = {  # what the dtype becomes -> ops
    dtypes.floating: """
        angle arccos arccosh arcsin arcsinh arctan arctanh average cbrt ceil cos cosh deg2rad exp
        exp2
        expm1 fabs floor i0 log log10 log1p log2 mean median nanmean nanmedian nanstd nanvar rad2deg
        reciprocal rsqrt sin sinc sinh sqrt std tan tanh trapezoid var softmax sigmoid
        squareplus""",
    lambda name: name: """
        absolute amax array conj copy diag diagflat diagonal diff empty_like flip fliplr flipud imag
        max min moveaxis nan_to_num nanmax nanmin ones_like ravel real roll rot90 round sort trunc
        transpose tril unique vander zeros_like""",
    accumulate: "sum prod nansum nanprod trace",
    counted: "cumsum cumprod nancumsum nancumprod square",
    lambda name: "bool": """
        all any isfinite isinf isnan isneginf isposinf isreal logical_not signbit""",
    lambda name: "int32": "argmax argmin argsort count_nonzero nanargmax nanargmin",
}
BINARY = {
    lambda *names: dtypes.result_type(*names): """
        add append fmax fmin inner kron matmul maximum minimum multiply outer vdot""",
    lambda *names: dtypes.floating(dtypes.result_type(*names)): """
        arctan2 divide divide_no_nan heaviside hypot logaddexp nextafter true_divide""",
    lambda *names: "bool": "equal greater isclose isin less logical_and logical_or not_equal",
    counted: "mod",
}
EVERY = [*NAMES, "uint64", "complex64", "complex128"]
WEAK = {"int": 2, "float": 2.0}
PAIRED = {  # what every pair of dtypes is tried with: rule -> ops, whether complex numbers have it
    dtypes.result_type: [("add", True), ("multiply", True), ("maximum", False)],
    lambda *names: dtypes.floating(dtypes.result_type(*names)): [
        ("divide", True),
        ("arctan2", False),
        ("logaddexp", False),
    ],
    lambda *names: "bool": [("equal", True), ("less", False), ("logical_and", True)],
    counted: [("mod", False), ("floor_divide", False), ("power", True)],
}
INTEGERS = [name for name in NAMES if "float" not in name and name != "bool"]
WHOLE = [
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "bitwise_left_shift",
    "bitwise_right_shift",
    "gcd",
    "lcm",
]
MORE_ARGUMENTS = {"moveaxis": (0, 1), "roll": (1,)}


def called(name, *kinds):
    """Return the dtypes of an eager and of a symbolic call."""
    shape = (3,) if name in ("vander", "vdot") else (3, 3)
    more = MORE_ARGUMENTS.get(name, ())
    symbols = [KerasTensor(shape, narrow(kind)) for kind in kinds]
    found = [getattr(ops, name)(*symbols, *more).dtype]
    if backend.name != "jax":  # each dtype would be compiled; the trace above is the same function
        values = [ops.cast(np.ones(shape), kind) for kind in kinds]
        found.append(dtypes.standardize(getattr(ops, name)(*values, *more).dtype))
    return found


def cases(table):
    return [(name, rule) for rule, names in table.items() for name in names.split()]


@pytest.mark.parametrize("name, rule", [pytest.param(n, r, id=n) for n, r in cases(UNARY)])
def test_one_operand(name, rule):
    for kind in NAMES:
        assert set(called(name, kind)) == {narrow(rule(narrow(kind)))}, kind


@pytest.mark.parametrize("name, rule", [pytest.param(n, r, id=n) for n, r in cases(BINARY)])
def test_two_operands(name, rule):
    for one in NAMES:
        for two in {one, "int8", "bfloat16", "float32"}:
            if {one, two} == {"bool"} and name in ("inner", "matmul", "vdot"):
                continue  # no product of truth values
            assert set(called(name, one, two)) == {
                narrow(rule(narrow(one), two if two != one else narrow(two)))
            }, (one, two)


@pytest.mark.parametrize(
    ("name", "rule", "of_complex"),
    [
        pytest.param(*row, id=row[0])
        for rule, rows in PAIRED.items()
        for row in ((name, rule, of_complex) for name, of_complex in rows)
    ],
)
def test_every_pair(name, rule, of_complex):
    """Every dtype with every other and with Python's numbers, on both sides."""
    kinds = [k for k in EVERY if of_complex or "complex" not in k]
    for one in kinds:
        for two in [*kinds, *WEAK]:
            for pair in {(one, two), (two, one)}:
                wanted = narrow(rule(*(narrow(kind) for kind in pair)))
                symbols = [WEAK.get(k) or KerasTensor((2,), narrow(k)) for k in pair]
                found = {getattr(ops, name)(*symbols).dtype}
                if backend.name in ("numpy", "torch"):  # an eager call of the others costs more
                    values = [WEAK.get(k) or ops.ones((2,), k) for k in pair]
                    found.add(dtypes.standardize(getattr(ops, name)(*values).dtype))
                assert found == {wanted}, pair


def test_counting_gives_int32():
    for call in (
        lambda: ops.arange(5),
        lambda: ops.arange(1, 9, 2),
        lambda: ops.argmax(ops.ones(3)),
        lambda: ops.count_nonzero(ops.ones(3)),
        lambda: ops.searchsorted(ops.arange(3), ops.arange(2)),
        lambda: ops.sum(ops.ones(3, "bool")),
        lambda: ops.convert_to_tensor([1, 2]),
        lambda: ops.argsort(ops.ones(3)),
        lambda: ops.top_k(ops.ones(3), 2)[1],
        lambda: ops.nonzero(ops.ones(3))[0],
        lambda: ops.unique(ops.arange(3), return_counts=True)[1],
    ):
        assert dtypes.standardize(call().dtype) == "int32"
    for kind in [*INTEGERS, "uint64", "bool"]:
        assert dtypes.standardize(ops.arange(3, dtype=kind).dtype) == narrow(kind)
        assert dtypes.standardize(ops.mean(ops.ones(3, kind)).dtype) == "float32"


@pytest.mark.parametrize("name", WHOLE)
def test_two_integers(name):
    for one in INTEGERS:
        for two in {one, "int8", "uint8"}:
            wanted = narrow(dtypes.result_type(narrow(one), narrow(two)))
            assert set(called(name, one, two)) == {wanted}, (one, two)
