"""The lattice of dtypes against JAX's table, as written down and as the running backend has it."""

import numpy as np
import pytest

from khub import backend, config, dtypes, ops

NAMES = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"]
NAMES += ["bfloat16", "float16", "float32", "float64", "complex64", "complex128"]
# What jax.numpy.result_type gave (0.10.2, 64 bits on), f standing for a weak float, which is floatx
TABLE = """
bool bool u8   u16  u32  u64  i8   i16  i32  i64  bf16 f16  f32  f64  c64  c128
u8   u8   u8   u16  u32  u64  i16  i16  i32  i64  bf16 f16  f32  f64  c64  c128
u16  u16  u16  u16  u32  u64  i32  i32  i32  i64  bf16 f16  f32  f64  c64  c128
u32  u32  u32  u32  u32  u64  i64  i64  i64  i64  bf16 f16  f32  f64  c64  c128
u64  u64  u64  u64  u64  u64  f    f    f    f    bf16 f16  f32  f64  c64  c128
i8   i8   i16  i32  i64  f    i8   i16  i32  i64  bf16 f16  f32  f64  c64  c128
i16  i16  i16  i32  i64  f    i16  i16  i32  i64  bf16 f16  f32  f64  c64  c128
i32  i32  i32  i32  i64  f    i32  i32  i32  i64  bf16 f16  f32  f64  c64  c128
i64  i64  i64  i64  i64  f    i64  i64  i64  i64  bf16 f16  f32  f64  c64  c128
bf16 bf16 bf16 bf16 bf16 bf16 bf16 bf16 bf16 bf16 bf16 f32  f32  f64  c64  c128
f16  f16  f16  f16  f16  f16  f16  f16  f16  f16  f32  f16  f32  f64  c64  c128
f32  f32  f32  f32  f32  f32  f32  f32  f32  f32  f32  f32  f32  f64  c64  c128
f64  f64  f64  f64  f64  f64  f64  f64  f64  f64  f64  f64  f64  f64  c128 c128
c64  c64  c64  c64  c64  c64  c64  c64  c64  c64  c64  c64  c64  c128 c64  c128
c128 c128 c128 c128 c128 c128 c128 c128 c128 c128 c128 c128 c128 c128 c128 c128
int  i32  u8   u16  u32  u64  i8   i16  i32  i64  bf16 f16  f32  f64  c64  c128
float f   f    f    f    f    f    f    f    f    bf16 f16  f32  f64  c64  c128
"""
LONG = {"bool": "bool", "f": "float32"} | {
    short + bits: name + bits
    for short, name in dict(u="uint", i="int", bf="bfloat", f="float", c="complex").items()
    for bits in ("8", "16", "32", "64", "128")
}
PAIRS = {
    (LONG.get(first, first), second): LONG[result]
    for first, *row in map(str.split, TABLE.split("\n")[1:-1])
    for second, result in zip(NAMES, row, strict=True)
}
NARROWED = {"int64": "int32", "uint64": "uint32", "float64": "float32", "complex128": "complex64"}
narrow = (lambda n: NARROWED.get(n, n)) if backend.name == "jax" else lambda n: n  # 64 bits are off


@pytest.mark.parametrize("first, second", PAIRS)
def test_lattice_is_that_of_jax(first, second):
    assert dtypes.result_type(first, second) == PAIRS[first, second]
    assert dtypes.result_type(second, first) == PAIRS[first, second]


@pytest.mark.parametrize("first", [*NAMES, "int", "float"])
def test_addition_follows_the_lattice(first):
    for second in NAMES:
        x, y = ({"int": 1, "float": 1.0}.get(n) or ops.ones((2,), n) for n in (first, second))
        wanted = PAIRS[narrow(first), narrow(second)]
        for a, b in [(x, y), (y, x)]:
            result = ops.add(a, b)
            assert dtypes.standardize(result.dtype) == narrow(wanted), (first, second)
            value = 2.0 if wanted != "bool" else 1.0
            np.testing.assert_array_equal(ops.convert_to_numpy(result).astype(complex), value)


def test_float8_joins_only_itself_and_weak_numbers():
    assert dtypes.result_type("float8_e5m2", float) == "float8_e5m2"
    with pytest.raises(TypeError, match="no common dtype"):
        dtypes.result_type("float8_e5m2", "float16")


def test_weak_floats_follow_floatx():
    before = config.floatx()
    config.set_floatx("bfloat16")
    try:
        assert dtypes.result_type("int32", float) == dtypes.floating("int64") == "bfloat16"
        assert dtypes.standardize(ops.divide(ops.arange(1, 3), 2).dtype) == "bfloat16"
    finally:
        config.set_floatx(before)


@pytest.mark.parametrize("name", NAMES)
def test_every_spelling_of_a_dtype(name):
    assert dtypes.standardize(dtypes.numpy_dtype(name)) == name
    assert dtypes.standardize(dtypes.numpy_dtype(name).type) == name
    assert dtypes.standardize(ops.zeros(2, name).dtype) == narrow(name)


def test_dtypes_of_python_values():
    kinds = {5: "int32", 2.5: "float32", True: "bool"}
    for value, name in kinds.items():
        for x in (value, [value], [[value], [value]]):
            assert dtypes.standardize(ops.convert_to_tensor(x).dtype) == name
    assert dtypes.standardize(ops.arange(5).dtype) == "int32"
    assert dtypes.standardize(ops.arange(5.0).dtype) == "float32"
    assert dtypes.standardize(ops.convert_to_tensor([1, 2.5]).dtype) == "float32"
    assert dtypes.standardize(ops.convert_to_tensor(np.ones(2)).dtype) == narrow("float64")


def test_what_is_no_dtype():
    with pytest.raises(ValueError, match="'floaty' is not a dtype"):
        dtypes.standardize("floaty")
