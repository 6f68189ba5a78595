"""Runs ruff, then every test on every backend: `make test`. `--slow` runs the tests marked slow.

Each backend takes two processes: its suite, with the other frameworks hidden, and tests/parity,
which needs the reference implementations; on JAX, WHOLE is a third. As many run side by side as
there are cores, two at most; the output of each is printed when it ends.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ["jax", "tensorflow", "torch", "numpy"]  # the slowest first
NOTHING_COLLECTED = 5  # pytest's exit status
# Most of JAX's time goes to optimizing programs that run once: it compiles them as they are. On
# NumPy, Keras runs on JAX.
UNOPTIMIZED = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
}
# Of tests/parity: a network of each family that Keras has, its training, a transformer. They and
# the slow tests run on JAX as users run it.
WHOLE = [
    "test_keras_applications.py",
    "test_keras_trainer.py",
    "test_keras_core.py",
    "test_bert.py",
]
WHOLE = [f"tests/parity/{name}" for name in WHOLE]


def jobs(backends, slow):
    """Return (name, pytest arguments, environment) of each process, the longest first."""
    work = []
    for backend in backends:
        marks = ["-m", "slow" if slow else "not slow"]
        if backend != backends[-1]:
            marks[1] += " and not once"
        quick = UNOPTIMIZED if backend in ("jax", "numpy") and not slow else {}
        apart = WHOLE if backend == "jax" and not slow else []
        hidden = {"KHUB_BACKEND": backend, "KHUB_TEST_BLOCK_OTHERS": "1"}
        seen = {"KHUB_BACKEND": backend, "KHUB_TEST_BLOCK_OTHERS": "0"}
        rest = ["tests/parity", *(f"--ignore={path}" for path in apart)]
        work.append(
            (f"suite on {backend}", ["tests", "--ignore=tests/parity", *marks], hidden | quick)
        )
        work.append((f"parity on {backend}", [*rest, *marks], seen | quick))
        if apart:
            work.append((f"whole models on {backend}", [*apart, *marks], seen))
    return work


def run(name, arguments, environment, folder):
    """Run one pytest process; return name, seconds, whether it failed, output and counts."""
    report = Path(folder, name.replace(" ", "-") + ".xml")
    command = [sys.executable, "-m", "pytest", *arguments, "--durations=5", "--tb=short"]
    command.append(f"--junitxml={report}")
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **environment}
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    counts = read_counts(report)
    empty = done.returncode == NOTHING_COLLECTED and not any(counts[:2])
    failed = done.returncode != 0 and not empty
    if failed and counts[1] == 0:  # it broke down before or after the tests
        counts = (counts[0], 1, counts[2])
    return name, time.monotonic() - start, failed, done.stdout, counts


def read_counts(report):
    """Return (passed, failed, skipped) from pytest's JUnit file, zeros when there is none."""
    if not report.exists():
        return 0, 0, 0
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    total, failed, skipped = 0, 0, 0
    for suite in suites:
        total += int(suite.get("tests"))
        failed += int(suite.get("failures")) + int(suite.get("errors"))
        skipped += int(suite.get("skipped"))
    return max(total - failed - skipped, 0), failed, skipped


def lint():
    """Return the number of ruff's two checks that failed."""
    failed = 0
    for arguments in (["check"], ["format", "--check"]):
        print(f"=== ruff {' '.join(arguments)}", flush=True)
        command = [sys.executable, "-m", "ruff", *arguments, "--output-format=concise", "."]
        done = subprocess.run(command, cwd=ROOT)
        failed += done.returncode != 0
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slow", action="store_true", help="the tests marked slow, no others")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="repeatable")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    start = time.monotonic()

    failures = [] if options.slow else ["ruff"] * lint()
    passed, failed, skipped = 0, len(failures), 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        if not options.slow:  # what Keras writes for tests/parity is the same for every backend
            os.environ.setdefault("KHUB_KERAS_FILES", str(Path(folder, "keras_applications")))
        work = jobs(options.backend or BACKENDS, options.slow)
        for future in as_completed([pool.submit(run, *job, folder) for job in work]):
            name, seconds, broken, output, counts = future.result()
            print(f"\n=== {name}: {seconds:.0f} s\n{output}", flush=True)
            passed, failed, skipped = (a + b for a, b in zip((passed, failed, skipped), counts))
            if broken:
                failures.append(name)

    print(f"\n=== {time.monotonic() - start:.0f} s in all")
    for name in failures:
        print(f"failed: {name}")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failures or failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
