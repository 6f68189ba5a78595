"""Images from words: Stable Diffusion 1, 2 and XL, with the parts that a diffusers folder has.

Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023 (XL), arXiv:2307.01952; Zhang et al. 2023
(ControlNet), arXiv:2302.05543.
"""

from pathlib import Path

import numpy as np

import khub
from khub import losses, models, ops, optimizers
from khub.backend import active
from khub.layers.layer import CallContext
from khub.random import next_initial_seed

from ..nlp.tokenizers import Tokenizer
from ..presets import Family, Pipeline, info, register
from ..presets.download import DownloadError
from . import single_file
from .adapters import Adapters
from .diffusion_inputs import (
    TrainingData,
    draws,
    objects,
    pictures,
    prepared,
    prepared_mask,
    rows,
    seeds,
    token_ids,
)
from .diffusion_loop import Loop
from .schedulers import Scheduler

DEFAULT, EMBEDDED = "stable_diffusion_1.5", "stable_diffusion_digits_micro"
CLASSES = {  # (two text encoders, a ControlNet) -> what diffusers calls the pipeline
    (False, False): "StableDiffusionPipeline",
    (False, True): "StableDiffusionControlNetPipeline",
    (True, False): "StableDiffusionXLPipeline",
    (True, True): "StableDiffusionXLControlNetPipeline",
}
OTHER_CLASSES = (  # they have the same parts
    *("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    *("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    *("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
)


class StableDiffusion(Adapters, Pipeline, models.Model):
    """Draws images of what a text says.

    img_height, img_width: in pixels, None: as the model was trained
    preset: what is opened, and downloaded where it has to be, when it is first needed
    parts: in place of a preset: unet, vae, text_encoder, tokenizer, scheduler, for XL
    text_encoder_2 and tokenizer_2, one or several `ControlNet`s as controlnet; index: what
    model_index.json says besides
    decode_tile: side in latents of the parts that an image is decoded in, None: as a whole
    decode_one_by_one: decode one image after the other; both save memory
    accept_license: needed for a preset whose licence restricts its use, as most of these do
    """

    folders = {
        **dict.fromkeys(("text_encoder", "text_encoder_2", "unet", "vae", "controlnet")),
        **dict.fromkeys(("tokenizer", "tokenizer_2"), Tokenizer.load),
        "scheduler": Scheduler.load,
    }
    required = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")

    def __init__(
        self,
        img_height=512,
        img_width=512,
        preset=DEFAULT,
        index=None,
        decode_tile=None,
        decode_one_by_one=False,
        accept_license=False,
        name=None,
        **parts,
    ):
        super().__init__(name=name)
        if unknown := parts.keys() - self.folders.keys():
            raise TypeError(
                f"StableDiffusion has no part {', '.join(sorted(unknown))}; it has "
                f"{', '.join(self.folders)}."
            )
        self.img_height, self.img_width, self.preset = img_height, img_width, preset
        self.index, self.accept_license = index, accept_license
        self.decode_tile, self.decode_one_by_one = decode_tile, decode_one_by_one
        self.preprocessor = TrainingData(self)
        self.__dict__.update(dict.fromkeys(self.folders))
        self.compile()
        if parts:
            self._adopt(parts)

    # --- parts -----------------------------------------------------------------------------------
    @classmethod
    def from_preset(cls, handle, *args, img_height=None, img_width=None, **options):
        """As `Pipeline.from_preset`; handle: also a .safetensors or .ckpt file with all models.

        img_height, img_width: in pixels, None: as the model was trained
        """
        size = dict(img_height=img_height, img_width=img_width)
        if str(handle).endswith(single_file.SUFFIXES) and Path(handle).expanduser().is_file():
            parts = single_file.read(Path(handle).expanduser(), *args, **options)
            return cls(**size, **parts)
        return super().from_preset(handle, *args, **size, **options)

    def open(self):
        """Read the preset that the constructor was given the name of, if that was not done yet."""
        if self.unet is not None:
            return self
        try:
            opened = type(self).from_preset(self.preset, accept_license=self.accept_license)
        except DownloadError as error:
            what = info(self.preset)
            raise DownloadError(
                f"{type(self).__name__}() opens the preset {self.preset!r} ({what.source}, "
                f"{what.bytes / 1e9:.1f} GB, licence {what.licence}), which is not on this "
                f"machine: {error} Without a network there is {type(self).__name__}.from_preset("
                f"{EMBEDDED!r}), which ships with khub and draws handwritten digits."
            ) from error
        self.index = opened.index
        self._adopt({name: getattr(opened, name) for name in self.folders})
        return self

    def _adopt(self, parts):
        if missing := [name for name in self.required if parts.get(name) is None]:
            raise ValueError(f"StableDiffusion needs {', '.join(missing)} too.")
        self.__dict__.update(parts)
        self.is_xl = self.text_encoder_2 is not None
        controls = self.controlnet or ()
        self._controls = tuple(controls if isinstance(controls, (list, tuple)) else [controls])
        if self.index is None:
            self.index = {"_class_name": CLASSES[self.is_xl, bool(self._controls)]}
            self.index |= {} if self.is_xl else {"requires_safety_checker": False}
        sizes = self.unet.sample_size or 64
        sizes = sizes if isinstance(sizes, (list, tuple)) else (sizes, sizes)
        self.img_height = self.img_height or sizes[0] * self.vae.stride
        self.img_width = self.img_width or sizes[1] * self.vae.stride
        for frozen in (self.text_encoder, self.text_encoder_2, self.vae, *self._controls):
            if frozen is not None:
                frozen.trainable = False
        self.build(None)
        self.forget_functions()

    def forget_functions(self):
        """Make all that was compiled anew at its next call: layers have changed."""
        super().forget_functions()
        self.__dict__["_functions"] = None

    @property
    def _compiled_parts(self):
        """Name -> compiled function."""
        if self._functions is None:
            encoders = [e for e in (self.text_encoder, self.text_encoder_2) if e is not None]
            options = {} if self.decode_tile is None else {"tile": self.decode_tile}
            self.__dict__["_functions"] = {
                "loop": Loop(self.unet, self._controls),
                "texts": [khub.jit(encoder) for encoder in encoders],
                "encode": khub.jit(self.vae.encode),
                "decode": khub.jit(lambda x: self.vae.decode(x, **options)),
            }
        return self._functions

    # --- texts -----------------------------------------------------------------------------------
    def encode_text(self, prompt):
        """Return {"context": (texts, tokens, width)} of a text or several, for XL "pooled" too.

        NumPy arrays, which may stand in place of a prompt. A text that is too long is cut off, with
        a warning.
        """
        self.open()
        texts = [self.expanded(text) for text in ([prompt] if isinstance(prompt, str) else prompt)]
        tokenizers = self.tokenizer, self.tokenizer_2 or self.tokenizer
        encoders, found = (self.text_encoder, self.text_encoder_2), []
        with active.inference(), CallContext(training=False):
            for run, tokenizer, encoder in zip(self._compiled_parts["texts"], tokenizers, encoders):
                ids = token_ids(tokenizer, texts, encoder.max_sequence_length)
                part = run(ops.convert_to_tensor(ids))
                found.append({name: ops.convert_to_numpy(x) for name, x in part.items()})
        if not self.is_xl:
            return {"context": found[0]["sequence_output"]}
        context = np.concatenate([part["penultimate_output"] for part in found], -1)
        return {"context": context, "pooled": found[1]["pooled_output"]}

    def _negative(self, prompt, positive):
        """The encoded negative prompt."""
        if isinstance(prompt, dict):
            return prompt
        if prompt is None and self.is_xl and self.index.get("force_zeros_for_empty_prompt", True):
            return {name: np.zeros_like(x) for name, x in positive.items()}
        return self.encode_text("" if prompt is None else prompt)

    def conditions(self, texts, size, scale=1.0):
        """What the UNet takes beside latents and times, for encoded texts and a size in pixels."""
        count, found = len(texts["context"]), dict(texts)
        if self.is_xl:
            found["sizes"] = np.repeat(np.array([[*size, 0, 0, *size]], "float32"), count, 0)
        if self.unet.time_cond_proj_dim is not None:
            found["guidance"] = np.full(count, scale - 1, "float32")
        return found

    # --- images and latents ----------------------------------------------------------------------
    def encode_images(self, images, noise=None):
        """Latents of prepared images, as the UNet has them, NumPy arrays.

        images: float32 (n, height, width, 3) of -1..1   noise: of the latents' shape, to draw them
        from their distribution; None: its mean
        """
        with active.inference(), CallContext(training=False):
            encode = self.open()._compiled_parts["encode"]
            mean, log_variance = encode(ops.convert_to_tensor(images))
            mean = np.asarray(ops.convert_to_numpy(mean), "float32")
            if noise is not None and log_variance is not None:
                log_variance = np.asarray(ops.convert_to_numpy(log_variance), "float32")
                mean = mean + np.exp(log_variance / 2) * noise
        return (mean - (self.vae.shift_factor or 0)) * self.vae.scaling_factor

    def decode_latents(self, latents):
        """Images of latents, uint8 (n, height, width, 3).

        Raises FloatingPointError where the result is no number.
        """
        decode, vae = self.open()._compiled_parts["decode"], self.vae
        latents = np.asarray(latents, "float32") / vae.scaling_factor + (vae.shift_factor or 0)
        parts = [latents[i : i + 1] for i in range(len(latents))]
        with active.inference(), CallContext(training=False):
            parts = parts if self.decode_one_by_one else [latents]
            found = [ops.convert_to_numpy(decode(ops.convert_to_tensor(part))) for part in parts]
        images = np.concatenate(found).astype("float32")
        if not np.isfinite(images).all():
            where = "latents" if not np.isfinite(latents).all() else "decoded image"
            raise FloatingPointError(
                f"The {where} are no numbers (NaN or infinite) in {self.vae.compute_dtype}. "
                "float16 overflows in some models: use dtype='bfloat16' or 'float32'."
            )
        return np.round((images / 2 + 0.5).clip(0, 1) * 255).astype("uint8")

    # --- drawing ---------------------------------------------------------------------------------
    def text_to_image(
        self,
        prompt,
        negative_prompt=None,
        batch_size=1,
        num_steps=50,
        unconditional_guidance_scale=7.5,
        seed=None,
        scheduler=None,
        latents=None,
        **options,
    ):
        """Return images of a text or several, uint8 (n, img_height, img_width, 3).

        prompt: a text, a list of them, or what `encode_text` gives; batch_size: images for each
        negative_prompt: what images shall not show   num_steps: of the sampler
        unconditional_guidance_scale: how much the prompt counts; at 1 the negative one does not
        seed: of the first image, the next has seed + 1; or a list of one for each. An image depends
        on its own seed alone, and begins with the same noise on every backend
        scheduler: one of `schedulers.NAMES`, or a `Scheduler`; None: the preset's
        latents: float (n, height / 8, width / 8, channels), in place of the first noise
        options: guidance_rescale (0 to 1: takes contrast back, arXiv:2305.08891), eta (0 to 1:
        DDIM's noise), control_image and control_scale (of a ControlNet, or lists of both),
        callback(step, latents), verbose
        Raises FloatingPointError when the result is no number.
        """
        options |= dict(seed=seed, scheduler=scheduler, latents=latents, batch_size=batch_size)
        return self._draw(
            prompt, negative_prompt, num_steps, unconditional_guidance_scale, **options
        )

    def image_to_image(self, image, prompt, strength=0.8, **options):
        """Return images that an image, or several, become on the way to a text.

        image: path, PIL image or array of 0..255, or a list; sides are cut to multiples of 8
        strength: how much of it is lost, 0 to 1   options: as `text_to_image` has them
        """
        return self._draw(prompt, image=image, strength=strength, **options)

    def inpaint(self, image, mask, prompt, strength=1.0, **options):
        """Return images that are drawn anew where a mask is white.

        image: as in `image_to_image`   mask: the same, of the same size, or bool (height, width)
        """
        return self._draw(prompt, image=image, mask=mask, strength=strength, **options)

    def _draw(
        self,
        prompt,
        negative_prompt=None,
        num_steps=50,
        unconditional_guidance_scale=7.5,
        *,
        batch_size=1,
        seed=None,
        scheduler=None,
        latents=None,
        image=None,
        mask=None,
        strength=1.0,
        guidance_rescale=0.0,
        eta=0.0,
        control_image=None,
        control_scale=1.0,
        callback=None,
        verbose="auto",
    ):
        self.open()
        scale = float(unconditional_guidance_scale)
        plan = self.scheduler.like(scheduler or self.scheduler).plan(num_steps, strength, eta)
        distilled, stride = self.unet.time_cond_proj_dim is not None, self.vae.stride
        guided = scale > 1 and not distilled
        images = [] if image is None else pictures(image)
        size = before = images[0].size[::-1] if images else (self.img_height, self.img_width)
        size = tuple(n - n % stride for n in size) if images else size
        if not all(n >= stride and n % stride == 0 for n in size):
            raise ValueError(f"Height and width must be multiples of {stride}, got {size}.")
        texts = prompt if isinstance(prompt, dict) else self.encode_text(prompt)
        count = max(len(texts["context"]), len(images)) * batch_size
        shape = (count, *(n // stride for n in size), self.vae.latent_channels)
        if latents is not None and np.shape(latents) != shape:
            raise ValueError(f"latents must have the shape {shape}, got {np.shape(latents)}.")
        noise = draws(seeds(seed, count), shape[1:], len(plan) if plan.needs_noise else 0)
        first = noise[0] if latents is None else np.asarray(latents, "float32")

        texts = [texts, self._negative(negative_prompt, texts)] if guided else [texts]
        inputs = {
            name: np.concatenate([rows(part[name], count, "prompts") for part in texts[::-1]])
            for name in texts[0]
        }
        inputs = self.conditions(inputs, size, scale)
        given = {"inputs": inputs, "guided": guided, "scale": scale}
        given["rescale"] = guidance_rescale or None
        twice = 1 + guided
        given["control"] = self._control(control_image, control_scale, size, count, twice)

        known = None
        if images:
            images = prepared(images, size)
            known = rows(self.encode_images(images), count, "images")
        x = first * np.float32(plan.start)
        if known is not None and (mask is None or strength < 1):
            x = known * plan.rows["signal"][0] + first * plan.rows["std"][0]
        fills_in = self.unet.in_channels != self.vae.latent_channels
        if fills_in and mask is None:
            raise ValueError(
                "This UNet fills parts of images in: call inpaint(image, mask, prompt)."
            )
        if mask is not None:
            mask = prepared_mask(mask, before, size)
            small = rows(mask[:, ::stride, ::stride], count, "masks")
            given |= {} if fills_in else {"mask": small, "known": known, "noise": first}
        if fills_in:
            left = rows(self.encode_images(images * (1 - mask)), count, "images")
            given["extra"] = [np.concatenate([part] * twice) for part in (small, left)]

        bar = self._callbacks(None, verbose, steps=len(plan))
        bar.call("on_predict_begin", {})

        def watch(number, x):
            bar.call("on_predict_batch_end", number, {})
            if callback is not None:
                callback(number, x)

        seen = watch if active.EAGER or callback is not None else None
        x = self._compiled_parts["loop"].run(
            x, plan, noise[1:] if len(noise) > 1 else None, given, seen
        )
        if seen is None:
            bar.call("on_predict_batch_end", len(plan) - 1, {})
        bar.call("on_predict_end", {})
        return self.decode_latents(ops.convert_to_numpy(x))

    def _control(self, images, scales, size, count, twice):
        """[(image, scale), ...] for the ControlNets."""
        several = isinstance(self.controlnet, (list, tuple))
        images = list(images or ()) if several else [] if images is None else [images]
        scales = list(scales) if isinstance(scales, (list, tuple)) else [scales] * len(images)
        if len(images) != len(self._controls) or len(scales) != len(images):
            raise ValueError(
                f"There are {len(self._controls)} ControlNets, {len(images)} control_image and "
                f"{len(scales)} control_scale."
            )
        images = [prepared(pictures(image), size) / 2 + 0.5 for image in images]
        images = [rows(image, count, "control images") for image in images]
        return [(np.concatenate([i] * twice), float(s)) for i, s in zip(images, scales)]

    # --- training --------------------------------------------------------------------------------
    def call(self, inputs, training=None):
        return self.unet(inputs, training=training)

    def compile(self, optimizer="auto", loss="auto", **options):
        """As `Model.compile`; "auto" is AdamW at 1e-5, and the mean squared error."""
        optimizer = optimizers.AdamW(1e-5, weight_decay=0.01) if optimizer == "auto" else optimizer
        loss = losses.MeanSquaredError() if loss == "auto" else loss
        super().compile(optimizer=optimizer, loss=loss, **options)

    def fit(self, x, y=None, *args, validation_data=None, **kwargs):
        """Train the UNet on images x and their captions y; arguments as those of `Model.fit`.

        x: paths, PIL images or arrays of 0..255, of which the middle is taken   y: list[str]
        Noise and times follow `khub.utils.set_random_seed`.
        """
        self.open()
        self.preprocessor.restart(next_initial_seed())
        if isinstance(validation_data, tuple):
            validation_data = tuple(map(objects, validation_data[:2])) + validation_data[2:]
        options = dict(validation_data=validation_data, **kwargs)
        return super().fit(objects(x), objects(y), *args, **options)

    def evaluate(self, x, y=None, *args, **kwargs):
        """As `Model.evaluate`, of images x and captions y, always with the same noise."""
        self.open()
        with self.preprocessor.fixed():
            return super().evaluate(objects(x), objects(y), *args, **kwargs)


register(
    Family(
        "stable_diffusion",
        (*CLASSES.values(), *OTHER_CLASSES),
        StableDiffusion,
        tasks={"TextToImage": StableDiffusion},
    )
)
