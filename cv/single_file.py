"""Stable Diffusion in one file, as its authors keep it: names and shapes -> models of diffusers.

What shapes do not say, because no file does, is fixed: heads, and what the last layers predict.
"""

import re
from dataclasses import dataclass

import numpy as np

from ..nlp.tokenizers import Tokenizer
from ..presets import weights
from ..presets.tensors import Checkpoint, Tensor, WeightsError
from .autoencoder import Autoencoder
from .clip import CLIPTextEncoder
from .schedulers import Scheduler
from .unet import UNet

SUFFIXES = (".safetensors", ".ckpt")
TOKENIZER = "hf://openai/clip-vit-large-patch14"  # of all of them
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULER |= {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
RESNET = {  # the authors' name -> diffusers', below a resnet block
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
VAE = [
    (r"(encoder|decoder)\.mid\.block_1", r"\1.mid_block.resnets.0"),
    (r"(encoder|decoder)\.mid\.block_2", r"\1.mid_block.resnets.1"),
    (r"(encoder|decoder)\.mid\.attn_1", r"\1.mid_block.attentions.0"),
    (r"encoder\.down\.(\d+)\.block", r"encoder.down_blocks.\1.resnets"),
    (r"encoder\.down\.(\d+)\.downsample", r"encoder.down_blocks.\1.downsamplers.0"),
    (r"decoder\.up\.(\d+)\.block", r"decoder.up_blocks.\1.resnets"),
    (r"decoder\.up\.(\d+)\.upsample", r"decoder.up_blocks.\1.upsamplers.0"),
    (r"norm_out", "conv_norm_out"),
    (r"nin_shortcut", "conv_shortcut"),
    (r"(attentions\.0)\.norm", r"\1.group_norm"),
    (r"(attentions\.0)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.0)\.proj_out", r"\1.to_out.0"),
]
OPEN_CLIP = [  # the names of open_clip -> those of transformers
    (r"^transformer\.resblocks", "encoder.layers"),
    (r"\.ln_([12])", r".layer_norm\1"),
    (r"\.attn\.out_proj", ".self_attn.out_proj"),
    (r"\.mlp\.c_fc", ".mlp.fc1"),
    (r"\.mlp\.c_proj", ".mlp.fc2"),
    (r"^ln_final", "final_layer_norm"),
    (r"^token_embedding", "embeddings.token_embedding"),
    (r"^positional_embedding", "embeddings.position_embedding.weight"),
    (r"^text_projection", "text_projection.weight"),
]
PARTS = {  # prefix of names -> (part, whether a text encoder is open_clip's)
    "model.diffusion_model.": ("unet", False),
    "first_stage_model.": ("vae", False),
    "cond_stage_model.transformer.": ("text_encoder", False),
    "cond_stage_model.model.": ("text_encoder", True),
    "conditioner.embedders.0.transformer.": ("text_encoder", False),
    "conditioner.embedders.1.model.": ("text_encoder_2", True),
}


@dataclass(frozen=True)
class View:
    """Tensors of a checkpoint under the names of diffusers.  tensors: name -> `Tensor`"""

    path: object
    tensors: dict

    @property
    def names(self):
        return self.tensors.keys()

    def tensor(self, name):
        return self.tensors[name]

    def size(self, name, axis=0):
        """The size of a tensor's axis."""
        if name not in self.tensors:
            raise WeightsError(f"{self.path} has no tensor that diffusers calls {name}.")
        return self.tensors[name].shape[axis]

    def count(self, pattern):
        """How many modules are called {pattern}{number}."""
        found = (re.match(rf"{pattern}(\d+)\.", name) for name in self.tensors)
        return max((int(match[1]) + 1 for match in found if match), default=0)


def unet_name(name, layers):
    """diffusers' name of a module or tensor of the UNet, in which "_" may stand for ".".

    layers: resnet blocks in a block on the way down
    """
    match = re.match(r"(in|out)put_blocks[._](\d+)[._](\d)[._]?(.*)", name)
    if match:
        side, number, place, rest = match[1], int(match[2]), match[3], match[4]
        if side == "in" and number == 0:
            return f"conv_in.{rest}".rstrip(".")
        block, layer = divmod(number - (side == "in"), layers + 1)
        way = "down" if side == "in" else "up"
        if side == "in" and layer == layers:
            return f"down_blocks.{block}.downsamplers.0.{re.sub('^op', 'conv', rest)}"
        if rest.startswith("conv"):
            return f"up_blocks.{block}.upsamplers.0.{rest}"
        kind = "resnets" if place == "0" else "attentions"
        name = f"{way}_blocks.{block}.{kind}.{layer}.{rest}"
    for before, after in [*UNET.items(), *(RESNET.items() if "attentions" not in name else ())]:
        pattern = re.escape(before).replace(r"\.", "[._]") + r"(?=[._]|$)"
        name = re.sub(pattern if before in RESNET else f"^{pattern}", after, name)
    return name


def _renamed(path, file):
    """part -> `View`, of all that is in a file."""
    found = {}
    for name in file.names:
        prefix = next((p for p in PARTS if name.startswith(p)), None)
        if prefix is not None:
            part, open_clip = PARTS[prefix]
            tensors = found.setdefault(part, {})
            tensors[name[len(prefix) :]] = file.tensor(name)
    if not found.keys() >= {"unet", "vae", "text_encoder"}:
        raise WeightsError(
            f"{path} is no Stable Diffusion in one file: it has {', '.join(found) or 'no part'} of "
            "unet, vae and text_encoder (names that begin with model.diffusion_model., ...). LoRA "
            "and textual inversion have methods of their own: load_lora, load_textual_inversion."
        )
    inputs = max(int(m[1]) for n in found["unet"] if (m := re.match(r"input_blocks\.(\d+)", n)))
    downs = sum(bool(re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", n)) for n in found["unet"])
    layers = (inputs - downs) // (downs + 1)
    unet = {unet_name(name, layers): x for name, x in found["unet"].items()}
    views = {"unet": unet, "vae": _vae(found["vae"])}
    for part in found.keys() - views.keys():
        is_open = "positional_embedding" in found[part]
        views[part] = _open_clip(found[part]) if is_open else found[part]
    return {part: View(path, tensors) for part, tensors in views.items()}


def _vae(tensors):
    """Names of diffusers; blocks up are counted from the other end, attention is of Dense."""
    most = max(int(m[1]) for n in tensors if (m := re.match(r"decoder\.up\.(\d+)", n)))
    found = {}
    for name, x in tensors.items():
        name = re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{most - int(m[1])}", name)
        for pattern, after in VAE:
            name = re.sub(pattern, after, name)
        if ".attentions.0.to_" in name and len(x.shape) == 4:
            x = Tensor(x.shape[:2], x.dtype, lambda x=x: x.read()[:, :, 0, 0])
        found[name] = x
    return found


def _open_clip(tensors):
    """Names of transformers; queries, keys and values apart, the projection turned."""
    found = {}
    for name, x in tensors.items():
        for pattern, after in OPEN_CLIP:
            name = re.sub(pattern, after, name)
        if match := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", name):
            size = x.shape[0] // 3
            for i, part in enumerate("qkv"):
                rows, shape = slice(i * size, (i + 1) * size), (size, *x.shape[1:])
                part = f"{match[1]}.self_attn.{part}_proj.{match[2]}"
                found[part] = Tensor(shape, x.dtype, lambda x=x, rows=rows: x.read()[rows])
        elif name == "text_projection.weight":
            found[name] = Tensor(x.shape[::-1], x.dtype, lambda x=x: x.read().T)
        elif name != "logit_scale":
            found[name] = x
    return found


def _unet_config(view):
    blocks = range(view.count(r"down_blocks\."))
    widths = [view.size(f"down_blocks.{b}.resnets.0.conv1.weight") for b in blocks]
    depths = [view.count(rf"down_blocks\.{b}\.attentions\.0\.transformer_blocks\.") for b in blocks]
    first = f"down_blocks.{np.flatnonzero(depths)[0]}.attentions.0"
    linear = len(view.tensor(f"{first}.proj_in.weight").shape) == 2
    config = {
        "in_channels": view.size("conv_in.weight", 1),
        "out_channels": view.size("conv_out.weight"),
        "block_out_channels": widths,
        "layers_per_block": view.count(r"down_blocks\.0\.resnets\."),
        "down_block_types": [f"{'CrossAttn' if d else ''}DownBlock2D" for d in depths],
        "up_block_types": [f"{'CrossAttn' if d else ''}UpBlock2D" for d in depths[::-1]],
        "cross_attention_dim": view.size(f"{first}.transformer_blocks.0.attn2.to_k.weight", 1),
        "transformer_layers_per_block": [depth or 1 for depth in depths],
        "use_linear_projection": linear,
        "attention_head_dim": [width // 64 for width in widths] if linear else 8,
        "sample_size": 64,
    }
    if "add_embedding.linear_1.weight" in view.names:
        config |= {"addition_embed_type": "text_time", "sample_size": 128}
        config["projection_class_embeddings_input_dim"] = view.size(
            "add_embedding.linear_1.weight", 1
        )
    return config


def _vae_config(view, is_xl):
    count = view.count(r"encoder\.down_blocks\.")
    blocks = range(count)
    return {
        "block_out_channels": [
            view.size(f"encoder.down_blocks.{b}.resnets.0.conv1.weight") for b in blocks
        ],
        "layers_per_block": view.count(r"encoder\.down_blocks\.0\.resnets\."),
        "latent_channels": view.size("post_quant_conv.weight", 1),
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "scaling_factor": 0.13025 if is_xl else 0.18215,
    }


def _text_config(view, is_open, is_xl):
    before = "text_model." if any(n.startswith("text_model.") for n in view.names) else ""
    vocabulary, width = view.tensor(f"{before}embeddings.token_embedding.weight").shape
    layers = view.count(rf"{before}encoder\.layers\.".replace(".e", r"\.e"))
    config = {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": view.size(f"{before}encoder.layers.0.mlp.fc1.weight"),
        "num_hidden_layers": layers - (is_open and not is_xl),  # 2.x takes the last but one
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": view.size(f"{before}embeddings.position_embedding.weight"),
        "hidden_act": "gelu" if is_open else "quick_gelu",
        "eos_token_id": vocabulary - 1,
    }
    if is_open and is_xl:
        config["projection_dim"] = view.size("text_projection.weight")
        config["architectures"] = ["CLIPTextModelWithProjection"]
    return config


def read(
    path,
    load_weights=True,
    dtype=None,
    strict=True,
    quantize=None,
    tokenizer=TOKENIZER,
    prediction_type=None,
    **options,
):
    """Return the arguments of `StableDiffusion` for a file with all of its models.

    tokenizer: a `Tokenizer`, or a folder or handle that has one   prediction_type: of the UNet;
    files of 2.x must be told: "epsilon" for images of 512, "v_prediction" for 768
    Raises WeightsError for a file of something else, or a damaged one.
    """
    views = _renamed(path, Checkpoint(path))
    is_xl = "text_encoder_2" in views
    text = views["text_encoder"]
    is_two = not any(name.startswith("text_model.") for name in text.names)
    if is_two and prediction_type is None:
        raise ValueError(
            f"{path} is Stable Diffusion 2, whose files do not say what the UNet predicts: give "
            "prediction_type='epsilon' (512-base) or 'v_prediction' (768)."
        )
    configs = {
        "unet": _unet_config(views["unet"]),
        "vae": _vae_config(views["vae"], is_xl),
        "text_encoder": _text_config(text, is_two, is_xl),
    }
    if is_xl:
        configs["text_encoder_2"] = _text_config(views["text_encoder_2"], True, True)
        sizes = configs["unet"]["projection_class_embeddings_input_dim"]
        pooled = configs["text_encoder_2"]["projection_dim"]
        configs["unet"]["addition_time_embed_dim"] = (sizes - pooled) // 6
    if prediction_type == "v_prediction":
        configs["unet"]["sample_size"] = 96
    classes = {"unet": UNet, "vae": Autoencoder}
    parts = {}
    for part, config in configs.items():
        cls, view = classes.get(part, CLIPTextEncoder), views[part]
        arguments = cls.config_from_reference(config)
        if hasattr(cls, "config_from_names"):
            arguments = cls.config_from_names(arguments, view.names)
            last = rf"(text_model\.)?encoder\.layers\.{config['num_hidden_layers']}\."
            drop = lambda n: re.match(last, n) or n == "text_projection.weight" and is_two  # noqa: E731
            view = View(path, {n: x for n, x in view.tensors.items() if not drop(n)})
            arguments = cls.config_from_names(arguments, view.names)
        model = cls(**arguments, **({"dtype": dtype} if dtype else {}))
        if load_weights:
            weights.load(model, view, strict=strict)
        if quantize:
            model.quantize(quantize)
        parts[part] = model
    prediction = prediction_type or "epsilon"
    scheduler = Scheduler("ddim", **SCHEDULER, prediction_type=prediction)
    return {**parts, "scheduler": scheduler, **_tokenizers(tokenizer, is_two, is_xl), **options}


def _tokenizers(tokenizer, is_two, is_xl):
    """The tokenizer of each text encoder: those of open_clip's pad with "!", the others' end."""

    def one(pads):
        found = tokenizer if hasattr(tokenizer, "encode") else Tokenizer.from_preset(tokenizer)
        if pads:
            found.special_tokens = {**found.special_tokens, "pad_token": "!"}
            found.pad_token_id = found.token_to_id("!")
        return found

    return {"tokenizer": one(is_two)} | ({"tokenizer_2": one(True)} if is_xl else {})
