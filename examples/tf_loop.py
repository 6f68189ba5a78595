"""A khub model in a plain TensorFlow loop: tf.GradientTape inside a tf.function."""

import argparse
import os

os.environ["KHUB_BACKEND"] = "tensorflow"  # before the first import of khub

import tensorflow as tf

import khub
from khub import layers, optimizers


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(argv)
    khub.utils.set_random_seed(0)
    x = tf.random.stateless_uniform((512, 2), (0, 1), -3.0, 3.0)
    y = tf.reduce_sum(tf.sin(x), 1, keepdims=True)
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(512, seed=0).repeat().batch(128)

    model = khub.Sequential(
        [khub.Input((2,)), layers.Dense(64, activation="gelu"), layers.Dense(1)]
    )
    weights = model.trainable_variables
    optimizer = optimizers.Adam(1e-2)
    optimizer.build(weights)

    @tf.function(autograph=False)
    def train(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
        optimizer.apply(tape.gradient(loss, weights), weights)
        return loss

    for step, (some_x, some_y) in enumerate(data.take(options.steps)):
        loss = train(some_x, some_y)
        if step % (options.steps // 5) == 0:
            print(f"step {step}: loss {loss:.4f}")
    print(f"final loss {tf.reduce_mean((model(x) - y) ** 2):.4f}")


if __name__ == "__main__":
    main()
