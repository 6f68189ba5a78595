"""Decoders from before Llama as rows of its table: GPT-2, OPT, GPT-NeoX.

Layer normalization, biases, feed-forward layers without a gate; learned positions, but in GPT-NeoX.
No dropout is applied while they learn.
"""

from ..presets.weights import LAYOUTS
from .byte_pair import GPT2Tokenizer
from .decoder import Kind, families, layers
from .encoder_decoder import BLOCK

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
OPT_DEFAULTS = {"tie_word_embeddings": True, "activation_function": "relu", "enable_bias": True}
NEOX_NAMES = {
    **NONE,
    "layer_norm_epsilon": "layer_norm_eps",
    "attention_bias": "attention_bias",
    "parallel": "use_parallel_residual",
}
NEOX_DEFAULTS = {
    **dict.fromkeys(("attention_bias", "use_parallel_residual"), True),
    **{"layer_norm_eps": 1e-5, "hidden_act": "gelu", "rotary_pct": 0.25},
}

_GPT2_BLOCK = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.output_projection": "attn.c_proj",
    "norm": "ln_2",
    "feed_forward.up": "mlp.c_fc",
    "feed_forward.down": "mlp.c_proj",
}
GPT2 = layers(_GPT2_BLOCK, "h.{i}", embeddings="wte", position_embeddings="wpe", norm="ln_f")
# The norms stand before or behind.
_OPT_BLOCK = BLOCK | {f"last_{name}": BLOCK[name] for name in ("attention_norm", "norm")}
_OPT_MODULES = {
    **{name: f"decoder.{name}" for name in ("project_in", "project_out")},
    "embeddings": "decoder.embed_tokens",
    "position_embeddings": "decoder.embed_positions",
    "norm": "decoder.final_layer_norm",
}
OPT = layers(_OPT_BLOCK, "decoder.layers.{i}", **_OPT_MODULES)
_NEOX_BLOCK = {
    "attention.qkv": "attention.query_key_value",
    "attention.output_projection": "attention.dense",
    "feed_forward.up": "mlp.dense_h_to_4h",
    "feed_forward.down": "mlp.dense_4h_to_h",
}
NEOX = layers(_NEOX_BLOCK, embeddings="embed_in", norm="final_layer_norm")


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


NEOX_IGNORED = (*_masks("layers.*.attention"), "layers.*.attention.rotary_emb.inv_freq")

KINDS = [
    Kind(
        *("GPT2", "gpt2", "Radford et al. 2019"),
        *(GPT2_NAMES, dict(LEARNED, attention_bias=True), GPT2, _gpt2),
        defaults={"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5},
        only=GPT2_ONLY,
        task="GPT2LMHeadModel",
        tokenizer=GPT2Tokenizer,
        members=dict(reference_prefix="transformer", ignored=_masks("h.*.attn"), layouts=CONV1D),
    ),
    Kind(
        *("OPT", "opt", "arXiv:2205.01068"),
        *(OPT_NAMES, dict(LEARNED, layer_norm_epsilon=1e-5, position_offset=2), OPT, _opt),
        write=_write_opt,
        defaults=OPT_DEFAULTS,
        only={"layer_norm_elementwise_affine": True},
    ),
    Kind(
        *("GPTNeoX", "gpt_neox", "arXiv:2204.06745"),
        *(NEOX_NAMES, dict(OLD, qkv_by_head=True), NEOX),
        write=_write_neox,
        defaults=NEOX_DEFAULTS,
        head="embed_out",
        members=dict(reference_prefix="gpt_neox", ignored=NEOX_IGNORED),
    ),
]
_made = families(KINDS, __name__)
globals().update(_made)
__all__ = list(_made)
