"""What an eager operation costs over the framework's own call: microseconds, khub and Keras.

python -m benchmarks.ops --backend torch [--turns 15]
python -m benchmarks.ops --all

One process a backend; the three take turns. The figure of an operation is the median over the
turns of (time of a call less the time of the native call of the same turn).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median

from .compare import RESULTS, describe, environment

CALLS = 1500  # of one operation a turn
LIMIT = 1.0  # microseconds over the native call
SHAPE = (4, 4)

# operation -> call on khub's or Keras' ops, call on (torch, jax.numpy and jax, tensorflow)
OPERATIONS = {
    "add": (
        lambda o, a, b: o.add(a, b),
        dict(
            torch=lambda t, a, b: t.add(a, b),
            jax=lambda j, a, b: j.numpy.add(a, b),
            tensorflow=lambda t, a, b: t.add(a, b),
        ),
    ),
    "multiply by a number": (
        lambda o, a, b: o.multiply(a, 2.0),
        dict(
            torch=lambda t, a, b: t.mul(a, 2.0),
            jax=lambda j, a, b: j.numpy.multiply(a, 2.0),
            tensorflow=lambda t, a, b: t.multiply(a, 2.0),
        ),
    ),
    "matmul": (
        lambda o, a, b: o.matmul(a, b),
        dict(
            torch=lambda t, a, b: t.matmul(a, b),
            jax=lambda j, a, b: j.numpy.matmul(a, b),
            tensorflow=lambda t, a, b: t.matmul(a, b),
        ),
    ),
    "exp": (
        lambda o, a, b: o.exp(a),
        dict(
            torch=lambda t, a, b: t.exp(a),
            jax=lambda j, a, b: j.numpy.exp(a),
            tensorflow=lambda t, a, b: t.exp(a),
        ),
    ),
    "sum over an axis": (
        lambda o, a, b: o.sum(a, axis=-1),
        dict(
            torch=lambda t, a, b: t.sum(a, dim=-1),
            jax=lambda j, a, b: j.numpy.sum(a, axis=-1),
            tensorflow=lambda t, a, b: t.reduce_sum(a, axis=-1),
        ),
    ),
    "reshape": (
        lambda o, a, b: o.reshape(a, (2, 8)),
        dict(
            torch=lambda t, a, b: t.reshape(a, (2, 8)),
            jax=lambda j, a, b: j.numpy.reshape(a, (2, 8)),
            tensorflow=lambda t, a, b: t.reshape(a, (2, 8)),
        ),
    ),
    "transpose": (
        lambda o, a, b: o.transpose(a, (1, 0)),
        dict(
            torch=lambda t, a, b: t.permute(a, (1, 0)),
            jax=lambda j, a, b: j.numpy.transpose(a, (1, 0)),
            tensorflow=lambda t, a, b: t.transpose(a, (1, 0)),
        ),
    ),
    "concatenate": (
        lambda o, a, b: o.concatenate([a, b], axis=0),
        dict(
            torch=lambda t, a, b: t.cat([a, b], dim=0),
            jax=lambda j, a, b: j.numpy.concatenate([a, b], axis=0),
            tensorflow=lambda t, a, b: t.concat([a, b], axis=0),
        ),
    ),
    "where": (
        lambda o, a, b: o.where(o.greater(a, b), a, b),
        dict(
            torch=lambda t, a, b: t.where(t.gt(a, b), a, b),
            jax=lambda j, a, b: j.numpy.where(j.numpy.greater(a, b), a, b),
            tensorflow=lambda t, a, b: t.where(t.greater(a, b), a, b),
        ),
    ),
    "softmax": (
        lambda o, a, b: o.softmax(a),
        dict(
            torch=lambda t, a, b: t.softmax(a, -1),
            jax=lambda j, a, b: j.nn.softmax(a),
            tensorflow=lambda t, a, b: t.nn.softmax(a),
        ),
    ),
    "relu": (
        lambda o, a, b: o.relu(a),
        dict(
            torch=lambda t, a, b: t.relu(a),
            jax=lambda j, a, b: j.nn.relu(a),
            tensorflow=lambda t, a, b: t.nn.relu(a),
        ),
    ),
    "cast": (
        lambda o, a, b: o.cast(a, "float16"),
        dict(
            torch=lambda t, a, b: a.to(t.float16),
            jax=lambda j, a, b: a.astype("float16"),
            tensorflow=lambda t, a, b: t.cast(a, t.float16),
        ),
    ),
}


def libraries(backend):
    """The native library, khub's ops and Keras' ops."""
    import importlib

    native = importlib.import_module(backend)
    if backend == "jax":
        importlib.import_module("jax.numpy")
    return {
        "native": native,
        "khub": importlib.import_module("khub").ops,
        "keras": importlib.import_module("keras").ops,
    }


def time_calls(function, library, a, b):
    """Microseconds a call."""
    start = time.perf_counter()
    for _ in range(CALLS):
        function(library, a, b)
    return (time.perf_counter() - start) / CALLS * 1e6


def measure(backend, turns):
    """Operation -> side -> microseconds a call, one a turn."""
    import numpy as np

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    sides = libraries(backend)
    random = np.random.default_rng(0)
    a, b = (
        sides["khub"].convert_to_tensor(random.random(SHAPE, dtype=np.float32)) for _ in range(2)
    )
    seconds = {}
    for name, (call, native) in OPERATIONS.items():
        functions = {"native": native[backend], "khub": call, "keras": call}
        values = [np.asarray(functions[s](sides[s], a, b), "float32") for s in sides]
        for value in values[1:]:
            np.testing.assert_allclose(value, values[0], rtol=1e-3)
        for side in sides:  # warm
            time_calls(functions[side], sides[side], a, b)
        seconds[name] = {side: [] for side in sides}
        for _ in range(turns):
            for side in sides:
                seconds[name][side].append(time_calls(functions[side], sides[side], a, b))
    return seconds


def judge(seconds):
    """Add what each side costs over the native call, and whether khub stays below the limit."""
    result = {}
    for name, sides in seconds.items():
        over = {
            side: median(x - y for x, y in zip(sides[side], sides["native"], strict=True))
            for side in ("khub", "keras")
        }
        result[name] = {
            "native_microseconds": median(sides["native"]),
            "microseconds_over_native": over,
            "reaches_target": over["khub"] <= LIMIT,
            "turns": sides,
        }
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=["torch", "jax", "tensorflow"])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--all", action="store_true", help="every backend, each in a new process")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        good = True
        backends = ["torch", "jax", "tensorflow"] if options.all else [options.backend]
        for backend in backends:
            command = [sys.executable, "-m", "benchmarks.ops", "--inside", "--backend", backend]
            done = subprocess.run(
                [*command, "--turns", str(options.turns)], env=environment(backend)
            )
            good &= done.returncode == 0
        return 0 if good else 1
    backend = options.backend
    cells = judge(measure(backend, options.turns))
    print(
        f"{backend}: microseconds over the native call\n{'':24}{'native':>8}{'khub':>8}{'keras':>8}"
    )
    for name, cell in cells.items():
        over = cell["microseconds_over_native"]
        print(
            f"{name:24}{cell['native_microseconds']:8.2f}{over['khub']:8.2f}{over['keras']:8.2f}"
            f"  {'pass' if cell['reaches_target'] else 'FAIL'}"
        )
    table = describe(backend) | {"limit_microseconds": LIMIT, "operations": cells}
    (RESULTS / f"ops_{backend}.json").write_text(json.dumps(table, indent=1) + "\n")
    return 0 if all(cell["reaches_target"] for cell in cells.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
