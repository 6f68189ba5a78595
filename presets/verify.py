"""verify: does a preset load strictly, and compute what it computed when it was made?"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .preset import load, open_preset
from .tensors import Checkpoint, parse_json, write_file

REFERENCE = "reference_outputs.safetensors"
TOLERANCES = {"bfloat16": 5e-2, "float16": 5e-3}  # absolute; else 1e-4


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    errors: output -> largest absolute difference from the preset's reference; empty without one
    """

    handle: str
    cls: str
    backend: str
    tensors: int
    tolerance: float
    seconds: float
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self):
        """Whether every output lies within the tolerance (a NaN does not)."""
        return all(error <= self.tolerance for error in self.errors.values())

    def __str__(self):
        lines = [
            f"{self.handle}: {self.cls} on {self.backend}, {self.tensors} tensors fit "
            f"({self.seconds:.1f} s)"
        ]
        for name, error in self.errors.items():
            mark = "ok" if error <= self.tolerance else "TOO LARGE"
            lines.append(
                f"  {name}: largest difference {error:.2g}, allowed {self.tolerance:g}: {mark}"
            )
        if not self.errors:
            lines.append(f"  no {REFERENCE}: outputs were not compared")
        return "\n".join(lines)


def _outputs(model, inputs):
    from khub import ops

    result = model(inputs, training=False)
    named = result if isinstance(result, dict) else {"output": result}
    return {name: np.asarray(ops.convert_to_numpy(value)) for name, value in named.items()}


def record_reference(model, folder, inputs):
    """Keep a model's outputs beside its preset, for `verify`.

    inputs: name -> array, what the model's `call` takes
    """
    arrays = {f"input.{name}": np.asarray(value) for name, value in inputs.items()}
    arrays |= {f"output.{name}": value for name, value in _outputs(model, inputs).items()}
    write_file(Path(folder) / REFERENCE, arrays)


def verify(handle, backend=None):
    """Load a preset strictly, compare with its reference outputs, and return a `Report`.

    backend: "jax" | "torch" | "tensorflow" | "numpy"; None means the running one, another one runs
    in a process of its own
    Raises what `from_preset` raises; differing outputs only make `report.ok` false.
    """
    from khub.backend import name as running

    if backend not in (None, running):
        return _elsewhere(handle, backend)
    start = time.perf_counter()
    preset = open_preset(handle)
    model = load(handle)
    folders = [preset.folder, *preset.folder.iterdir()]  # a pipeline has one for each model
    parts = [Checkpoint(folder) for folder in folders if (folder / "config.json").is_file()]
    dtypes = {dtype for part in parts for dtype in part.float_dtypes()}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    errors = {}
    if (preset.folder / REFERENCE).is_file():
        kept = Checkpoint(preset.folder / REFERENCE)
        arrays = {name: kept.tensor(name).read() for name in kept.names}
        inputs = {n.removeprefix("input."): a for n, a in arrays.items() if n.startswith("input.")}
        for name, value in _outputs(model, inputs).items():
            expected = arrays[f"output.{name}"].astype("float64")
            errors[name] = float(np.abs(value.astype("float64") - expected).max(initial=0))
    return Report(
        handle=str(handle),
        cls=type(model).__name__,
        backend=running,
        tensors=sum(len(part.names) for part in parts),
        tolerance=TOLERANCES.get(dtype, 1e-4),
        seconds=time.perf_counter() - start,
        errors=errors,
    )


def _elsewhere(handle, backend):
    command = [sys.executable, "-m", "khub.presets.cli", "verify", "--json", str(handle)]
    done = subprocess.run(
        command, env={**os.environ, "KHUB_BACKEND": backend}, capture_output=True, text=True
    )
    if not done.stdout.startswith("{"):
        raise RuntimeError(f"verify({str(handle)!r}) on {backend} failed:\n{done.stderr.strip()}")
    return Report(**parse_json(done.stdout, "the report"))
