"""Where torch's tensors lie: torch's device without memory stands for a GPU."""

import numpy as np
import pytest

import khub
from khub import layers, ops, random

torch = pytest.importorskip("torch")
if khub.backend.name != "torch":
    pytest.skip("JAX and TensorFlow place tensors themselves", allow_module_level=True)

from khub.backend.torch import arrays  # noqa: E402

MAKERS = {
    "number": lambda: ops.convert_to_tensor(1.0),
    "numbers": lambda: ops.convert_to_tensor([1, 2]),
    "array": lambda: ops.convert_to_tensor(np.ones(3, "float32")),
    "bfloat16": lambda: ops.convert_to_tensor(np.ones(3, "float32"), "bfloat16"),
    "tensor of the host": lambda: ops.convert_to_tensor(torch.ones(3)),
    "zeros": lambda: ops.zeros((2,)),
    "ones": lambda: ops.ones((2,)),
    "full": lambda: ops.full((2,), 3),
    "eye": lambda: ops.eye(3),
    "arange": lambda: ops.arange(3),
    "linspace": lambda: ops.linspace(0.0, 1.0, 3),
    "uniform": lambda: random.uniform((2,)),
    "normal": lambda: random.normal((2,)),
    "gamma": lambda: random.gamma((2,), 1.0),
    "integers": lambda: random.randint((2,), 0, 9),
    "argument of jit": lambda: khub.jit(lambda x: x)(torch.ones(3)),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_new_tensors_lie_on_the_device_of_the_scope(maker):
    assert MAKERS[maker]().is_cpu or torch.cuda.is_available()
    with khub.device("meta"):
        assert MAKERS[maker]().is_meta


def test_a_variable_lies_where_it_was_made_whenever_it_gets_its_value():
    with khub.device("cpu"):
        layer = layers.Dense(2)
        layer.build((None, 3))
    with khub.device("meta"):
        assert all(v.value.is_cpu for v in layer.variables)


def test_what_an_optimizer_reads_at_each_step_stays_on_the_host():
    with khub.device("meta"):
        optimizer = khub.optimizers.Adam(0.5)
        for state in (optimizer._iterations, optimizer._rate):
            assert state.value.is_cpu
            state.assign_add(1)
            assert state.value.is_cpu


def test_the_environment_names_the_device(monkeypatch):
    monkeypatch.setenv("KERAS_TORCH_DEVICE", "meta")
    assert arrays._home() == torch.device("meta")
    monkeypatch.setenv("KHUB_TORCH_DEVICE", "cpu")
    assert arrays._home() == torch.device("cpu")


@pytest.mark.parametrize("kind", ["int32", "uint8", "uint16"])
def test_products_of_integers_are_computed_in_floats_where_torch_has_none(kind):
    def refusing(x, y):
        if not x.dtype.is_floating_point:
            raise NotImplementedError("as on a GPU")
        return x @ y

    x = torch.tensor([[1, 250], [3, 4]]).to(getattr(torch, kind))
    found = arrays._wide(refusing)(x, x)
    assert found.dtype is x.dtype
    wanted = x.long() @ x.long()
    np.testing.assert_array_equal(found.long(), wanted.to(x.dtype).long())
