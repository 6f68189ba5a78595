"""What an eager operation costs over the framework's own call: microseconds, khub and Keras.

python -m benchmarks.ops --backend torch [--cells add,where] [--turns 15]
python -m benchmarks.ops --all

One process a backend; the three take turns. The figure of an operation is the median over the
turns of (time of a call less the time of the native call of the same turn), each in the turn's
fastest hundred calls.
"""

import json
import math
import os
import sys
import time
from statistics import median

from .compare import RESULTS, describe
from .layers import main

CALLS, ROW = 1500, 100  # of one operation a turn; timed together
LIMIT = 1.0  # microseconds over the native call
SHAPE = (4, 4)

# operation -> call on khub's or Keras' ops, call on (torch, jax.numpy and jax, tensorflow)
OPERATIONS = {
    "add": (
        lambda o, a, b, c: o.add(a, b),
        dict(
            torch=lambda t, a, b, c: t.add(a, b),
            jax=lambda j, a, b, c: j.numpy.add(a, b),
            tensorflow=lambda t, a, b, c: t.add(a, b),
        ),
    ),
    "multiply by a number": (
        lambda o, a, b, c: o.multiply(a, 2.0),
        dict(
            torch=lambda t, a, b, c: t.mul(a, 2.0),
            jax=lambda j, a, b, c: j.numpy.multiply(a, 2.0),
            tensorflow=lambda t, a, b, c: t.multiply(a, 2.0),
        ),
    ),
    "matmul": (
        lambda o, a, b, c: o.matmul(a, b),
        dict(
            torch=lambda t, a, b, c: t.matmul(a, b),
            jax=lambda j, a, b, c: j.numpy.matmul(a, b),
            tensorflow=lambda t, a, b, c: t.matmul(a, b),
        ),
    ),
    "exp": (
        lambda o, a, b, c: o.exp(a),
        dict(
            torch=lambda t, a, b, c: t.exp(a),
            jax=lambda j, a, b, c: j.numpy.exp(a),
            tensorflow=lambda t, a, b, c: t.exp(a),
        ),
    ),
    "sum over an axis": (
        lambda o, a, b, c: o.sum(a, axis=-1),
        dict(
            torch=lambda t, a, b, c: t.sum(a, dim=-1),
            jax=lambda j, a, b, c: j.numpy.sum(a, axis=-1),
            tensorflow=lambda t, a, b, c: t.reduce_sum(a, axis=-1),
        ),
    ),
    "reshape": (
        lambda o, a, b, c: o.reshape(a, (2, 8)),
        dict(
            torch=lambda t, a, b, c: t.reshape(a, (2, 8)),
            jax=lambda j, a, b, c: j.numpy.reshape(a, (2, 8)),
            tensorflow=lambda t, a, b, c: t.reshape(a, (2, 8)),
        ),
    ),
    "transpose": (
        lambda o, a, b, c: o.transpose(a, (1, 0)),
        dict(
            torch=lambda t, a, b, c: t.permute(a, (1, 0)),
            jax=lambda j, a, b, c: j.numpy.transpose(a, (1, 0)),
            tensorflow=lambda t, a, b, c: t.transpose(a, (1, 0)),
        ),
    ),
    "concatenate": (
        lambda o, a, b, c: o.concatenate([a, b], axis=0),
        dict(
            torch=lambda t, a, b, c: t.cat([a, b], dim=0),
            jax=lambda j, a, b, c: j.numpy.concatenate([a, b], axis=0),
            tensorflow=lambda t, a, b, c: t.concat([a, b], axis=0),
        ),
    ),
    "where": (
        lambda o, a, b, c: o.where(c, a, b),
        dict(
            torch=lambda t, a, b, c: t.where(c, a, b),
            jax=lambda j, a, b, c: j.numpy.where(c, a, b),
            tensorflow=lambda t, a, b, c: t.where(c, a, b),
        ),
    ),
    "softmax": (
        lambda o, a, b, c: o.softmax(a),
        dict(
            torch=lambda t, a, b, c: t.softmax(a, -1),
            jax=lambda j, a, b, c: j.nn.softmax(a),
            tensorflow=lambda t, a, b, c: t.nn.softmax(a),
        ),
    ),
    "relu": (
        lambda o, a, b, c: o.relu(a),
        dict(
            torch=lambda t, a, b, c: t.relu(a),
            jax=lambda j, a, b, c: j.nn.relu(a),
            tensorflow=lambda t, a, b, c: t.nn.relu(a),
        ),
    ),
    "cast": (
        lambda o, a, b, c: o.cast(a, "float16"),
        dict(
            torch=lambda t, a, b, c: a.to(t.float16),
            jax=lambda j, a, b, c: a.astype("float16"),
            tensorflow=lambda t, a, b, c: t.cast(a, t.float16),
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


def time_calls(function, library, *operands):
    """Microseconds a call, in the fastest of 15 rows of calls: what interrupts one slows others."""
    fastest = math.inf
    for _ in range(CALLS // ROW):
        start = time.perf_counter()
        for _ in range(ROW):
            function(library, *operands)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest / ROW * 1e6


def time_sides(backend, turns, chosen):
    """Chosen operation -> side -> microseconds a call, one a turn."""
    import numpy as np

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    sides = libraries(backend)
    random = np.random.default_rng(0)
    a, b = (
        sides["khub"].convert_to_tensor(random.random(SHAPE, dtype=np.float32)) for _ in range(2)
    )
    operands = a, b, sides["khub"].greater(a, b)
    seconds = {}
    for name in chosen:
        call, native = OPERATIONS[name]
        functions = {"native": native[backend], "khub": call, "keras": call}
        values = [np.asarray(functions[s](sides[s], *operands), "float32") for s in sides]
        for value in values[1:]:
            np.testing.assert_allclose(value, values[0], rtol=1e-3)
        for side in sides:  # warm
            time_calls(functions[side], sides[side], *operands)
        seconds[name] = {side: [] for side in sides}
        for _ in range(turns):
            for side in sides:
                seconds[name][side].append(time_calls(functions[side], sides[side], *operands))
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


def measure(options):
    backend = options.backend
    chosen = options.cells.split(",") if options.cells else OPERATIONS
    cells = judge(time_sides(backend, options.turns, chosen))
    print(
        f"{backend}: microseconds over the native call\n{'':24}{'native':>8}{'khub':>8}{'keras':>8}"
    )
    for name, cell in cells.items():
        over = cell["microseconds_over_native"]
        print(
            f"{name:24}{cell['native_microseconds']:8.2f}{over['khub']:8.2f}{over['keras']:8.2f}"
            f"  {'pass' if cell['reaches_target'] else 'FAIL'}"
        )
    path = RESULTS / f"ops_{backend}.json"
    before = json.loads(path.read_text())["operations"] if path.exists() else {}
    table = describe(backend) | {"limit_microseconds": LIMIT, "operations": before | cells}
    path.write_text(json.dumps(table, indent=1) + "\n")
    return 0 if all(cell["reaches_target"] for cell in cells.values()) else 1


if __name__ == "__main__":
    sys.exit(main("benchmarks.ops", __doc__.splitlines()[0], OPERATIONS, 15, measure))
