"""Fused and compiled recurrent layers equal those that run step by step."""

import itertools
import warnings

import numpy as np
import pytest

import khub
from khub import layers, ops
from khub.backend import name

BATCH, STEPS, WIDTH, UNITS = 3, 6, 4, 5
KEPT = {
    "none": None,
    "all": np.ones((BATCH, STEPS), bool),
    "right": np.arange(STEPS) < np.array([[2], [6], [1]]),
    "left": np.arange(STEPS) >= np.array([[2], [0], [5]]),
    "holes": np.random.RandomState(0).rand(BATCH, STEPS) > 0.4,
    "nothing": np.arange(STEPS) < np.array([[2], [0], [1]]),
}
CASES = {  # what differs from a plain layer -> options
    "plain": {},
    "no bias": dict(use_bias=False),
    "backwards": dict(go_backwards=True),
    "zeros": dict(zero_output_for_mask=True),
    "backward zeros": dict(go_backwards=True, zero_output_for_mask=True),
}


def data(*shape, seed=0):
    return np.random.RandomState(seed).normal(size=shape).astype("float32")


def pair(kind, **options):
    """Return a layer as it is and one that runs step by step, with the same weights."""
    options |= dict(return_sequences=True, return_state=True, recurrent_initializer="glorot_normal")
    fused, plain = (
        getattr(layers, kind)(UNITS, bias_initializer="normal", **options, **extra)
        for extra in ({}, dict(unroll=True))
    )
    for layer in (fused, plain):
        layer.build((BATCH, STEPS, WIDTH))
    plain.set_weights(fused.get_weights())
    return fused, plain


def run(layer, x, mask, states):
    """Return all results, and on backends with gradients those of input, states and weights."""
    weight = data(BATCH, STEPS, UNITS, seed=5)

    def loss(arrays):
        outputs, *last = layer(arrays[0], initial_state=arrays[1:], mask=mask)
        total = ops.sum(ops.multiply(outputs, weight))
        for i, state in enumerate(last):
            total = total + (i + 1.0) * ops.sum(ops.square(state))
        return total

    if name == "numpy":
        return list(layer(x, initial_state=list(states), mask=mask))
    arrays = [ops.convert_to_tensor(a) for a in (x, *states)]

    @ops.jit
    def everything(arrays):
        found = list(layer(arrays[0], initial_state=arrays[1:], mask=mask))
        found += ops.value_and_grad(loss)(arrays)[1]
        return found + ops.value_and_grad(lambda: loss(arrays), layer.trainable_variables)()[1]

    return everything(arrays)


COMBINED = itertools.product(CASES, KEPT)
if name != "torch":  # compiling takes its time, and the way does not depend on the mask
    COMBINED = [("backward zeros", "right"), ("backwards", "holes"), ("no bias", "none")]


@pytest.mark.parametrize("case, kept", COMBINED)
@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU"])
def test_results_and_gradients_equal_those_step_by_step(kind, case, kept):
    fused, plain = pair(kind, **CASES[case])
    x = data(BATCH, STEPS, WIDTH)
    states = [data(BATCH, UNITS, seed=i) for i in range(2 if kind == "LSTM" else 1)]
    for one, other in zip(
        run(fused, x, KEPT[kept], states), run(plain, x, KEPT[kept], states), strict=True
    ):
        one, other = map(ops.convert_to_numpy, (one, other))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["SimpleRNN", "LSTM", "GRU"])
def test_state_is_kept_between_batches(kind):
    fused, plain = (
        getattr(layers, kind)(UNITS, stateful=True, unroll=unroll) for unroll in (False, True)
    )
    x, mask = data(BATCH, STEPS, WIDTH), KEPT["right"]
    fused(x), plain(x)
    plain.set_weights(fused.get_weights())
    fused.reset_state(), plain.reset_state()
    for _ in range(3):
        one, other = (ops.convert_to_numpy(layer(x, mask=mask)) for layer in (fused, plain))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "bfloat16"])
def test_dtypes(dtype):
    layer = layers.LSTM(UNITS, dtype=dtype)
    assert ops.dtype(layer(data(BATCH, STEPS, WIDTH))) == layer.compute_dtype


def test_a_cell_in_rnn_is_fused_as_well():
    layer, plain = layers.RNN(layers.GRUCell(UNITS)), layers.GRU(UNITS, use_cudnn=False)
    x = data(BATCH, STEPS, WIDTH)
    layer(x), plain(x)
    plain.set_weights(layer.get_weights())
    found, expected = (ops.convert_to_numpy(each(x)) for each in (layer, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


SLOW = {  # options that no fused kernel of torch knows -> what the warning names
    "recurrent_dropout": dict(recurrent_dropout=0.5),
    "activation=relu": dict(activation="relu"),
    "reset_after=False": dict(reset_after=False),
    "unroll=True": dict(unroll=True),
}


@pytest.mark.parametrize("why", SLOW)
def test_a_wish_for_the_fused_kernel_that_cannot_be_met_warns_once(why):
    layer = layers.GRU(UNITS, use_cudnn=True, **SLOW[why])
    x = data(BATCH, STEPS, WIDTH)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer(x, training=True), layer(x, training=True)
    texts = [str(w.message) for w in caught if "use_cudnn" in str(w.message)]
    if name == "torch" or why == "unroll=True":
        assert len(texts) == 1 and why in texts[0] and layer.name in texts[0]
    else:  # JAX compiles the steps, whatever they are; the others have no such kernel
        assert len(texts) == (name != "jax")


def test_a_mask_with_holes_warns_on_torch():
    if name != "torch":
        pytest.skip("the other backends run any mask in their fast way")
    layer = layers.LSTM(UNITS, use_cudnn=True)
    with pytest.warns(UserWarning, match="mask hides steps between"):
        layer(data(BATCH, STEPS, WIDTH), mask=KEPT["holes"])


def test_training_a_masked_model_of_sequences_of_any_length():
    model = khub.Sequential(
        [
            layers.Input((None,), dtype="int32"),
            layers.Embedding(7, 4, mask_zero=True),
            layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
            layers.GRU(3),
            layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse")
    x = np.random.RandomState(1).randint(1, 7, (8, 5))
    x[:, 3:] *= np.arange(8)[:, None] % 2
    y = data(8, 1)
    assert model.predict(x, verbose=0).shape == (8, 1)
    if name == "numpy":
        return
    first = model.evaluate(x, y, verbose=0)
    model.fit(x, y, epochs=3, batch_size=3, verbose=0)
    assert model.evaluate(x, y, verbose=0) < first
