"""Decoders of the Llama kind against transformers: random small models, a row for each."""

import numpy as np
import pytest
import torch
import transformers
from parity.image_models import call

from khub import nlp, ops

BASE = dict(
    vocab_size=71,
    hidden_size=48,
    intermediate_size=88,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.2,
    pad_token_id=0,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=64)
MODELS = {  # name -> (kind, transformers' class, arguments)
    "llama": ("Llama", "Llama", {}),
    "llama, biases, odd heads": (
        "Llama",
        "Llama",
        dict(attention_bias=True, mlp_bias=True, num_attention_heads=3, num_key_value_heads=1),
    ),
    "llama, tied, gelu": ("Llama", "Llama", dict(tie_word_embeddings=True, hidden_act="gelu")),
    "llama 3 positions": ("Llama", "Llama", dict(rope_parameters=LLAMA3)),
    "linear positions": (
        "Llama",
        "Llama",
        dict(rope_parameters=dict(rope_type="linear", rope_theta=100.0, factor=2.5)),
    ),
    "yarn positions": ("Qwen3", "Qwen3", dict(rope_parameters=YARN, head_dim=10)),
    "mistral": ("Mistral", "Mistral", dict(sliding_window=16, head_dim=10)),
    "qwen2": ("Qwen2", "Qwen2", dict(tie_word_embeddings=True)),
    "qwen2, windows from layer 1": (
        "Qwen2",
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=9, max_window_layers=1),
    ),
    "qwen3": ("Qwen3", "Qwen3", dict(head_dim=10, attention_bias=True)),
    "gemma": ("Gemma", "Gemma", dict(head_dim=12)),
    "gemma2": ("Gemma2", "Gemma2", dict(head_dim=12, sliding_window=16, query_pre_attn_scalar=10)),
    "gemma3": (
        "Gemma3",
        "Gemma3",
        dict(
            head_dim=12,
            sliding_window=16,
            query_pre_attn_scalar=10,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "phi3": ("Phi3", "Phi3", {}),
    "phi3, a part turns": ("Phi3", "Phi3", dict(partial_rotary_factor=0.5)),
}
KIND_ROWS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3")


def theirs(name):
    _, kind, options = MODELS[name]
    config = getattr(transformers, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")
    torch.manual_seed(0)
    options = {**BASE, **options}
    return getattr(transformers, f"{kind}ForCausalLM")(config(**options)).eval()


def ours(name, folder, reference):
    reference.save_pretrained(folder)
    task = getattr(nlp, f"{MODELS[name][0]}CausalLM")
    return task.from_preset(str(folder), preprocessor=None)


def logits(model, token_ids, mask=None):
    mask = None if mask is None else torch.tensor(mask).long()
    with torch.no_grad():
        return model(torch.tensor(token_ids).long(), attention_mask=mask).logits.numpy()


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_the_way_back(name, tmp_path):
    reference = theirs(name)
    model = ours(name, tmp_path / "theirs", reference)
    random = np.random.default_rng(0)
    for time in (1, 7, 130) if name in ("llama", "gemma3") else (130,):
        token_ids = random.integers(1, 71, (2, time)).astype("int32")
        mask = np.ones((2, time), bool)
        mask[1, time // 2 + 1 :] = False  # padding behind
        found = call(model, {"token_ids": token_ids, "padding_mask": mask})
        expected = logits(reference, token_ids, mask)
        np.testing.assert_allclose(found[mask], expected[mask], atol=1e-4)
    model.save_to_preset(tmp_path / "ours")
    again = type(reference).from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_array_equal(logits(again, token_ids), logits(reference, token_ids))


@pytest.mark.parametrize("name", KIND_ROWS)
def test_greedy_generation(name, tmp_path):
    reference = theirs(name)
    model = ours(name, tmp_path, reference)
    prompts = [np.random.default_rng(n).integers(1, 71, n).tolist() for n in (9, 4)]
    found = model.generate(prompts, max_length=9 + 64)
    for prompt, answer in zip(prompts, found):
        assert answer == greedy(reference, prompt, 73 - len(prompt))


def greedy(reference, prompt, count, **options):
    with torch.no_grad():
        return reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            **options,
        )[0].tolist()


def test_repetition_penalty(tmp_path):
    reference = theirs("qwen2")
    model, prompt = ours("qwen2", tmp_path, reference), [3, 5, 7, 5]
    found = model.generate([prompt], 44, repetition_penalty=1.3)[0]
    assert found == greedy(reference, prompt, 40, repetition_penalty=1.3)
    assert found != model.generate([prompt], 44)[0]


def test_ids_come_as_they_are_made(tmp_path):
    model, prompts = ours("llama", tmp_path, theirs("llama")), [[5, 6, 7], [8, 9]]
    pieces = list(model.stream(prompts, 12))
    assert [sum(rows, []) for rows in zip(*pieces)] == model.generate(prompts, 12)
    assert len(pieces) > 5


def test_a_prompt_in_parts_and_a_window(tmp_path, monkeypatch):
    """Prefill in chunks of 8 positions gives what one of all does."""
    from khub.nlp import engine

    model = ours("gemma3", tmp_path, theirs("gemma3"))
    prompt = [np.random.default_rng(1).integers(1, 71, 29).tolist()]
    expected = model.generate(prompt, max_length=40)
    monkeypatch.setattr(engine, "PREFILL", 8)
    model.__dict__.pop("_engines")
    assert model.generate(prompt, max_length=40) == expected


def test_stop_tokens_and_samplers(tmp_path):
    model = ours("llama", tmp_path, theirs("llama"))
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
