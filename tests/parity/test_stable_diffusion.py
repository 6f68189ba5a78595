"""StableDiffusion against diffusers: the same images from the same latents, both ways."""

import numpy as np
import pytest
from parity.diffusion_pipelines import (
    NEGATIVE,
    PROMPTS,
    SIDE,
    close,
    diffusers,
    fixed,
    latents,
    made_once,
    ours,
    reopened,
    spread,
    theirs,
    torch,
)
from PIL import Image

from khub import cv


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_once(tmp_path_factory.mktemp("made"))


SLOW = pytest.mark.slow


@pytest.mark.parametrize("kind", ["1", pytest.param("2", marks=SLOW), "xl"])
def test_text_to_image(made, kind):
    _, pipeline, model = made(kind)
    assert (model.img_height, model.img_width) == (SIDE, SIDE)
    want = theirs(pipeline, PROMPTS, negative_prompt=NEGATIVE, guidance_scale=5.0)
    close(ours(model, unconditional_guidance_scale=5.0), want)


@SLOW
def test_without_guidance_and_a_negative_prompt(made):
    _, pipeline, model = made("1")
    close(
        ours(model, negative=None, unconditional_guidance_scale=1.0),
        theirs(pipeline, PROMPTS, guidance_scale=1.0),
    )
    _, pipeline, model = made("xl")
    close(ours(model, negative=None), theirs(pipeline, PROMPTS, guidance_scale=7.5))


@SLOW
def test_guidance_that_is_scaled_back(made):
    _, pipeline, model = made("2")
    want = theirs(pipeline, PROMPTS, negative_prompt=NEGATIVE, guidance_rescale=0.7)
    found = ours(model, guidance_rescale=0.7)
    close(found, want)
    assert np.abs(found.astype(int) - ours(model).astype(int)).max() > 5


@SLOW
def test_with_a_tiny_autoencoder(made, tmp_path):
    folder, _, _ = made("1")
    sizes = dict(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8))
    tiny = diffusers.AutoencoderTiny(**sizes, num_encoder_blocks=(1, 2), num_decoder_blocks=(2, 1))
    pipeline = reopened(folder, "StableDiffusionPipeline", vae=spread(tiny))
    pipeline.save_pretrained(tmp_path / "tiny")
    want = theirs(pipeline, PROMPTS, negative_prompt=NEGATIVE)
    close(ours(cv.StableDiffusion.from_preset(tmp_path / "tiny")), want)


def test_a_saved_pipeline_is_diffusers(made, tmp_path):
    _, pipeline, model = made("1")
    model.save_to_preset(tmp_path / "saved")
    again = reopened(tmp_path / "saved", "StableDiffusionPipeline")
    want = theirs(pipeline, PROMPTS, negative_prompt=NEGATIVE)
    close(theirs(again, PROMPTS, negative_prompt=NEGATIVE), want)
    for part in ("unet", "vae", "text_encoder"):
        before = getattr(pipeline, part).state_dict()
        after = getattr(again, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[n], after[n]) for n in before)


def photograph(seed=1):
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (4, 4, 3), dtype="uint8")
    return Image.fromarray(small).resize((SIDE, SIDE), Image.BICUBIC)


@SLOW
def test_image_to_image(made, monkeypatch):
    folder, _, model = made("1")
    pipeline = reopened(folder, "StableDiffusionImg2ImgPipeline")
    with fixed(monkeypatch, pipeline):
        options = dict(image=photograph(), strength=0.6, num_inference_steps=10)
        want = pipeline(PROMPTS, negative_prompt=NEGATIVE, output_type="np", **options).images
    options = dict(strength=0.6, num_steps=10, latents=latents(), verbose=0)
    found = model.image_to_image(photograph(), PROMPTS, negative_prompt=NEGATIVE, **options)
    close(found, np.round(want * 255).astype("uint8"))


@pytest.mark.parametrize(
    "kind, strength",
    [("1", 1.0), *(pytest.param(*case, marks=SLOW) for case in [("1", 0.7), ("9", 1.0)])],
)
def test_inpaint(made, monkeypatch, kind, strength):
    folder, _, model = made(kind)
    pipeline = reopened(folder, "StableDiffusionInpaintPipeline")
    mask = np.zeros((SIDE, SIDE), bool)
    mask[4:13, 2:9] = True
    with fixed(monkeypatch, pipeline):
        options = dict(image=photograph(), mask_image=Image.fromarray(mask), strength=strength)
        want = theirs(pipeline, PROMPTS, negative_prompt=NEGATIVE, latents=None, **options)
    options = dict(strength=strength, num_steps=10, latents=latents(), verbose=0)
    found = model.inpaint(photograph(), mask, PROMPTS, negative_prompt=NEGATIVE, **options)
    close(found, want)


# --- ControlNet -----------------------------------------------------------------------------------
def control(model, pipeline, seed, folder):
    """A ControlNet of diffusers that does something, and khub's of its folder."""
    torch.manual_seed(seed)
    sizes = dict(conditioning_embedding_out_channels=(8, 16))
    net = diffusers.ControlNetModel.from_unet(pipeline.unet, **sizes)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "controlnet_" in name and weight.ndim > 1:
                weight.normal_(std=0.3)
    net.save_pretrained(folder)
    return net, cv.ControlNet.from_preset(folder)


@SLOW
def test_controlnets(made, tmp_path):
    folder, pipeline, model = made("1")
    nets = [control(model, pipeline, seed, tmp_path / str(seed)) for seed in (1, 2)]
    images, scales = [photograph(3), photograph(4)], [0.8, 0.5]
    several = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        folder, controlnet=[net for net, _ in nets], safety_checker=None
    )
    several.set_progress_bar_config(disable=True)
    options = {"image": images, "controlnet_conditioning_scale": scales}
    want = theirs(several, ["a cat"], **options)
    mine = cv.StableDiffusion.from_preset(folder, controlnet=[net for _, net in nets])
    found = ours(mine, ["a cat"], None, control_image=images, control_scale=scales)
    close(found, want)
    assert np.abs(found.astype(int) - ours(model, ["a cat"], None)).max() > 5
    with pytest.raises(ValueError, match="2 ControlNets, 1 control_image"):
        ours(mine, ["a cat"], None, control_image=images[:1])

    one = cv.StableDiffusion.from_preset(folder, controlnet=nets[0][1], index=None)
    one.save_to_preset(tmp_path / "saved")
    again = reopened(tmp_path / "saved", "StableDiffusionControlNetPipeline")
    want = theirs(again, ["a cat"], image=images[0])
    close(ours(one, ["a cat"], None, control_image=images[0]), want)
