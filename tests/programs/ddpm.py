"""A denoising diffusion model of tiny pictures: fit learns the noise, a loop samples."""

import keras
import numpy as np
from keras import layers, ops

keras.utils.set_random_seed(11)
STEPS, SIZE = 40, 6
betas = np.linspace(1e-3, 0.25, STEPS)
kept = np.cumprod(1 - betas).astype("float32")
assert kept[-1] < 0.01


def stripes(count):
    """Pictures of vertical stripes, more or less bright."""
    brightness = np.random.RandomState(0).uniform(0.7, 1, (count, 1, 1, 1)).astype("float32")
    columns = np.where(np.arange(SIZE) % 2, 1, -1)[:, None]
    return brightness * np.broadcast_to(columns, (count, SIZE, SIZE, 1))


class Diffusion(keras.Model):
    """Predicts the noise that was mixed into a picture at a random step."""

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(3)
        self.steps = layers.Embedding(STEPS, 16)
        self.hidden = [layers.Conv2D(16, 3, padding="same", activation="silu") for _ in range(2)]
        self.mix = layers.Dense(64, activation="silu")
        self.last = layers.Dense(SIZE * SIZE)
        self.kept = ops.convert_to_tensor(kept)

    def denoise(self, pictures, step):
        batch = ops.shape(pictures)[0]
        embedded = self.steps(step)
        x = pictures
        for layer in self.hidden:
            x = layer(x)
        x = ops.concatenate([ops.reshape(x, (batch, SIZE * SIZE * 16)), embedded], axis=-1)
        return ops.reshape(self.last(self.mix(x)), (batch, SIZE, SIZE, 1))

    def call(self, pictures):
        batch = ops.shape(pictures)[0]
        step = keras.random.randint((batch,), 0, STEPS, seed=self.seed_generator)
        noise = keras.random.normal(ops.shape(pictures), seed=self.seed_generator)
        share = ops.reshape(ops.take(self.kept, step), (-1, 1, 1, 1))
        mixed = ops.sqrt(share) * pictures + ops.sqrt(1 - share) * noise
        self.add_loss(ops.mean(ops.square(self.denoise(mixed, step) - noise)))
        return mixed


model = Diffusion()
model.compile(keras.optimizers.Adam(0.005))
history = model.fit(stripes(512), epochs=35, batch_size=64, verbose=0).history
assert history["loss"][-1] < 0.25, history["loss"]

x = np.random.RandomState(1).randn(16, SIZE, SIZE, 1).astype("float32")
for t in reversed(range(STEPS)):  # without noise on the way (DDIM, arXiv:2010.02502)
    noise = ops.convert_to_numpy(model.denoise(ops.convert_to_tensor(x), np.full(16, t)))
    clean = np.clip((x - np.sqrt(1 - kept[t]) * noise) / np.sqrt(kept[t]), -1, 1)
    noise = (x - np.sqrt(kept[t]) * clean) / np.sqrt(1 - kept[t])
    before = kept[t - 1] if t else np.float32(1)
    x = np.sqrt(before) * clean + np.sqrt(1 - before) * noise
assert x.dtype == "float32"
likeness = (x[..., 0] * stripes(1)[0, ..., 0]).mean((1, 2))
assert likeness.mean() > 0.4, likeness
