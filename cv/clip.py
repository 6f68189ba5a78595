"""CLIP's text encoder: a causal transformer. Radford et al. 2021, arXiv:2103.00020."""

from khub import ops
from khub.fields import PositiveInt
from khub.layers import Layer

from ..nlp import transformer
from ..nlp.byte_pair import CLIPTokenizer
from ..nlp.tasks import Backbone
from ..nlp.transformer import EncoderBlock, FeedForward, SelfAttention, built, dense, norm, table
from ..presets import Family, register

CONFIG = {
    **transformer.CONFIG,
    "activation": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
    "end_token_id": "eos_token_id",
}
HIGHEST = 2  # an `end_token_id` of old files: the end token is the one with the highest id
BLOCK = {
    "attention.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "attention.output_projection": "self_attn.out_proj",
    "attention_norm": "layer_norm1",
    "feed_forward.up": "mlp.fc1",
    "feed_forward.down": "mlp.fc2",
    "norm": "layer_norm2",
}


class CausalSelfAttention(SelfAttention):
    """Attention to the tokens before and to itself."""

    causal = True


class Embeddings(Layer):
    """word + position.  token_ids: int (batch, time) -> (batch, time, width)"""

    vocabulary_size: PositiveInt
    max_sequence_length: PositiveInt
    width: PositiveInt

    def build(self, shape=None):
        self.token_embedding = table(self, self.vocabulary_size, self.width)
        self.position_embedding = table(self, self.max_sequence_length, self.width)

    def call(self, token_ids):
        time = ops.shape(token_ids)[1]
        transformer.check_length(time, self.max_sequence_length)
        return self.token_embedding(token_ids) + self.position_embedding(ops.arange(time))


class CLIPTextEncoder(Backbone):
    """Token ids to hidden states, each of which sees those before it.

    token_ids: int (batch, time), or {"token_ids": the same}
    -> {"sequence_output": (batch, time, hidden_dim), normalized; "penultimate_output": the same of
    the block before the last, not normalized; "pooled_output": (batch, hidden_dim) at the first end
    token, (batch, projection_dim) where there is a projection}
    projects: whether there is a projection
    prefixed: whether names in files begin with "text_model."
    """

    vocabulary_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    hidden_dim: PositiveInt
    intermediate_dim: PositiveInt
    max_sequence_length: PositiveInt = 77
    activation: transformer.ActivationName = "quick_gelu"
    layer_norm_epsilon: float = 1e-5
    end_token_id: int = 49_407
    projection_dim: PositiveInt = 512
    projects: bool = False
    prefixed: bool = False

    model_type = "clip_text_model"
    config_names = CONFIG
    ignored = ("*embeddings.position_ids", "vision_model.*", "visual_projection.*", "logit_scale")

    @property
    def weight_map(self):
        before = "text_model." if self.prefixed else ""
        layers = transformer.renames(f"{before}encoder.layers.{{i}}.", "blocks.{i}.", BLOCK)
        layers = [(names[0] if len(names) == 1 else names, ours) for names, ours in layers]
        own = [(f"{before}{name}", name) for name in ("embeddings", "final_layer_norm")]
        return [*own, *layers, ("text_projection", "text_projection")]

    def setup(self):
        transformer.check_sizes(self)
        super().setup()

    def build(self, shape=None):
        width, options = self.hidden_dim, {"dtype": self.dtype_policy}
        sizes = self.vocabulary_size, self.max_sequence_length, width
        self.embeddings = built(Embeddings(*sizes, **options))
        self.blocks = [self._block(options) for _ in range(self.num_layers)]
        self.final_layer_norm = norm(self, width, self.layer_norm_epsilon)
        if self.projects:
            self.text_projection = dense(self, width, self.projection_dim, use_bias=False)

    def _block(self, options):
        width, heads = self.hidden_dim, self.num_heads
        biases = dict(bias=True, output_bias=True)
        attention = CausalSelfAttention(width, heads, heads, width // heads, **biases, **options)
        feed_forward = FeedForward(width, self.intermediate_dim, self.activation, **options)
        norms = (norm(self, width, self.layer_norm_epsilon) for _ in range(2))
        parts = built(attention), built(feed_forward), tuple(norms), (0.0, 0.0)
        return EncoderBlock(*parts, norm_first=True, **options)

    def call(self, inputs):
        token_ids = inputs["token_ids"] if isinstance(inputs, dict) else inputs
        x = before = self.embeddings(token_ids)
        for block in self.blocks:
            before, x = x, block(x)
        x = self.final_layer_norm(x)
        ends = token_ids
        if self.end_token_id != HIGHEST:
            ends = ops.cast(ops.equal(token_ids, self.end_token_id), "int32")
        ends = ops.cast(ops.argmax(ends, axis=1), "int32")[:, None, None]
        pooled = ops.take_along_axis(x, ends, axis=1)[:, 0]
        if self.projects:
            pooled = self.text_projection(pooled)
        return {"sequence_output": x, "penultimate_output": before, "pooled_output": pooled}

    @classmethod
    def config_from_reference(cls, config):
        known = {**(config.get("text_config") or config), "model_type": config.get("model_type")}
        found = {"projection_dim": config.get("projection_dim", 512)}
        found |= super().config_from_reference(known)
        whole = {"CLIPTextModelWithProjection", "CLIPModel"} & {
            *(config.get("architectures") or ())
        }
        return found | dict.fromkeys(("projects", "prefixed"), bool(whole))

    @classmethod
    def config_from_names(cls, config, names):
        """What the names of a checkpoint's tensors say."""
        prefixed = any(name.startswith("text_model.") for name in names)
        return {**config, "projects": "text_projection.weight" in names, "prefixed": prefixed}

    def reference_config(self):
        stem = "CLIPTextModelWithProjection" if self.projects else "CLIPTextModel"
        own = {"projection_dim": self.projection_dim, "architectures": [stem]}
        return {**super().reference_config(), **own}


register(
    Family(
        "clip_text",
        ("clip_text_model", "clip"),
        CLIPTextEncoder,
        CLIPTokenizer,
        tasks={"TextEncoder": CLIPTextEncoder},
    )
)
