"""Decoders from before Llama as rows of its table: GPT-2, OPT, GPT-NeoX.

Layer normalization, biases, feed-forward layers without a gate; learned positions, but in GPT-NeoX.
No dropout is applied while they learn.
"""

from ..presets.weights import LAYOUTS
from .byte_pair import GPT2Tokenizer
from .decoder import Kind, families

OLD = dict(norm_kind="layer", feed_forward_kind="plain", mlp_bias=True)
LEARNED = dict(OLD, position_kind="learned")
NONE = {"num_key_value_heads": None, "head_dim": None}
CONV1D = {**LAYOUTS, "Dense": {**LAYOUTS["Dense"], "kernel": ("weight", None)}}

GPT2_NAMES = {
    **NONE,
    "num_layers": "n_layer",
    "num_query_heads": "n_head",
    "hidden_dim": "n_embd",
    "intermediate_dim": "n_inner",
    "max_sequence_length": "n_positions",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "activation": "activation_function",
}
GPT2_ONLY = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
OPT_NAMES = {
    **NONE,
    "intermediate_dim": "ffn_dim",
    "layer_norm_epsilon": None,
    "activation": "activation_function",
    "attention_bias": "enable_bias",
}
NEOX_NAMES = {
    **NONE,
    "layer_norm_epsilon": "layer_norm_eps",
    "attention_bias": "attention_bias",
    "parallel": "use_parallel_residual",
}
NEOX_DEFAULTS = {
    "attention_bias": True,
    "use_parallel_residual": True,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "rotary_pct": 0.25,
}

GPT2 = [
    ("wte", "embeddings"),
    ("wpe", "position_embeddings"),
    ("h.{i}.ln_1", "blocks.{i}.attention_norm"),
    ("h.{i}.attn.c_attn", "blocks.{i}.attention.qkv"),
    ("h.{i}.attn.c_proj", "blocks.{i}.attention.output_projection"),
    ("h.{i}.ln_2", "blocks.{i}.norm"),
    ("h.{i}.mlp.c_fc", "blocks.{i}.feed_forward.up"),
    ("h.{i}.mlp.c_proj", "blocks.{i}.feed_forward.down"),
    ("ln_f", "norm"),
]
_OPT = "decoder.layers.{i}"
OPT = [
    ("decoder.embed_tokens", "embeddings"),
    ("decoder.embed_positions", "position_embeddings"),
    ("decoder.project_in", "project_in"),
    ("decoder.project_out", "project_out"),
    (f"{_OPT}.self_attn_layer_norm", "blocks.{i}.attention_norm"),
    (f"{_OPT}.self_attn_layer_norm", "blocks.{i}.last_attention_norm"),
    (tuple(f"{_OPT}.self_attn.{part}_proj" for part in "qkv"), "blocks.{i}.attention.qkv"),
    (f"{_OPT}.self_attn.out_proj", "blocks.{i}.attention.output_projection"),
    (f"{_OPT}.final_layer_norm", "blocks.{i}.norm"),
    (f"{_OPT}.final_layer_norm", "blocks.{i}.last_norm"),
    (f"{_OPT}.fc1", "blocks.{i}.feed_forward.up"),
    (f"{_OPT}.fc2", "blocks.{i}.feed_forward.down"),
    ("decoder.final_layer_norm", "norm"),
]
NEOX = [
    ("embed_in", "embeddings"),
    ("layers.{i}.input_layernorm", "blocks.{i}.attention_norm"),
    ("layers.{i}.attention.query_key_value", "blocks.{i}.attention.qkv"),
    ("layers.{i}.attention.dense", "blocks.{i}.attention.output_projection"),
    ("layers.{i}.post_attention_layernorm", "blocks.{i}.norm"),
    ("layers.{i}.mlp.dense_h_to_4h", "blocks.{i}.feed_forward.up"),
    ("layers.{i}.mlp.dense_4h_to_h", "blocks.{i}.feed_forward.down"),
    ("final_layer_norm", "norm"),
]


def _gpt2(config):
    return {"intermediate_dim": config.get("n_inner", 4 * config.get("n_embd", 0))}


def _opt(config):
    before, width = config.get("do_layer_norm_before", True), config.get("word_embed_proj_dim")
    return {
        "norm_places": "before" if before else "last",
        "final_norm": before and not config.get("_remove_final_layer_norm", False),
        "mlp_bias": config.get("enable_bias", True),
        "embedding_dim": None if width == config.get("hidden_size") else width,
    }


def _write_opt(backbone):
    before = backbone.norm_places == "before"
    return {
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and not backbone.final_norm,
        "word_embed_proj_dim": backbone.embedding_dim or backbone.hidden_dim,
    }


def _write_neox(backbone):  # transformers before 5
    return {"rotary_pct": backbone.rope_share, "rotary_emb_base": backbone.rope_max_wavelength}


def _masks(at):  # that old files keep
    return f"{at}.bias", f"{at}.masked_bias"


KINDS = [
    Kind(
        "GPT2",
        "gpt2",
        "Radford et al. 2019",
        GPT2_NAMES,
        dict(LEARNED, attention_bias=True),
        GPT2,
        _gpt2,
        defaults={"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5},
        only=GPT2_ONLY,
        task="GPT2LMHeadModel",
        tokenizer=GPT2Tokenizer,
        members=dict(reference_prefix="transformer", ignored=_masks("h.*.attn"), layouts=CONV1D),
    ),
    Kind(
        "OPT",
        "opt",
        "arXiv:2205.01068",
        OPT_NAMES,
        dict(LEARNED, layer_norm_epsilon=1e-5, position_offset=2),
        OPT,
        _opt,
        _write_opt,
        {"tie_word_embeddings": True, "activation_function": "relu", "enable_bias": True},
        {"layer_norm_elementwise_affine": True},
    ),
    Kind(
        "GPTNeoX",
        "gpt_neox",
        "arXiv:2204.06745",
        NEOX_NAMES,
        dict(OLD, qkv_by_head=True),
        NEOX,
        write=_write_neox,
        defaults=NEOX_DEFAULTS,
        head="embed_out",
        members=dict(
            reference_prefix="gpt_neox",
            ignored=(*_masks("layers.*.attention"), "layers.*.attention.rotary_emb.inv_freq"),
        ),
    ),
]
_made = families(KINDS, __name__)
globals().update(_made)
__all__ = list(_made)
