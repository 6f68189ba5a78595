"""One framework installed is enough, and `import khub` loads nothing that it can do without."""

import importlib.util
import json
import os
import subprocess
import sys

import blocking
import pytest
from sources import ROOT

# Not loaded by `import khub`: the folders of the hub, and everything that is slow to import.
LATE = {
    *("khub.presets", "khub.nlp", "khub.cv", "khub.applications"),
    *("h5py", "PIL", "rich", "tokenizers", "sentencepiece", "huggingface_hub", "safetensors"),
    *("pandas", "sklearn", "matplotlib", "torch._dynamo"),
}

SCRIPT = """
import json, sys
before = set(sys.modules)
{hide}
{imports}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def modules_after(imports, backend, hide="", extra_environment=None):
    """Return the names in `sys.modules` after running `imports` in a new process."""
    environment = {**os.environ, "KHUB_BACKEND": backend, "PYTHONPATH": str(ROOT / "tests")}
    environment.pop("KERAS_BACKEND", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(imports=imports, hide=hide)],
        env=environment | (extra_environment or {}),
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def backend():
    import khub

    return khub.backend.name


def hiding(backend):
    return f"import blocking; blocking.hide(blocking.others({backend!r}))"


def test_everything_imports_where_nothing_else_is_installed(backend):
    everything = "import khub, khub.presets, khub.nlp, khub.cv, khub.applications"
    loaded = modules_after(everything, backend, hiding(backend))
    assert blocking.others(backend) & loaded == set()


def test_importing_khub_loads_only_what_it_needs(backend):
    framework = {"numpy": "numpy", "jax": "jax, jax.numpy"}.get(backend, backend)
    # What the framework brings along is not khub's doing.
    brought = modules_after(f"import {framework}", backend, hiding(backend))
    loaded = modules_after("import khub", backend, hiding(backend))
    assert LATE & (loaded - brought) == set()


def test_a_hidden_package_looks_uninstalled():
    script = (
        "import blocking, importlib.util as u; blocking.hide({'rich'})\n"
        "assert u.find_spec('rich') is None and u.find_spec('numpy')\n"
        "try: import rich.console\n"
        "except ModuleNotFoundError: print('hidden')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "hidden", done.stderr


def test_hiding_comes_before_importing():
    with pytest.raises(RuntimeError, match="pytest cannot be hidden"):
        blocking.hide({"pytest"})


def test_this_run_sees_what_it_should(backend):
    hidden = os.environ.get("KHUB_TEST_BLOCK_OTHERS") == "1"
    for name in blocking.others(backend) & {"jax", "torch", "tensorflow", "keras", "transformers"}:
        if hidden:
            assert importlib.util.find_spec(name) is None
            assert name not in sys.modules
    assert hidden or blocking.PACKAGES.keys() >= {backend}


@pytest.mark.once
def test_an_unknown_backend_is_refused():
    done = subprocess.run(
        [sys.executable, "-c", "import khub"],
        env={**os.environ, "KHUB_BACKEND": "theano"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "theano" in done.stderr and "tensorflow" in done.stderr
