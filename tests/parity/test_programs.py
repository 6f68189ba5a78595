"""The programs of tests/programs/ hold under Keras itself: their assertions are no wishes."""

import os
import runpy
from pathlib import Path

import pytest

if os.environ["KHUB_BACKEND"] == "numpy":
    pytest.skip("the programs train, and Keras' NumPy cannot", allow_module_level=True)
keras = pytest.importorskip("keras")

# Once is enough to see that the assertions hold; on torch Keras takes minutes for it.
pytestmark = [] if os.environ["KERAS_BACKEND"] == "jax" else pytest.mark.slow

PROGRAMS = sorted(Path(__file__).parents[1].joinpath("programs").glob("*.py"))

# Where Keras itself fails: on torch its calls without side effects write into what they are given,
# on TensorFlow it has no stateless_apply.
FAULTS = {"torch": {"stateless"}, "tensorflow": {"stateless"}}.get(os.environ["KERAS_BACKEND"], ())


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_program(path):
    if path.stem in FAULTS:
        pytest.skip(f"Keras is at fault on {os.environ['KERAS_BACKEND']}")
    assert runpy.run_path(str(path), run_name="__main__")["keras"] is keras
