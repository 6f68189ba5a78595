"""Layers around a torch module, a JAX function, a Flax module and a SavedModel."""

import numpy as np
import pytest

import khub
from khub import layers, ops

BACKEND = khub.backend.name
only = {
    name: pytest.mark.skipif(name != BACKEND, reason=f"needs the {name} backend")
    for name in ("torch", "jax", "tensorflow")
}
X = np.random.RandomState(0).randn(6, 4).astype("float32")
Y = X.sum(1, keepdims=True)


def learns(model):
    """Training reaches what the layer holds: the loss falls to less than half."""
    model.compile(khub.optimizers.Adam(0.05), "mse")
    losses = model.fit(X, Y, epochs=40, batch_size=6, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("make", "needs"),
    [
        (lambda: layers.TorchModuleWrapper(None), "torch"),
        (lambda: layers.JaxLayer(lambda params, inputs: inputs, params={}), "jax"),
        (lambda: layers.TFSMLayer("folder"), "tensorflow"),
    ],
)
def test_another_backend_is_refused(make, needs):
    if needs == BACKEND:
        pytest.skip("it is this backend")
    with pytest.raises(NotImplementedError, match=f"KHUB_BACKEND={needs}"):
        make()


# --- torch ---------------------------------------------------------------------------------------
@pytest.fixture
def module():
    nn = pytest.importorskip("torch").nn
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))


@only["torch"]
def test_a_torch_module_and_the_layer_share_their_weights(module):
    layer = layers.TorchModuleWrapper(module)
    x = ops.convert_to_tensor(X)
    module.eval()
    np.testing.assert_allclose(layer(x).detach(), module(x).detach())
    shapes = [v.shape for v in layer.trainable_weights]
    assert shapes == [tuple(p.shape) for p in module.parameters()]
    layer.weights[0].assign(np.zeros((5, 4)))
    assert not module[0].weight.any()
    assert layer.state_dict().keys() == {f"module.{k}" for k in module.state_dict()}
    assert len(list(layer.parameters())) == len(list(module.parameters()))


@only["torch"]
def test_a_torch_module_keeps_its_running_statistics(module):
    layer = layers.TorchModuleWrapper(module)
    before = module[1].running_mean.clone()
    layer(X, training=True)
    assert (module[1].running_mean != before).any()
    weights = layer.get_weights()
    layer.set_weights([np.zeros_like(w) for w in weights])
    layer(X)
    assert not module[1].running_mean.any()
    layer.set_weights(weights)
    values = [[v.value for v in kind] for kind in (layer.trainable_variables,)]
    outputs, new = layer.stateless_call(
        values[0], [v.value for v in layer.non_trainable_variables], X, training=True
    )
    assert outputs.shape == (6, 1) and len(new) == 3
    for mine, kept in zip(layer.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(mine, kept)


@only["torch"]
def test_a_torch_module_in_a_model(module):
    inputs = khub.Input((4,))
    outputs = layers.TorchModuleWrapper(module)(layers.Dense(4, kernel_initializer="ones")(inputs))
    assert outputs.shape == (None, 1)
    learns(khub.Model(inputs, outputs))
    assert layers.TorchModuleWrapper(module, output_shape=(None, 9))(inputs).shape == (None, 9)
    with pytest.raises(NotImplementedError, match="save its weights"):
        layers.TorchModuleWrapper(module).get_config()


# --- JAX -----------------------------------------------------------------------------------------
def initial(rng, inputs):
    import jax

    width = inputs.shape[-1]
    return {"kernel": jax.random.normal(rng, (width, 1)), "bias": ops.zeros(1), "name": "dense"}


def dense(params, inputs):
    return inputs @ params["kernel"] + params["bias"]


def counting(params, state, rng, inputs, training):
    import jax

    noise = jax.random.normal(rng, inputs.shape) if training else 0
    return inputs * params["scale"] + noise, {"calls": state["calls"] + 1}


@only["jax"]
def test_a_function_of_jax():
    layer = layers.JaxLayer(dense, initial)
    y = layer(X)
    kernel, bias = (layer.get_weights()[i] for i in (1, 0))
    np.testing.assert_allclose(y, X @ kernel + bias, rtol=1e-5)
    inputs = khub.Input((4,))
    learns(khub.Model(inputs, layers.JaxLayer(dense, initial)(inputs)))


@only["jax"]
def test_a_function_of_jax_with_state_and_randomness():
    layer = layers.JaxLayer(
        counting, params={"scale": np.ones((), "float32")}, state={"calls": np.zeros((), "int32")}
    )
    np.testing.assert_array_equal(layer(X), X)
    one, two = layer(X, training=True), layer(X, training=True)
    assert (one != two).any()
    assert [v.trainable for v in layer.weights] == [True, False]
    assert int(layer.weights[1].numpy()) == 3
    jitted = khub.jit(layer)
    jitted(X), jitted(X)
    assert int(layer.weights[1].numpy()) == 5


@only["jax"]
def test_bad_functions_of_jax():
    with pytest.raises(ValueError, match="call_fn takes inputs.*weights"):
        layers.JaxLayer(lambda weights, inputs: inputs, params={})
    with pytest.raises(ValueError, match="init_fn"):
        layers.JaxLayer(dense)
    with pytest.raises(TypeError, match="flax.linen.Module, got int"):
        layers.FlaxLayer(3)


@only["jax"]
def test_a_flax_module():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, inputs, training):
            x = nn.tanh(nn.Dense(5)(inputs))
            x = nn.BatchNorm(use_running_average=not training)(x)
            return nn.Dense(1)(nn.Dropout(0.1, deterministic=not training)(x))

        def double(self, inputs):
            return 2 * inputs

    layer = layers.FlaxLayer(Net())
    inputs = khub.Input((4,))
    model = khub.Model(inputs, layer(inputs))
    assert model.output_shape == (None, 1)
    assert [v.trainable for v in layer.weights] == [True] * 6 + [False] * 2
    before = layer.get_weights()
    learns(model)
    assert all((a != b).any() for a, b in zip(before[-2:], layer.get_weights()[-2:]))
    net = Net()
    variables = net.init({"params": __import__("jax").random.key(1)}, X, True)
    given = layers.FlaxLayer(net, variables=variables)
    np.testing.assert_allclose(given(X), net.apply(variables, X, False), rtol=1e-5)
    np.testing.assert_array_equal(layers.FlaxLayer(net, "double", {"params": {}})(X), 2 * X)


# --- TensorFlow ----------------------------------------------------------------------------------
@only["tensorflow"]
def test_a_saved_model(tmp_path):
    tf = pytest.importorskip("tensorflow")

    class Net(tf.Module):
        def __init__(self):
            super().__init__()
            self.w = tf.Variable(X[0][:, None], name="w")
            self.steps = tf.Variable(3, trainable=False, name="steps")

        @tf.function(input_signature=[tf.TensorSpec((None, 4))])
        def serve(self, x):
            return x @ self.w + 0 * tf.cast(self.steps, tf.float32)

        @tf.function(input_signature=[tf.TensorSpec((None, 4))])
        def train(self, x):
            return 2 * (x @ self.w)

    net = Net()
    tf.saved_model.save(net, str(tmp_path), signatures=net.serve)
    layer = layers.TFSMLayer(tmp_path, call_training_endpoint="train")
    np.testing.assert_allclose(layer(X), X @ X[0][:, None], rtol=1e-5)
    np.testing.assert_allclose(layer(X, training=True), 2 * X @ X[0][:, None], rtol=1e-5)
    assert [(v.name, v.trainable) for v in layer.weights] == [("w", True), ("steps", False)]
    signature = layers.TFSMLayer(tmp_path, "serving_default")
    np.testing.assert_allclose(signature(X), X @ X[0][:, None], rtol=1e-5)
    inputs = khub.Input((4,))
    learns(khub.Model(inputs, layer(inputs)))
    with pytest.raises(ValueError, match="no endpoint 'other'; it has .*serve"):
        layers.TFSMLayer(tmp_path, "other")
    with pytest.raises(ValueError, match="not made from a file"):
        layers.TFSMLayer.from_config({})
