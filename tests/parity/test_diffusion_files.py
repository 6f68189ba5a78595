"""What files add to StableDiffusion: LoRA, textual inversion, all models in one file."""

import os

import numpy as np
import pytest
from parity.diffusion_pipelines import SIDE, made_once, ours, reopened, torch

import khub
from khub import cv
from khub.nlp import Tokenizer
from khub.presets import WeightsError

safetensors = pytest.importorskip("safetensors.torch")
save_file = safetensors.save_file


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """kind -> (the folder of a pipeline, the pipeline, khub's), each made once."""
    return made_once(tmp_path_factory.mktemp("made"))


# --- LoRA -----------------------------------------------------------------------------------------
TARGETS = [
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "unet.up_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj",
    "unet.mid_block.attentions.0.proj_in",
    "unet.down_blocks.0.resnets.0.conv1",
    "text_encoder.text_model.encoder.layers.1.self_attn.k_proj",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1",
]


def kohya(module):
    model, _, rest = module.partition(".")
    return f"lora_{'unet' if model == 'unet' else 'te'}_{rest.replace('.', '_')}"


LAYOUTS = {  # name -> (names of module's down, up and alpha)
    "peft": lambda m: (f"{m}.lora_A.weight", f"{m}.lora_B.weight", None),
    "diffusers": lambda m: (f"{m}.lora.down.weight", f"{m}.lora.up.weight", f"{m}.alpha"),
    "kohya": lambda m: (
        *(f"{kohya(m)}.lora_{way}.weight" for way in ("down", "up")),
        f"{kohya(m)}.alpha",
    ),
}


def lora_file(path, layout, pipeline, rank=3, alpha=2.0):
    """Write random matrices, and return what each weight of diffusers' becomes more by."""
    random, tensors, more = torch.Generator().manual_seed(3), {}, {}
    for module in TARGETS:
        model, _, name = module.partition(".")
        weight = find(pipeline, model, name).weight
        down = torch.randn((rank, *weight.shape[1:]), generator=random)
        up = torch.randn((len(weight), rank, *[1] * (weight.ndim - 2)), generator=random)
        names = LAYOUTS[layout](module)
        tensors |= {names[0]: down, names[1]: up}
        scale = 1.0
        if names[2]:
            tensors[names[2]], scale = torch.tensor(alpha), alpha / rank
        more[module] = scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    save_file(tensors, path)
    return more


def find(pipeline, model, name):
    part = getattr(pipeline, model)
    name = name.removeprefix("text_model.") if not hasattr(part, "text_model") else name
    return part.get_submodule(name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lora(made, tmp_path, layout):
    folder, pipeline, model = made("1")
    more = lora_file(tmp_path / "style.safetensors", layout, pipeline)
    before = [np.array(w) for w in model.get_weights()]
    model.load_lora(tmp_path / "style.safetensors", scale=0.5)
    model.save_to_preset(tmp_path / "merged")
    merged = reopened(tmp_path / "merged")
    for module, change in more.items():
        model_name, _, name = module.partition(".")
        want = find(pipeline, model_name, name).weight + 0.5 * change
        assert torch.allclose(find(merged, model_name, name).weight, want, atol=1e-5), module
    unchanged = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"
    assert torch.equal(
        find(merged, "unet", unchanged).weight, find(pipeline, "unet", unchanged).weight
    )
    model.load_lora(tmp_path / "style.safetensors", scale=-0.2, name="less")
    with pytest.raises(ValueError, match="There is a LoRA 'less' already"):
        model.load_lora(tmp_path / "style.safetensors", name="less")
    model.remove_lora("style")
    with pytest.raises(ValueError, match="There is no LoRA 'style'; there are less"):
        model.remove_lora("style")
    model.remove_lora()
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_lora_of_something_else(made, tmp_path):
    _, pipeline, model = made("1")
    before = [np.array(w) for w in model.get_weights()]
    part = {
        "unet.nowhere.lora_A.weight": torch.ones(2, 4),
        "unet.nowhere.lora_B.weight": torch.ones(4, 2),
    }
    save_file(part, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="no place for unet.nowhere.lora_A.weight"):
        model.load_lora(tmp_path / "other.safetensors")
    name = TARGETS[0]
    part = {f"{name}.lora_A.weight": torch.ones(2, 31), f"{name}.lora_B.weight": torch.ones(32, 2)}
    save_file(part, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="does not fit .*attn1.to_q"):
        model.load_lora(tmp_path / "other.safetensors")
    del part[f"{name}.lora_B.weight"]
    save_file(part, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="no LoRA of this model"):
        model.load_lora(tmp_path / "other.safetensors")
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


# --- textual inversion ----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["one.safetensors", "several.bin"])
def test_textual_inversion(made, tmp_path, kind):
    folder, _, _ = made("1")
    pipeline, model = reopened(folder), cv.StableDiffusion.from_preset(folder)
    vectors = torch.randn((32,) if kind.startswith("one") else (3, 32))
    path = tmp_path / kind
    (save_file if kind.endswith("tensors") else torch.save)({"<toy>": vectors}, path)
    pipeline.load_textual_inversion(path)
    assert model.load_textual_inversion(path) == "<toy>"
    text = "a cat <toy> and a dog"
    want = pipeline.encode_prompt(text, "cpu", 1, False)[0].detach().numpy()
    found = model.encode_text(text)["context"]
    assert np.abs(found - want).max() <= 1e-4
    assert np.abs(found - model.encode_text("a cat and a dog")["context"]).max() > 1e-2
    with pytest.raises(ValueError, match="knows <toy>.* already"):
        model.load_textual_inversion(path)
    save_file({"<wide>": torch.ones(2, 31)}, tmp_path / "wide.safetensors")
    with pytest.raises(WeightsError, match=r"<wide> \(2, 31\); expected vectors of the width .32."):
        model.load_textual_inversion(tmp_path / "wide.safetensors")
    model.save_to_preset(tmp_path / "saved")
    again = cv.StableDiffusion.from_preset(tmp_path / "saved")
    assert kind.startswith("several") or np.array_equal(again.encode_text(text)["context"], found)


# --- one file -------------------------------------------------------------------------------------
def original_unet(name):
    """The authors' name of a tensor of a UNet of two blocks of one layer each."""
    places = {
        "conv_in": "input_blocks.0.0",
        "down_blocks.0.resnets.0": "input_blocks.1.0",
        "down_blocks.0.attentions.0": "input_blocks.1.1",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "down_blocks.1.resnets.0": "input_blocks.3.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "up_blocks.0.resnets.0": "output_blocks.0.0",
        "up_blocks.0.resnets.1": "output_blocks.1.0",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
        "up_blocks.1.resnets.0": "output_blocks.2.0",
        "up_blocks.1.attentions.0": "output_blocks.2.1",
        "up_blocks.1.resnets.1": "output_blocks.3.0",
        "up_blocks.1.attentions.1": "output_blocks.3.1",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    resnet = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    start = next(place for place in places if name.startswith(f"{place}."))
    rest = name.removeprefix(start)
    for after, before in resnet.items() if "resnets" in start else ():
        rest = rest.replace(f".{after}.", f".{before}.")
    return f"model.diffusion_model.{places[start]}{rest}"


def original_vae(name):
    places = {
        "mid_block.resnets.0": "mid.block_1",
        "mid_block.resnets.1": "mid.block_2",
        "mid_block.attentions.0": "mid.attn_1",
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
        "group_norm": "norm",
        "to_out.0": "proj_out",
        **{f"to_{x}": x for x in "qkv"},
        **{f"down_blocks.{i}.resnets": f"down.{i}.block" for i in range(2)},
        **{f"up_blocks.{i}.resnets": f"up.{1 - i}.block" for i in range(2)},
        "down_blocks.0.downsamplers.0": "down.0.downsample",
        "up_blocks.0.upsamplers.0": "up.1.upsample",
    }
    for theirs, original in places.items():
        name = name.replace(f".{theirs}.", f".{original}.")
    return f"first_stage_model.{name}"


def open_clip(state, prefix):
    """A text encoder as open_clip has it."""
    names = {
        "encoder.layers": "transformer.resblocks",
        "layer_norm": "ln_",
        "self_attn.out_proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "final_layer_norm": "ln_final",
        "embeddings.token_embedding": "token_embedding",
        "embeddings.position_embedding.weight": "positional_embedding",
        "text_projection.weight": "text_projection",
    }
    made = {}
    for name, x in state.items():
        name = name.removeprefix("text_model.")
        if name == "text_projection.weight":
            x = x.T
        if "q_proj" in name:
            parts = [
                state[n] for n in (full(state, name.replace("q_proj", f"{p}_proj")) for p in "qkv")
            ]
            layer, _, leaf = name.partition(".self_attn.q_proj.")
            name, x = f"{layer}.attn.in_proj_{leaf}", torch.cat(parts)
        elif "k_proj" in name or "v_proj" in name:
            continue
        name = name.replace("final_layer_norm", "ln_final")
        for after, before in names.items():
            name = name.replace(after, before)
        made[f"{prefix}{name}"] = x.contiguous()
    return made


def full(state, name):
    return name if name in state else f"text_model.{name}"


def original(pipeline, kind):
    """All tensors of a pipeline as its authors' file has them."""
    found = {original_unet(n): x for n, x in pipeline.unet.state_dict().items()}
    for name, x in pipeline.vae.state_dict().items():
        attention = ".attentions.0.to_" in name and name.endswith("weight")
        found[original_vae(name)] = x[:, :, None, None] if attention else x
    state = pipeline.text_encoder.state_dict()
    if kind == "2":  # and a layer that nobody uses
        more = {
            n.replace("layers.1.", "layers.2."): x + 1
            for n, x in state.items()
            if ".layers.1." in n
        }
        return found | open_clip({**state, **more}, "cond_stage_model.model.")
    prefix = "cond_stage_model." if kind == "1" else "conditioner.embedders.0."
    found |= {
        f"{prefix}transformer.text_model.{n.removeprefix('text_model.')}": x
        for n, x in state.items()
    }
    if kind == "xl":
        second = pipeline.text_encoder_2.state_dict()
        found |= open_clip(second, "conditioner.embedders.1.model.")
    return found


@pytest.mark.parametrize("kind", ["1", "2", "xl"])
def test_one_file(made, tmp_path, kind):
    folder, pipeline, model = made(kind)
    tensors = {n: x.clone() for n, x in original(pipeline, kind).items()}
    tensors |= {"model_ema.decay": torch.tensor(0.9), "alphas_cumprod": torch.ones(1000)}
    path = tmp_path / ("model.ckpt" if kind == "1" else "model.safetensors")
    if kind == "1":
        torch.save({"state_dict": tensors, "global_step": 7}, path)
    else:
        save_file(tensors, path)
    options = {"prediction_type": "v_prediction"} if kind == "2" else {}
    words = Tokenizer.load(folder / "tokenizer")
    one = cv.StableDiffusion.from_preset(
        path, tokenizer=words, img_height=SIDE, img_width=SIDE, **options
    )
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(model, part) is not None:
            pairs = zip(
                getattr(one, part).get_weights(), getattr(model, part).get_weights(), strict=True
            )
            assert all(np.array_equal(a, b) for a, b in pairs), part
    if kind == "2":
        with pytest.raises(ValueError, match="give prediction_type='epsilon'"):
            cv.StableDiffusion.from_preset(path, tokenizer=words)
    if kind == "1":
        assert one.scheduler.config == model.scheduler.config
        if khub.backend.name == "torch":  # where nothing is compiled
            assert np.array_equal(ours(one), ours(model))


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.once
def test_files_that_are_refused(made, tmp_path):
    _, pipeline, _ = made("1")
    path = tmp_path / "model.safetensors"
    save_file({"unet.some": torch.ones(2)}, path)
    with pytest.raises(
        WeightsError, match="no Stable Diffusion in one file: it has nothing of unet"
    ):
        cv.StableDiffusion.from_preset(path)
    tensors = {n: x.clone() for n, x in original(pipeline, "1").items()}
    del tensors["model.diffusion_model.out.2.weight"]
    save_file(tensors, path)
    with pytest.raises(WeightsError, match="has no conv_out.weight, whatever"):
        cv.StableDiffusion.from_preset(path)
    mark = tmp_path / "mark"
    torch.save({"state_dict": tensors, "bomb": Bomb(mark)}, tmp_path / "a.ckpt")
    with pytest.raises(WeightsError):
        cv.StableDiffusion.from_preset(tmp_path / "a.ckpt")
    assert not mark.exists()
    (tmp_path / "b.ckpt").write_bytes(b"\x80\x02]q\x00.")
    with pytest.raises(WeightsError, match="b.ckpt is no PyTorch checkpoint"):
        cv.StableDiffusion.from_preset(tmp_path / "b.ckpt")
