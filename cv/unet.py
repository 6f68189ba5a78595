"""The UNet of Stable Diffusion 1, 2 and XL: predicts the noise in latents at a time, given a text.

Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023 (XL), arXiv:2307.01952; Luo et al. 2023
(guidance as an input), arXiv:2310.04378.
"""

from functools import partial

from khub import ops
from khub.fields import Choice, PositiveInt

from ..nlp.transformer import built
from ..presets import Family, register
from . import diffusion_parts as parts
from .diffusion_parts import DiffusionModel, Sizes, Widths, per_block

FIXED = {
    "act_fn": "silu",
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    **dict.fromkeys(("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")),
    **dict.fromkeys(("encoder_hid_dim", "num_attention_heads")),
}
DOWN = ("DownBlock2D", "CrossAttnDownBlock2D")
UP = ("UpBlock2D", "CrossAttnUpBlock2D")
MID = "UNetMidBlock2DCrossAttn"


class ConditionedModel(DiffusionModel):
    """What the UNet and a ControlNet share: inputs, times, the way down and the middle.

    Fields are named as in diffusers' config.json; `attention_head_dim` is the number of heads (its
    name there is a mistake that is kept). A number holds for all blocks, a tuple has one for each.
    """

    in_channels: PositiveInt = 4
    block_out_channels: Widths = (320, 640, 1280, 1280)
    down_block_types: tuple = (*DOWN[1:] * 3, DOWN[0])
    mid_block_type: object = MID
    layers_per_block: Sizes = 2
    attention_head_dim: Sizes = 8
    cross_attention_dim: Sizes = 1280
    transformer_layers_per_block: Sizes = 1
    only_cross_attention: object = False
    use_linear_projection: bool = False
    upcast_attention: bool = False
    norm_num_groups: PositiveInt = 32
    norm_eps: float = 1e-5
    resnet_time_scale_shift: Choice("default", "scale_shift") = "default"
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    addition_embed_type: object = None
    addition_time_embed_dim: int = None
    projection_class_embeddings_input_dim: int = None

    fixed = FIXED
    time_cond_proj_dim = None

    def setup(self):
        self.check_counts("layers_per_block", "transformer_layers_per_block")
        self.check_kinds(down_block_types=DOWN, up_block_types=UP)
        if self.mid_block_type not in (MID, None):
            raise ValueError(f"mid_block_type must be {MID} or None, got {self.mid_block_type!r}.")
        kind = self.addition_embed_type
        if kind not in ("text_time", None):
            raise ValueError(f"addition_embed_type must be 'text_time' or None, got {kind!r}.")
        needed = "addition_time_embed_dim", "projection_class_embeddings_input_dim"
        if kind and None in [getattr(self, name) for name in needed]:
            raise ValueError(f"With addition_embed_type {kind!r} there must be {needed}.")
        super().setup()

    def _per_block(self, name):
        return per_block(name, getattr(self, name), len(self.block_out_channels))

    def build(self, shape=None):
        widths, options = self.block_out_channels, {"dtype": self.dtype_policy}
        time_width, first = 4 * widths[0], widths[0]
        self.conv_in = parts.conv(self, self.in_channels, first)
        sizes = first, time_width, self.time_cond_proj_dim
        self.time_embedding = built(parts.Embedding(*sizes, **options))
        if self.addition_embed_type is not None:
            sizes = self.projection_class_embeddings_input_dim, time_width
            self.add_embedding = built(parts.Embedding(*sizes, **options))
        names = "attention_head_dim", "cross_attention_dim", "transformer_layers_per_block"
        names += ("only_cross_attention", "layers_per_block", "down_block_types")
        rows = list(zip(*map(self._per_block, names)))
        self.down_blocks, before = [], first
        for place, (width, (*attention, count, kind)) in enumerate(zip(widths, rows)):
            inputs = [before] + [width] * (count - 1)
            attentions = self._attentions(count if kind == DOWN[1] else 0, width, *attention)
            down = parts.Downsample(width, **options) if place < len(widths) - 1 else None
            stage = self._stage(inputs, width, attentions, down=down and built(down))
            self.down_blocks.append(stage)
            before = width
        if self.mid_block_type is not None:
            attentions = self._attentions(1, before, *rows[-1][:3])
            self.mid_block = self._stage([before] * 2, before, attentions)

    def _stage(self, inputs, width, attentions, **resampling):
        more = self.norm_num_groups, self.norm_eps, 4 * self.block_out_channels[0]
        more += (self.resnet_time_scale_shift == "scale_shift",)
        options = {"dtype": self.dtype_policy}
        resnets = [built(parts.ResnetBlock(n, width, *more, **options)) for n in inputs]
        return parts.Stage(resnets, attentions, **resampling, **options)

    def _attentions(self, count, width, heads, context_width, depth, only_context=False):
        if heads > width:
            raise ValueError(f"attention_head_dim: {heads} heads cannot share {width} channels.")
        sizes = width, heads, context_width, depth, self.norm_num_groups
        sizes += self.use_linear_projection, only_context, self.upcast_attention
        blocks = [parts.Transformer(*sizes, dtype=self.dtype_policy) for _ in range(count)]
        return [built(block) for block in blocks]

    @property
    def needed(self):
        """The names of the inputs that a call must have."""
        more = ("pooled", "sizes") if self.addition_embed_type else ()
        return ("latents", "timesteps", "context", *more)

    def _time(self, inputs, batch):
        """What each resnet block takes of the time: (batch, 4 * first width)."""
        turned = partial(parts.sinusoids, shift=self.freq_shift, cosine_first=self.flip_sin_to_cos)
        dtype = self.compute_dtype
        steps = ops.broadcast_to(ops.cast(inputs["timesteps"], "float32"), (batch,))
        steps = ops.cast(turned(steps, self.block_out_channels[0]), dtype)
        guidance = inputs.get("guidance") if self.time_cond_proj_dim else None
        if guidance is not None:
            guidance = ops.cast(guidance, "float32") * 1000
            guidance = parts.sinusoids(guidance, self.time_cond_proj_dim, 1, False)
            guidance = ops.cast(guidance, dtype)
        time = self.time_embedding(steps, guidance)
        if self.addition_embed_type is not None:
            sizes = ops.reshape(inputs["sizes"], (-1,))
            sizes = ops.reshape(turned(sizes, self.addition_time_embed_dim), (batch, -1))
            pooled = [ops.cast(x, dtype) for x in (inputs["pooled"], sizes)]
            time = time + self.add_embedding(ops.concatenate(pooled, -1))
        return ops.silu(time)

    @property
    def residual_widths(self):
        """Channels of all layers on the way down, then of the middle."""
        widths, last = [self.block_out_channels[0]], len(self.block_out_channels) - 1
        counts = self._per_block("layers_per_block")
        for place, (width, count) in enumerate(zip(self.block_out_channels, counts)):
            widths += [width] * (count + (place < last))
        return [*widths, width]

    def _down(self, x, time, context):
        """The outputs of all layers on the way down, then that of the middle."""
        skips = [x]
        for stage in self.down_blocks:
            skips += stage(skips[-1], time, context)
        x = skips[-1]
        return skips, x if self.mid_block_type is None else self.mid_block(x, time, context)[-1]

    def _given(self, inputs):
        """latents, time and context in the compute dtype."""
        self.check_inputs(inputs, self.needed)
        x, context = (ops.cast(inputs[k], self.compute_dtype) for k in ("latents", "context"))
        return x, self._time(inputs, ops.shape(x)[0]), context


class UNet(ConditionedModel):
    """Predicts the noise in latents, or their velocity, at a time, given a text.

    inputs: {"latents": (batch, height, width, in_channels), "timesteps": (batch,) or one for all,
    "context": (batch, tokens, cross_attention_dim)}; with addition_embed_type "text_time" also
    "pooled": (batch, n) of a text and "sizes": (batch, 6); with time_cond_proj_dim "guidance":
    (batch,), the scale less 1; "residuals": what a `ControlNet` gives
    -> (batch, height, width, out_channels)
    """

    out_channels: PositiveInt = 4
    up_block_types: tuple = (UP[0], *UP[1:] * 3)
    time_cond_proj_dim: int = None
    sample_size: object = None

    class_name = "UNet2DConditionModel"
    fixed = FIXED | {
        **dict.fromkeys(("conv_in_kernel", "conv_out_kernel"), 3),
        **dict.fromkeys(("center_input_sample", "class_embeddings_concat"), False),
        **dict.fromkeys(("dual_cross_attention", "resnet_skip_time_act"), False),
        **dict.fromkeys(("time_embedding_dim", "time_embedding_act_fn", "timestep_post_act")),
        **dict.fromkeys(("cross_attention_norm", "mid_block_only_cross_attention")),
        "reverse_transformer_layers_per_block": None,
        "attention_type": "default",
        "resnet_out_scale_factor": 1.0,
        "time_embedding_type": "positional",
        "dropout": 0.0,
    }

    def build(self, shape=None):
        super().build(shape)
        widths, options = self.block_out_channels, {"dtype": self.dtype_policy}
        names = "attention_head_dim", "cross_attention_dim", "transformer_layers_per_block"
        names += ("only_cross_attention", "layers_per_block")
        rows = list(zip(*map(self._per_block, names), strict=True))[::-1]
        kinds = self._per_block("up_block_types")
        skips = self.residual_widths[:-1]  # what is joined on the way up
        self.up_blocks, before = [], widths[-1]
        for place, (width, (*attention, count), kind) in enumerate(zip(widths[::-1], rows, kinds)):
            inputs = [n + skips.pop() for n in [before] + [width] * count]
            attentions = self._attentions(count + 1 if kind == UP[1] else 0, width, *attention)
            up = parts.Upsample(width, **options) if place < len(widths) - 1 else None
            self.up_blocks.append(self._stage(inputs, width, attentions, up=up and built(up)))
            before = width
        self.conv_norm_out = parts.group_norm(self, before, self.norm_num_groups, self.norm_eps)
        self.conv_out = parts.conv(self, before, self.out_channels)

    def call(self, inputs):
        x, time, context = self._given(inputs)
        skips, x = self._down(self.conv_in(x), time, context)
        if inputs.get("residuals") is not None:
            *added, middle = (ops.cast(r, self.compute_dtype) for r in inputs["residuals"])
            if len(added) != len(skips):
                raise ValueError(f"Got {len(added) + 1} residuals; the UNet has {len(skips) + 1}.")
            skips, x = [a + b for a, b in zip(skips, added)], x + middle
        for stage in self.up_blocks:
            count = len(stage.resnets)
            joined, skips = skips[-count:], skips[:-count]
            size = ops.shape(skips[-1])[1:3] if skips else None
            x = stage(x, time, context, joined, size)[-1]
        return self.conv_out(ops.silu(self.conv_norm_out(x)))


register(Family("unet", (UNet.class_name,), UNet))
