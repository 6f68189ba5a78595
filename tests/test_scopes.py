"""Operations, functions of symbols, scopes around Variables, devices, rematerialization."""

import numpy as np
import pytest

import khub
from khub import layers, ops
from khub.backend import name as backend

GRADIENTS = backend != "numpy"


def values(x):
    return ops.convert_to_numpy(x).tolist()


class Scale(khub.Operation):
    def __init__(self, factor=2.0, *, name=None):
        super().__init__(name=name)
        self.factor = factor

    def call(self, x):
        return x * self.factor


class Pair(khub.Operation):
    def call(self, x, shift=1):
        return {"more": x + shift, "twice": x * 2}


def test_an_operation_computes_and_stands_in_a_model(tmp_path):
    scale, x = Scale(3.0, name="third"), khub.Input((2,))
    assert scale.get_config() == {"name": "third", "factor": 3.0}
    assert values(scale(ops.ones((1, 2)))) == [[3, 3]]
    pair = Pair()(scale(x), shift=4)
    assert scale.input is x and scale.output.shape == (None, 2)
    model = khub.Model(x, pair["more"] + layers.Dense(2)(pair["twice"]))
    model.save(tmp_path / "model.keras")
    given = ops.ones((3, 2))
    again = khub.models.load_model(
        tmp_path / "model.keras", custom_objects={"Scale": Scale, "Pair": Pair}
    )
    assert values(again(given)) == values(model(given))
    with pytest.raises(ValueError, match="Scale"):
        khub.models.load_model(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="without '/'"):
        Scale(name="a/b")
    with pytest.raises(AttributeError, match="call it on an Input"):
        _ = Pair().output


def test_a_function_is_what_lies_between_symbols():
    a, b = khub.KerasTensor((None, 2)), khub.KerasTensor((None, 2), "float16")
    middle = a + 1
    function = khub.Function([a, b], {"sum": middle * 2, "half": b * 2}, name="both")
    found = function([np.ones((1, 2), "float32"), np.ones((1, 2), "float16")])
    assert values(found["sum"]) == [[4, 4]]
    assert khub.backend.standardize_dtype(found["half"].dtype) == "float16"
    assert function.name == "both" and len(function.operations) == 5
    assert function.compute_output_shape([(5, 2), (5, 2)]) == {"sum": (5, 2), "half": (5, 2)}
    assert function([khub.KerasTensor((4, 2)), b])["sum"].shape == (4, 2)
    assert values(khub.Function(middle, middle * 2)(ops.ones((1, 2)))) == [[2, 2]]
    for inputs, message in (
        ([ops.ones((1, 2))], "takes 2 inputs, got 1"),
        ([ops.ones((1, 3)), ops.ones((1, 2))], r"must have size 2 at axis 1, got the shape .*1, 3"),
    ):
        with pytest.raises(ValueError, match=message):
            function(inputs)
    with pytest.raises(ValueError, match="not connected"):
        khub.Function(a, a * b)


def test_stateless_scope_keeps_variables_as_they_are():
    one, two = khub.Variable([1.0, 2.0]), khub.Variable([3.0])
    with khub.StatelessScope([(one, np.zeros(2, "float32"))]) as scope:
        one.assign_add(ops.ones(2))
        assert values(one) == values(scope.get_current_value(one)) == [1, 1]
        assert values(two) == [3] and scope.get_current_value(two) is None
        scope.add_update((two, [5]))
        assert values(two) == [5]
    assert (values(one), values(two)) == ([1, 2], [3])
    assert values(scope.get_current_value(two)) == [5]
    for mapping, message in (([(one, [1.0])], "has shape"), ([(1, one)], "expected a Variable")):
        with pytest.raises(ValueError, match=message):
            khub.StatelessScope(mapping)


@pytest.mark.parametrize("collect", [True, False])
def test_stateless_scope_keeps_losses(collect):
    layer = layers.ActivityRegularization(l1=1.0)
    with khub.StatelessScope(collect_losses=collect) as scope:
        layer(ops.ones((1, 2)))
    assert [values(loss) for loss in scope.losses] == ([2] if collect else [])
    assert layer.losses == []


def test_symbolic_scope_lets_no_assignment_out():
    variable = khub.Variable([1.0])
    with khub.SymbolicScope():
        variable.assign([2.0])
    assert values(variable) == [1]


@pytest.mark.parametrize("name", ["cpu", "cpu:0", "CPU:0", "/cpu:0"])
def test_arrays_are_made_on_a_device(name):
    with khub.device(name):
        found = ops.ones(2), khub.Variable(np.ones(2)).value
    assert all("cpu" in str(getattr(x, "device", "cpu")).lower() for x in found)


@pytest.mark.parametrize("name", [None, 3, "nowhere:0"])
def test_devices_that_are_none(name):
    with pytest.raises((ValueError, RuntimeError)), khub.device(name):
        ops.ones(2)


def network(mode):
    khub.utils.set_random_seed(0)
    calls = []

    class Counted(layers.Layer):
        def call(self, x, training=None):
            calls.append(training)
            return ops.tanh(x)

    with khub.RematScope(mode, output_size_threshold=15, layer_names=["counted"]):
        x = khub.Input((4, 3))
        y = layers.LSTM(4, return_sequences=True)(x)
        y = layers.BatchNormalization()(layers.Dense(4, activation="gelu")(y))
        y = layers.Dropout(0.5, seed=1)(y)
        y = layers.MultiHeadAttention(2, 2)(y, y, use_causal_mask=True)
        y = Counted(name="counted")(y)
        model = khub.Model(x, layers.Dense(1)(layers.Flatten()(y)))
    model.compile(khub.optimizers.SGD(0.1), "mse")
    return model, calls


@pytest.mark.skipif(not GRADIENTS, reason="the numpy backend computes no gradients")
@pytest.mark.parametrize("mode", khub.RematScope.MODES)
def test_remat_scope_changes_no_number(mode):
    random = np.random.RandomState(0)
    data = random.randn(6, 4, 3).astype("float32"), random.randn(6, 1).astype("float32")
    found = []
    for m in (None, mode):
        model, calls = network(m)
        calls.clear()
        losses = [float(model.train_on_batch(*data)) for _ in range(3)]
        found.append((losses, [values(v) for v in model.variables if v.name.startswith("moving")]))
        if backend == "torch":  # the others trace: how often is theirs to know
            again = m not in (None, "activations")
            assert len(calls) >= (6 if again else 3) and (again or len(calls) == 3)
    for one, two in zip(*found, strict=True):
        np.testing.assert_allclose(np.ravel(one), np.ravel(two), rtol=1e-5, atol=1e-6)


def test_remat_scopes_nest_and_end():
    with khub.RematScope("full"):
        with khub.RematScope(None):
            inner = layers.Dense(1)
        outer = layers.Dense(1)
    assert [layer._remat is None for layer in (inner, outer, layers.Dense(1))] == [
        True,
        False,
        True,
    ]
    with pytest.raises(ValueError, match="mode"):
        khub.RematScope("everything")


@pytest.mark.skipif(not GRADIENTS, reason="the numpy backend computes no gradients")
def test_remat_of_a_function_takes_any_argument():
    function = khub.remat(lambda x, y=2, negate=False: -x * y if negate else x * y)
    gradient = khub.grad(lambda x: ops.sum(function(x, y=3, negate=True)))(ops.ones(2))
    assert values(gradient) == [-3, -3]


def test_small_arguments_of_keras():
    assert khub.KerasTensor((2, 3), ragged_rank=None).reshape((3, 2)).shape == (3, 2)
    assert khub.KerasTensor((1, 3)).squeeze(0).shape == (3,)
    with khub.name_scope("outer", deduplicate=True):
        assert khub.Variable(1.0, name="x", layout=None).path == "outer/x"
    spec = khub.InputSpec(shape=(None, 3), dtype="float32", axes={-1: 3}, name="given")
    again = khub.InputSpec.from_config(spec.get_config())
    assert vars(again) == vars(spec) and again.problem((2, 4)) == spec.problem((2, 4))
    assert issubclass(khub.FloatDTypePolicy, khub.DTypePolicy)
