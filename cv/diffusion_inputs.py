"""What goes into Stable Diffusion, made on the host: tokens, images, masks, noise, batches."""

import warnings
from contextlib import contextmanager

import numpy as np

from khub.random import next_initial_seed

from ..nlp.preprocessing import fill
from ..presets.images import read_images


def token_ids(tokenizer, texts, length):
    """Ids of texts, int32 (texts, length), padded; with a warning cut off in front of the end."""
    found = tokenizer.encode(texts)
    for text, ids in zip(texts, found):
        if len(ids) > length:
            lost = tokenizer.detokenize(ids[length - 1 : -1])
            what = f"has {len(ids)} tokens, the text encoder reads {length}"
            warnings.warn(f"{text[:60]!r} {what}; this is cut off: {lost!r}", stacklevel=2)
    return fill(found, length, tokenizer.pad_token_id)[0]


def rows(x, count, what):
    """`count` rows of an array, each of those that it has equally often.

    Raises ValueError, with the name `what`, when that cannot be.
    """
    if count % len(x):
        raise ValueError(f"{len(x)} {what} cannot be shared out to {count} images.")
    return np.repeat(x, count // len(x), 0)


def seeds(seed, count):
    """A seed for each of `count` images, of what `text_to_image` is given."""
    if seed is None:
        return [next_initial_seed() for _ in range(count)]
    found = list(seed) if isinstance(seed, (list, tuple, np.ndarray)) else [seed]
    if not all(isinstance(one, (int, np.integer)) and one >= 0 for one in found):
        raise ValueError(f"seed must be an integer from 0, or a list of them, got {seed!r}.")
    if found and found[0] is seed:
        return [seed + i for i in range(count)]
    if len(found) != count:
        raise ValueError(f"seed has {len(found)} entries for {count} images.")
    return found


def draws(seeds, shape, steps):
    """Normal noise, float32 (1 + steps, images, *shape); an image's depends on its seed alone."""
    each = [np.random.Generator(np.random.Philox(key=int(seed))) for seed in seeds]
    return np.stack([r.standard_normal((1 + steps, *shape), "float32") for r in each], 1)


def prepared(images, size, middle=False):
    """float32 (n, height, width, 3) of -1..1 of PIL images, resized.

    middle: of their middle parts, so that nothing is drawn out
    """
    from PIL import Image, ImageOps

    fit = ImageOps.fit if middle else Image.Image.resize
    sized = [x if x.size == size[::-1] else fit(x, size[::-1], Image.LANCZOS) for x in images]
    return np.stack([np.asarray(x, "float32") for x in sized]) / 127.5 - 1


def prepared_mask(mask, before, size):
    """float32 (n, height, width, 1): 1 where a mask is at least half white.

    before: height and width that it must have   size: those of the result
    """
    from PIL import Image

    several = isinstance(mask, (list, tuple)) or getattr(mask, "ndim", 0) == 4
    found = []
    for one in mask if several else [mask]:
        is_bool = getattr(getattr(one, "dtype", None), "kind", "") == "b"
        (image,) = read_images(one * np.uint8(255) if is_bool else one)
        if image.size != tuple(before[::-1]):
            raise ValueError(
                f"The mask has height and width {image.size[::-1]}, the image {tuple(before)}."
            )
        found.append(np.asarray(image.convert("L").resize(size[::-1], Image.NEAREST)) >= 128)
    return np.stack(found)[..., None].astype("float32")


def controls(images, scales, size, count):
    """[(image of 0..1, scale), ...] for the ControlNets, of lists or of one of each."""
    images = [] if images is None else images if isinstance(images, (list, tuple)) else [images]
    scales = scales if isinstance(scales, (list, tuple)) else [scales] * len(images)
    found = [prepared(read_images(image), size) / 2 + 0.5 for image in images]
    found = [rows(image, count, "control images") for image in found]
    return list(zip(found, map(float, scales), strict=True))


class TrainingData:
    """Makes batches that the UNet learns from, of images and captions: latents with noise."""

    def __init__(self, model):
        self._model = model
        self.restart(0)

    def restart(self, seed):
        """Begin the noise anew."""
        self._random = np.random.Generator(np.random.Philox(key=seed))

    @contextmanager
    def fixed(self):
        """Inside, the noise is that of the seed 0."""
        before = self._random
        self.restart(0)
        try:
            yield
        finally:
            self._random = before

    @staticmethod
    def is_raw(x):
        """Whether a batch is of images to be prepared: they are objects, or an array of pixels."""
        return isinstance(x, (list, np.ndarray))

    def __call__(self, x, y=None, sample_weight=None):
        model, random = self._model, self._random
        size = model.img_height, model.img_width
        if y is None:
            raise ValueError("Stable Diffusion learns from images x and as many captions y.")
        images = prepared(read_images(list(x)), size, middle=True)
        shape = len(x), *(n // model.vae.stride for n in size), model.vae.latent_channels
        latents = model.encode_images(images, random.standard_normal(shape, "float32"))
        noise = random.standard_normal(shape, "float32")
        timesteps = random.integers(0, model.scheduler.steps, len(x))
        noised, target = model.scheduler.noised(latents, noise, timesteps)
        inputs = {"latents": noised, "timesteps": timesteps.astype("int32")}
        inputs |= model.conditions(model.encode_text([str(text) for text in y]), size)
        return inputs, target, sample_weight
