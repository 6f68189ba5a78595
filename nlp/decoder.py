"""Causal decoders of the Llama kind: one network, and a table of what each architecture changes.

RMS normalization before every part, rotary positions, grouped key heads, gated feed-forward layers.
Touvron et al. 2023, arXiv:2302.13971.
"""

from dataclasses import dataclass, field

from khub import ops
from khub.fields import PositiveInt
from khub.layers import Embedding, Layer

from ..presets import Family, register
from .cache import KVCache
from .generation import CausalLM
from .tasks import Backbone
from .tokenizers import Tokenizer
from .transformer import (
    ACTIVATIONS,
    CausalAttention,
    GatedFeedForward,
    dense,
    frequencies,
    normal,
    root_mean_square_norm,
    rotation,
    visible,
)

CONFIG = {  # khub's name -> the reference's
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_query_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_sequence_length": "max_position_embeddings",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation": "hidden_act",
    "tie_embeddings": "tie_word_embeddings",
}
NEEDED = ("vocabulary_size", "num_layers", "num_query_heads", "hidden_dim", "intermediate_dim")

WEIGHTS = [
    ("embed_tokens", "embeddings"),
    ("layers.{i}.input_layernorm", "blocks.{i}.attention_norm"),
    (
        tuple(f"layers.{{i}}.self_attn.{part}_proj" for part in "qkv"),
        "blocks.{i}.attention.qkv",
    ),
    ("layers.{i}.self_attn.o_proj", "blocks.{i}.attention.output_projection"),
    ("layers.{i}.self_attn.q_norm", "blocks.{i}.attention.query_norm"),
    ("layers.{i}.self_attn.k_norm", "blocks.{i}.attention.key_norm"),
    ("layers.{i}.post_attention_layernorm", "blocks.{i}.norm"),
    (
        ("layers.{i}.mlp.gate_proj", "layers.{i}.mlp.up_proj"),
        "blocks.{i}.feed_forward.gate_up",
    ),
    ("layers.{i}.mlp.down_proj", "blocks.{i}.feed_forward.down"),
    ("norm", "norm"),
]
AROUND = [  # Gemma 2 and 3 normalize before and after
    ("layers.{i}.post_attention_layernorm", "blocks.{i}.after_attention_norm"),
    ("layers.{i}.pre_feedforward_layernorm", "blocks.{i}.norm"),
    ("layers.{i}.post_feedforward_layernorm", "blocks.{i}.after_norm"),
]
FUSED = [  # Phi-3 keeps as one what others keep apart
    ("layers.{i}.self_attn.qkv_proj", "blocks.{i}.attention.qkv"),
    ("layers.{i}.mlp.gate_up_proj", "blocks.{i}.feed_forward.gate_up"),
]


@dataclass(frozen=True)
class Kind:
    """What an architecture has that Llama has not.

    names: khub's name -> its own name in config.json   fixed: arguments that are always so
    weights: renames in place of Llama's   read: config.json -> more arguments
    """

    name: str
    model_type: str
    names: dict = field(default_factory=dict)
    fixed: dict = field(default_factory=dict)
    weights: list = field(default_factory=list)
    read: object = None
    paper: str = ""


def _windows(config):
    """The layers with a window: those that layer_types says, else all, or none without a window."""
    types = config.get("layer_types")
    if config.get("sliding_window") is None or config.get("use_sliding_window") is False:
        return {"sliding_window": None}
    count = config["num_hidden_layers"]
    if types is None and "max_window_layers" in config:
        types = ["full_attention"] * min(config["max_window_layers"], count)
    types = types or []
    local = tuple(i for i in range(count) if i >= len(types) or types[i] == "sliding_attention")
    return {"sliding_window": config["sliding_window"], "local_layers": local}


def _gemma(config):
    return {"activation": config.get("hidden_activation") or config.get("hidden_act", TANH)}


def _gemma2(config):
    return {
        **_windows(config),
        "query_scale": config.get("query_pre_attn_scalar", 256) ** -0.5,
        "attention_soft_cap": config.get("attn_logit_softcapping"),
        "logit_soft_cap": config.get("final_logit_softcapping"),
    }


TANH = "gelu_pytorch_tanh"
GEMMA = dict(norm_offset=1.0, scale_embeddings=True)
KINDS = [
    Kind("Llama", "llama", {"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"}),
    Kind("Mistral", "mistral", read=_windows, paper="arXiv:2310.06825"),
    Kind("Qwen2", "qwen2", fixed=dict(qkv_bias=True), read=_windows, paper="arXiv:2407.10671"),
    Kind(
        "Qwen3",
        "qwen3",
        {"attention_bias": "attention_bias"},
        dict(query_key_norm=True),
        read=_windows,
        paper="arXiv:2505.09388",
    ),
    Kind("Gemma", "gemma", fixed=GEMMA, read=_gemma, paper="arXiv:2403.08295"),
    Kind(
        "Gemma2",
        "gemma2",
        {"activation": "hidden_activation"},
        dict(GEMMA, norms_after=True),
        AROUND,
        _gemma2,
        "arXiv:2408.00118",
    ),
    Kind(
        "Gemma3",
        "gemma3_text",
        {"activation": "hidden_activation"},
        dict(GEMMA, norms_after=True, query_key_norm=True),
        AROUND,
        _gemma2,
        "arXiv:2503.19786",
    ),
    Kind("Phi3", "phi3", weights=FUSED, read=_windows, paper="arXiv:2404.14219"),
]


class DecoderBlock(Layer):
    """x + attention(norm(x)), then x + feed_forward(norm(x)), each normalized before it is added
    where there are four norms.

    call(x, turned, visible, cache, at) -> (y, cache), as `CausalAttention`
    """

    def __init__(self, attention, feed_forward, norms, **options):
        super().__init__(**options)
        self.attention, self.feed_forward = attention, feed_forward
        self.attention_norm, self.norm = norms[:2]
        self.after_attention_norm, self.after_norm = norms[2:] or (None, None)
        self.built = True

    def call(self, x, turned=None, visible=None, cache=None, at=0):
        y, cache = self.attention(self.attention_norm(x), turned, visible, cache, at)
        x = x + (y if self.after_norm is None else self.after_attention_norm(y))
        y = self.feed_forward(self.norm(x))
        return x + (y if self.after_norm is None else self.after_norm(y)), cache


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
    activation: str = "silu"
    tie_embeddings: bool = False
    attention_bias: bool = False
    qkv_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    sliding_window: int = None
    local_layers: tuple = None
    norm_offset: float = 0.0
    norms_after: bool = False
    scale_embeddings: bool = False
    query_scale: float = None
    attention_soft_cap: float = None
    logit_soft_cap: float = None

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
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}."
            )
        super().setup()

    def build(self, shape=None):
        self.embeddings = Embedding(
            self.vocabulary_size, self.hidden_dim, normal(), dtype=self.dtype_policy
        )
        self.embeddings.build()
        local = range(self.num_layers) if self.local_layers is None else self.local_layers
        window = self.sliding_window is not None
        self._local = [window and i in local for i in range(self.num_layers)]
        self.blocks = [self._block() for _ in range(self.num_layers)]
        self.norm = root_mean_square_norm(
            self, self.hidden_dim, self.layer_norm_epsilon, self.norm_offset
        )
        width = int(self.head_dim * self.rope_share)
        self._turns = [frequencies(width, self.rope_max_wavelength, self.rope_scaling)]
        if self.rope_local_wavelength is not None:  # of the layers with a window
            self._turns.append(frequencies(width, self.rope_local_wavelength))

    def _block(self):
        options = dict(dtype=self.dtype_policy)
        attention = CausalAttention(
            self.hidden_dim,
            self.num_query_heads,
            self.num_key_value_heads,
            self.head_dim,
            bias=self.qkv_bias or self.attention_bias,
            output_bias=self.attention_bias,
            norm_epsilon=self.layer_norm_epsilon if self.query_key_norm else None,
            norm_offset=self.norm_offset,
            scale=self.query_scale,
            soft_cap=self.attention_soft_cap,
            **options,
        )
        feed_forward = GatedFeedForward(
            self.hidden_dim, self.intermediate_dim, self.activation, self.mlp_bias, **options
        )
        attention.build(), feed_forward.build()
        sizes = self.hidden_dim, self.layer_norm_epsilon, self.norm_offset
        norms = [root_mean_square_norm(self, *sizes) for _ in range(4 if self.norms_after else 2)]
        return DecoderBlock(attention, feed_forward, norms, **options)

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
        if positions is None:
            positions = (ops.arange(time) + at)[None]
            if cache is not None and cache.starts is not None:
                positions = ops.maximum(positions - cache.starts[:, None], 0)
        name = ops.dtype(x)
        turned = [rotation(positions, *turns, name) for turns in self._turns]
        seen = [visible(time, cache, mask)]
        if self.sliding_window is not None:
            seen.append(visible(time, cache, mask, self.sliding_window))
        kept = [None] * len(self.blocks) if cache is None else list(zip(cache.keys, cache.values))
        for i, (block, local) in enumerate(zip(self.blocks, self._local)):
            turn = turned[local and len(turned) - 1]
            x, kept[i] = block(x, turn, seen[local], kept[i], at)
        if cache is not None:
            keys, values = map(list, zip(*kept))
            cache = cache._replace(keys=keys, values=values, length=at + time)
        return self.norm(x), cache

    @classmethod
    def config_from_reference(cls, config):
        names = {**CONFIG, **cls.kind.names}
        ours = {name: config[key] for name, key in names.items() if config.get(key) is not None}
        missing = [names[name] for name in NEEDED if name not in ours]
        if missing:
            what = cls.kind.model_type
            raise ValueError(f"The config.json of a {what} must say {', '.join(missing)}.")
        read = cls.kind.read(config) if cls.kind.read else {}
        return {**ours, **cls.kind.fixed, **_rotary(config), **read}

    def reference_config(self):
        names = {**CONFIG, **self.kind.names}
        ours = {key: getattr(self, name) for name, key in names.items()}
        scaling = {"rope_type": "default", **(self.rope_scaling or {})}
        rope = {"rope_theta": self.rope_max_wavelength, **scaling}
        if self.rope_share != 1.0:
            rope["partial_rotary_factor"] = ours["partial_rotary_factor"] = self.rope_share
        if self.rope_local_wavelength is not None:
            local = {"rope_theta": self.rope_local_wavelength, "rope_type": "default"}
            rope = {"full_attention": rope, "sliding_attention": local}
        if self.sliding_window is not None:
            kinds = ["sliding_attention" if local else "full_attention" for local in self._local]
            ours |= {"sliding_window": self.sliding_window, "layer_types": kinds}
            ours |= {"use_sliding_window": True}
        if self.query_scale is not None:
            ours["query_pre_attn_scalar"] = round(self.query_scale**-2)
            ours["attn_logit_softcapping"] = self.attention_soft_cap
            ours["final_logit_softcapping"] = self.logit_soft_cap
        return {"model_type": self.kind.model_type, **ours, "rope_parameters": rope}


def _rotary(config):
    """Arguments of rotary positions, in transformers' newer or older way of saying them."""
    rope = dict(config.get("rope_parameters") or {})
    local = config.get("rope_local_base_freq")
    if "full_attention" in rope:
        local = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    wavelength = rope.pop("rope_theta", None) or config.get("rope_theta", 10_000.0)
    share = rope.pop("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    scaling = {**rope, **(config.get("rope_scaling") or {})}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    found = {"rope_max_wavelength": float(wavelength), "rope_share": float(share)}
    if kind != "default":
        scaling.setdefault(
            "original_max_position_embeddings",
            config.get("original_max_position_embeddings", config.get("max_position_embeddings")),
        )
        found["rope_scaling"] = scaling
    return found | ({} if local is None else {"rope_local_wavelength": float(local)})


class DecoderCausalLM(CausalLM):
    """The next token: the embeddings, or a matrix of their shape, as the output's kernel."""

    weight_map = [("lm_head", "lm_head")]

    @property
    def ignored(self):
        return ("lm_head.weight",) if self.backbone.tie_embeddings else ()

    def build(self, shape=None):
        if not self.backbone.tie_embeddings:
            size = self.backbone.vocabulary_size
            self.lm_head = dense(self, self.backbone.hidden_dim, size, use_bias=False)

    def logits(self, x):
        """(..., hidden_dim) -> (..., vocabulary_size)"""
        backbone = self.backbone
        if backbone.tie_embeddings:
            table = ops.cast(backbone.embeddings.embeddings.value, ops.dtype(x))
            scores = ops.matmul(x, ops.transpose(table))
        else:
            scores = self.lm_head(x)
        if backbone.logit_soft_cap is not None:
            scores = ops.tanh(scores / backbone.logit_soft_cap) * backbone.logit_soft_cap
        return scores


class DecoderTokenizer(Tokenizer):
    """The tokenizer of a decoder: the architectures say nothing of it, the files do."""

    @classmethod
    def load(cls, folder):
        """Read a folder's tokenizer as the class that it is of."""
        return Tokenizer.load(folder)


def _family(kind):
    """Make and register an architecture's classes: LlamaBackbone, LlamaCausalLM, ..."""
    paper = f" {kind.paper}" if kind.paper else ""
    replaced = {name for _, name in kind.weights}
    weights = [*(pair for pair in WEIGHTS if pair[1] not in replaced), *kind.weights]
    text = f"{kind.name}'s decoder; see `DecoderBackbone`.{paper}"
    members = {"__doc__": text, "__module__": __name__, "kind": kind, "weight_map": weights}
    backbone = type(f"{kind.name}Backbone", (DecoderBackbone,), members)
    members = {"__doc__": f"{kind.name} as a language model.", "__module__": __name__}
    task = type(f"{kind.name}CausalLM", (DecoderCausalLM,), members)
    register(
        Family(
            name=kind.model_type,
            model_types=(kind.model_type,),
            backbone=backbone,
            tokenizer=DecoderTokenizer,
            tasks={"CausalLM": task},
            architectures={
                "CausalLM": f"{kind.name}ForCausalLM",
                "Backbone": f"{kind.name}Model",
            },
        )
    )
    return {made.__name__: made for made in (backbone, task)}


__all__ = ["DecoderBackbone", "DecoderCausalLM", "DecoderTokenizer"]
for _kind in KINDS:
    _made = _family(_kind)
    globals().update(_made)
    __all__ += list(_made)
