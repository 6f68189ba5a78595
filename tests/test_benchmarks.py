"""The benchmarks' programs run and compute numbers; nothing here is timed."""

import importlib
import math
import sys

import pytest
from sources import ROOT

import khub

sys.path.insert(0, str(ROOT))  # benchmarks/ does not ship: no package installs it
cells = importlib.import_module("benchmarks.cells")
compare = importlib.import_module("benchmarks.compare")
contender = importlib.import_module("benchmarks.contender")
train_steps = importlib.import_module("benchmarks.train_steps")

BACKEND = khub.backend.name
WITHOUT_GRADIENTS = ["eager_ops", "functional_call", "predict_row"]
HERE = [
    cell
    for cell in cells.CELLS
    if cell != "import"
    and (cell in WITHOUT_GRADIENTS if BACKEND == "numpy" else BACKEND in cells.CELLS[cell].targets)
]
needs_gradients = pytest.mark.skipif(BACKEND == "numpy", reason="NumPy has no gradients")


@pytest.mark.parametrize("cell", HERE)
def test_khub_program_computes_a_number(cell):
    run, _ = contender.make("khub", BACKEND, cell)
    assert math.isfinite(run(2))


@needs_gradients
@pytest.mark.parametrize("cell", HERE)
def test_native_program_has_the_size_of_khubs(cell):
    run, parameters = contender.make("native", BACKEND, cell)
    assert math.isfinite(run(2))
    assert parameters == contender.make("khub", BACKEND, cell)[1]


@needs_gradients
def test_train_steps_improve():
    found = train_steps.losses(khub)
    assert set(found) == set(train_steps.PROGRAMS)
    for curve in found.values():
        assert all(math.isfinite(loss) for losses in curve for loss in losses)
    assert found["distillation"][-1][0] < found["distillation"][0][0]


def turns(*seconds):
    return [(s, 2 * s) for s in seconds]


def test_a_ratio_over_its_target_fails():
    seconds = {"native": turns(1, 2, 4), "khub": turns(1.1, 2.4, 4), "keras": turns(2, 4, 8)}
    result = compare.judge("fit_mlp", "torch", seconds)
    for ratio in (result["ratio"], result["cpu_ratio"]):
        assert ratio == {"khub": pytest.approx(1.1), "keras": pytest.approx(2.0)}
    assert result["reaches_target"] and result["not_slower_than_keras"]
    slow = compare.judge("fit_mlp", "torch", seconds | {"khub": turns(2.4, 4.8, 9.6)})
    assert slow["reaches_target"] is False and slow["not_slower_than_keras"] is False


def test_import_is_judged_by_its_difference():
    result = compare.judge("import", "jax", {"native": turns(1, 1.2), "khub": turns(1.1, 1.5)})
    assert result["ratio"]["khub"] == pytest.approx(0.2) and result["reaches_target"]


def test_contenders_of_different_size_are_refused():
    answers = {"native": {"parameters": 3, "value": 0.0}, "khub": {"parameters": 4, "value": 0.0}}
    with pytest.raises(compare.Failed, match="differ in size"):
        compare.check("fit_mlp", answers)


def test_contenders_that_compute_something_else_are_refused():
    answers = {"native": {"parameters": 0, "value": 1.0}, "khub": {"parameters": 0, "value": 1.1}}
    with pytest.raises(compare.Failed, match="khub computed 1.1"):
        compare.check("eager_ops", answers)
