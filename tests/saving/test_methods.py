"""Methods that Keras has on every layer and model, around files and state."""

import numpy as np
import pytest

import khub
from khub import layers, ops


def made():
    model = khub.Sequential(
        [khub.Input((3,)), layers.Dense(2, name="dense"), layers.BatchNormalization(name="norm")],
        name="net",
    )
    model.compile("adam", "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    return model


def test_the_state_as_a_tree():
    model, other = made(), made()
    tree = model.get_state_tree("numpy_array")
    assert set(tree) == {
        f"{n}_variables" for n in ("trainable", "non_trainable", "optimizer", "metrics")
    }
    assert set(tree["trainable_variables"]["net"]) == {"dense", "norm"}
    assert tree["optimizer_variables"][model.optimizer.name]["iteration"] == 0
    kernel = tree["trainable_variables"]["net"]["dense"]["kernel"]
    assert type(kernel) is np.ndarray and kernel.shape == (3, 2)
    other.set_state_tree({"trainable_variables": tree["trainable_variables"]})
    np.testing.assert_array_equal(other.get_weights()[0], kernel)
    with pytest.raises(ValueError, match="has no Variable 'net/none' in 'trainable_variables'"):
        other.set_state_tree({"trainable_variables": {"net": {"none": 1}}})
    assert ops.is_tensor(model.get_state_tree()["metrics_variables"]["loss"]["total"])


def test_a_loss_without_side_effects():
    model = made()
    x, y = np.ones((4, 3), "float32"), np.zeros((4, 2), "float32")
    state = model.trainable_variables, model.non_trainable_variables, model.metrics_variables
    values = [[v.value for v in group] for group in state]
    loss, new = model.stateless_compute_loss(*values, x=x, y=y, y_pred=ops.ones((4, 2)))
    assert float(loss) == 1.0
    assert [len(group) for group in new] == [len(group) for group in state]


def test_compile_configs():
    model, other = made(), made()
    config = model.get_compile_config()
    assert config["loss"] == "mse" and config["metrics"] == ["mae"] and model.jit_compile == "auto"
    config["optimizer"]["config"]["learning_rate"] = 0.25
    other.compile_from_config(config)
    assert float(other.optimizer.learning_rate) == 0.25 and other.optimizer.built
    assert khub.Sequential([]).get_compile_config() is None


def test_methods_of_every_layer():
    layer = layers.Dense(2, dtype="mixed_bfloat16")
    assert layer.symbolic_call(khub.Input((3,))).shape == (None, 2)
    assert layer.input_dtype == "bfloat16" and layer.quantization_mode is None
    variable = layer.add_variable((4,), "ones", trainable=False, name="extra")
    assert variable.shape == (4,) and not variable.trainable and layer.weights[-1] is variable
    x = ops.ones((1, 3), "bfloat16")
    again = layer.rematerialized_call(layer, x)(x)
    np.testing.assert_array_equal(
        *[ops.convert_to_numpy(ops.cast(y, "float32")) for y in (again, layer(x))]
    )
    for call in (
        lambda: layer.add_metric(None),
        lambda: layer.quantized_build((3,), "int8"),
        lambda: layer.quantized_call(x),
    ):
        with pytest.raises(NotImplementedError, match="call|compile"):
            call()


def test_own_variables():
    layer = layers.Dense(2)
    layer.build((None, 3))
    store = {}
    layer.save_own_variables(store)
    assert list(store) == ["0", "1"]
    layer.load_own_variables({"0": np.ones((3, 2)), "1": np.ones(2)})
    assert layer.get_weights()[0].sum() == 6
    with pytest.raises(ValueError, match="2 weights, got 1"):
        layer.load_own_variables({"0": np.ones((3, 2))})


class Several(khub.Model):
    """A model without build, of two inputs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.one, self.two = layers.Dense(2), layers.Dense(2)

    def call(self, a, b):
        return self.one(a) + self.two(b)


def test_a_model_of_two_inputs_without_build(tmp_path):
    model, a, b = Several(), np.ones((1, 3), "float32"), np.ones((1, 4), "float32")
    wanted = ops.convert_to_numpy(model(a, b))
    assert model.get_build_config() == {"shapes_dict": {"a_shape": (1, 3), "b_shape": (1, 4)}}
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="Several is not a class that may be loaded"):
        khub.saving.load_model(tmp_path / "model.keras")
    read = khub.saving.load_model(tmp_path / "model.keras", custom_objects={"Several": Several})
    np.testing.assert_array_equal(ops.convert_to_numpy(read(a, b)), wanted)
    assert "Several" not in khub.saving.get_custom_objects()
