"""A generative adversarial network of points in the plane, by train_on_batch of two models."""

import keras
import numpy as np
from keras import layers

keras.utils.set_random_seed(10)
NOISE, BATCH, CENTER = 4, 64, np.array([3.0, -2.0])
random = np.random.RandomState(0)


def real(count):
    return (CENTER + 0.5 * random.randn(count, 2)).astype("float32")


def noise(count):
    return random.randn(count, NOISE).astype("float32")


def network(units, width, name):
    model = keras.Sequential([keras.Input((width,))], name=name)
    for _ in range(2):
        model.add(layers.Dense(32))
        model.add(layers.LeakyReLU(negative_slope=0.2))
    model.add(layers.Dense(units))
    return model


loss = keras.losses.BinaryCrossentropy(from_logits=True)
generator, critic = network(2, NOISE, "generator"), network(1, 2, "critic")
critic.compile(keras.optimizers.Adam(0.002, beta_1=0.5), loss)
adversarial = keras.Sequential([keras.Input((NOISE,)), generator, critic])
critic.trainable = False
adversarial.compile(keras.optimizers.Adam(0.002, beta_1=0.5), loss)
assert len(adversarial.trainable_weights) == len(generator.weights)

start = generator.predict(noise(256), verbose=0)
labels = np.concatenate([np.ones((BATCH, 1)), np.zeros((BATCH, 1))]).astype("float32")
for _ in range(300):
    fake = generator.predict_on_batch(noise(BATCH))
    critic.trainable = True
    critic_loss = critic.train_on_batch(np.concatenate([real(BATCH), fake]), labels)
    critic.trainable = False
    before = critic.get_weights()[0]
    generator_loss = adversarial.train_on_batch(noise(BATCH), np.ones((BATCH, 1), "float32"))
    assert np.array_equal(before, critic.get_weights()[0])  # it does not learn from the generator
assert np.isfinite([float(critic_loss), float(generator_loss)]).all()

points = generator.predict(noise(256), verbose=0)
before, after = (np.linalg.norm(made.mean(0) - CENTER) for made in (start, points))
assert after < 0.5 * before, (before, after)
assert len(np.unique(points[:, 0].round(3))) > 30  # not one point for all noise
