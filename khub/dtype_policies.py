"""Dtype policies: which dtype a layer computes in, and which its variables have."""

from khub import config, dtypes
from khub.saving import registry

_global = {"policy": None}


class DTypePolicy:
    """A named pair of dtypes.

    name: a dtype ("float32"), or "mixed_bfloat16" / "mixed_float16": variables are float32, the
    computation is not
    """

    _module = "keras"

    def __init__(self, name=None, source_name=None):
        self.name = name or config.floatx()
        if self.name.startswith("mixed_"):
            self.compute_dtype, self.variable_dtype = self.name.removeprefix("mixed_"), "float32"
            if self.compute_dtype not in ("float16", "bfloat16"):
                raise ValueError(f"Expected mixed_float16 or mixed_bfloat16, got {self.name!r}.")
        else:
            self.compute_dtype = self.variable_dtype = dtypes.standardize(self.name)

    def get_config(self):
        """Return the constructor's arguments."""
        return {"name": self.name}

    @classmethod
    def from_config(cls, config):
        """Build a policy from `get_config()`'s result."""
        return cls(**config)

    def __eq__(self, other):
        return isinstance(other, DTypePolicy) and self.name == other.name

    def __hash__(self):
        return hash(self.name)

    def __repr__(self):
        return f'<DTypePolicy "{self.name}">'


registry.register("keras", DTypePolicy)


def get(identifier):
    """Return the policy of a name, dtype, serialized policy or policy; None: the global one."""
    if identifier is None:
        return dtype_policy()
    if isinstance(identifier, DTypePolicy):
        return identifier
    if isinstance(identifier, dict):
        return DTypePolicy(**identifier["config"])
    name = identifier if isinstance(identifier, str) else dtypes.standardize(identifier)
    return DTypePolicy(name)


def serialize(policy):
    """Return the policy in Keras' serialized form."""
    return {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": policy.get_config(),
        "registered_name": None,
    }


def dtype_policy():
    """Return the global policy."""
    return _global["policy"] or DTypePolicy(config.floatx())


def set_dtype_policy(policy):
    """Set the policy of layers made from now on."""
    _global["policy"] = get(policy)
