"""A khub model in a plain JAX loop: stateless_call is pure, optax does the rest."""

import argparse
import os

os.environ["KHUB_BACKEND"] = "jax"  # before the first import of khub

import jax
import jax.numpy as jnp
import optax

import khub
from khub import layers


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(argv)
    khub.utils.set_random_seed(0)
    x = jax.random.uniform(jax.random.key(0), (512, 2), minval=-3, maxval=3)
    y = jnp.sin(x).sum(1, keepdims=True)

    hidden = layers.Dense(64, activation="gelu")
    norm = layers.BatchNormalization()  # its moving averages come back as new values
    model = khub.Sequential([khub.Input((2,)), hidden, norm, layers.Dense(1)])
    optimizer = optax.adamw(1e-2)

    @jax.jit
    def step(weights, others, state, x, y):
        def loss_of(weights):
            predicted, new = model.stateless_call(weights, others, x, training=True)
            return jnp.mean((predicted - y) ** 2), new

        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights)
        updates, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), others, state, loss

    weights = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    state = optimizer.init(weights)
    for number in range(options.steps):
        weights, others, state, loss = step(weights, others, state, x, y)
        if number % (options.steps // 5) == 0:
            print(f"step {number}: loss {loss:.4f}")

    for variable, value in zip(model.trainable_variables, weights):
        variable.assign(value)
    for variable, value in zip(model.non_trainable_variables, others):
        variable.assign(value)
    print(f"final loss {jnp.mean((model(x, training=False) - y) ** 2):.4f}")


if __name__ == "__main__":
    main()
