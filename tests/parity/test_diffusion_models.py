"""The networks of Stable Diffusion of diffusers and transformers: same outputs, both ways."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from parity.image_models import ON_TORCH, spread, whole

import khub
from khub import cv, ops
from khub.cv.diffusion_parts import EnlargingConv
from khub.presets.tensors import Checkpoint, WeightsError, write_checkpoint

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RANDOM = np.random.default_rng(0)


def some(names):
    """Of the configurations all, on JAX, which compiles each, every other; the rest is slow."""
    step = {"jax": 2, "numpy": 100}.get(khub.backend.name, 1)
    return [
        pytest.param(name, marks=pytest.mark.slow if place % step else ())
        for place, name in enumerate(names)
    ]


def normal(*shape):
    return RANDOM.normal(size=shape).astype("float32")


def first(x):
    """A tensor of torch with its channels second."""
    return torch.tensor(x).movedim(-1, 1)


def close(found, want, tolerance=1e-4):
    want = (want.movedim(1, -1) if want.dim() == 4 else want).float().numpy()
    found = ops.convert_to_numpy(ops.cast(found, "float32"))
    assert found.shape == want.shape
    assert 0.1 < np.abs(want).max() < 100
    assert np.abs(found - want).max() <= tolerance


def reopened(model, theirs, folder):
    """What the reference opens of what khub saves, with all of its weights."""
    model.save_to_preset(folder)
    again, report = type(theirs).from_pretrained(folder, output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    config = json.loads((folder / "config.json").read_text())
    for key, value in (
        json.loads(theirs.to_json_string()).items() if "_class_name" in config else ()
    ):
        known = config.get(key, value)
        assert key[0] == "_" or json.dumps(known) in (json.dumps(value), json.dumps([value])), key
    return again.eval()


# --- text encoders -------------------------------------------------------------------------------
ENCODERS = {
    "sd1": ("CLIPTextModel", dict(eos_token_id=2)),
    "sd2": ("CLIPTextModel", dict(hidden_act="gelu", hidden_size=24, num_attention_heads=3)),
    "xl": ("CLIPTextModelWithProjection", dict(hidden_act="gelu", projection_dim=20)),
    "xl_old": ("CLIPTextModelWithProjection", dict(eos_token_id=2, num_hidden_layers=1)),
}


def text_encoder(name):
    kind, options = ENCODERS[name]
    sizes = dict(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=3)
    sizes |= dict(num_attention_heads=2, max_position_embeddings=10, projection_dim=12)
    special = dict(bos_token_id=48, eos_token_id=49, pad_token_id=49)
    config = transformers.CLIPTextConfig(**{**sizes, **special, **options})
    return spread(getattr(transformers, kind)(config))


def hidden(model, ids):
    with torch.no_grad():
        found = model(torch.tensor(ids), output_hidden_states=True)
    pooled = found["text_embeds"] if "text_embeds" in found else found["pooler_output"]
    return found.last_hidden_state, found.hidden_states[-2], pooled


OUTPUTS = "sequence_output", "penultimate_output", "pooled_output"


@pytest.mark.parametrize("name", some(ENCODERS))
def test_text_encoder(name, tmp_path):
    theirs = text_encoder(name)
    theirs.save_pretrained(tmp_path / "theirs")
    model = cv.CLIPTextEncoder.from_preset(tmp_path / "theirs")
    ids = np.array([[48, 5, 7, 49, 49, 49], [48, 3, 4, 2, 7, 49]], "int32")
    found, want = whole(model)({"token_ids": ids}), hidden(theirs, ids)
    for key, each in zip(OUTPUTS, want):
        close(found[key], each)
    again = reopened(model, theirs, tmp_path / "ours")
    for ours, each in zip(hidden(again, ids), want):
        assert torch.equal(ours, each)
    with pytest.raises(ValueError, match="11 tokens; this model has positions for 10"):
        model({"token_ids": np.ones((1, 11), "int32")})


@ON_TORCH
def test_text_encoder_of_a_whole_clip(tmp_path):
    text = text_encoder("xl").config.to_dict() | {"projection_dim": 8}
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    theirs = spread(transformers.CLIPModel(config))
    theirs.save_pretrained(tmp_path)
    model = cv.CLIPTextEncoder.from_preset(tmp_path)
    ids = np.array([[48, 5, 7, 49]], "int32")
    with torch.no_grad():
        want = theirs.get_text_features(torch.tensor(ids))
    close(model(ids)["pooled_output"], getattr(want, "pooler_output", want))


# --- UNets and ControlNets -----------------------------------------------------------------------
DOWN, UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
SIZES = dict(block_out_channels=(16, 32), down_block_types=DOWN, up_block_types=UP)
SIZES |= dict(layers_per_block=1, cross_attention_dim=12, attention_head_dim=4, norm_num_groups=8)
THREE = dict(block_out_channels=(16, 32, 32), down_block_types=(*DOWN[:1] * 2, DOWN[1]))
THREE |= dict(up_block_types=(UP[0], *UP[1:] * 2))
XL = dict(
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=10 + 6 * 8,
    transformer_layers_per_block=(1, 2),
    attention_head_dim=(2, 4),
    use_linear_projection=True,
    down_block_types=DOWN[::-1],
    up_block_types=UP[::-1],
)
UNETS = {
    "small": {},
    "sd1": THREE,
    "sd2": THREE
    | dict(attention_head_dim=(2, 4, 8), use_linear_projection=True, upcast_attention=True),
    "xl": XL,
    "inpainting": dict(in_channels=9, only_cross_attention=(True, False), layers_per_block=(2, 1)),
    "lcm": dict(time_cond_proj_dim=6, resnet_time_scale_shift="scale_shift"),
    "no_middle": THREE
    | dict(mid_block_type=None, cross_attention_dim=(12, 12, 12), out_channels=8)
    | dict(flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, block_out_channels=(24, 8, 16)),
}


def unet(name):
    return spread(diffusers.UNet2DConditionModel(**{**SIZES, **UNETS[name]}))


def inputs(config, size):
    made = {
        "latents": normal(2, *size, config.in_channels),
        "timesteps": np.array([3.0, 981.0], "float32"),
        "context": normal(2, 5, 12),
    }
    if config.addition_embed_type:
        made |= {"pooled": normal(2, 10), "sizes": np.array([[512, 384, 0, 8, 1024, 9]] * 2)}
        made["sizes"] = made["sizes"].astype("float32")
    return made


def predicted(theirs, given, **more):
    tensors = {k: torch.tensor(v) for k, v in given.items() if k in ("timesteps", "context")}
    if "pooled" in given:
        added = dict(
            text_embeds=torch.tensor(given["pooled"]), time_ids=torch.tensor(given["sizes"])
        )
        more["added_cond_kwargs"] = added
    latents = first(given["latents"])
    with torch.no_grad():
        return theirs(latents, *tensors.values(), **more, return_dict=False)


@pytest.mark.parametrize("name", some([name for name in UNETS if name != "small"]))
def test_unet(name, tmp_path):
    theirs = unet(name)
    theirs.save_pretrained(tmp_path / "theirs")
    model = cv.UNet.from_preset(tmp_path / "theirs")
    given, more = inputs(theirs.config, (8, 4) if name in ("lcm", "xl") else (7, 9)), {}
    if name == "lcm":
        given["guidance"] = np.array([6.5, 2.0], "float32")
        pipeline = diffusers.LatentConsistencyModelPipeline
        embed = pipeline.get_guidance_scale_embedding
        more = {"timestep_cond": embed(None, torch.tensor(given["guidance"]), 6)}
    (want,) = predicted(theirs, given, **more)
    close(whole(model)(given), want)
    again = reopened(model, theirs, tmp_path / "ours")
    assert torch.equal(predicted(again, given, **more)[0], want)


@pytest.mark.parametrize("name", some(["small", "xl"]))
def test_control_net(name, tmp_path):
    unused = ("up_block_types", "out_channels", "time_cond_proj_dim", "mid_block_type")
    options = {k: v for k, v in {**SIZES, **UNETS[name]}.items() if k not in unused}
    order = "bgr" if name == "xl" else "rgb"
    more = dict(conditioning_embedding_out_channels=(8, 16), global_pool_conditions=name == "xl")
    theirs = diffusers.ControlNetModel(
        **options, **more, controlnet_conditioning_channel_order=order
    )
    spread(theirs, 1).save_pretrained(tmp_path / "theirs")
    unet(name).save_pretrained(tmp_path / "unet")
    model = cv.ControlNet.from_preset(tmp_path / "theirs")
    given = inputs(theirs.config, (6, 10)) | {"image": RANDOM.random((2, 12, 20, 3), "float32")}
    down, middle = predicted(theirs, given, controlnet_cond=first(given["image"]))
    found = whole(model)(given)
    for ours, want in zip(found, [*down, middle], strict=True):
        close(ours, want)
    residuals = dict(down_block_additional_residuals=down, mid_block_additional_residual=middle)
    (want,) = predicted(unet(name), given, **residuals)
    ours = cv.UNet.from_preset(tmp_path / "unet")
    close(whole(ours)({**given, "residuals": found}), want)
    again = reopened(model, theirs, tmp_path / "ours")
    again = predicted(again, given, controlnet_cond=first(given["image"]))
    assert torch.equal(again[1], middle)


# --- autoencoders --------------------------------------------------------------------------------
AUTOENCODERS = {
    "three": dict(block_out_channels=(8, 16, 16), layers_per_block=2),
    "plain": dict(mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False),
    "attended": dict(attended=True, latent_channels=16, shift_factor=0.1, scaling_factor=0.3),
    "deprecated": dict(block_out_channels=(16,)),
}


def autoencoder(name):
    options = {"block_out_channels": (8, 16), "norm_num_groups": 4, **AUTOENCODERS[name]}
    attended, count = options.pop("attended", False), len(options["block_out_channels"])
    kind = "Attn{}{}Block2D" if attended else "{}{}Block2D"
    down, up = kind.format("Down", "Encoder"), kind.format("Up", "Decoder")
    theirs = diffusers.AutoencoderKL(
        down_block_types=(down,) * count, up_block_types=(up,) * count, **options
    )
    return spread(theirs)


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def with_old_names(folder):
    checkpoint = Checkpoint(folder)
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.names}
    for new, old in OLD.items():
        tensors = {n.replace(f".{new}.", f".{old}."): tensor for n, tensor in tensors.items()}
    old = {name: tensor.read().copy() for name, tensor in tensors.items()}
    write_checkpoint(folder, old, name="diffusion_pytorch_model")


@pytest.mark.parametrize("name", some(AUTOENCODERS))
def test_autoencoder(name, tmp_path):
    theirs = autoencoder(name)
    theirs.save_pretrained(tmp_path / "theirs")
    if name == "deprecated":
        with_old_names(tmp_path / "theirs")
    model = cv.Autoencoder.from_preset(tmp_path / "theirs")
    stride = 2 ** (len(theirs.config.block_out_channels) - 1)
    assert model.stride == stride and model.scaling_factor == theirs.config.scaling_factor
    x = normal(2, 3 * stride, 5 * stride, 3)
    latents = normal(2, 3, 5, theirs.config.latent_channels)
    with torch.no_grad():
        encoded = theirs.encode(first(x)).latent_dist
        want = theirs.decode(first(latents)).sample
    mean, log_variance = whole(model.encode)(x)
    close(mean, encoded.mean)
    close(log_variance, encoded.logvar)
    close(whole(model.decode)(latents), want)
    again = reopened(model, theirs, tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again.decode(first(latents)).sample, want)


@pytest.mark.parametrize("depth", some([4, 2]))
def test_tiny_autoencoder(depth, tmp_path):
    options = dict(num_encoder_blocks=(1, 2, 1, 1)[:depth], num_decoder_blocks=(2, 1, 1, 1)[:depth])
    widths = (8,) * depth
    theirs = diffusers.AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, **options
    )
    spread(theirs).save_pretrained(tmp_path / "theirs")
    model = cv.TinyAutoencoder.from_preset(tmp_path / "theirs")
    x, latents = normal(2, 16, 24, 3), normal(2, 2, 3, 4) * 2
    with torch.no_grad():
        encoded, want = theirs.encode(first(x)).latents, theirs.decode(first(latents)).sample
    mean, log_variance = whole(model.encode)(x)
    assert log_variance is None
    close(mean, encoded)
    close(whole(model.decode)(latents), want)
    again = reopened(model, theirs, tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(again.decode(first(latents)).sample, want)


@ON_TORCH
def test_tiles_and_slices(tmp_path):
    theirs = spread(diffusers.AutoencoderKL(sample_size=16, **{
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
    }))  # fmt: skip
    theirs.save_pretrained(tmp_path)
    model = cv.Autoencoder.from_preset(tmp_path)
    theirs.enable_tiling()
    for size in ((21, 6), (6, 13)):
        latents = normal(2, *size, 4)
        with torch.no_grad():
            close(model.decode(latents, tile=8), theirs.decode(first(latents)).sample)
    latents = normal(3, 9, 17, 4)
    want = model.decode(latents)
    close(model.decode(latents, slicing=True), want.movedim(-1, 1).detach(), 1e-5)
    tiled = model.decode(latents, tile=8, slicing=True)
    assert tiled.shape == want.shape and not torch.equal(tiled, want)
    constant = ops.ones((1, 20, 20, 4))  # there seams would be seen
    tiled, want = model.decode(constant, tile=12), model.decode(constant)
    assert float(torch.abs(tiled - want)[:, 8:-8, 8:-8].std()) < float(want.std())
    with pytest.raises(ValueError, match="tile must be None or an integer of at least 4, got 0"):
        model.decode(latents, tile=0)
    with pytest.raises(ValueError, match="multiples of 2; got 5 and 6"):
        model.encode(normal(1, 5, 6, 3))


@pytest.mark.parametrize("size, cut", [((16, 17), None), ((17, 16), (33, 32)), ((3, 4), (6, 7))])
def test_convolution_of_enlarged_images(size, cut):
    layer = EnlargingConv(6, 3, padding="same", data_format="channels_last")
    x = normal(2, *size, 5)
    layer.build(x.shape)
    layer.bias.assign(normal(6))
    kernel = torch.tensor(layer.kernel.numpy()).permute(3, 2, 0, 1)
    wide = torch.nn.functional.interpolate(first(x), cut or [2 * n for n in size], mode="nearest")
    want = torch.nn.functional.conv2d(wide, kernel, torch.tensor(layer.bias.numpy()), padding=1)
    close(whole(lambda x: layer(x, cut))(x), want, 1e-5)


# --- dtypes, hostile files -----------------------------------------------------------------------
@ON_TORCH
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_floats(dtype, tmp_path):
    theirs = unet("xl").to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "unet")
    model = cv.UNet.from_preset(tmp_path / "unet", dtype=dtype)
    assert {v.dtype for v in model.variables} == {dtype}
    given = inputs(theirs.config, (8, 4))
    want = predicted(theirs.float(), given)[0]
    found = model(given)
    assert found.dtype is getattr(torch, dtype)
    close(found, want, 0.3 if dtype == "bfloat16" else 0.03)
    model.save_to_preset(tmp_path / "ours")
    ours, there = Checkpoint(tmp_path / "ours"), Checkpoint(tmp_path / "unet")
    for name in there.names:
        assert np.array_equal(ours.tensor(name).read(), there.tensor(name).read())
    if dtype == "bfloat16":  # kept unless another is asked for
        assert cv.UNet.from_preset(tmp_path / "unet").dtype == "bfloat16"


def damaged(folder, change):
    """A copy of a folder, whose tensors `change` changed."""
    checkpoint = Checkpoint(folder)
    tensors = {name: checkpoint.tensor(name).read().copy() for name in checkpoint.names}
    change(tensors)
    copy = folder.with_name("damaged")
    shutil.copytree(folder, copy)
    write_checkpoint(copy, tensors, name="diffusion_pytorch_model")
    return copy


NAME = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
DAMAGE = {
    "missing": lambda tensors: tensors.pop(NAME),
    "unexpected": lambda tensors: tensors.update({f"{NAME}.lora": np.ones(3, "float32")}),
    "misshaped": lambda tensors: tensors.update({NAME: np.ones((3, 3), "float32")}),
}


@ON_TORCH
@pytest.mark.parametrize("problem", DAMAGE)
def test_damaged_files(problem, tmp_path):
    unet("sd1").save_pretrained(tmp_path / "unet")
    folder = damaged(tmp_path / "unet", DAMAGE[problem])
    with pytest.raises(WeightsError, match=rf"1 problem:\n  {problem} +{NAME}"):
        cv.UNet.from_preset(folder)


HOSTILE = [
    (dict(block_out_channels=[16] * 1_000_000), "block_out_channels has 1,000,000 numbers"),
    (dict(layers_per_block=1_000_000), "layers_per_block is 1000000; at most 100"),
    (dict(transformer_layers_per_block=[1, 10**9]), "at most 100"),
    (dict(transformer_layers_per_block=[[1], [2]]), r"positive integers, got \[1\]"),
    (dict(attention_head_dim=-8), "attention_head_dim must be positive integers, got -8"),
    (dict(attention_head_dim=[4, 4, 4]), "attention_head_dim has 3 entries for 2 blocks"),
    (dict(attention_head_dim=64), "64 heads cannot share 16 channels"),
    (dict(norm_num_groups=5), "16 channels do not divide into 5 groups"),
    (dict(down_block_types=["DownBlock2D", "K"]), "down_block_types must be .*, got 'K'"),
    (dict(mid_block_type="UNetMidBlock2D"), "mid_block_type must be"),
    (dict(class_embed_type="timestep"), "class_embed_type 'timestep'"),
    (dict(addition_embed_type="image"), "addition_embed_type must be"),
    (dict(act_fn="mish"), "act_fn 'mish'"),
    (dict(addition_embed_type="text_time"), "there must be .*addition_time_embed_dim"),
]  # fmt: skip


@ON_TORCH
@pytest.mark.parametrize("change, message", HOSTILE, ids=lambda x: next(iter(x)) if x else x)
def test_hostile_configurations(change, message, tmp_path):
    theirs = diffusers.UNet2DConditionModel(**SIZES)
    config = {**json.loads(theirs.to_json_string()), **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        cv.UNet.from_preset(tmp_path, load_weights=False)


@ON_TORCH
def test_hostile_autoencoders_and_encoders(tmp_path):
    for theirs, cls, change, message in (
        (autoencoder("three"), cv.Autoencoder, {"layers_per_block": 10**6}, "at most 100 is sane"),
        (autoencoder("three"), cv.Autoencoder, {"block_out_channels": [8, -1]}, "integers, got -1"),
        (autoencoder("three"), cv.Autoencoder, {"latents_mean": [0.5]}, "latents_mean"),
        (text_encoder("sd1"), cv.CLIPTextEncoder, {"num_hidden_layers": 10**6}, "num_layers is"),
        (text_encoder("sd1"), cv.CLIPTextEncoder, {"num_attention_heads": 3}, "multiple of num_h"),
        (text_encoder("sd1"), cv.CLIPTextEncoder, {"hidden_act": "mish"}, "activation must be"),
    ):
        theirs.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text()) | change
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            cls.from_preset(tmp_path, load_weights=False)


@ON_TORCH
def test_inputs_that_do_not_fit():
    model = cv.UNet(block_out_channels=(8, 8), down_block_types=DOWN, up_block_types=UP,
                    norm_num_groups=2, attention_head_dim=2)  # fmt: skip
    with pytest.raises(TypeError, match="takes a dict of latents, timesteps, context, got one of"):
        model({"latents": normal(1, 4, 4, 4), "timesteps": np.array([1])})
    given = inputs(SimpleNamespace(in_channels=4, addition_embed_type=None), (4, 4))
    given["context"] = normal(2, 5, 1280)
    with pytest.raises(ValueError, match="Got 2 residuals; the UNet has 7"):
        model({**given, "residuals": [0.0, 0.0]})
