"""Trains a classifier on all devices there are: `python` or `torchrun --nproc-per-node 2` this."""

import argparse
import os

import numpy as np

import khub
from khub import distribution, layers


def rings(count):
    """Points of two rings, one around the other: (count, 2) and (count,)."""
    random = np.random.default_rng(0)
    y = random.integers(0, 2, count)
    angle, radius = random.uniform(0, 2 * np.pi, count), 1 + y + random.normal(0, 0.1, count)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return x.astype("float32"), y.astype("int32")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs
    if "WORLD_SIZE" in os.environ or "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ:
        distribution.initialize()
    if distribution.get_device_count() > 1:
        distribution.set_distribution(distribution.DataParallel())

    khub.utils.set_random_seed(0)
    model = khub.Sequential(
        [khub.Input((2,)), layers.Dense(32, activation="relu"), layers.Dense(2)]
    )
    model.compile(
        optimizer=khub.optimizers.Adam(0.01),
        loss=khub.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    x, y = rings(2048)
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    loss, accuracy = model.evaluate(x, y, batch_size=64, verbose=0)
    devices = distribution.get_device_count()
    print(f"{devices} devices: loss {loss:.4f}, accuracy {100 * accuracy:.1f}%")
