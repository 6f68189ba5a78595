"""Dtype policies: Keras' names, dtypes and serialized forms."""

import pytest

keras = pytest.importorskip("keras")

from khub import dtype_policies  # noqa: E402

pytestmark = pytest.mark.once

POLICIES = [
    ("DTypePolicy", ("mixed_bfloat16",)),
    ("FloatDTypePolicy", ("float16",)),
    ("QuantizedDTypePolicy", ("int8", "mixed_bfloat16")),
    ("QuantizedDTypePolicy", ("int4",)),
    ("QuantizedFloat8DTypePolicy", ("float8", "float32", 16)),
    ("Int4DTypePolicy", ("int4/128", "bfloat16")),
    ("GPTQDTypePolicy", ("gptq/4/-1", "float32")),
    ("AWQDTypePolicy", ("awq/4/128", "float32")),
    ("DTypePolicyMap", ("mixed_bfloat16",)),
]
FACTS = ["name", "compute_dtype", "variable_dtype", "quantization_mode"]
FACTS += ["block_size", "weight_bits", "group_size", "amax_history_length"]


@pytest.mark.parametrize(("name", "arguments"), POLICIES, ids=[f"{n}-{a}" for n, a in POLICIES])
def test_facts_and_serialized_form(name, arguments):
    ours = getattr(dtype_policies, name)(*arguments)
    theirs = getattr(keras.dtype_policies, name)(*arguments)
    for fact in FACTS:
        assert getattr(ours, fact, None) == getattr(theirs, fact, None), fact
    assert ours.get_config() == theirs.get_config()
    form = dtype_policies.serialize(ours)
    assert form == keras.dtype_policies.serialize(theirs)
    again = dtype_policies.deserialize(form)
    assert again == ours and type(again) is type(ours)
    assert name in repr(ours) and ours.name.removeprefix("map_") in repr(ours)


@pytest.mark.parametrize("name", ["int8_from_float32", "float8_from_mixed_bfloat16", "bfloat16"])
def test_policies_by_name(name):
    ours, theirs = dtype_policies.get(name), keras.dtype_policies.get(name)
    assert type(ours).__name__ == type(theirs).__name__ and ours.name == theirs.name


def test_a_map_finds_policies_by_path():
    policies = dtype_policies.DTypePolicyMap("float16", {"a/b": "float32", "a/.*": "bfloat16"})
    found = [policies[path].name for path in ("a/b", "a/c", "b")]
    assert found == ["float32", "bfloat16", "float16"] and list(policies) == ["a/b", "a/.*"]
    with pytest.raises(ValueError, match="already"):
        policies["a/b"] = "float16"
    policies["a/.*c"] = "float64"
    with pytest.raises(ValueError, match="several patterns"):
        policies["a/c"]
    del policies["a/.*c"]
    assert len(policies) == 2 and policies["a/c"].name == "bfloat16"


@pytest.mark.parametrize(
    ("name", "mode"), [("Int4DTypePolicy", "int4"), ("QuantizedDTypePolicy", "foo")]
)
def test_a_wrong_mode_is_named(name, mode):
    with pytest.raises(ValueError, match=mode):
        getattr(dtype_policies, name)(mode)
