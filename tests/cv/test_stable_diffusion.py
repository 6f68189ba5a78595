"""StableDiffusion with tiny random models: seeds, training, memory, bad input."""

import hashlib

import numpy as np
import pytest

import khub
from khub import cv, ops
from khub.cv.diffusion_inputs import draws
from khub.nlp import CLIPTokenizer
from khub.nlp.byte_pair import byte_characters
from khub.presets.download import DownloadError

SIDE = 8  # pixels, of 4 latents
QUIET = dict(num_steps=3, verbose=0)
LEARNS = pytest.mark.skipif(khub.backend.name == "numpy", reason="NumPy has no gradients")


def tiny(**parts):
    """A pipeline of networks of one block each."""
    khub.utils.set_random_seed(0)
    characters = byte_characters()
    words = [*characters, *(f"{c}</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({word: i for i, word in enumerate(words)}, [])
    sizes = dict(max_sequence_length=12, end_token_id=len(words) - 1)
    made = dict(
        text_encoder=cv.CLIPTextEncoder(len(words), 1, 2, 8, 16, **sizes),
        tokenizer=tokenizer,
        unet=cv.UNet(
            block_out_channels=(16,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            layers_per_block=1,
            cross_attention_dim=8,
            attention_head_dim=2,
            norm_num_groups=4,
        ),
        vae=cv.Autoencoder(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
        ),
        scheduler=cv.Scheduler("ddim", clip_sample=False),
    )
    return cv.StableDiffusion(SIDE, SIDE, **{**made, **parts})


@pytest.fixture(scope="module")
def model():
    return tiny()


def close(found, want):
    """Whether images are the same but for rounding: batches are computed in another order."""
    assert found.shape == want.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - want.astype(int)).max() <= 1


@pytest.mark.parametrize("scheduler", ["ddim", pytest.param("euler_a", marks=pytest.mark.slow)])
def test_an_image_depends_on_its_own_seed_alone(model, scheduler):
    options = dict(scheduler=scheduler, **QUIET)
    both = model.text_to_image(["a", "b"], seed=[7, 3], **options)
    assert np.abs(both[0].astype(int) - both[1]).max() > 20
    close(model.text_to_image(["b", "a"], seed=[3, 7], **options)[::-1], both)
    close(model.text_to_image("a", batch_size=2, seed=7, **options)[:1], both[:1])


@pytest.mark.once
def test_noise_is_that_of_the_seeds():
    noise = draws([3, 2**63], (4, 4, 4), 2)
    assert noise.dtype == np.float32 and noise.shape == (3, 2, 4, 4, 4)
    digest = hashlib.sha256(np.ascontiguousarray(noise).tobytes()).hexdigest()
    assert digest.startswith(NOISE)
    assert np.array_equal(draws([2**63], (4, 4, 4), 0)[0, 0], noise[0, 1])


NOISE = "0ad58c47e64eaed8"  # the beginning of its SHA-256


def test_watched_steps_are_those_of_the_loop(model):
    seen = []
    options = dict(seed=1, scheduler="ddim", num_steps=3)
    watched = model.text_to_image(
        "a", callback=lambda i, x: seen.append((i, x.shape)), verbose=0, **options
    )
    assert seen == [(i, (1, 4, 4, 4)) for i in range(3)]
    close(model.text_to_image("a", verbose=0, **options), watched)


def test_a_progress_bar(model, capsys):
    model.text_to_image("a", num_steps=3, verbose=1)
    assert "Prediction: 3 steps" in capsys.readouterr().out


def test_encoded_prompts(model):
    options = dict(seed=1, **QUIET)
    encoded = model.encode_text(["a", "b"])
    assert encoded["context"].shape == (2, 12, 8)
    want = model.text_to_image(["a", "b"], "c", **options)
    assert np.array_equal(model.text_to_image(encoded, model.encode_text("c"), **options), want)
    with pytest.warns(
        UserWarning, match="has 41 tokens, the text encoder reads 12; .* cut off: 'k"
    ):
        long = model.encode_text("abcdefghijklmnopqrstuvwxyz 0123456789 ...")
    assert long["context"].shape == (1, 12, 8)


@pytest.mark.once
def test_guidance(model):
    def drawn(**options):
        return model.text_to_image("a", seed=1, **QUIET, **options).astype(int)

    assert np.array_equal(
        drawn(unconditional_guidance_scale=1.0), drawn(unconditional_guidance_scale=0.5)
    )
    far = drawn(unconditional_guidance_scale=30.0)
    assert np.abs(far - drawn(unconditional_guidance_scale=1.0)).max() > 1
    assert np.abs(far - drawn(unconditional_guidance_scale=30.0, guidance_rescale=1.0)).max() > 1
    assert np.abs(far - drawn(unconditional_guidance_scale=30.0, negative_prompt="b")).max() > 0


@pytest.mark.once
def test_memory_and_dtypes(model):
    options = dict(seed=1, batch_size=2, **QUIET)
    want = model.text_to_image("a", **options)
    model.decode_one_by_one = True
    close(model.text_to_image("a", **options), want)
    model.decode_one_by_one = False
    model.vae.decode(ops.zeros((1, 8, 8, 4)), tile=4)


@pytest.mark.slow
def test_half_precision(model, tmp_path):
    model.save_to_preset(tmp_path / "saved", dtype="bfloat16")
    half = cv.StableDiffusion.from_preset(tmp_path / "saved", img_height=SIDE, img_width=SIDE)
    assert half.unet.compute_dtype == half.vae.compute_dtype == "bfloat16"
    found = half.text_to_image("a", seed=1, **QUIET).astype(int)
    assert np.abs(found - model.text_to_image("a", seed=1, **QUIET)).mean() < 12


def image(seed=0, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype="uint8")


def fitted(epochs):
    model, images = tiny(), [image(0), image(1), image(2, 11)]
    model.compile(optimizer=khub.optimizers.Adam(0.01))
    khub.utils.set_random_seed(4)
    captions = ["one", "two", "three"]
    options = dict(batch_size=3, verbose=0)
    history = model.fit(images, captions, epochs=epochs, **options).history["loss"]
    return model, history, lambda: model.evaluate(images, captions, **options)


@LEARNS
def test_fit():
    frozen = tiny()
    model, losses, _ = fitted(12)
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    for part in ("vae", "text_encoder"):
        pairs = zip(getattr(frozen, part).get_weights(), getattr(model, part).get_weights())
        assert all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.slow
@LEARNS
def test_training_is_reproducible():
    (_, first, evaluate), (_, second, _) = fitted(2), fitted(2)
    assert np.allclose(first, second, rtol=1e-4) and first[0] != first[1]
    assert evaluate() == evaluate()


@pytest.mark.parametrize(
    "change, error, text",
    [
        (dict(num_steps=0), ValueError, "num_steps must be 1 to 1000, got 0"),
        (dict(num_steps=1001), ValueError, "num_steps must be 1 to 1000"),
        (dict(num_steps=True), ValueError, "num_steps must be 1 to 1000"),
        (dict(seed=-1), ValueError, "seed must be an integer from 0"),
        (dict(seed=[1, 2]), ValueError, "seed has 2 entries for 1 images"),
        (dict(seed=1.5), ValueError, "seed must be an integer"),
        (dict(scheduler="heun"), ValueError, "scheduler must be .*ddim.*pndm.*heun"),
        (
            dict(latents=np.zeros((1, 4, 4, 3))),
            ValueError,
            r"shape \(1, 4, 4, 4\), got \(1, 4, 4, 3",
        ),
        (
            dict(negative_prompt=["a", "b"]),
            ValueError,
            "2 prompts cannot be shared out to 1 images",
        ),
        (dict(control_image=image()), ValueError, "0 ControlNets, 1 control_image"),
        (dict(prompt=[]), TypeError, "a text or a list of some, got .."),
        (dict(prompt=[], batch_size=0), TypeError, "a text or a list of some"),
        (dict(prompt=3), TypeError, "a text or a list of some, got 3"),
        (dict(prompt=["a", None]), TypeError, "item 1 is NoneType"),
        (dict(step=3), TypeError, "unexpected keyword argument .step"),
    ],
)
def test_what_text_to_image_refuses(model, change, error, text):
    with pytest.raises(error, match=text):
        model.text_to_image(**{"prompt": "a", **QUIET, **change})


def test_what_is_no_size(model):
    model.img_height = 9
    try:
        with pytest.raises(ValueError, match=r"multiples of 2, got \(9, 8\)"):
            model.text_to_image("a", **QUIET)
    finally:
        model.img_height = SIDE


@pytest.mark.parametrize(
    "picture, mask, text",
    [
        (np.zeros((8, 8), "float32") + 0.5, None, "numbers of 0 to 255, got 0.5 to 0.5"),
        (np.full((8, 8, 3), np.nan, "float32"), None, "numbers of 0 to 255"),
        (np.zeros((8, 8, 2), "uint8"), None, "array .height, width, 3. of numbers"),
        (image(side=1), None, r"multiples of 2, got \(0, 0\)"),
        (
            image(),
            np.zeros((4, 8), bool),
            r"mask has height and width \(4, 8\), the image \(8, 8\)",
        ),
        ([], None, "no image"),
    ],
)
def test_images_and_masks_that_are_refused(model, picture, mask, text):
    with pytest.raises(ValueError, match=text):
        if mask is None:
            model.image_to_image(picture, "a", **QUIET)
        else:
            model.inpaint(picture, mask, "a", **QUIET)
    with pytest.raises(ValueError, match="strength must lie between 0 and 1 and leave a step"):
        model.image_to_image(image(), "a", strength=0.2, **QUIET)


@pytest.mark.once
def test_images_of_another_size_and_kept_parts(model):
    picture = image(side=11)
    assert model.image_to_image(picture, "a", strength=0.7, seed=1, **QUIET).shape == (1, 10, 10, 3)
    several = model.image_to_image([image(1), image(2)], "a", seed=[1, 2], **QUIET)
    close(model.image_to_image(image(2), "a", seed=2, **QUIET), several[1:])
    nothing = model.inpaint(image(), np.zeros((SIDE, SIDE)), "a", seed=1, **QUIET)
    latents = model.encode_images(image()[None] / np.float32(127.5) - 1)
    close(nothing, model.decode_latents(latents))


def test_what_is_no_number_is_an_error(model):
    with pytest.raises(FloatingPointError, match="images are no numbers .* dtype='bfloat16'"):
        model.text_to_image("a", latents=np.full((1, 4, 4, 4), np.nan, "float32"), **QUIET)


@pytest.mark.once
def test_the_default_says_what_it_would_download(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = cv.StableDiffusion(img_width=512, img_height=512)
    text = "opens the preset 'stable_diffusion_1.5' .hf://.*4.3 GB.*stable_diffusion_digits_micro"
    with pytest.raises(DownloadError, match=text):
        model.text_to_image("photograph of an astronaut riding a horse", batch_size=3)
    with pytest.raises(TypeError, match="has no part vea; it has"):
        cv.StableDiffusion(vea=None)
    with pytest.raises(ValueError, match="needs text_encoder, tokenizer, vae, scheduler too"):
        cv.StableDiffusion(unet=object())


@pytest.mark.once
@pytest.mark.parametrize(
    "kind, change, text",
    [
        ("ddim", {"beta_schedule": "sigmoid"}, "beta_schedule"),
        ("pndm", {"timestep_spacing": "leaping"}, "timestep_spacing"),
        ("PNDMScheduler", {}, "skip_prk_steps"),
        ("ddim", {"thresholding": True}, "thresholding True .expected False"),
        ("dpm++", {"solver_order": 4}, "solver_order"),
        ("ddim", {"num_train_timesteps": 10**9}, "num_train_timesteps must be 1 to 10000"),
        ("ddim", {"trained_betas": [0.1, 0.2]}, "trained_betas has 2 numbers for 1000"),
        ("ddim", {"rescale_betas_zero_snr": True}, "other than epsilon"),
    ],
)
def test_schedulers_refuse(kind, change, text):
    with pytest.raises(ValueError, match=text):
        cv.Scheduler(kind, **change)
