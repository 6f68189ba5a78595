"""One contender, in a process of its own: reads iteration counts, answers with seconds.

python -m benchmarks.contender native|khub|keras BACKEND CELL ITERATIONS
"""

import gc
import importlib
import json
import os
import shutil
import sys
import time

from .cells import CELLS


def make(side, backend, cell):
    """The (run, parameters) pair of a cell."""
    programs = importlib.import_module("benchmarks.programs")
    if side == "native":
        if CELLS[cell].baseline:
            return getattr(programs, CELLS[cell].baseline)(importlib.import_module("khub"))
        return getattr(importlib.import_module(f"benchmarks.native_{backend}"), cell)()
    return getattr(programs, cell)(importlib.import_module(side))


def main(side, backend, cell, iterations):
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a framework prints must not mix with the answers
    # Whether JAX's thread wakes on our core or on another doubles the time of a small call; on a
    # GPU, torch computes gradients in a thread of their own.
    if hasattr(os, "sched_setaffinity") and not shutil.which("nvidia-smi"):
        os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    run, parameters = make(side, backend, cell)
    for _ in range(2):  # compile, allocate, fill caches
        value = run(iterations)
    print(json.dumps({"parameters": int(parameters), "value": value}), file=answers)
    for line in sys.stdin:
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        run(int(line))
        print([time.perf_counter() - wall, time.process_time() - cpu], file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
