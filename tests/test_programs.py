"""Programs written for Keras run unchanged: tests/programs/, whose `import keras` is khub here.

Each ends with assertions on what came out; tests/parity/test_programs.py runs them under Keras.
"""

import runpy
import sys
from pathlib import Path

import pytest

import khub
from khub.presets.run import install

PROGRAMS = sorted(Path(__file__).parent.joinpath("programs").glob("*.py"))


@pytest.fixture
def keras_is_khub(monkeypatch):
    """`install()`, undone afterwards."""

    def aliases():
        names = [n for n in sys.modules if f"{n}.".startswith(("keras.", "tensorflow.keras."))]
        return {name: sys.modules[name] for name in names}

    before, tensorflow = aliases(), sys.modules.get("tensorflow")
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    if hasattr(tensorflow, "keras"):
        monkeypatch.setattr(tensorflow, "keras", None)
    install()
    yield
    for name in aliases():
        del sys.modules[name]
    if tensorflow is None:
        sys.modules.pop("tensorflow", None)
    sys.modules.update(before)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_program(path, keras_is_khub):
    try:
        names = runpy.run_path(str(path), run_name="__main__")
    except NotImplementedError as error:
        if khub.backend.name == "numpy" and "computes no gradients" in str(error):
            pytest.skip("NumPy has no gradients: it runs until it trains")
        raise
    assert names["keras"] is khub


@pytest.mark.once
def test_there_are_enough_of_them():
    assert len(PROGRAMS) >= 25
