"""Decoders from before Llama against transformers."""

import pytest
from parity.decoder_checks import check_greedy, check_logits_and_the_way_back

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
