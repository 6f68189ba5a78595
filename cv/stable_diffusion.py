"""Images from words: Stable Diffusion 1, 2 and XL, with the parts that a diffusers folder has.

Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023 (XL), arXiv:2307.01952; Zhang et al. 2023
(ControlNet), arXiv:2302.05543.
"""

from functools import partial
from pathlib import Path

import numpy as np

import khub
from khub import losses, models, ops, optimizers, tree
from khub.backend import active
from khub.layers.layer import CallContext
from khub.random import next_initial_seed

from ..nlp.tokenizers import Tokenizer, check_texts
from ..presets import Family, Pipeline, info, register
from ..presets.download import DownloadError
from ..presets.images import object_rows, read_images
from . import diffusion_inputs as inputs
from . import single_file
from .adapters import Adapters
from .diffusion_inputs import prepared, rows
from .diffusion_loop import Loop
from .schedulers import Scheduler

DEFAULT, EMBEDDED = "stable_diffusion_1.5", "stable_diffusion_digits_micro"
# what diffusers calls pipelines of these parts
KINDS = ("", "ControlNet", "Img2Img", "Inpaint")
CLASSES = [f"StableDiffusion{xl}{kind}Pipeline" for xl in ("", "XL") for kind in KINDS]
CLASSES += ["LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"]


class StableDiffusion(Adapters, Pipeline, models.Model):
    """Draws images of what a text says.

    img_height, img_width: in pixels, None: as the model was trained
    preset: what is opened, and downloaded where it has to be, when it is first needed
    parts: in place of a preset: unet, vae, text_encoder, tokenizer, scheduler, for XL
    text_encoder_2 and tokenizer_2, one or several `ControlNet`s as controlnet; index: what
    model_index.json says besides
    decode_tile: side in latents of the parts that an image is decoded in, None: as a whole; less
    memory is also needed with `decode_one_by_one` set: one image after the other
    accept_license: needed for a preset whose licence restricts its use, as most of these do
    """

    folders = {
        **dict.fromkeys(("text_encoder", "text_encoder_2", "unet", "vae", "controlnet")),
        **dict.fromkeys(("tokenizer", "tokenizer_2"), Tokenizer.load),
        "scheduler": Scheduler.load,
    }
    required = ("text_encoder", "tokenizer", "unet", "vae", "scheduler")
    decode_one_by_one = False

    def __init__(
        self,
        img_height=512,
        img_width=512,
        preset=DEFAULT,
        index=None,
        decode_tile=None,
        accept_license=False,
        **parts,
    ):
        super().__init__(name=parts.pop("name", None))
        if unknown := parts.keys() - self.folders.keys():
            known = ", ".join(self.folders)
            raise TypeError(f"StableDiffusion has no part {', '.join(unknown)}; it has {known}.")
        self.img_height, self.img_width, self.preset = img_height, img_width, preset
        self.index, self.decode_tile, self.accept_license = index, decode_tile, accept_license
        self.preprocessor = inputs.TrainingData(self)
        self.__dict__.update(dict.fromkeys(self.folders))
        self.compile()
        if parts:
            self._adopt(parts)

    # --- parts -----------------------------------------------------------------------------------
    @classmethod
    def from_preset(cls, handle, *args, img_height=None, img_width=None, **options):
        """As `Pipeline.from_preset`; handle: also a .safetensors or .ckpt file with all models.

        img_height, img_width: in pixels, None: as the model was trained
        A file has no tokenizer and does not say all: see `single_file.read` for what to give.
        """
        size = dict(img_height=img_height, img_width=img_width)
        if str(handle).endswith(single_file.SUFFIXES) and Path(handle).expanduser().is_file():
            return cls(**size, **single_file.read(Path(handle).expanduser(), *args, **options))
        return super().from_preset(handle, *args, **size, **options)

    def open(self):
        """Read the preset that the constructor was given the name of, if that was not done yet."""
        if self.unet is not None:
            return self
        try:
            opened = type(self).from_preset(self.preset, accept_license=self.accept_license)
        except DownloadError as error:
            what = info(self.preset)
            size = f"{what.source}, {what.bytes / 1e9:.1f} GB, licence {what.licence}"
            raise DownloadError(
                f"StableDiffusion() opens the preset {self.preset!r} ({size}): {error} Without a "
                f"network: StableDiffusion.from_preset({EMBEDDED!r}), which ships with khub."
            ) from error
        self.index = opened.index
        self._adopt({name: getattr(opened, name) for name in self.folders})
        return self

    def _adopt(self, parts):
        if missing := [name for name in self.required if parts.get(name) is None]:
            raise ValueError(f"StableDiffusion needs {', '.join(missing)} too.")
        self.__dict__.update(parts)
        self.is_xl = self.text_encoder_2 is not None
        controls = self.controlnet or []
        self._controls = controls if isinstance(controls, (list, tuple)) else [controls]
        if self.index is None:
            kind = f"{'XL' * self.is_xl}{'ControlNet' * bool(controls)}"
            self.index = {"_class_name": f"StableDiffusion{kind}Pipeline"}
            self.index |= {} if self.is_xl else {"requires_safety_checker": False}
        height, width = (np.broadcast_to(self.unet.sample_size or 64, 2) * self.vae.stride).tolist()
        self.img_height, self.img_width = self.img_height or height, self.img_width or width
        for part in (self.text_encoder, self.text_encoder_2, self.vae, *self._controls):
            if part is not None:
                part.trainable = False
        self.build(None)
        self.forget_functions()

    def forget_functions(self):
        """Make all that was compiled anew at its next call: layers have changed."""
        super().forget_functions()
        self.__dict__["_functions"] = {}

    def _function(self, name, shape):
        """The `Loop`, or the compiled "encode", "decode" or a text encoder, for one shape alone."""
        key = name, self.decode_tile, *shape  # TensorFlow makes sizes unknown where there are many
        if name == "loop":
            return self._functions.setdefault(key, Loop(self.unet, self._controls))
        owner = self.vae if name in ("encode", "decode") else self
        tile = {} if self.decode_tile is None or name != "decode" else {"tile": self.decode_tile}
        run = partial(getattr(owner, name), **tile)
        return self._functions.setdefault(key, khub.jit(run))

    def _run(self, name, x):
        """What one of the compiled functions gives for an array, as arrays."""
        with active.inference(), CallContext(training=False):
            found = self.open()._function(name, np.shape(x))(ops.convert_to_tensor(x))
            return tree.map_structure(ops.convert_to_numpy, found)

    # --- texts -----------------------------------------------------------------------------------
    def encode_text(self, prompt):
        """Return {"context": (texts, tokens, width)} of a text or several, for XL "pooled" too.

        NumPy arrays, which may stand in place of a prompt. A text that is too long is cut off, with
        a warning.
        """
        self.open()
        if not isinstance(prompt, (str, list, tuple)) or len(prompt) == 0 and prompt != "":
            raise TypeError(f"A prompt must be a text or a list of some, got {prompt!r}.")
        texts = check_texts([prompt] if isinstance(prompt, str) else prompt)
        texts, found = [self.expanded(text) for text in texts], []
        for end in ("", "_2")[: 1 + self.is_xl]:
            tokenizer = getattr(self, f"tokenizer{end}") or self.tokenizer
            length = getattr(self, f"text_encoder{end}").max_sequence_length
            ids = inputs.token_ids(tokenizer, texts, length)
            found.append(self._run(f"text_encoder{end}", ids))
        if not self.is_xl:
            return {"context": found[0]["sequence_output"]}
        context = np.concatenate([part["penultimate_output"] for part in found], -1)
        return {"context": context, "pooled": found[1]["pooled_output"]}

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
        mean, log_variance = self._run("encode", images)
        latents = mean.astype("float32")
        if noise is not None and log_variance is not None:
            latents = latents + np.exp(log_variance.astype("float32") / 2) * noise
        return (latents - (self.vae.shift_factor or 0)) * self.vae.scaling_factor

    def decode_latents(self, latents):
        """Images of latents, uint8 (n, height, width, 3).

        Raises FloatingPointError where the result is no number.
        """
        vae = self.open().vae
        latents = np.asarray(latents, "float32") / vae.scaling_factor + (vae.shift_factor or 0)
        count = len(latents) if self.decode_one_by_one else 1
        images = [self._run("decode", part) for part in np.split(latents, count)]
        images = np.concatenate(images).astype("float32")
        if not np.isfinite(images).all():
            raise FloatingPointError(
                f"The images are no numbers (NaN or infinite), computed in {vae.compute_dtype}; "
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
        *,
        guidance_rescale=0.0,
        eta=0.0,
        control_image=None,
        control_scale=1.0,
        callback=None,
        verbose="auto",
        image=None,
        mask=None,
        strength=1.0,
    ):
        """Return images of a text or several, uint8 (n, img_height, img_width, 3).

        prompt: a text, a list of them, or what `encode_text` gives; batch_size: images for each
        negative_prompt: what images shall not show   num_steps: of the sampler
        unconditional_guidance_scale: how much the prompt counts; at 1 the negative one does not
        seed: of the first image, the next has seed + 1; or a list of one for each. An image depends
        on its own seed alone, and begins with the same noise on every backend
        scheduler: one of `schedulers.NAMES`, or a `Scheduler`; None: the preset's
        latents: float (n, height / 8, width / 8, channels), in place of the first noise
        guidance_rescale: 0 to 1, takes contrast back, arXiv:2305.08891   eta: 0 to 1, DDIM's noise
        control_image, control_scale: of a ControlNet, lists of several
        callback: called with (step, latents)   image, mask, strength: see the next two methods
        Raises FloatingPointError when the result is no number.
        """
        self.open()
        scale, stride = float(unconditional_guidance_scale), self.vae.stride
        guided = scale > 1 and self.unet.time_cond_proj_dim is None
        plan = self.scheduler.like(scheduler or self.scheduler).plan(num_steps, strength, eta)
        images = [] if image is None else read_images(image)
        size = before = images[0].size[::-1] if images else (self.img_height, self.img_width)
        size = tuple(n - n % stride for n in size) if images else size
        if not all(n >= stride and n % stride == 0 for n in size):
            raise ValueError(f"Height and width must be multiples of {stride}, got {size}.")
        fills_in = self.unet.in_channels != self.vae.latent_channels
        if fills_in and mask is None:
            raise ValueError("This UNet fills in parts of images: inpaint(image, mask, prompt).")
        texts = [prompt if isinstance(prompt, dict) else self.encode_text(prompt)]
        count = max(len(texts[0]["context"]), len(images)) * batch_size
        shape = (count, *(n // stride for n in size), self.vae.latent_channels)
        if latents is not None and np.shape(latents) != shape:
            raise ValueError(f"latents must have the shape {shape}, got {np.shape(latents)}.")
        steps = len(plan) if plan.needs_noise else 0
        noise = inputs.draws(inputs.seeds(seed, count), shape[1:], steps)
        first = noise[0] if latents is None else np.asarray(latents, "float32")

        zeros = negative_prompt is None and self.is_xl
        if guided and zeros and self.index.get("force_zeros_for_empty_prompt", True):
            texts.insert(0, {name: np.zeros_like(x) for name, x in texts[0].items()})
        elif guided:
            encoded = isinstance(negative_prompt, dict)
            texts.insert(0, negative_prompt if encoded else self.encode_text(negative_prompt or ""))
        texts = {n: np.concatenate([rows(p[n], count, "prompts") for p in texts]) for n in texts[0]}
        given = {"guided": guided, "scale": scale, "rescale": guidance_rescale or None}
        given["inputs"] = self.conditions(texts, size, scale)
        pairs = inputs.controls(control_image, control_scale, size, count)
        if len(pairs) != (nets := len(self._controls)):
            raise ValueError(f"There are {nets} ControlNets, {len(pairs)} control_image.")
        given["control"] = [(np.concatenate([x] * (1 + guided)), s) for x, s in pairs]
        x = first * np.float32(plan.start)
        if images:
            images = prepared(images, size)
            known = rows(self.encode_images(images), count, "images")
            if mask is None or strength < 1:
                x = known * plan.rows["signal"][0] + first * plan.rows["std"][0]
        if mask is not None:
            mask = inputs.prepared_mask(mask, before, size)
            small = rows(mask[:, ::stride, ::stride], count, "masks")
            given |= {} if fills_in else {"mask": small, "known": known, "noise": first}
        if fills_in:
            left = rows(self.encode_images(images * (1 - mask)), count, "images")
            given["extra"] = [np.concatenate([part] * (1 + guided)) for part in (small, left)]

        bar = self._callbacks(None, verbose, steps=len(plan))
        bar.call("on_predict_begin", {})

        def watch(number, x):
            bar.call("on_predict_batch_end", number, {})
            if callback is not None:
                callback(number, x)

        one_by_one = active.EAGER or callback is not None
        loop, noise = self._function("loop", (len(plan), *shape)), noise[1:] if steps else None
        x = ops.convert_to_numpy(loop.run(x, plan, noise, given, watch if one_by_one else None))
        if not one_by_one:
            watch(len(plan) - 1, x)
        bar.call("on_predict_end", {})
        return self.decode_latents(x)

    def image_to_image(self, image, prompt, strength=0.8, **options):
        """Return images that an image, or several, become on the way to a text.

        image: path, PIL image or array of 0..255, or a list; sides are cut to multiples of 8
        strength: how much of it is lost, 0 to 1   options: as `text_to_image` has them
        """
        return self.text_to_image(prompt, image=image, strength=strength, **options)

    def inpaint(self, image, mask, prompt, strength=1.0, **options):
        """Return images that are drawn anew where a mask is white.

        image: as in `image_to_image`   mask: the same, of the same size, or bool (height, width)
        """
        return self.text_to_image(prompt, image=image, mask=mask, strength=strength, **options)

    # --- training --------------------------------------------------------------------------------
    def call(self, batch, training=None):
        return self.unet(batch, training=training)

    def compile(self, optimizer="auto", loss="auto", **options):
        """As `Model.compile`; "auto" is AdamW at 1e-5, and the mean squared error."""
        optimizer = optimizers.AdamW(1e-5, weight_decay=0.01) if optimizer == "auto" else optimizer
        loss = losses.MeanSquaredError() if loss == "auto" else loss
        super().compile(optimizer=optimizer, loss=loss, **options)

    def fit(self, x, y=None, *args, validation_data=None, **kwargs):
        """Train the UNet on images x and their captions y; arguments as those of `Model.fit`.

        x: paths, PIL images or arrays of 0..255, of which the middle is taken   y: list[str]
        Noise and times follow `khub.utils.set_random_seed`. LoRA become a part of the weights.
        """
        self.open()._loras, self._values = {}, {}
        self.preprocessor.restart(next_initial_seed())
        return super().fit(
            object_rows(x), object_rows(y), *args, validation_data=validation_data, **kwargs
        )

    def evaluate(self, x, y=None, *args, **kwargs):
        """As `Model.evaluate`, of images x and captions y, always with the same noise."""
        self.open()
        with self.preprocessor.fixed():
            return super().evaluate(object_rows(x), object_rows(y), *args, **kwargs)


TASKS = {"TextToImage": StableDiffusion}
register(Family("stable_diffusion", tuple(CLASSES), StableDiffusion, tasks=TASKS))
