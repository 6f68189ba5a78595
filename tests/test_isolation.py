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

# Prints what has been imported after the framework alone, after khub, and after all of the hub.
SCRIPT = """
import json, sys
import blocking; blocking.hide(blocking.others({backend!r}))
import {framework}; brought = set(sys.modules)
import khub; core = set(sys.modules)
import khub.presets, khub.nlp, khub.cv, khub.applications
print(json.dumps([sorted(names) for names in (brought, core, set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def backend():
    import khub

    return khub.backend.name


@pytest.fixture(scope="module")
def loaded(backend):
    """Modules imported after the framework alone, after khub as well, after the hub as well."""
    framework = "jax.numpy" if backend == "jax" else backend
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(backend=backend, framework=framework)],
        env={**os.environ, "KHUB_BACKEND": backend, "PYTHONPATH": str(ROOT / "tests")},
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [set(names) for names in json.loads(done.stdout.splitlines()[-1])]


def test_everything_imports_where_nothing_else_is_installed(backend, loaded):
    _, _, everything = loaded
    assert {"khub.presets", "khub.nlp", "khub.cv", "khub.applications"} <= everything
    assert blocking.others(backend) & everything == set()


def test_importing_khub_loads_only_what_it_needs(loaded):
    brought, core, _ = loaded  # what the framework brings along is not khub's doing
    assert "khub" in core
    assert LATE & (core - brought) == set()


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
