"""A GAN (arXiv:1406.2661) whose train_step is written once and runs on every backend."""

import argparse

import numpy as np

import khub
from khub import layers, losses, ops, optimizers


def network(inputs, outputs):
    hidden = layers.Dense(64, activation="relu")
    return khub.Sequential([khub.Input((inputs,)), hidden, layers.Dense(outputs)])


class GAN(khub.Model):
    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = network(4, 2), network(2, 1)
        self.generator_optimizer = optimizers.Adam(1e-3, beta_1=0.5)
        self.entropy = losses.BinaryCrossentropy(from_logits=True)
        self.seed = khub.random.SeedGenerator(1)

    def judged(self, points, are_real):
        logits = self.discriminator(points)
        return self.entropy(ops.ones_like(logits) * are_real, logits)

    def train_step(self, data):
        noise = khub.random.normal((ops.shape(data)[0], 4), seed=self.seed)

        def discrimination():
            return self.judged(data, 1.0) + self.judged(self.generator(noise), 0.0)

        def generation():
            return self.judged(self.generator(noise), 1.0)

        found = {}
        for part, loss, optimizer in (
            (self.discriminator, discrimination, self.optimizer),
            (self.generator, generation, self.generator_optimizer),
        ):
            weights = part.trainable_variables
            found[loss.__name__], gradients = khub.value_and_grad(loss, weights)()
            optimizer.apply(gradients, weights)
        return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (2048, 1))
    circle = np.concatenate([np.cos(angles), np.sin(angles)], 1).astype("float32")
    khub.utils.set_random_seed(0)
    model = GAN()
    model.compile(optimizer=optimizers.Adam(1e-3, beta_1=0.5))
    model.fit(circle, batch_size=128, epochs=parser.parse_args().epochs)
    made = ops.convert_to_numpy(model.generator(khub.random.normal((500, 4), seed=2)))
    print(f"mean radius of generated points: {np.hypot(*made.T).mean():.2f} (real: 1)")
