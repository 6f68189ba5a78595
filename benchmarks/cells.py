"""What is measured: every cell's size, data and target."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    `targets` is the highest allowed ratio khub / native on a backend (seconds beyond the backend
    for `import`; None: only "not slower than Keras"), `keras_before` what Keras 3.15.1 was measured
    at when the targets were set.
    """

    iterations: int  # a turn
    targets: dict[str, float | None]
    keras_before: dict[str, float] = field(default_factory=dict)
    batch: int = 0
    keras_iterations: int = 0  # where Keras is so slow that it gets fewer; never in a fit cell
    baseline: str = ""  # a program of khub that stands for the native loop


def each(torch, jax, tensorflow):
    return {"torch": torch, "jax": jax, "tensorflow": tensorflow}


CELLS = {
    "import": Cell(1, each(0.3, 0.3, 0.3), each(2.0, 2.0, 4.0)),
    "eager_ops": Cell(50, each(1.5, 1.15, 1.3), each(12, 1.3, 1.7)),
    "functional_call": Cell(300, each(2.0, 1.5, 2.0), each(14, 2.4, 8.8)),
    "fit_tiny": Cell(500, each(2.0, 1.5, 2.0), each(7.8, 3.5, 4.6), batch=16),
    "fit_mlp": Cell(60, each(1.15, 1.05, None), {"torch": 1.9, "jax": 1.0}, batch=128),
    "fit_cnn": Cell(20, each(1.15, None, None), {"torch": 2.1}, batch=64),
    "fit_bert": Cell(4, each(1.05, 1.05, 1.2), each(1.06, 1.1, 2.7), batch=16),
    "predict_row": Cell(400, each(3.0, 2.0, 4.0), each(22, 7.4, 172), keras_iterations=40),
    "predict_mlp": Cell(60, each(1.15, 1.05, 1.05), batch=128),
    "predict_cnn": Cell(20, each(1.15, 1.05, 1.05), batch=64),
    "predict_bert": Cell(4, each(1.15, 1.05, 1.05), batch=16),
    "predict_called": Cell(400, each(2.0, 2.0, 2.0), baseline="called"),
    "fit_grouped": Cell(512, {"jax": 0.5}, batch=16, baseline="fit_tiny"),
    "jit_60": Cell(50, {"jax": 1.03}, batch=32),
}

IMPORTS = {"torch": "import torch", "jax": "import jax.numpy", "tensorflow": "import tensorflow"}
# Keras has no jit over variables; what khub is compared with is khub itself
NOT_IN_KERAS = {"jit_60", *(name for name, cell in CELLS.items() if cell.baseline)}

BERT = dict(vocabulary=4000, length=64, width=256, heads=4, hidden=1024, depth=4, classes=2)
STACK = dict(width=128, depth=60)  # jit_60


def fit_data(name, steps):
    """x and y of a fit or predict cell, as NumPy arrays of `steps` batches."""
    random, n = np.random.default_rng(0), steps * CELLS[name].batch
    kind = name.partition("_")[2]
    if kind in ("tiny", "grouped"):
        return random.standard_normal((n, 8), np.float32), random.standard_normal(
            (n, 1), np.float32
        )
    if kind == "mlp":
        return random.standard_normal((n, 784), np.float32), random.integers(0, 10, n)
    if kind == "cnn":
        return random.standard_normal((n, 28, 28, 1), np.float32), random.integers(0, 10, n)
    tokens = random.integers(0, BERT["vocabulary"], (n, BERT["length"]))
    return tokens.astype("int32"), random.integers(0, BERT["classes"], n)


def rows():
    """x: (64, 20), what `predict_row` asks for row by row."""
    return np.random.default_rng(0).standard_normal((64, 20), np.float32)


def matrices():
    """Pairs (n, k) and (k, m) for `eager_ops`, from 2x3 to 16x16."""
    random = np.random.default_rng(0)
    sizes = [(2, 3), (3, 2), (4, 4), (4, 6), (6, 4), (8, 8), (8, 4), (10, 12), (12, 12), (16, 16)]
    return [
        (random.random((n, k), np.float32), random.random((k, n), np.float32)) for n, k in sizes
    ]


def stack_batch():
    """x and y of `jit_60`: (batch, width) each."""
    random, shape = np.random.default_rng(0), (CELLS["jit_60"].batch, STACK["width"])
    return random.standard_normal(shape, np.float32), random.standard_normal(shape, np.float32)
