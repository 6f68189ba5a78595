"""T5 and BART against transformers: random small models, a row for each."""

import numpy as np
import pytest
import torch
import transformers
from parity.image_models import call

import khub
from khub import nlp

SIZES = dict(vocab_size=71, d_model=32, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
T5 = dict(SIZES, d_ff=40, d_kv=8, num_layers=2, num_heads=4, initializer_factor=1.2)
BART = dict(
    vocab_size=71,
    d_model=32,
    encoder_layers=2,
    decoder_layers=2,
    encoder_ffn_dim=40,
    decoder_ffn_dim=48,
    encoder_attention_heads=4,
    decoder_attention_heads=2,
    max_position_embeddings=132,
    init_std=0.3,
)
BASES = {"T5": T5, "MT5": T5, "UMT5": T5, "Bart": BART, "MBart": BART}
MODELS = {  # name -> (kind, arguments)
    "t5": ("T5", {}),
    "t5, odd heads": ("T5", dict(d_kv=5, num_heads=3, num_decoder_layers=3)),
    "t5 1.1": ("T5", dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)),
    "t5, silu, few buckets": (
        "T5",
        dict(
            feed_forward_proj="gated-silu",
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
        ),
    ),
    "mt5": ("MT5", dict(feed_forward_proj="gated-gelu")),
    "umt5": ("UMT5", dict(feed_forward_proj="gated-gelu")),
    "bart": ("Bart", {}),
    "bart, scaled, relu": (
        "Bart",
        dict(scale_embedding=True, activation_function="relu", decoder_layers=1, init_std=0.1),
    ),
    "mbart": ("MBart", dict(decoder_start_token_id=2)),
}
UNTIED = ("t5 1.1", "mt5", "umt5")
ROWS = list(MODELS) if khub.backend.name != "numpy" else ["t5 1.1", "bart"]
GREEDY = [name for name in ("t5", "t5 1.1", "umt5", "bart", "mbart") if name in ROWS]
LENGTHS = ((1, 7), (7, 130), (130, 1))  # of source and target


def theirs(name):
    kind, options = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**BASES[kind], **options})
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    if name in UNTIED:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(71, 32) / 4)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias[:] = torch.randn(71)
    return model


def ours(name, folder, reference):
    reference.save_pretrained(folder)
    return nlp.Seq2SeqLM.from_preset(str(folder), preprocessor=None)


def batch(source, target):
    random = np.random.default_rng(source)

    def row(time):
        ids = random.integers(2, 71, (2, time)).astype("int32")
        mask = np.ones((2, time), bool)
        mask[1, time // 2 + 1 :] = False
        return ids, mask

    names = "encoder_token_ids", "encoder_padding_mask", "decoder_token_ids", "decoder_padding_mask"
    return dict(zip(names, (*row(source), *row(target))))


def reference_outputs(model, x):
    names = "input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"
    given = {name: torch.tensor(value).long() for name, value in zip(names, x.values())}
    with torch.no_grad():
        found = model(**given, output_hidden_states=True)
    hidden = found.encoder_last_hidden_state, found.decoder_hidden_states[-1], found.logits
    return [part.numpy() for part in hidden]


@pytest.mark.parametrize("name", ROWS)
def test_states_logits_and_the_way_back(name, tmp_path):
    reference = theirs(name)
    model = ours(name, tmp_path / "theirs", reference)
    every = name in ("t5", "bart") and khub.backend.name != "jax"  # which compiles each
    for lengths in LENGTHS if every else LENGTHS[1:2]:
        x = batch(*lengths)
        sides = [x[f"{side}_padding_mask"] for side in ("encoder", "decoder")]
        states, found = call(model.backbone, x), call(model, x)
        got = states["encoder_sequence_output"], states["decoder_sequence_output"], found
        for mask, mine, wanted in zip([*sides, sides[1]], got, reference_outputs(reference, x)):
            np.testing.assert_allclose(mine[mask], wanted[mask], atol=1e-4)
    model.save_to_preset(tmp_path / "ours")
    again = type(reference).from_pretrained(tmp_path / "ours").eval()
    for mine, wanted in zip(reference_outputs(again, x), reference_outputs(reference, x)):
        np.testing.assert_array_equal(mine, wanted)


def answers(reference, prompts, count, **options):
    rows = []
    for prompt in prompts:
        with torch.no_grad():
            given = torch.tensor([prompt])
            mask = torch.ones_like(given)
            rows.append(
                reference.generate(
                    given, attention_mask=mask, max_new_tokens=count, do_sample=False, **options
                )
            )
    return rows


PROMPTS = [np.random.default_rng(n).integers(2, 71, n).tolist() for n in (9, 4)]


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_generation(name, tmp_path):
    reference = theirs(name)
    model = ours(name, tmp_path, reference)
    model.rules = None
    found = model.generate(PROMPTS, max_length=65)
    wanted = answers(reference, PROMPTS, 64, eos_token_id=None, forced_eos_token_id=None)
    assert found == [row[0, 1:].tolist() for row in wanted]


RULES = {"forced_bos_token_id": 5, "no_repeat_ngram_size": 2, "min_length": 12}


@pytest.mark.parametrize("name", [name for name in ("t5", "bart") if name in ROWS])
def test_beams_and_rules(name, tmp_path):
    """T5 without rules; BART forces its first and last tokens and repeats no pair of them."""
    reference = theirs(name)
    reference.generation_config.update(**(RULES if name == "bart" else {}))
    model = ours(name, tmp_path, reference)
    end = reference.config.eos_token_id
    sampler = nlp.samplers.Beam(num_beams=3, length_penalty=0.7)
    found, scores = model.generate(PROMPTS, 20, sampler=sampler, stop=[end], return_scores=True)
    options = dict(num_beams=3, length_penalty=0.7, return_dict_in_generate=True)
    wanted = answers(reference, PROMPTS, 19, output_scores=True, **options)
    for row, score, expected in zip(found, scores, wanted):
        assert row == expected.sequences[0, 1 : len(row) + 1].tolist()
        np.testing.assert_allclose(score, expected.sequences_scores[0].item(), atol=1e-4)
    if name == "bart":
        assert model.rules.no_repeat == 2 and all(row[0] == 5 for row in found)
        found = model.generate(PROMPTS, 20, stop=[end])
        for row, expected in zip(found, answers(reference, PROMPTS, 19)):
            assert row == expected[0, 1 : len(row) + 1].tolist()
        model.save_to_preset(tmp_path / "ours")
        again = nlp.Seq2SeqLM.from_preset(str(tmp_path / "ours"), preprocessor=None)
        assert again.rules == model.rules
