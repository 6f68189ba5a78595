"""Single layers, forward and backward: khub and Keras beside the framework's own layer.

python -m benchmarks.layers --backend torch [--cells lstm,conv2d] [--turns 15]
python -m benchmarks.layers --all

One process a backend, one thread; the contenders take turns, the figures are medians of the
per-turn ratios. `build_*` cells time the making of a functional graph, khub against Keras.
"""

import argparse
import gc
import importlib
import json
import math
import os
import subprocess
import sys
import time
from statistics import median, quantiles

import numpy as np

from .compare import NOISE, RESULTS, describe, environment
from .graphs import GRAPHS

SLOWEST = 1 / 0.95  # highest allowed time over the native layer's
BUILD = 0.5  # highest allowed time over Keras' for the making of a graph
LSTM = dict(batch=32, time=64, width=64, units=128)
ATTENTION = dict(batch=8, length=128, width=256, heads=8)

CELLS = {  # name -> (shape of the input, the layer in khub and Keras, iterations a turn)
    "conv2d": ((16, 32, 32, 32), lambda k: k.layers.Conv2D(64, 3, padding="same"), 8),
    "layer_norm": ((64, 128, 256), lambda k: k.layers.LayerNormalization(epsilon=1e-5), 8),
    "attention": (
        (ATTENTION["batch"], ATTENTION["length"], ATTENTION["width"]),
        lambda k: k.layers.MultiHeadAttention(
            ATTENTION["heads"], ATTENTION["width"] // ATTENTION["heads"]
        ),
        4,
    ),
    "lstm": (
        (LSTM["batch"], LSTM["time"], LSTM["width"]),
        lambda k: k.layers.LSTM(LSTM["units"], return_sequences=True),
        3,
    ),
}


# --- what someone who knows the framework writes --------------------------------------------------
def native_torch(cell, x):
    """Return the forward call and the step (loss and gradients)."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    x = torch.from_numpy(x)
    if cell == "conv2d":
        net = nn.Conv2d(32, 64, 3, padding="same").to(memory_format=torch.channels_last)
        x = x.permute(0, 3, 1, 2)  # channels-last already
    elif cell == "layer_norm":
        net = nn.LayerNorm(x.shape[-1])
    elif cell == "attention":
        net = nn.MultiheadAttention(ATTENTION["width"], ATTENTION["heads"], batch_first=True)
    else:
        net = nn.LSTM(LSTM["width"], LSTM["units"], batch_first=True)

    def forward():
        if cell == "attention":
            return net(x, x, x, need_weights=False)[0]
        y = net(x)
        return y[0] if cell == "lstm" else y

    weights = list(net.parameters())

    def step():
        loss = forward().square().mean()
        return loss.detach(), torch.autograd.grad(loss, weights)

    return forward, step


def native_jax(cell, x):
    import jax
    import jax.numpy as jnp

    x = jnp.asarray(x)
    random = np.random.default_rng(0)

    def weights(*shapes):
        return [jnp.asarray(0.1 * random.standard_normal(s, np.float32)) for s in shapes]

    width, units, heads = x.shape[-1], LSTM["units"], ATTENTION["heads"]
    if cell == "conv2d":
        parameters = weights((3, 3, 32, 64), (64,))

        def apply(p, x):
            dims = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x, p[0], (1, 1), "SAME", dimension_numbers=dims)
            return y + p[1]

    elif cell == "layer_norm":
        parameters = weights((width,), (width,))

        def apply(p, x):
            centred = x - x.mean(-1, keepdims=True)
            variance = jnp.square(centred).mean(-1, keepdims=True)
            return centred * jax.lax.rsqrt(variance + 1e-5) * p[0] + p[1]

    elif cell == "attention":
        parameters = weights(*[(width, width)] * 4, *[(width,)] * 4)

        def apply(p, x):
            split = (*x.shape[:2], heads, width // heads)
            q, k, v = ((x @ p[i] + p[4 + i]).reshape(split) for i in range(3))
            return jax.nn.dot_product_attention(q, k, v).reshape(x.shape) @ p[3] + p[7]

    else:
        parameters = weights((width, 4 * units), (units, 4 * units), (4 * units,))

        def apply(p, x):
            def advance(carry, x):
                h, c = carry
                i, f, g, o = jnp.split(x @ p[0] + h @ p[1] + p[2], 4, axis=-1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), h

            zeros = jnp.zeros((x.shape[0], units))
            x = jnp.swapaxes(x, 0, 1)  # faster here than the products of all steps at once
            return jnp.swapaxes(jax.lax.scan(advance, (zeros, zeros), x)[1], 0, 1)

    forward = jax.jit(apply)
    step = jax.jit(jax.value_and_grad(lambda p, x: jnp.mean(jnp.square(apply(p, x)))))
    return lambda: forward(parameters, x), lambda: step(parameters, x)


def native_tensorflow(cell, x):
    import tensorflow as tf

    x = tf.constant(x)
    random = np.random.default_rng(0)

    def weights(*shapes):
        return [tf.Variable(0.1 * random.standard_normal(s, np.float32)) for s in shapes]

    width, units, heads = x.shape[-1], LSTM["units"], ATTENTION["heads"]
    if cell == "conv2d":
        p = weights((3, 3, 32, 64), (64,))

        def apply(x):
            return tf.nn.bias_add(tf.nn.conv2d(x, p[0], 1, "SAME"), p[1])

    elif cell == "layer_norm":
        p = weights((width,), (width,))

        def apply(x):
            mean, variance = tf.nn.moments(x, -1, keepdims=True)
            return tf.nn.batch_normalization(x, mean, variance, p[1], p[0], 1e-5)

    elif cell == "attention":
        p = weights(*[(width, width)] * 4, *[(width,)] * 4)

        def apply(x):
            split = (*x.shape[:2], heads, width // heads)
            q, k, v = (
                tf.transpose(tf.reshape(x @ p[i] + p[4 + i], split), (0, 2, 1, 3)) for i in range(3)
            )
            scores = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) * split[-1] ** -0.5)
            return tf.reshape(tf.transpose(scores @ v, (0, 2, 1, 3)), x.shape) @ p[3] + p[7]

    else:
        p = weights((width, 4 * units), (units, 4 * units), (4 * units,))

        def apply(x):
            projected = tf.transpose(x @ p[0] + p[2], (1, 0, 2))
            h = c = tf.zeros((x.shape[0], units))
            found = tf.TensorArray(tf.float32, x.shape[1])
            given = tf.TensorArray(tf.float32, x.shape[1]).unstack(projected)
            for t in tf.range(x.shape[1]):
                i, f, g, o = tf.split(given.read(t) + h @ p[1], 4, axis=-1)
                c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
                h = tf.sigmoid(o) * tf.tanh(c)
                found = found.write(t, h)
            return tf.transpose(found.stack(), (1, 0, 2))

    forward = tf.function(apply)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(apply(x)))
        return loss, tape.gradient(loss, p)

    return lambda: forward(x), lambda: step(x)


# --- khub and Keras -------------------------------------------------------------------------------
def khub(cell, x):
    import khub

    layer, x = CELLS[cell][1](khub), khub.ops.convert_to_tensor(x)
    inputs = (x, x) if cell == "attention" else (x,)
    layer(*inputs)
    variables = layer.trainable_variables

    def loss(*inputs):
        return khub.ops.mean(khub.ops.square(layer(*inputs)))

    forward = khub.jit(lambda *inputs: layer(*inputs))
    step = khub.jit(lambda *inputs: khub.value_and_grad(loss, variables)(*inputs))
    return lambda: forward(*inputs), lambda: step(*inputs)


def keras(cell, x):
    """Keras as its own trainer runs it on the backend."""
    import keras

    layer, x = CELLS[cell][1](keras), keras.ops.convert_to_tensor(x)
    inputs = (x, x) if cell == "attention" else (x,)
    layer(*inputs)
    ops, variables = keras.ops, layer.trainable_variables
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        values = [v.value for v in variables]

        def step():
            loss = ops.mean(ops.square(layer(*inputs)))
            return loss.detach(), torch.autograd.grad(loss, values)

        return lambda: layer(*inputs), step
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def taped(*inputs):
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.square(layer(*inputs)))
            return loss, tape.gradient(loss, [v.value for v in variables])

        forward = tf.function(lambda *inputs: layer(*inputs))
        return lambda: forward(*inputs), lambda: taped(*inputs)
    import jax

    trained = [v.value for v in variables]
    others = [v.value for v in layer.non_trainable_variables]
    forward = jax.jit(lambda p, q, *inputs: layer.stateless_call(p, q, *inputs)[0])
    step = jax.jit(
        jax.value_and_grad(lambda p, q, *i: ops.mean(ops.square(layer.stateless_call(p, q, *i)[0])))
    )
    return lambda: forward(trained, others, *inputs), lambda: step(trained, others, *inputs)


def wait(result):
    """Return when the result is there: JAX computes in the background."""
    while isinstance(result, (tuple, list)):
        result = result[0]
    return result.block_until_ready() if hasattr(result, "block_until_ready") else result


def contenders(backend, cell):
    """Name of the measure ("lstm_forward") -> side -> function that does it once."""
    if cell in GRAPHS:
        packages = {side: importlib.import_module(side) for side in ("khub", "keras")}
        return {cell: {s: (lambda k=k: GRAPHS[cell](k)) for s, k in packages.items()}}
    x = np.random.default_rng(0).standard_normal(CELLS[cell][0], np.float32)
    native = globals()[f"native_{backend}"]
    made = {"native": native(cell, x), "khub": khub(cell, x), "keras": keras(cell, x)}
    return {
        f"{cell}_{what}": {side: pair[i] for side, pair in made.items()}
        for i, what in enumerate(("forward", "backward"))
    }


def run(functions, iterations, turns):
    """Side -> seconds an iteration, one a turn."""
    for function in functions.values():
        wait(function()), wait(function())
    seconds = {side: [] for side in functions}
    for _ in range(turns):
        for side, function in functions.items():
            gc.collect()
            start = time.perf_counter()
            for _ in range(iterations):
                result = function()
            wait(result)
            seconds[side].append((time.perf_counter() - start) / iterations)
    return seconds


def judge(seconds):
    """Medians of the per-turn ratios, and whether khub is as fast as it must be."""

    def ratios(one, other):
        return [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]

    against = ratios("khub", "keras")
    result = {
        "median_seconds": {side: median(times) for side, times in seconds.items()},
        "khub_to_keras": median(against),
        "khub_to_keras_quartiles": quantiles(against, n=4)[::2],
        "seconds": seconds,
    }
    if "native" not in seconds:
        return result | {"reaches_target": result["khub_to_keras"] <= BUILD}
    result["ratio"] = {side: median(ratios(side, "native")) for side in ("khub", "keras")}
    result["quartiles"] = quantiles(ratios("khub", "native"), n=4)[::2]
    good = result["ratio"]["khub"] <= SLOWEST and result["khub_to_keras"] <= NOISE
    return result | {"reaches_target": good}


def measure(options):
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    chosen = options.cells.split(",") if options.cells else [*CELLS, *GRAPHS]
    path, good = RESULTS / f"layers_{options.backend}.json", True
    table = json.loads(path.read_text()) if path.exists() else {}
    print(f"{options.backend:20}{'native ms':>10}{'khub':>7}{'keras':>7}{'khub/keras':>12}")
    for cell in chosen:
        iterations = CELLS[cell][2] if cell in CELLS else 1
        for name, functions in contenders(options.backend, cell).items():
            result = judge(run(functions, iterations, options.turns))
            table[name] = describe(options.backend) | result
            ratio = result.get("ratio", {"khub": math.nan, "keras": math.nan})
            base = result["median_seconds"].get("native", math.nan) * 1e3
            passed = result["reaches_target"]
            print(
                f"{name:20}{base:10.3f}{ratio['khub']:7.2f}{ratio['keras']:7.2f}"
                f"{result['khub_to_keras']:12.2f}  {'pass' if passed else 'FAIL'}",
                flush=True,
            )
            good &= passed
    path.write_text(json.dumps(table, indent=1) + "\n")
    return 0 if good else 1


def main(module, description, cells, turns, measure):
    """Read the arguments; measure here with --inside, else start a process for each backend."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--backend", choices=["torch", "jax", "tensorflow"])
    parser.add_argument("--cells", help=f"comma-separated, of {', '.join(cells)}")
    parser.add_argument("--turns", type=int, default=turns)
    parser.add_argument("--all", action="store_true", help="every backend, each in a new process")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return measure(options)
    good = True
    for backend in ["torch", "jax", "tensorflow"] if options.all else [options.backend]:
        command = [sys.executable, "-m", module, "--inside", "--backend", backend]
        command += ["--turns", str(options.turns)]
        command += ["--cells", options.cells] if options.cells else []
        good &= subprocess.run(command, env=environment(backend)).returncode == 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main("benchmarks.layers", __doc__.splitlines()[0], [*CELLS, *GRAPHS], 15, measure))
