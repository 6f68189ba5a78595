"""The dtype of every NumPy-like op for every dtype of operands: Keras' rules, JAX's lattice."""

import numpy as np
import pytest

from khub import backend, dtypes, ops
from khub.ops.op import accumulate, counted
from khub.ops.symbolic import KerasTensor

NAMES = ["bool", "uint8", "uint16", "uint32", "int8", "int16", "int32", "int64"]
NAMES += ["bfloat16", "float16", "float32", "float64"]
NARROWED = {"int64": "int32", "float64": "float32"}
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


@pytest.mark.parametrize("name", WHOLE)
def test_two_integers(name):
    for one in INTEGERS:
        for two in {one, "int8", "uint8"}:
            wanted = narrow(dtypes.result_type(narrow(one), narrow(two)))
            assert set(called(name, one, two)) == {wanted}, (one, two)
