"""Stable Diffusion in one file, as its authors keep it: names and shapes -> models of diffusers.

What shapes do not say, because no file does, is fixed: heads, and what the last layers predict.
"""

import re
from copy import copy

from ..nlp.tokenizers import Tokenizer
from ..presets import weights
from ..presets.tensors import Checkpoint, Renamed, Tensor, WeightsError
from .autoencoder import Autoencoder
from .clip import CLIPTextEncoder
from .schedulers import Scheduler
from .unet import UNet

SUFFIXES = (".safetensors", ".ckpt")
TOKENIZER = "hf://openai/clip-vit-large-patch14"  # of all of them
SCHEDULER = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
SCHEDULER |= dict(clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading")
PARTS = {  # prefix of names -> the part
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.transformer.": "text_encoder",
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}
# patterns in the authors' names -> diffusers'; "." also stands for the "_" of LoRA files
RESNET = [
    *((r"in_layers.0", "norm1"), (r"in_layers.2", "conv1"), (r"emb_layers.1", "time_emb_proj")),
    *((r"out_layers.0", "norm2"), (r"out_layers.3", "conv2"), ("skip_connection", "conv_shortcut")),
]
UNET = [
    *((r"^time_embed", "time_embedding"), (r"^label_emb.0", "add_embedding")),
    *((r"(embedding).0", r"\1.linear_1"), (r"(embedding).2", r"\1.linear_2")),
    *((r"^middle_block.1", "mid_block.attentions.0"), (r"^out.0", "conv_norm_out")),
    *((r"^middle_block.0", "mid_block.resnets.0"), (r"^out.2", "conv_out")),
    (r"^middle_block.2", "mid_block.resnets.1"),
]
VAE = [
    *((r"\.mid\.block_1", ".mid_block.resnets.0"), (r"\.mid\.attn_1", ".mid_block.attentions.0")),
    (r"\.mid\.block_2", ".mid_block.resnets.1"),
    (r"\.(down|up)\.(\d+)\.block", r".\1_blocks.\2.resnets"),
    (r"\.(down|up)\.(\d+)\.(down|up)sample", r".\1_blocks.\2.\3samplers.0"),
    *((r"norm_out", "conv_norm_out"), (r"nin_shortcut", "conv_shortcut")),
    *((r"(attentions\.0)\.norm", r"\1.group_norm"), (r"(s\.0)\.([qkv])\.", r"\1.to_\2.")),
    (r"(attentions\.0)\.proj_out", r"\1.to_out.0"),
]
OPEN_CLIP = [  # of open_clip -> of transformers
    *((r"^transformer\.resblocks", "encoder.layers"), (r"\.ln_([12])", r".layer_norm\1")),
    *((r"\.mlp\.c_fc", ".mlp.fc1"), (r"\.mlp\.c_proj", ".mlp.fc2")),
    *((r"\.attn\.out_proj", ".self_attn.out_proj"), (r"^ln_final", "final_layer_norm")),
    *((r"^token_", "embeddings.token_"), (r"^text_projection", "text_projection.weight")),
    (r"^positional_embedding", "embeddings.position_embedding.weight"),
]


def _substituted(name, table):
    for pattern, after in table:
        name = re.sub(pattern, after, name)
    return name


def unet_name(name, layers):
    """diffusers' name of a module or tensor of the UNet, in which "_" may stand for ".".

    layers: resnet blocks in a block on the way down
    """
    match = re.match(r"(in|out)put.blocks.(\d+).(\d).?(.*)", name)
    if match:
        inwards, number, place, rest = match[1] == "in", int(match[2]), match[3], match[4]
        block, layer = divmod(number - inwards, layers + 1)
        kind = "resnets" if place == "0" else "attentions"
        if inwards and layer == layers:
            kind, layer, rest = "downsamplers", 0, re.sub("^op", "conv", rest)
        elif not inwards and rest.startswith("conv"):
            kind, layer = "upsamplers", 0
        name = f"{'down' if inwards else 'up'}_blocks.{block}.{kind}.{layer}.{rest}"
        if inwards and number == 0:
            name = f"conv_in.{rest}"
    name = _substituted(name, UNET)
    return (_substituted(name, RESNET) if "resnets" in name else name).rstrip(".")


def _count(names, start):
    """How many modules are called {start}{number}."""
    found = (re.match(rf"{re.escape(start)}(\d+)\.", name) for name in names)
    return len({match[1] for match in found if match})


def _views(path):
    """part -> checkpoint, of all that is in a file."""
    file, found = Checkpoint(path), {}
    for name in file.names:
        for prefix, part in PARTS.items():
            if name.startswith(prefix):
                found.setdefault(part, {})[name.removeprefix(prefix)] = file.tensor(name)
    if not found.keys() >= {"unet", "vae", "text_encoder"}:
        raise WeightsError(
            f"{path} is no Stable Diffusion in one file: it has {', '.join(found) or 'nothing'} of "
            "unet, vae and text_encoder. For LoRA there is load_lora."
        )
    numbers = [re.match(r"input_blocks\.(\d+)\.0\.(op)?", name) for name in found["unet"]]
    downs = {match[1] for match in numbers if match and match[2]}
    blocks = {match[1] for match in numbers if match}
    layers = (len(blocks) - 1 - len(downs)) // (len(downs) + 1)
    found["unet"] = {unet_name(name, layers): x for name, x in found["unet"].items()}
    found["vae"] = dict(_vae(found["vae"]))
    for part in found.keys() - {"unet", "vae"}:
        if "positional_embedding" in found[part]:
            found[part] = dict(_open_clip(found[part]))
    return {part: Renamed(path, tensors) for part, tensors in found.items()}


def _vae(tensors):
    """Names of diffusers; blocks up are counted from the other end, attention is of Dense."""
    last = _count(tensors, "decoder.up.") - 1
    for name, x in tensors.items():
        name = re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{last - int(m[1])}", name)
        name = _substituted(name, VAE)
        if ".attentions.0.to_" in name and len(x.shape) == 4:
            x = Tensor(x.shape[:2], x.dtype, lambda x=x: x.read()[:, :, 0, 0])
        yield name, x


def _open_clip(tensors):
    """Names of transformers; queries, keys and values apart, the projection turned."""
    for name, x in tensors.items():
        name = _substituted(name, OPEN_CLIP)
        if match := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", name):
            size = x.shape[0] // 3
            for i, part in enumerate("qkv"):
                rows = slice(i * size, (i + 1) * size)
                part = f"{match[1]}.self_attn.{part}_proj.{match[2]}"
                read = lambda x=x, rows=rows: x.read()[rows]  # noqa: E731
                yield part, Tensor((size, *x.shape[1:]), x.dtype, read)
        elif name == "text_projection.weight":
            yield name, Tensor(x.shape[::-1], x.dtype, lambda x=x: x.read().T)
        elif name != "logit_scale":
            yield name, x


def _size(view, name, axis=0):
    return view.tensor(f"{name}.weight").shape[axis]


def _blocks(view, start):
    """What both configurations say of the blocks on the way down, and how many these are."""
    count = _count(view.names, start)
    widths = [_size(view, f"{start}{i}.resnets.0.conv1") for i in range(count)]
    layers = _count(view.names, f"{start}0.resnets.")
    return {"block_out_channels": widths, "layers_per_block": layers}, count


def _unet_config(view, pooled):
    config, count = _blocks(view, "down_blocks.")
    middle = "mid_block.attentions.0"
    starts = [*(f"down_blocks.{i}.attentions.0" for i in range(count)), middle]
    *depths, last = (_count(view.names, f"{start}.transformer_blocks.") for start in starts)
    linear = len(view.tensor(f"{middle}.proj_in.weight").shape) == 2
    heads = [max(1, width // 64) for width in config["block_out_channels"]] if linear else 8
    kinds = ["CrossAttn" if depth else "" for depth in depths]
    config |= {
        "in_channels": _size(view, "conv_in", 1),
        "out_channels": _size(view, "conv_out"),
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in kinds[::-1]],
        "cross_attention_dim": _size(view, f"{middle}.transformer_blocks.0.attn2.to_k", 1),
        "transformer_layers_per_block": [*(d or 1 for d in depths[:-1]), depths[-1] or last],
        "use_linear_projection": linear,
        "attention_head_dim": heads,
    }
    if pooled:
        inputs = _size(view, "add_embedding.linear_1", 1)
        config |= {"addition_embed_type": "text_time"}
        config["projection_class_embeddings_input_dim"] = inputs
        config["addition_time_embed_dim"] = (inputs - pooled) // 6
    return config


def _vae_config(view, is_xl):
    config, count = _blocks(view, "encoder.down_blocks.")
    return config | {
        "latent_channels": _size(view, "post_quant_conv", 1),
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "scaling_factor": 0.13025 if is_xl else 0.18215,
    }


def _text_config(view, is_open, projects):
    start = "" if is_open else "text_model."
    vocabulary, width = view.tensor(f"{start}embeddings.token_embedding.weight").shape
    layers = _count(view.names, f"{start}encoder.layers.")
    return {
        "model_type": "clip_text_model",
        "projection_dim": _size(view, "text_projection") if projects else 512,
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _size(view, f"{start}encoder.layers.0.mlp.fc1"),
        "num_hidden_layers": layers - (is_open and not projects),  # 2.x takes the last but one
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": _size(view, f"{start}embeddings.position_embedding"),
        "hidden_act": "gelu" if is_open else "quick_gelu",
        "eos_token_id": vocabulary - 1,
    }


def read(path, load_weights=True, dtype=None, tokenizer=TOKENIZER, prediction_type=None, **options):
    """Return the arguments of `StableDiffusion` for a file with all of its models, read strictly.

    tokenizer: a `Tokenizer`, or a folder or handle that has one   prediction_type: of the UNet;
    files of 2.x must be told: "epsilon" for images of 512, "v_prediction" for 768
    Raises WeightsError for a file of something else, or a damaged one.
    """
    views = _views(path)
    is_xl = "text_encoder_2" in views
    is_two = not _count(views["text_encoder"].names, "text_model.encoder.layers.")
    if is_two and prediction_type is None:
        hint = "give prediction_type='epsilon' (512-base) or 'v_prediction' (768)"
        raise ValueError(f"{path} is of version 2, which does not say what it predicts: {hint}.")
    texts = {"text_encoder": (is_two, False)} | ({"text_encoder_2": (True, True)} if is_xl else {})
    configs = {part: _text_config(views[part], *kind) for part, kind in texts.items()}
    pooled = configs["text_encoder_2"]["projection_dim"] if is_xl else 0
    side = 128 if is_xl else 96 if prediction_type == "v_prediction" else 64
    configs["unet"] = {**_unet_config(views["unet"], pooled), "sample_size": side}
    configs["vae"] = _vae_config(views["vae"], is_xl)
    if is_two:  # the layer that is not used
        last = f"encoder.layers.{configs['text_encoder']['num_hidden_layers']}."
        view = views["text_encoder"]
        kept = [n for n in view.names if not n.startswith((last, "text_projection"))]
        views["text_encoder"] = Renamed(path, {n: view.tensor(n) for n in kept})
    for part, config in configs.items():
        cls = {"unet": UNet, "vae": Autoencoder}.get(part, CLIPTextEncoder)
        arguments = cls.config_from_reference(config)
        if part != "unet":
            arguments = cls.config_from_names(arguments, views[part].names)
        options[part] = cls(**arguments, **({"dtype": dtype} if dtype else {}))
        if load_weights:
            weights.load(options[part], views[part])
    words = tokenizer if hasattr(tokenizer, "encode") else Tokenizer.from_preset(tokenizer)
    options["tokenizer"], padded = words, copy(words)  # open_clip pads with "!", CLIP with the end
    padded.special_tokens = {**words.special_tokens, "pad_token": "!"}
    padded.pad_token_id = words.token_to_id("!")
    if is_two or is_xl:
        options["tokenizer" if is_two else "tokenizer_2"] = padded
    kind, predicts = "euler" if is_xl else "pndm", prediction_type or "epsilon"
    options["scheduler"] = Scheduler(kind, **SCHEDULER, prediction_type=predicts)
    return options
