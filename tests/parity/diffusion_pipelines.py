"""Small random pipelines of diffusers, written as folders; what two libraries draw with them."""

import json
from contextlib import contextmanager

import numpy as np
import pytest

from khub import cv
from khub.nlp.byte_pair import byte_characters

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

STABLE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
UNET = dict(
    sample_size=8,
    block_out_channels=(32, 64),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=32,
    attention_head_dim=8,
)
LINEAR = dict(use_linear_projection=True, attention_head_dim=(2, 4))
XL = dict(
    **LINEAR,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=24 + 48,
    transformer_layers_per_block=(1, 2),
)
SIDE = 16  # pixels: of 8 latents
PROMPTS = ["a cat", "DOG and 3 cats, jumping"]
NEGATIVE = ["bad", "dog"]


def tokenizer(folder, pad="<|endoftext|>"):
    """CLIP's, of few words."""
    folder.mkdir(parents=True)
    characters = byte_characters()
    words = [*characters, *(f"{c}</w>" for c in characters), "ca", "cat</w>", "do", "dog</w>"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\nd o\ndo g</w>\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    return transformers.CLIPTokenizer(*files, model_max_length=77, pad_token=pad)


def text_encoder(words, width=32, act="quick_gelu", projects=False):
    config = transformers.CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=max(1, width // 64),
        hidden_act=act,
        projection_dim=24,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )
    stem = "CLIPTextModelWithProjection" if projects else "CLIPTextModel"
    return getattr(transformers, stem)(config)


def spread(model):
    """Let a random network's weights be larger, so that its outputs matter."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embedding" not in name:
                weight.mul_(1.5)
    return model.eval()


def make(kind, folder):
    """Write the pipeline of a kind ("1", "2", "xl", "9": of 9 channels) and return it."""
    torch.manual_seed(0)
    two, xl = kind == "2", kind == "xl"
    words = tokenizer(folder.with_name(f"{folder.name}_words"), "!" if two else "<|endoftext|>")
    changes = {"1": {}, "2": LINEAR, "9": {"in_channels": 9}}
    changes["xl"] = {**XL, "cross_attention_dim": 64}
    parts = dict(
        unet=spread(diffusers.UNet2DConditionModel(**{**UNET, **changes[kind]})),
        vae=spread(
            diffusers.AutoencoderKL(
                block_out_channels=(32, 64),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4,
                sample_size=SIDE,
                scaling_factor=0.13025 if xl else 0.18215,
            )
        ),
        text_encoder=text_encoder(len(words), act="gelu" if two else "quick_gelu"),
        tokenizer=words,
        scheduler=diffusers.PNDMScheduler(
            **STABLE,
            skip_prk_steps=True,
            prediction_type="v_prediction" if two else "epsilon",
        ),
    )
    if xl:
        others = tokenizer(folder.with_name(f"{folder.name}_words_2"), "!")
        second = text_encoder(len(words), act="gelu", projects=True)
        parts |= dict(text_encoder_2=second, tokenizer_2=others)
        made = diffusers.StableDiffusionXLPipeline(**parts)
    else:
        none = dict.fromkeys(("safety_checker", "feature_extractor"))
        made = diffusers.StableDiffusionPipeline(**parts, **none, requires_safety_checker=False)
    made.save_pretrained(folder)
    return reopened(folder)


def reopened(folder, cls="DiffusionPipeline", **options):
    """The pipeline of a folder, as diffusers opens it."""
    found = getattr(diffusers, cls).from_pretrained(folder, safety_checker=None, **options)
    found.set_progress_bar_config(disable=True)
    return found


def latents(count=2):
    return np.random.default_rng(5).standard_normal((count, 8, 8, 4), "float32")


def theirs(pipeline, prompt, **options):
    """uint8 images of diffusers, from given latents unless others are given."""
    given = torch.tensor(latents(len(prompt))).permute(0, 3, 1, 2)
    options = {"latents": given, "num_inference_steps": 10, **options}
    options = {name: value for name, value in options.items() if value is not None}
    images = pipeline(prompt, height=SIDE, width=SIDE, output_type="np", **options).images
    return np.round(images * 255).astype("uint8")


@contextmanager
def fixed(monkeypatch, pipeline):
    """Inside, diffusers draws `latents()` for all noise, and takes the mean of encoded images."""

    def noise(shape, *_, **__):
        return torch.tensor(latents(shape[0])).permute(0, 3, 1, 2)

    kind = "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution.sample"
    with monkeypatch.context() as patch:
        patch.setattr(f"{type(pipeline).__module__}.randn_tensor", noise)
        patch.setattr(kind, lambda self, generator=None: self.mean)
        yield


def close(found, want):
    """Whether images are the same within a level, and not all gray."""
    assert found.dtype == np.uint8 and found.shape == want.shape
    assert want.std() > 5
    assert np.abs(found.astype(int) - want.astype(int)).max() <= 1


def made_once(folder):
    """A function: kind -> (the folder of a pipeline, the pipeline, khub's), each made once."""
    found = {}

    def get(kind):
        if kind not in found:
            pipeline = make(kind, folder / kind)
            found[kind] = folder / kind, pipeline, cv.StableDiffusion.from_preset(folder / kind)
        return found[kind]

    return get


def ours(model, prompt=PROMPTS, negative=NEGATIVE, **options):
    """uint8 images of khub, from given latents."""
    given = {"latents": latents(len(prompt)), "num_steps": 10, "verbose": 0, **options}
    return model.text_to_image(prompt, negative, **given)
