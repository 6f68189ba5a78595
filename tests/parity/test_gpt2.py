"""Decoders from before Llama against transformers."""

import numpy as np
import pytest
import torch
from parity.decoder_checks import (
    check_greedy,
    check_logits_and_the_way_back,
    logits,
    ours,
    theirs,
)
from parity.image_models import call

from khub import nlp

MODELS = {  # name -> (kind, arguments of transformers' configuration)
    "gpt2": ("GPT2", dict(n_inner=None)),
    "gpt2, untied, relu": (
        "GPT2",
        dict(n_inner=52, tie_word_embeddings=False, activation_function="relu"),
    ),
    "opt": ("OPT", dict(ffn_dim=88, init_std=0.2)),
    "opt, norms last, projections": (
        "OPT",
        dict(ffn_dim=88, init_std=0.2, do_layer_norm_before=False, word_embed_proj_dim=20),
    ),
    "opt, no biases": ("OPT", dict(ffn_dim=88, init_std=0.2, enable_bias=False)),
    "gpt neox": ("GPTNeoX", dict(num_attention_heads=3)),
    "gpt neox, in turn": (
        "GPTNeoX",
        dict(use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True),
    ),
}
GREEDY = ("gpt2", "opt", "opt, norms last, projections", "gpt neox")


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_the_way_back(name, tmp_path):
    check_logits_and_the_way_back(tmp_path, *MODELS[name])


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_generation(name, tmp_path):
    check_greedy(tmp_path, *MODELS[name])


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt neox"])
def test_padding_in_front(name, tmp_path):
    """Positions count the real tokens, as transformers' generate() has them."""
    kind, options = MODELS[name]
    reference = theirs(kind, **options)
    model = ours(tmp_path, reference)
    token_ids = np.random.default_rng(0).integers(1, 71, (2, 7)).astype("int32")
    mask = np.arange(7) >= np.array([[0], [3]])
    positions = torch.tensor(np.maximum(mask.cumsum(1) - 1, 0))
    found = call(model, {"token_ids": token_ids, "padding_mask": mask})
    expected = logits(reference, token_ids, mask, position_ids=positions)
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-4)


def test_a_config_that_says_little():
    """openai-community/gpt2's names neither the inner width nor that the embeddings are tied."""
    config = dict(vocab_size=71, n_embd=24, n_layer=1, n_head=2, n_positions=64, model_type="gpt2")
    found = nlp.GPT2Backbone.config_from_reference(config)
    assert found["intermediate_dim"] == 96 and found["tie_embeddings"]
    neox = dict(vocab_size=71, hidden_size=24, num_hidden_layers=1, num_attention_heads=2)
    config = {**neox, "intermediate_size": 96, "rotary_pct": 0.5, "rotary_emb_base": 500}
    found = nlp.GPTNeoXBackbone.config_from_reference(config)
    assert (found["rope_share"], found["rope_max_wavelength"]) == (0.5, 500) and found["parallel"]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("GPT2", dict(scale_attn_by_inverse_layer_idx=True)),
        ("OPT", dict(layer_norm_elementwise_affine=False)),
        ("Gemma3", dict(use_bidirectional_attention=True)),
    ],
)
def test_what_khub_has_not_is_refused(kind, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* is not supported; expected"):
        getattr(nlp, f"{kind}Backbone").config_from_reference(options)


def test_more_tokens_than_positions():
    sizes = dict(vocabulary_size=9, num_layers=1, num_query_heads=2, hidden_dim=8)
    model = nlp.GPT2Backbone(
        **sizes, intermediate_dim=8, max_sequence_length=4, position_kind="learned"
    )
    with pytest.raises(ValueError, match="5 tokens; this model has positions for 4"):
        model({"token_ids": np.ones((1, 5), "int32")})
