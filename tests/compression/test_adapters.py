"""LoRA and weights of few bits: what learns, what stays, how near the answers are."""

import numpy as np
import pytest

import khub
from khub import layers, models, nlp

needs_gradients = pytest.mark.skipif(khub.backend.name == "numpy", reason="no gradients on NumPy")
X = np.random.default_rng(0).standard_normal((64, 12)).astype("float32")


def network(units=(40, 3)):
    khub.utils.set_random_seed(1)
    made = [layers.Dense(units[0], activation="relu"), layers.Dense(units[1])]
    model = models.Sequential([layers.Input((12,)), *made])
    model.compile(optimizer=khub.optimizers.Adam(0.05), loss="mse")
    return model


def values(model):
    return {path: v.numpy() for path, v in model.named_variables().items()}


@needs_gradients
def test_lora_learns_and_merges():
    model = network()
    expected, before = model.predict(X, verbose=0), values(model)
    model.enable_lora(2, alpha=4)
    np.testing.assert_array_equal(model.predict(X, verbose=0), expected)
    shapes = sorted(v.shape for v in model.trainable_variables)
    assert shapes == [(2, 3), (2, 40), (12, 2), (40, 2)]
    losses = model.fit(X, X[:, :3], epochs=15, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    after = values(model)
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value)
    learned = model.predict(X, verbose=0)
    assert np.abs(learned - expected).max() > 0.1
    model.merge_lora()
    np.testing.assert_allclose(model.predict(X, verbose=0), learned, atol=1e-5)
    assert values(model).keys() == before.keys() and len(model.trainable_variables) == 4
    assert all(type(layer) is layers.Dense for layer in model.layers if hasattr(layer, "kernel"))


def test_lora_of_chosen_layers_and_errors():
    model = network()
    with pytest.raises(ValueError, match="enable_lora"):
        model.merge_lora()
    with pytest.raises(ValueError, match="'query' is found in no path,.* layers.1"):
        model.enable_lora(4, targets="query")
    with pytest.raises(ValueError, match="positive integer, got 0"):
        model.enable_lora(0)
    model.enable_lora(4, targets="1$")
    assert [v.shape for v in model.trainable_variables] == [(40, 4), (4, 3)]
    with pytest.raises(ValueError, match="already"):
        model.enable_lora(4)


@needs_gradients
def test_a_decoder_learns_by_lora_and_is_saved_merged(tmp_path):
    texts = ["The cat reads a book.", "The bird sings at night."] * 4
    khub.utils.set_random_seed(0)
    preprocessor = nlp.CausalLMPreprocessor.from_preset(
        "stories_260k_en", sequence_length=16, add_end_token=False
    )
    model = nlp.CausalLM.from_preset("stories_260k_en", preprocessor=preprocessor)
    before = model.generate("The cat", 16)
    model.enable_lora(8)
    assert model.generate("The cat", 16) == before
    model.compile(optimizer=khub.optimizers.Adam(1e-2))
    losses = model.fit(x=texts, batch_size=4, epochs=16, verbose=0).history["loss"]
    assert losses[-1] < 0.2 * losses[0]
    assert model.generate("The cat", 16).startswith(texts[0])
    with pytest.raises(ValueError, match=r"merge_lora\(\)"):
        model.save_to_preset(tmp_path / "preset")
    assert not (tmp_path / "preset").exists()
    model.merge_lora()
    assert model.generate("The cat", 16).startswith(texts[0])
    model.save_to_preset(tmp_path / "preset")
    again = nlp.CausalLM.from_preset(str(tmp_path / "preset"))
    assert again.generate(["The cat"], 16)[0].startswith(texts[0])


@pytest.mark.parametrize(("mode", "near"), [("int8", 0.02), ("int4", 0.3), ("float8", 0.1)])
def test_kernels_of_few_bits(mode, near):
    model = network((48, 6))
    expected = model.predict(X, verbose=0)
    model.quantize(mode)
    found = model.predict(X, verbose=0)
    assert 0 < np.abs(found - expected).max() < near * np.abs(expected).max()
    kernel = model.layers[-1].kernel.numpy()
    assert kernel.shape == (24 if mode == "int4" else 48, 6) and kernel.dtype.itemsize == 1
    assert [v.name for v in model.trainable_variables] == ["bias", "bias"]  # as in Keras


def test_a_decoder_is_loaded_in_few_bits(tmp_path):
    float_model = nlp.CausalLM.from_preset("stories_260k_en")
    start = float_model.generate("Once upon a time", 24)
    for mode, share in (("int8", 0.45), ("int4", 0.35)):  # the embeddings stay
        model = nlp.CausalLM.from_preset("stories_260k_en", quantize=mode)
        sizes = [sum(v.numpy().nbytes for v in m.variables) for m in (model, float_model)]
        assert sizes[0] < share * sizes[1]
        answer = model.generate("Once upon a time", 24)
        assert answer.startswith(start[:30] if mode == "int8" else "Once upon a time")
        with pytest.raises(ValueError, match="before it is quantized"):
            model.save_to_preset(tmp_path / mode)
    with pytest.raises(ValueError, match="int8, int4, float8; got 'int3'"):
        nlp.CausalLM.from_preset("stories_260k_en", quantize="int3")


def test_lora_on_one_layer_as_in_keras():
    x = layers.Input((7,), dtype="int32")
    y = layers.Embedding(9, 6)(x)
    y = layers.EinsumDense("abc,cde->abde", (None, 2, 4), bias_axes="de", activation="tanh")(y)
    model = models.Model(x, layers.Dense(3, activation="relu")(y))
    ids = np.arange(14).reshape(2, 7) % 9
    before = model.predict(ids, verbose=0)
    shapes = [[(9, 2), (2, 6)], [(6, 2, 2), (2, 4)], [(4, 2), (2, 3)]]
    for layer, expected in zip(model.layers[1:], shapes, strict=True):
        assert not layer.lora_enabled and layer.lora_rank is None
        layer.enable_lora(2, lora_alpha=3)
        assert layer.lora_enabled and (layer.lora_rank, layer.lora_alpha) == (2, 3)
        made = layer.matrices()
        assert [v.shape for v in made] == expected and all(v.trainable for v in made)
        assert made[0].name == f"lora_{layer.weights[0].name}_a" and not layer.weights[0].trainable
        made[1].assign(np.random.default_rng(0).standard_normal(made[1].shape))
    model.forget_functions()
    learned = model.predict(ids, verbose=0)
    assert np.abs(learned - before).max() > 0.01
    with pytest.raises(ValueError, match="LoRA already"):
        model.layers[-1].enable_lora(2)
    model.merge_lora()
    np.testing.assert_allclose(model.predict(ids, verbose=0), learned, atol=1e-5)
    with pytest.raises(ValueError, match="call of its own"):
        layers.ReversibleEmbedding(9, 6).enable_lora(2)
