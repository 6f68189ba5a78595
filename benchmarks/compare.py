"""Time khub and Keras against hand-written native loops, taking turns.

python -m benchmarks.compare --backend torch --cells fit_mlp,fit_cnn --turns 15 [--no-keras]
python -m benchmarks.compare --all
"""

import argparse
import datetime
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles

from .cells import CELLS, IMPORTS, NOT_IN_KERAS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
PACKAGES = {
    "torch": ["torch"],
    "jax": ["jax", "jaxlib"],
    "tensorflow": ["tensorflow-cpu"],
    "tokenizers": ["tokenizers"],  # of benchmarks.nlp, which needs no framework
}
ONE_THREAD = {  # every contender of every cell alike: the machines are shared
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NPROC": "1",  # XLA's thread pool
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
NOISE = 1.03  # "never slower than Keras": a median within 3 % counts as equal


class Failed(Exception):
    """A contender died; the message is the end of its stderr."""


class Contender:
    """A process that stays alive between its turns."""

    def __init__(self, side, backend, cell):
        self.iterations = iterations(cell, side)
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  an unread pipe would block
        command = [sys.executable, "-m", "benchmarks.contender", side, backend, cell]
        self.process = subprocess.Popen(
            [*command, str(self.iterations)],
            cwd=ROOT,
            env=environment(backend),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise Failed(self.errors.read()[-1500:])
        return json.loads(line)

    def turn(self):
        """Wall-clock and CPU seconds an iteration."""
        self.process.stdin.write(f"{self.iterations}\n")
        self.process.stdin.flush()
        return [seconds / self.iterations for seconds in self.answer()]

    def close(self):
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def iterations(cell, side):
    fewer = CELLS[cell].keras_iterations if side == "keras" else 0
    return fewer or CELLS[cell].iterations


def environment(backend):
    bytecode = {"PYTHONDONTWRITEBYTECODE": ""}  # what is installed has its byte code
    names = {"KHUB_BACKEND": backend, "KERAS_BACKEND": backend}
    return os.environ | ({} if gpu() else ONE_THREAD) | bytecode | names


class Importer:
    """Starts a fresh process a turn, which only imports."""

    def __init__(self, side, backend, cell):
        self.command = [sys.executable, "-c", IMPORTS[backend]]
        self.environment = environment(backend)
        if side != "native":
            self.command[2] = f"import {side}"
        if side != "keras":  # TensorFlow imports an installed Keras by itself: not on their account
            self.environment["TF_USE_LEGACY_KERAS"] = "1"

    def answer(self):
        self.turn()  # writes byte code, fills the disk cache
        return {"parameters": 0, "value": 0.0}

    def turn(self):
        wall, cpu = time.perf_counter(), cpu_of_children()
        done = subprocess.run(
            self.command, cwd=ROOT, env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            raise Failed(done.stderr[-1500:])
        return time.perf_counter() - wall, cpu_of_children() - cpu

    def close(self):
        """Nothing stays alive."""


def cpu_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(sides, backend, cell, turns):
    """Side -> (wall-clock, CPU) seconds an iteration, one pair a turn."""
    contenders, seconds = {}, {side: [] for side in sides}
    make = Importer if cell == "import" else Contender
    try:
        for side in sides:
            contenders[side] = make(side, backend, cell)
            seconds[side].append(contenders[side].answer())
        check(cell, {side: first.pop() for side, first in seconds.items()})
        for _ in range(turns):
            for side in sides:
                seconds[side].append(contenders[side].turn())
        return seconds
    finally:
        for contender in contenders.values():
            contender.close()


def check(cell, first):
    """Contenders must have networks of one size and compute numbers, in `eager_ops` the same."""
    sizes = {side: answer["parameters"] for side, answer in first.items()}
    if len(set(sizes.values())) > 1:
        raise Failed(f"The contenders' networks differ in size: {sizes}")
    for side, answer in first.items():
        if not math.isfinite(answer["value"]):
            raise Failed(f"{side} computed {answer['value']}")
        if cell == "eager_ops" and not math.isclose(
            answer["value"], first["native"]["value"], rel_tol=1e-4
        ):
            raise Failed(f"{side} computed {answer['value']}, native {first['native']['value']}")


def compared(cell, times, others):
    """Each turn's time over the other's; `import`: less the other's."""
    return [a - b if cell == "import" else a / b for a, b in zip(times, others)]


def judge(cell, backend, seconds):
    """Medians of the per-turn ratios (`import`: differences), and whether they reach the target."""
    wall, cpu = (
        {side: [pair[clock] for pair in pairs] for side, pairs in seconds.items()}
        for clock in (0, 1)
    )
    ratios = {s: compared(cell, wall[s], wall["native"]) for s in wall if s != "native"}
    target = CELLS[cell].targets.get(backend)
    result = {
        "iterations": {side: iterations(cell, side) for side in seconds},
        "target": target,
        "keras_before": CELLS[cell].keras_before.get(backend),
        "median_seconds": {side: median(times) for side, times in wall.items()},
        "ratio": {side: median(values) for side, values in ratios.items()},
        "quartiles": {
            side: quantiles(values, n=4)[::2] if len(values) > 1 else values * 2
            for side, values in ratios.items()
        },
        "cpu_ratio": {s: median(compared(cell, cpu[s], cpu["native"])) for s in ratios},
        "seconds": wall,
        "cpu_seconds": cpu,
    }
    if "khub" in seconds:
        result["reaches_target"] = None if target is None else result["ratio"]["khub"] <= target
        if "keras" in seconds:
            against = median(a / b for a, b in zip(wall["khub"], wall["keras"]))
            result["khub_to_keras"] = against
            result["not_slower_than_keras"] = against <= NOISE
    return result


def describe(backend):
    """What the numbers depend on."""
    packages = ["numpy", "keras", *PACKAGES[backend]]
    git = ["git", "-C", str(ROOT)]
    revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--", "khub"], capture_output=True, text=True
    )
    cpu = [s for s in Path("/proc/cpuinfo").read_text().splitlines() if s.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "revision": revision.stdout.strip() if revision.returncode == 0 else None,
        "khub_has_uncommitted_changes": bool(changed.stdout.strip()),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in packages if is_installed(name)},
        "machine": {
            "cpu": cpu[0].split(":")[1].strip() if cpu else platform.processor(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.platform(),
            "load_average": os.getloadavg(),
            "gpu": gpu(),
        },
        "threads": "all"
        if gpu()
        else "one a contender: " + " ".join(f"{k}={v}" for k, v in ONE_THREAD.items()),
    }


def is_installed(package):
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


@cache
def gpu():
    """The graphics card's name, None without one."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip() or None


def write(path, backend, cell, result):
    """Replace one cell of a results file; the others keep their own date and revision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = json.loads(path.read_text()) if path.exists() else {"backend": backend, "cells": {}}
    table["cells"][cell] = describe(backend) | result
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(table, indent=1) + "\n")
    temporary.replace(path)


def line(backend, cell, result):
    def number(value, form="{:.2f}"):
        return "-" if value is None else form.format(value)

    ratio, milliseconds = result["ratio"], result["median_seconds"]["native"] * 1e3
    verdict = {True: "pass", False: "FAIL", None: "-"}[result.get("reaches_target")]
    if result.get("not_slower_than_keras") is False:
        verdict += " SLOWER THAN KERAS"
    low, high = result["quartiles"].get("khub", (None, None))
    return (
        f"{backend:10} {cell:16} {milliseconds:10.3f} {number(ratio.get('khub')):>7} "
        f"{number(low):>6}..{number(high):6} {number(result['cpu_ratio'].get('khub')):>6} "
        f"{number(result['target']):>7} "
        f"{number(ratio.get('keras')):>7} {number(result['keras_before'], '({})'):>7}  {verdict}"
    )


HEAD = (
    f"{'backend':10} {'cell':16} {'native ms':>10} {'khub':>7} {'quartiles':>14} {'cpu':>6} "
    f"{'target':>7} {'keras':>7} {'before':>7}  verdict"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=list(IMPORTS), action="append")
    parser.add_argument("--cells", help="comma-separated; all cells with a target if not given")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--all", action="store_true", help="every cell of every backend")
    parser.add_argument("--no-keras", action="store_true")
    parser.add_argument("--no-khub", action="store_true", help="native and Keras only")
    parser.add_argument("--name", help="results/NAME.json instead of results/BACKEND.json")
    options = parser.parse_args()
    if not options.all and not options.backend:
        parser.error("say --backend torch|jax|tensorflow, or --all")
    left_out = {side for side in ("khub", "keras") if getattr(options, f"no_{side}")}
    good = True
    print(HEAD)
    for backend in list(IMPORTS) if options.all else options.backend:
        chosen = options.cells.split(",") if options.cells else None
        for cell in chosen or [c for c in CELLS if backend in CELLS[c].targets]:
            if cell not in CELLS:
                parser.error(f"no cell {cell!r}; there are {', '.join(CELLS)}")
            unwanted = left_out | ({"keras"} if cell in NOT_IN_KERAS else set())
            sides = [side for side in ("native", "khub", "keras") if side not in unwanted]
            try:
                result = judge(cell, backend, measure(sides, backend, cell, options.turns))
            except Failed as error:
                print(f"{backend:10} {cell:16} FAILED\n{error}", flush=True)
                good = False
                continue
            print(line(backend, cell, result), flush=True)
            write(RESULTS / f"{options.name or backend}.json", backend, cell, result)
            good &= result.get("reaches_target") is not False
            good &= result.get("not_slower_than_keras") is not False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
