"""Train steps written once: the same losses on every backend.

python -m benchmarks.train_steps [--backends jax,torch,tensorflow]

A GAN step and a distillation step, each one function under `khub.jit` that calls
`khub.value_and_grad`. Every backend runs them in a process of its own from one seed; the losses of
the steps must agree to 1e-5.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

STEPS, BATCH, TOLERANCE = 10, 32, 1e-5


def gan(khub):
    """Discriminator and generator take turns. Goodfellow et al. 2014, arXiv:1406.2661.

    returns step: (real (batch, 16), noise (batch, 8)) -> discriminator's and generator's loss
    """
    layers, ops = khub.layers, khub.ops
    generator = khub.Sequential(
        [khub.Input((8,)), layers.Dense(32, activation="relu"), layers.Dense(16)]
    )
    discriminator = khub.Sequential(
        [khub.Input((16,)), layers.Dense(32, activation="gelu"), layers.Dense(1)]
    )
    cross_entropy = khub.losses.BinaryCrossentropy(from_logits=True)
    optimizers = [khub.optimizers.Adam(1e-3), khub.optimizers.Adam(1e-3)]

    def discriminator_loss(real, noise):
        true, false = discriminator(real), discriminator(generator(noise))
        return cross_entropy(ops.ones_like(true), true) + cross_entropy(
            ops.zeros_like(false), false
        )

    def generator_loss(noise):
        judged = discriminator(generator(noise))
        return cross_entropy(ops.ones_like(judged), judged)

    @khub.jit
    def step(real, noise):
        weights = discriminator.trainable_variables
        loss, gradients = khub.value_and_grad(discriminator_loss, weights)(real, noise)
        optimizers[0].apply(gradients, weights)
        weights = generator.trainable_variables
        generated, gradients = khub.value_and_grad(generator_loss, weights)(noise)
        optimizers[1].apply(gradients, weights)
        return loss, generated

    random = np.random.default_rng(1)
    real = random.normal(1.0, 0.5, (STEPS, BATCH, 16)).astype("float32")
    noise = random.standard_normal((STEPS, BATCH, 8), np.float32)
    return step, zip(real, noise)


def distillation(khub):
    """A small student learns from labels and a teacher. Hinton et al. 2015, arXiv:1503.02531.

    returns step: (x (batch, 16), labels (batch,)) -> loss, cross entropy, divergence
    """
    layers, ops, temperature, share = khub.layers, khub.ops, 3.0, 0.3
    teacher = khub.Sequential(
        [khub.Input((16,)), layers.Dense(64, activation="relu"), layers.Dense(5)]
    )
    student = khub.Sequential(
        [khub.Input((16,)), layers.Dense(8, activation="relu"), layers.Dense(5)]
    )
    cross_entropy = khub.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = khub.optimizers.Adam(1e-2)

    def loss_of(x, labels):
        logits = student(x)
        soft = ops.log_softmax(teacher(x) / temperature)
        gap = soft - ops.log_softmax(logits / temperature)
        divergence = ops.mean(ops.sum(ops.exp(soft) * gap, axis=-1)) * temperature**2
        hard = cross_entropy(labels, logits)
        return share * hard + (1 - share) * divergence, (hard, divergence)

    @khub.jit
    def step(x, labels):
        weights = student.trainable_variables
        run = khub.value_and_grad(loss_of, weights, has_aux=True)
        (loss, parts), gradients = run(x, labels)
        optimizer.apply(gradients, weights)
        return loss, *parts

    random = np.random.default_rng(2)
    x = random.standard_normal((STEPS, BATCH, 16), np.float32)
    return step, zip(x, random.integers(0, 5, (STEPS, BATCH)).astype("int32"))


PROGRAMS = {"gan": gan, "distillation": distillation}


def losses(khub):
    """Program -> the losses of each step, a list of lists."""
    found = {}
    for name, program in PROGRAMS.items():
        khub.utils.set_random_seed(0)
        step, batches = program(khub)
        found[name] = [[float(loss) for loss in step(*batch)] for batch in batches]
    return found


def losses_on(backend):
    """`losses` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train_steps", "--worker"],
        cwd=Path(__file__).resolve().parent.parent,
        env=os.environ | {"KHUB_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", default="jax,torch,tensorflow")
    parser.add_argument("--worker", action="store_true", help="print the running backend's losses")
    options = parser.parse_args()
    if options.worker:
        import khub

        print(json.dumps(losses(khub)))
        return 0
    found = {backend: losses_on(backend) for backend in options.backends.split(",")}
    worst = 0.0
    for name in PROGRAMS:
        curves = {backend: np.array(each[name]) for backend, each in found.items()}
        for backend, curve in curves.items():
            last = "  ".join(f"{loss:.8f}" for loss in curve[-1])
            print(f"{name:13} {backend:10} losses after {len(curve)} steps: {last}")
        spread = np.ptp(np.stack(list(curves.values())), axis=0).max()
        print(f"{name:13} largest difference in any step: {spread:.1e}")
        worst = max(worst, spread)
    print("pass" if worst <= TOLERANCE else f"FAIL: more than {TOLERANCE}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
