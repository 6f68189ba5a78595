"""Decoders of the Llama kind against transformers: random small models, a row for each."""

import numpy as np
import pytest
from parity.decoder_checks import (
    answer_of,
    check_greedy,
    check_logits_and_the_way_back,
    ours,
    theirs,
)

from khub import nlp, ops

LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
LONG = dict(
    rope_type="longrope",
    rope_theta=100.0,
    short_factor=[1.0, 1.1, 1.3, 1.5],
    long_factor=[1.0, 2.0, 4.0, 8.0],
    original_max_position_embeddings=128,
)
YARN = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=64)
MODELS = {  # name -> (kind, arguments of transformers' configuration)
    "llama": ("Llama", {}),
    "llama, biases, odd heads": (
        "Llama",
        dict(attention_bias=True, mlp_bias=True, num_attention_heads=3, num_key_value_heads=1),
    ),
    "llama, tied, gelu": ("Llama", dict(tie_word_embeddings=True, hidden_act="gelu")),
    "llama 3 positions": ("Llama", dict(rope_parameters=LLAMA3)),
    "linear positions": (
        "Llama",
        dict(rope_parameters=dict(rope_type="linear", rope_theta=100.0, factor=2.5)),
    ),
    "yarn positions": ("Qwen3", dict(rope_parameters=YARN, head_dim=10)),
    "mistral": ("Mistral", dict(sliding_window=16, head_dim=10)),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2, windows from layer 1": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=9, max_window_layers=1),
    ),
    "qwen3": ("Qwen3", dict(head_dim=10, attention_bias=True)),
    "gemma": ("Gemma", dict(head_dim=12)),
    "gemma2": ("Gemma2", dict(head_dim=12, sliding_window=16, query_pre_attn_scalar=10)),
    "gemma3": (
        "Gemma3",
        dict(
            head_dim=12,
            sliding_window=16,
            query_pre_attn_scalar=10,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "phi3": ("Phi3", {}),
    "phi3, a part turns": ("Phi3", dict(partial_rotary_factor=0.5)),
    "phi3, long": (
        "Phi3",
        dict(rope_parameters=LONG, original_max_position_embeddings=128),
    ),
    "stablelm": ("StableLm", dict(use_qkv_bias=True, partial_rotary_factor=0.5)),
    "dynamic positions": (
        "Llama",
        dict(
            rope_parameters=dict(rope_type="dynamic", rope_theta=100.0, factor=2.0),
            max_position_embeddings=64,
        ),
    ),
}
GREEDY = [name for name in MODELS if "," not in name and "positions" not in name] + ["phi3, long"]


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_the_way_back(name, tmp_path):
    lengths = (1, 7, 130) if name in ("llama", "gemma3") else (130,)
    check_logits_and_the_way_back(tmp_path, *MODELS[name], lengths)


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_generation(name, tmp_path):
    check_greedy(tmp_path, *MODELS[name])


def test_older_configs():
    """Those of the Hub: no layer_types, positions in names of their own, tied without saying so."""
    sizes = dict(vocab_size=71, hidden_size=24, num_hidden_layers=12, intermediate_size=40)
    config = dict(sizes, num_attention_heads=2, sliding_window=16, rope_theta=500)
    found = nlp.Gemma2Backbone.config_from_reference(config)
    assert found["local_layers"] == (0, 2, 4, 6, 8, 10) and found["tie_embeddings"]
    found = nlp.Gemma3Backbone.config_from_reference({**config, "rope_local_base_freq": 100})
    assert found["local_layers"] == (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)
    assert (found["rope_max_wavelength"], found["rope_local_wavelength"]) == (500, 100)
    config["max_window_layers"] = 10
    assert nlp.Qwen2Backbone.config_from_reference(config)["sliding_window"] is None
    config["use_sliding_window"] = True
    assert nlp.Qwen2Backbone.config_from_reference(config)["local_layers"] == (10, 11)


def test_an_activation_that_khub_has_not(tmp_path):
    theirs("Llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"silu"', '"laplace"'))
    with pytest.raises(ValueError, match="activation must be one of .*, got 'laplace'"):
        nlp.CausalLM.from_preset(str(tmp_path), preprocessor=None)


def test_repetition_penalty(tmp_path):
    reference = theirs("Qwen2")
    model, prompt = ours(tmp_path, reference), [3, 5, 7, 5]
    found = model.generate([prompt], 44, repetition_penalty=1.3)[0]
    assert found == answer_of(reference, prompt, 44, repetition_penalty=1.3)
    assert found != model.generate([prompt], 44)[0]


def test_ids_come_as_they_are_made(tmp_path):
    model, prompts = ours(tmp_path, theirs("Llama")), [[5, 6, 7], [8, 9]]
    pieces = list(model.stream(prompts, 12))
    assert [sum(rows, []) for rows in zip(*pieces)] == model.generate(prompts, 12)
    assert len(pieces) > 5


def test_a_prompt_in_parts_and_a_window(tmp_path, monkeypatch):
    """Prefill in chunks of 8 positions gives what one of all does."""
    from khub.nlp import engine

    model = ours(tmp_path, theirs("Gemma3", **MODELS["gemma3"][1]))
    prompt = [np.random.default_rng(1).integers(1, 71, 29).tolist()]
    expected = model.generate(prompt, max_length=40)
    monkeypatch.setattr(engine, "PREFILL", 8)
    model.__dict__.pop("_engines")
    assert model.generate(prompt, max_length=40) == expected


def test_stop_tokens_and_samplers(tmp_path):
    model = ours(tmp_path, theirs("Llama"))
    prompts = [[5, 6, 7], [8, 9], [10, 3, 4, 2]]
    answers = model.generate(prompts, max_length=30)
    stop = answers[0][3 + 4]  # the fifth new token of the first row
    first = answers[0].index(stop, 3)
    stopped = model.generate(prompts, max_length=30, stop=[stop])
    assert stopped[0] == answers[0][: first + 1]
    seeds, sampler = [11, 12, 13], nlp.samplers.RandomSampler(0.7, top_k=40, top_p=0.9)
    together = model.generate(prompts, 20, sampler=sampler, seed=seeds)
    for prompt, one, row in zip(prompts, seeds, together):
        assert model.generate([prompt], 20, sampler=sampler, seed=[one]) == [row]
        assert len(row) == 20
    assert model.generate(prompts, 20, sampler=sampler, seed=[1, 2, 3]) != together


def test_random_tokens_have_their_probabilities():
    scores = np.log(np.array([[0.1, 0.2, 0.3, 0.4]], "float32"))
    sampler = nlp.samplers.RandomSampler()
    noise = (np.arange(1000, dtype="float32")[None] + 0.5) / 1000
    drawn = [
        int(ops.convert_to_numpy(sampler(ops.convert_to_tensor(scores), noise, i))[0])
        for i in range(0, 1000, 10)
    ]
    assert np.bincount(drawn, minlength=4).tolist() == [10, 20, 30, 40]
    best = nlp.samplers.RandomSampler(top_p=0.65)
    drawn = [
        int(ops.convert_to_numpy(best(ops.convert_to_tensor(scores), noise, i))[0])
        for i in range(0, 1000, 10)
    ]
    assert set(drawn) == {2, 3}


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([], {}, "at least one token"),
        ([[]], {}, "at least one token"),
        ([[1] * 300], {}, "300 tokens"),
        ([[1, 2]], dict(max_length=999), "at most 256"),
        ([[1, 2]], dict(sampler="topk"), "sampler must be one of"),
        ([[1, 2]], dict(sampler="top_k", seed=[1, 2]), "2 seeds for 1 prompts"),
    ],
)
def test_bad_prompts(prompts, options, words):
    sizes = dict(vocabulary_size=9, num_layers=1, num_query_heads=2, hidden_dim=8)
    backbone = nlp.LlamaBackbone(**sizes, intermediate_dim=8, max_sequence_length=256)
    with pytest.raises(ValueError, match=words):
        nlp.LlamaCausalLM(backbone).generate(prompts, **options)
