"""Mixtures of experts against transformers."""

import pytest
from parity.decoder_checks import check_greedy, check_logits_and_the_way_back

MOE = dict(moe_intermediate_size=20, num_experts_per_tok=3)
MODELS = {  # name -> (kind, arguments of transformers' configuration)
    "mixtral": ("Mixtral", dict(num_local_experts=5, sliding_window=16)),
    "qwen2 moe": (
        "Qwen2Moe",
        dict(MOE, num_experts=7, shared_expert_intermediate_size=24, mlp_only_layers=[1]),
    ),
    "qwen2 moe, every second": (
        "Qwen2Moe",
        dict(
            MOE,
            num_experts=4,
            shared_expert_intermediate_size=24,
            decoder_sparse_step=2,
            norm_topk_prob=True,
            qkv_bias=False,
        ),
    ),
    "qwen3 moe": ("Qwen3Moe", dict(MOE, num_experts=9, norm_topk_prob=True)),
}
GREEDY = ("mixtral", "qwen2 moe", "qwen3 moe")


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_the_way_back(name, tmp_path):
    check_logits_and_the_way_back(tmp_path, *MODELS[name])


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_generation(name, tmp_path):
    check_greedy(tmp_path, *MODELS[name])
