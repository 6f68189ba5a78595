"""A variational autoencoder whose losses come from a layer: it trains by fit alone."""

import keras
import numpy as np
from keras import layers, ops

keras.utils.set_random_seed(9)
LATENT = 2


class Sample(layers.Layer):
    """Draws from the normal distribution the encoder describes; its divergence is a loss."""

    def __init__(self, weight=1e-3, **kwargs):
        super().__init__(**kwargs)
        self.weight = weight
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, inputs):
        mean, log_variance = inputs
        divergence = ops.square(mean) + ops.exp(log_variance) - log_variance - 1
        self.add_loss(self.weight * ops.mean(ops.sum(divergence, axis=-1) / 2))
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(log_variance / 2) * noise


def blobs(count):
    """Pictures of one soft spot, 8 x 8."""
    places = np.random.RandomState(0).uniform(1, 6, (count, 2, 1, 1))
    row, column = np.mgrid[:8, :8]
    distance = (row - places[:, 0]) ** 2 + (column - places[:, 1]) ** 2
    return np.exp(-distance / 4).astype("float32")[..., None]


images = blobs(512)
inputs = keras.Input((8, 8, 1))
x = layers.Conv2D(8, 3, strides=2, padding="same", activation="gelu")(inputs)
x = layers.Dense(32, activation="gelu")(layers.Flatten()(x))
mean, log_variance = layers.Dense(LATENT, name="mean")(x), layers.Dense(LATENT)(x)
encoder = keras.Model(inputs, [mean, log_variance, Sample()([mean, log_variance])], name="encoder")
latent = keras.Input((LATENT,))
x = layers.Dense(32, activation="gelu")(latent)
x = layers.Reshape((4, 4, 8))(layers.Dense(4 * 4 * 8, activation="gelu")(x))
x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", activation="gelu")(x)
x = layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x)
decoder = keras.Model(latent, x, name="decoder")

model = keras.Model(inputs, decoder(encoder(inputs)[2]))
model.compile(keras.optimizers.Adam(0.01), loss="mse")
history = model.fit(images, images, epochs=25, batch_size=64, verbose=0).history
assert history["loss"][-1] < 0.3 * history["loss"][0]
codes, _, drawn = encoder.predict(images, verbose=0)
assert codes.shape == drawn.shape == (512, LATENT) and not np.allclose(codes, drawn)
restored = decoder.predict(codes, verbose=0)
assert np.mean((restored - images) ** 2) < 0.4 * images.var()
pictures = decoder.predict(np.random.RandomState(1).randn(5, LATENT), verbose=0)
assert pictures.shape == (5, 8, 8, 1) and pictures.min() >= 0 and pictures.max() <= 1
