"""Dtype policies: which dtype a layer computes in, its variables have, and how it is quantized."""

import re
from collections import UserDict

from khub import config, dtypes
from khub.saving import registry

_global = {"policy": None}


class DTypePolicy:
    """A named pair of dtypes.

    name: a dtype ("float32"), or "mixed_bfloat16" / "mixed_float16": variables are float32, the
    computation is not
    """

    _module = "keras"
    quantization_mode = None

    def __init__(self, name=None):
        self.name = name or config.floatx()
        self._set_dtypes(self.name)

    def _set_dtypes(self, name):
        if name.startswith("mixed_"):
            self.compute_dtype, self.variable_dtype = name.removeprefix("mixed_"), "float32"
            if self.compute_dtype not in ("float16", "bfloat16"):
                raise ValueError(f"Expected mixed_float16 or mixed_bfloat16, got {name!r}.")
        else:
            self.compute_dtype = self.variable_dtype = dtypes.standardize(name)

    def convert_input(self, x, autocast, dtype):
        """Return `x` as a tensor, a float one of the given dtype if `autocast`."""
        from khub import ops

        x = ops.convert_to_tensor(x)
        return ops.cast(x, dtype) if autocast and dtypes.is_float(ops.dtype(x)) else x

    def takes(self, layer, key, given, value):
        """Whether a layer of this policy may have an argument that khub's layers do not have."""
        return given == value

    def apply(self, layer):
        """Make of a layer that was just built what the policy says."""

    def get_config(self):
        """Return the constructor's arguments."""
        return {"name": self.name}

    @classmethod
    def from_config(cls, config):
        """Build a policy from `get_config()`'s result."""
        return cls(**config)

    def __eq__(self, other):
        return isinstance(other, DTypePolicy) and self.get_config() == other.get_config()

    def __hash__(self):
        return hash(self.name)

    def __repr__(self):
        return f'<{type(self).__name__} "{self.name}">'


class FloatDTypePolicy(DTypePolicy):
    """A policy that quantizes nothing."""


class QuantizedDTypePolicy(DTypePolicy):
    """A policy of layers whose weights are held in fewer bits.

    mode: how ("int8", "int4"); source_name: the policy of what is not quantized
    """

    _module = "keras.dtype_policies"
    _form = "int8|int4|float8|gptq|awq"

    def __init__(self, mode, source_name=None):
        found = re.fullmatch(self._form, mode)
        if found is None:
            raise ValueError(
                f"{type(self).__name__}: the mode must have the form {self._form}, got {mode!r}."
            )
        for name, number in found.groupdict().items():
            setattr(self, name, int(number))
        self.quantization_mode = mode.split("/")[0]
        self.mode, self.source_name = mode, source_name or config.floatx()
        self.name = f"{mode}_from_{self.source_name}"
        self._set_dtypes(self.source_name)

    def takes(self, layer, key, given, value):
        """Keep a quantization_config, without which the mode's own counts."""
        if key == "quantization_config":
            layer._keras_keys = layer._keras_keys | {key: registry.serialize(given)}
        return key == "quantization_config" or given == value

    def apply(self, layer):
        """Make the weights integers, which a file fills."""
        from khub.models import quantization

        if quantization.weight_of(layer) is not None:
            config = registry.deserialize(layer._keras_keys["quantization_config"])
            quantization.quantize(layer, self.quantization_mode, config, blank=True)

    def get_config(self):
        """Return the constructor's arguments."""
        return {"mode": self.mode, "source_name": self.source_name}


class QuantizedFloat8DTypePolicy(QuantizedDTypePolicy):
    """A policy of layers that multiply in float8.  arXiv:2209.05433

    amax_history_length: steps whose largest values decide the scale
    """

    _form = "float8"

    def __init__(self, mode, source_name=None, amax_history_length=1024):
        super().__init__(mode, source_name)
        self.amax_history_length = amax_history_length

    def get_config(self):
        """Return the constructor's arguments."""
        return super().get_config() | {"amax_history_length": self.amax_history_length}


class Int4DTypePolicy(QuantizedDTypePolicy):
    """4 bits and a scale for each block of weights.  mode: "int4/128", -1: a block a column"""

    _form = r"int4/(?P<block_size>-1|\d+)"


class GPTQDTypePolicy(QuantizedDTypePolicy):
    """Weights rounded one by one.  mode: "gptq/4/128", bits and group.  arXiv:2210.17323"""

    _form = r"gptq/(?P<weight_bits>\d+)/(?P<group_size>-1|\d+)"


class AWQDTypePolicy(QuantizedDTypePolicy):
    """Weights scaled as inputs are.  mode: "awq/4/128", bits and group.  arXiv:2306.00978"""

    _form = r"awq/(?P<weight_bits>\d+)/(?P<group_size>-1|\d+)"


class DTypePolicyMap(DTypePolicy, UserDict):
    """The policy of each layer by its path: the exact one, else the one whose pattern fits it.

    default_policy: of a layer whose path none fits, the global one if None
    policy_map: path or regular expression -> policy.  Raises ValueError where two patterns fit.
    """

    _module = "keras.dtype_policies"

    def __init__(self, default_policy=None, policy_map=None):
        self._given = None if default_policy is None else get(default_policy)
        self.data = {path: get(policy) for path, policy in (policy_map or {}).items()}

    @property
    def default_policy(self):
        """The policy of a layer whose path no pattern fits."""
        return self._given or dtype_policy()

    name = property(lambda self: f"map_{self.default_policy.name}")
    compute_dtype = property(lambda self: self.default_policy.compute_dtype)
    variable_dtype = property(lambda self: self.default_policy.variable_dtype)
    quantization_mode = property(lambda self: self.default_policy.quantization_mode)

    def __getitem__(self, path):
        if path in self.data:
            return self.data[path]
        found = [pattern for pattern in self.data if re.fullmatch(pattern, path)]
        if len(found) > 1:
            raise ValueError(f"{path!r} fits several patterns of a DTypePolicyMap: {found}.")
        return self.data[found[0]] if found else self.default_policy

    def __setitem__(self, path, policy):
        if path in self.data:
            raise ValueError(
                f"The DTypePolicyMap has {path!r} already ({self.data[path]}): delete it first."
            )
        self.data[path] = get(policy)

    def get_config(self):
        """Return the constructor's arguments."""
        given = self._given
        plain = type(given) is DTypePolicy
        return {
            "default_policy": given.name if plain else given and serialize(given),
            "policy_map": {path: serialize(policy) for path, policy in self.data.items()},
        }

    def __repr__(self):
        pairs = [(path, policy.name) for path, policy in self.data.items()]
        return f"<DTypePolicyMap default_policy={self.default_policy.name}, mapping={pairs}>"


_SPECIAL = QuantizedFloat8DTypePolicy, Int4DTypePolicy, GPTQDTypePolicy, AWQDTypePolicy
for _policy in (DTypePolicy, FloatDTypePolicy, QuantizedDTypePolicy, *_SPECIAL, DTypePolicyMap):
    registry.register("dtype_policies", _policy)
registry.register("keras", DTypePolicy)
registry.register("keras", FloatDTypePolicy)


def get(identifier):
    """Return the policy of a name, dtype, serialized policy or policy; None: the global one."""
    if identifier is None:
        return dtype_policy()
    if isinstance(identifier, DTypePolicy):
        return identifier
    if isinstance(identifier, dict):
        return deserialize(identifier)
    name = identifier if isinstance(identifier, str) else dtypes.standardize(identifier)
    mode, quantized, source = name.partition("_from_")
    if not quantized:
        return DTypePolicy(name)
    fitting = [cls for cls in _SPECIAL if re.fullmatch(cls._form, mode)]
    return (fitting or [QuantizedDTypePolicy])[0](mode, source)


def serialize(dtype_policy):
    """Return the policy in Keras' serialized form."""
    return registry.serialize(dtype_policy)


def deserialize(config, custom_objects=None):
    """Build the policy that `serialize` described; only registered classes are instantiated."""
    return registry.deserialize(config, custom_objects, "dtype_policies")


def dtype_policy():
    """Return the global policy."""
    return _global["policy"] or DTypePolicy(config.floatx())


def set_dtype_policy(policy):
    """Set the policy of layers made from now on."""
    _global["policy"] = get(policy)
