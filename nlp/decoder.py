"""Causal decoders of the Llama kind: one network, and a table of what each architecture changes.

RMS normalization before every part, rotary positions, grouped key heads, gated feed-forward layers.
Touvron et al. 2023, arXiv:2302.13971.  What came before Llama is in gpt2.py.
"""

from dataclasses import dataclass, field
from functools import partial

from khub import ops
from khub.fields import Choice, PositiveInt
from khub.layers import Layer

from ..presets import Family, register
from . import transformer
from .cache import KVCache
from .experts import Experts
from .generation import CausalLM
from .tasks import Backbone, kind_class
from .tokenizers import Tokenizer
from .transformer import FeedForward, built, frequencies, renames, rotation, table, visible

CONFIG = {  # khub's name -> the reference's
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_query_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    **transformer.same("num_key_value_heads", "head_dim"),
    "max_sequence_length": "max_position_embeddings",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation": "hidden_act",
    "tie_embeddings": "tie_word_embeddings",
}
NEEDED = list(CONFIG)[:5]


def layers(names, there="layers.{i}", **others):
    """Renames of a block's parts, {khub's: the reference's}, and those of other modules."""
    return {ours: at for at, ours in renames(f"{there}.", "blocks.{i}.", names)} | others


def _experts(inner, gate, up, down):
    """Renames of experts, each with layers of these names."""
    expert = f"{inner}.experts.{{e}}"
    return {
        "feed_forward.router": f"{inner}.gate",
        "feed_forward.experts_gate_up": f"{expert}.{gate} {expert}.{up}",
        "feed_forward.experts_down": f"{expert}.{down}",
    }


_BLOCK = {  # khub's name -> the reference's
    "attention_norm": "input_layernorm",
    "attention.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "attention.output_projection": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "norm": "post_attention_layernorm",
    "feed_forward.gate_up": "mlp.gate_proj mlp.up_proj",
    "feed_forward.down": "mlp.down_proj",
}
WEIGHTS = layers(_BLOCK, embeddings="embed_tokens", norm="norm")
FOUR = layers(  # Gemma 2 and 3 normalize before and after
    {
        "after_attention_norm": "post_attention_layernorm",
        "norm": "pre_feedforward_layernorm",
        "after_norm": "post_feedforward_layernorm",
    }
)
FUSED = layers(  # Phi-3 keeps as one what others keep apart
    {"attention.qkv": "self_attn.qkv_proj", "feed_forward.gate_up": "mlp.gate_up_proj"}
)
MIXTRAL = layers(_experts("block_sparse_moe", "w1", "w3", "w2"))
QWEN3_EXPERTS = layers(_experts("mlp", "gate_proj", "up_proj", "down_proj"))
_SHARED = "mlp.shared_expert"
QWEN2_EXPERTS = QWEN3_EXPERTS | layers(
    {
        "feed_forward.shared_gate": f"{_SHARED}_gate",
        "feed_forward.shared_expert.gate_up": f"{_SHARED}.gate_proj {_SHARED}.up_proj",
        "feed_forward.shared_expert.down": f"{_SHARED}.down_proj",
    }
)


@dataclass(frozen=True)
class Kind:
    """What an architecture has that Llama has not.

    names: khub's name -> its own name in config.json, None: it has none   fixed: arguments that are
    always so   weights: renames in place of Llama's   read: config.json -> more arguments
    write: backbone -> more of config.json   defaults: of config.json, where they are not Llama's
    only: what config.json must say, else it is refused   head: the output layer's name
    task: the reference's class with a head   members: more attributes of the backbone's class
    """

    name: str
    model_type: str
    paper: str
    names: dict = field(default_factory=dict)
    fixed: dict = field(default_factory=dict)
    weights: dict = field(default_factory=dict)
    read: object = None
    write: object = None
    defaults: dict = field(default_factory=dict)
    only: dict = field(default_factory=dict)
    head: str = "lm_head"
    task: str = "{}ForCausalLM"
    tokenizer: type = None
    members: dict = field(default_factory=dict)


def _windows(config, every=None):
    """The layers with a window: those that layer_types says, else all but each of number `every`,
    or none without a window.
    """
    types = config.get("layer_types")
    if config.get("sliding_window") is None or config.get("use_sliding_window") is False:
        return {"sliding_window": None}
    count = config.get("num_hidden_layers", 0)
    if types is None and "max_window_layers" in config:
        types = ["full_attention"] * min(config["max_window_layers"], count)
    every = config.get("sliding_window_pattern", every)  # Gemma 3 on the Hub
    if types is None and every:
        types = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    types = types or []
    local = tuple(i for i in range(count) if i >= len(types) or types[i] == "sliding_attention")
    return {"sliding_window": config["sliding_window"], "local_layers": local}


def _gemma(config):
    return {"activation": config.get("hidden_activation") or config.get("hidden_act", TANH)}


def _gemma2(config, every=2):
    return {
        **_windows(config, every),
        "query_scale": config.get("query_pre_attn_scalar", 256) ** -0.5,
    }


def _switch(backbone):
    return {"use_sliding_window": backbone.sliding_window is not None}


def _qwen_moe(config):
    """Experts in each layer of number `decoder_sparse_step`, but for `mlp_only_layers`."""
    step, plain = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
    count = config.get("num_hidden_layers", 0)
    return {
        **_windows({k: v for k, v in config.items() if k != "max_window_layers"}),
        "num_experts": config.get("num_experts", config.get("num_local_experts")),
        "expert_layers": tuple(i for i in range(count) if (i + 1) % step == 0 and i not in plain),
    }


def _write_qwen_moe(backbone):
    plain = [i for i in range(backbone.num_layers) if i not in backbone.expert_layers]
    return {**_switch(backbone), "decoder_sparse_step": 1, "mlp_only_layers": plain}


def _write_phi3(backbone):
    name = "original_max_position_embeddings"  # transformers prefers it here
    return {name: backbone.rope_scaling[name]} if backbone.rope_scaling else {}


TANH = "gelu_pytorch_tanh"
TIED = {"tie_word_embeddings": True}
BIAS = transformer.same("attention_bias")
NORMED = dict(query_key_norm=True)
GEMMA = dict(norm_offset=1.0, scale_embeddings=True)
AROUND = dict(GEMMA, norm_places="around")
GEMMA2 = dict(read=_gemma2, defaults=TIED)
GEMMA3 = dict(
    read=partial(_gemma2, every=6), defaults=TIED, only={"use_bidirectional_attention": False}
)
SHARED = {"shared_expert_dim": "shared_expert_intermediate_size", "qkv_bias": "qkv_bias"}
GEMMA_NAMES = {
    "activation": "hidden_activation",
    "attention_soft_cap": "attn_logit_softcapping",
    "logit_soft_cap": "final_logit_softcapping",
}
EXPERTS = {"num_experts": "num_local_experts", "experts_per_token": "num_experts_per_tok"}
MOE = {
    **EXPERTS,
    "num_experts": "num_experts",
    "expert_dim": "moe_intermediate_size",
    "normalize_experts": "norm_topk_prob",
}
QWEN = dict(read=_windows, write=_switch, defaults={"use_sliding_window": False})
QWEN_MOE = dict(
    read=_qwen_moe,
    write=_write_qwen_moe,
    defaults={"use_sliding_window": False, "qkv_bias": True, "norm_topk_prob": False},
)
STABLE = dict(
    names={"layer_norm_epsilon": "layer_norm_eps", "qkv_bias": "use_qkv_bias"},
    fixed={"norm_kind": "layer"},
    defaults={"partial_rotary_factor": 0.25, "layer_norm_eps": 1e-5},
    only={"qk_layernorm": False, "use_parallel_residual": False},
)
QWEN2_PAPER, QWEN3_PAPER = "arXiv:2407.10671", "arXiv:2505.09388"
KINDS = [
    Kind("Llama", "llama", "arXiv:2302.13971", transformer.same("attention_bias", "mlp_bias")),
    Kind("Mistral", "mistral", "arXiv:2310.06825", read=_windows),
    Kind("Mixtral", "mixtral", "arXiv:2401.04088", EXPERTS, {}, MIXTRAL, _windows),
    Kind("Qwen2", "qwen2", QWEN2_PAPER, {}, dict(qkv_bias=True), **QWEN),
    Kind("Qwen2Moe", "qwen2_moe", QWEN2_PAPER, MOE | SHARED, {}, QWEN2_EXPERTS, **QWEN_MOE),
    Kind("Qwen3", "qwen3", QWEN3_PAPER, BIAS, NORMED, **QWEN),
    Kind("Qwen3Moe", "qwen3_moe", QWEN3_PAPER, MOE | BIAS, NORMED, QWEN3_EXPERTS, **QWEN_MOE),
    Kind("Gemma", "gemma", "arXiv:2403.08295", {}, GEMMA, read=_gemma, defaults=TIED),
    Kind("Gemma2", "gemma2", "arXiv:2408.00118", GEMMA_NAMES, AROUND, FOUR, **GEMMA2),
    Kind("Gemma3", "gemma3_text", "arXiv:2503.19786", GEMMA_NAMES, AROUND | NORMED, FOUR, **GEMMA3),
    Kind("Phi3", "phi3", "arXiv:2404.14219", {}, {}, FUSED, _windows, _write_phi3),
    Kind("StableLm", "stablelm", "arXiv:2402.17834", **STABLE),
]


def _normed(norm, x):
    return x if norm is None else norm(x)


class DecoderBlock(Layer):
    """x + attention(x), then x + feed_forward(x), or with `parallel` x + the two of the same x.

    norms: {place: (attention's, feed-forward's)}, of what goes into the two ("before"), of what
    comes out ("after"), of the sums ("last")
    call(x, turned, visible, cache, at) -> (y, cache), as `CausalAttention`
    """

    def __init__(self, attention, feed_forward, norms, parallel, **options):
        super().__init__(**options)
        self.attention, self.feed_forward, self.parallel = attention, feed_forward, parallel
        for place, prefix in (("before", ""), ("after", "after_"), ("last", "last_")):
            first, second = norms.get(place, (None, None))
            setattr(self, f"{prefix}attention_norm", first), setattr(self, f"{prefix}norm", second)
        self.build(None)

    def call(self, x, turned=None, visible=None, cache=None, at=0):
        y, cache = self.attention(_normed(self.attention_norm, x), turned, visible, cache, at)
        y = x + _normed(self.after_attention_norm, y)
        if not self.parallel:
            x = y = _normed(self.last_attention_norm, y)
        z = self.feed_forward(_normed(self.norm, x))
        return _normed(self.last_norm, y + _normed(self.after_norm, z)), cache


class DecoderBackbone(Backbone):
    """Token ids to hidden states, each of which sees the tokens before it.

    call({"token_ids": int (batch, time), "padding_mask": bool}) -> (batch, time, hidden_dim)
    """

    vocabulary_size: PositiveInt
    num_layers: PositiveInt
    num_query_heads: PositiveInt
    hidden_dim: PositiveInt
    intermediate_dim: PositiveInt
    num_key_value_heads: int = None
    head_dim: int = None
    max_sequence_length: PositiveInt = 2048
    rope_max_wavelength: float = 10_000.0
    rope_scaling: dict = None
    rope_local_wavelength: float = None
    rope_share: float = 1.0
    layer_norm_epsilon: float = 1e-6
    activation: transformer.ActivationName = "silu"
    tie_embeddings: bool = False
    attention_bias: bool = False
    qkv_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    sliding_window: int = None
    local_layers: tuple = None
    norm_kind: Choice("rms", "layer") = "rms"
    norm_offset: float = 0.0
    norm_places: Choice("before", "around", "after", "last") = "before"
    final_norm: bool = True
    parallel: bool = False
    position_kind: Choice("rotary", "learned") = "rotary"
    position_offset: int = 0
    feed_forward_kind: Choice("gated", "plain") = "gated"
    embedding_dim: int = None
    qkv_by_head: bool = False
    scale_embeddings: bool = False
    query_scale: float = None
    attention_soft_cap: float = None
    logit_soft_cap: float = None
    num_experts: int = None
    experts_per_token: int = 2
    expert_dim: int = None
    shared_expert_dim: int = None
    normalize_experts: bool = True
    expert_layers: tuple = None

    kind = KINDS[0]
    reference_prefix = "model"
    ignored = ("layers.*.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq")

    def setup(self):
        self.num_key_value_heads = self.num_key_value_heads or self.num_query_heads
        self.head_dim = self.head_dim or self.hidden_dim // self.num_query_heads
        if self.num_query_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_query_heads must be a multiple of num_key_value_heads; got "
                f"{self.num_query_heads} and {self.num_key_value_heads}."
            )
        super().setup()

    def build(self, shape=None):
        width, learned = self.embedding_dim or self.hidden_dim, self.position_kind == "learned"
        self.embeddings = table(self, self.vocabulary_size, width)
        self.position_embeddings = self.project_in = self.project_out = None
        if learned:
            rows = self.max_sequence_length + self.position_offset
            self.position_embeddings = table(self, rows, self.hidden_dim)
        if width != self.hidden_dim:
            self.project_in = transformer.dense(self, width, self.hidden_dim, use_bias=False)
            self.project_out = transformer.dense(self, self.hidden_dim, width, use_bias=False)
        local = range(self.num_layers) if self.local_layers is None else self.local_layers
        window = self.sliding_window is not None
        self._local = [window and i in local for i in range(self.num_layers)]
        self.blocks = [self._block(i) for i in range(self.num_layers)]
        self.norm = self._norm() if self.final_norm else None
        width = int(self.head_dim * self.rope_share)
        first = width, self.rope_max_wavelength, self.rope_scaling
        self._turns = [] if learned else [frequencies(*first)]
        if self.rope_local_wavelength is not None:  # of the layers with a window
            self._turns.append(frequencies(width, self.rope_local_wavelength))

    def _norm(self):
        sizes = self.hidden_dim, self.layer_norm_epsilon
        if self.norm_kind == "layer":
            return transformer.norm(self, *sizes)
        return transformer.root_mean_square_norm(self, *sizes, self.norm_offset)

    def _block(self, number):
        options = dict(dtype=self.dtype_policy)
        heads = self.num_query_heads, self.num_key_value_heads, self.head_dim
        biases = self.qkv_bias or self.attention_bias, self.attention_bias
        norms = self.layer_norm_epsilon if self.query_key_norm else None, self.norm_offset
        scores = self.query_scale, self.attention_soft_cap, self.qkv_by_head
        parts = *heads, *biases, *norms, *scores
        attention = built(transformer.CausalAttention(self.hidden_dim, *parts, **options))
        feed_forward = built(self._feed_forward(number, **options))
        around = self.norm_places == "around"
        places = ("before", "after") if around else (self.norm_places,)
        norms = {place: (self._norm(), self._norm()) for place in places}
        return DecoderBlock(attention, feed_forward, norms, self.parallel, **options)

    def _feed_forward(self, number, **options):
        if self.num_experts and (self.expert_layers is None or number in self.expert_layers):
            sizes = self.hidden_dim, self.expert_dim or self.intermediate_dim
            chosen = self.num_experts, self.experts_per_token, self.activation
            shared = self.normalize_experts, self.shared_expert_dim
            return Experts(*sizes, *chosen, *shared, **options)
        kind = transformer.GatedFeedForward if self.feed_forward_kind == "gated" else FeedForward
        sizes = self.hidden_dim, self.intermediate_dim
        return kind(*sizes, self.activation, self.mlp_bias, **options)

    def new_cache(self, batch, room, starts=None):
        """An empty `KVCache` for `room` positions.  starts: see there"""
        shape = (batch, room, self.num_key_value_heads, self.head_dim)
        return KVCache.zeros(len(self.blocks), shape, self.compute_dtype, starts)

    def call(self, inputs, training=None):
        self.check_inputs(inputs)
        mask = inputs.get("padding_mask")
        x, _ = self.run(inputs["token_ids"], mask=mask, positions=inputs.get("positions"))
        return x

    def run(self, token_ids, cache=None, mask=None, positions=None):
        """Hidden states, and the cache with these tokens behind its own.

        mask: bool (batch, time), the real tokens   positions: int (batch, time), None: they count
        """
        time, at = ops.shape(token_ids)[1], 0 if cache is None else cache.length
        x = self.embeddings(token_ids)
        if self.scale_embeddings:
            x = x * ops.cast(self.hidden_dim**0.5, ops.dtype(x))
        x = x if self.project_in is None else self.project_in(x)
        length = time if cache is None else cache.longest
        if length is None:
            length = ops.minimum(cache.room, self.max_sequence_length)
        if positions is not None:
            length = ops.max(positions) + 1 if cache is None else length
        elif self.position_embeddings is not None and mask is not None:
            positions = ops.maximum(ops.cumsum(ops.cast(mask, "int32"), 1) - 1, 0)
        else:
            positions = (ops.arange(time) + at)[None]
            if cache is not None and cache.starts is not None:
                positions = ops.maximum(positions - cache.starts[:, None], 0)
        if self.position_embeddings is not None:
            if cache is None:
                transformer.check_length(time, self.max_sequence_length)
            x = x + self.position_embeddings(positions + self.position_offset)
        name = ops.dtype(x)
        turned = [rotation(positions, *turns, name, length) for turns in self._turns] or [None]
        seen = [visible(time, cache, mask)]
        if self.sliding_window is not None:
            seen.append(visible(time, cache, mask, self.sliding_window))
        kept = [None] * len(self.blocks) if cache is None else cache.layers()
        for i, (block, local) in enumerate(zip(self.blocks, self._local)):
            turn = turned[local and len(turned) - 1]
            x, kept[i] = block(x, turn, seen[local], kept[i], at)
        if cache is not None:
            cache = cache.written(kept, at + time)
        x = _normed(self.norm, x)
        return x if self.project_out is None else self.project_out(x), cache

    @classmethod
    def config_from_reference(cls, config):
        kind = cls.kind
        transformer.check_config(config, kind.only, kind.name)
        config = {**kind.defaults, **{k: v for k, v in config.items() if v is not None}}
        names = {**CONFIG, **kind.names}
        made = {name: config[key] for name, key in names.items() if key in config}
        made |= {**kind.fixed, **(kind.read(config) if kind.read else {})}
        if made.get("position_kind") != "learned":
            made = {**_rotary(config), **made}
        if missing := ", ".join(names[name] for name in NEEDED if not made.get(name)):
            raise ValueError(f"The config.json of a {kind.model_type} must say {missing}.")
        return made

    def reference_config(self):
        names = {**CONFIG, **self.kind.names}
        ours = {key: getattr(self, name) for name, key in names.items() if key is not None}
        scaling = {"rope_type": "default", **(self.rope_scaling or {})}
        rope = {"rope_theta": self.rope_max_wavelength, **scaling}
        if self.rope_share != 1.0:
            rope["partial_rotary_factor"] = ours["partial_rotary_factor"] = self.rope_share
        if self.rope_local_wavelength is not None:
            local = {"rope_theta": self.rope_local_wavelength, "rope_type": "default"}
            rope = {"full_attention": rope, "sliding_attention": local}
        if self.position_kind == "rotary":
            ours["rope_parameters"] = rope
        if self.sliding_window is not None:
            kinds = ["sliding_attention" if local else "full_attention" for local in self._local]
            ours |= {"sliding_window": self.sliding_window, "layer_types": kinds}
        if self.query_scale is not None:
            ours["query_pre_attn_scalar"] = round(self.query_scale**-2)
        ours |= self.kind.write(self) if self.kind.write else {}
        return {"model_type": self.kind.model_type, **ours}


def _rotary(config):
    """Arguments of rotary positions, in transformers' newer or older way of saying them."""
    rope = dict(config.get("rope_parameters") or {})
    local = config.get("rope_local_base_freq")
    if "full_attention" in rope:
        local = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    wavelength = rope.pop("rope_theta", None) or config.get("rope_theta")
    wavelength = wavelength or config.get("rotary_emb_base", 10_000.0)
    share = config.get("partial_rotary_factor", config.get("rotary_pct", 1.0))
    share = rope.pop("partial_rotary_factor", share)
    scaling = {**rope, **(config.get("rope_scaling") or {})}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    found = {"rope_max_wavelength": float(wavelength), "rope_share": float(share)}
    if kind != "default":
        most = config.get("max_position_embeddings")
        original = config.get("original_max_position_embeddings", most)
        original = scaling.setdefault("original_max_position_embeddings", original)
        if kind == "longrope" and scaling.get("factor") is None:
            scaling["factor"] = most / original
        found["rope_scaling"] = scaling
    return found | ({} if local is None else {"rope_local_wavelength": float(local)})


class DecoderCausalLM(CausalLM):
    """The next token: the embeddings, or a matrix of their shape, as the output's kernel."""

    @property
    def tied(self):
        return self.backbone.tie_embeddings

    def logits(self, x):
        scores, most = super().logits(x), self.backbone.logit_soft_cap
        return scores if most is None else ops.tanh(scores / most) * most


class DecoderTokenizer(Tokenizer):
    """The tokenizer of a decoder: the architectures say nothing of it, the files do."""

    @classmethod
    def load(cls, folder):
        """Read a folder's tokenizer as the class that it is of."""
        return Tokenizer.load(folder)


def families(kinds, module):
    """Make and register the classes of a table: {"LlamaBackbone": ..., "LlamaCausalLM": ...}"""
    found = {}
    for kind in kinds:
        made, head = partial(kind_class, kind, module), [(kind.head, "lm_head")]
        weights = [(theirs, ours) for ours, theirs in {**WEIGHTS, **kind.weights}.items()]
        members = dict(kind=kind, weight_map=weights, **kind.members)
        backbone = made("Backbone", DecoderBackbone, **members)
        task = made("CausalLM", DecoderCausalLM, weight_map=head)
        named = {"CausalLM": kind.task.format(kind.name), "Backbone": f"{kind.name}Model"}
        types, tokenizer = (kind.model_type,), kind.tokenizer or DecoderTokenizer
        register(Family(kind.model_type, types, backbone, tokenizer, {"CausalLM": task}, named))
        found |= {cls.__name__: cls for cls in (backbone, task)}
    return found


_made = families(KINDS, __name__)
globals().update(_made)
__all__ = ["DecoderBackbone", "DecoderCausalLM", "DecoderTokenizer", *_made]
