"""Which backend runs, and that the four offer the same functions (read off their sources)."""

import ast
import inspect
import json
import os
import subprocess
import sys

import blocking
import pytest
from sources import ROOT

import khub
from khub.backend import NAMES, active
from khub.ops.op import OPS, PRIMITIVES

CORE = ROOT / "khub"


# --- choosing ------------------------------------------------------------------------------------
def start(tmp_path, script="import khub; print(khub.backend.name)", settings=None, **environment):
    """Run a script in a new process with `settings` in khub.json; return the finished process."""
    if settings is not None:
        (tmp_path / "khub.json").write_text(settings)
    clean = {k: v for k, v in os.environ.items() if k not in ("KHUB_BACKEND", "KERAS_BACKEND")}
    clean |= {"KHUB_HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "tests"), **environment}
    return subprocess.run(
        [sys.executable, "-c", script], env=clean, cwd=tmp_path, capture_output=True, text=True
    )


CHOICES = [  # environment, khub.json, chosen because of
    ({"KHUB_BACKEND": "numpy", "KERAS_BACKEND": "theano"}, '{"backend": "torch"}', "KHUB_BACKEND"),
    ({"KERAS_BACKEND": "numpy"}, '{"backend": "theano"}', "KERAS_BACKEND"),
    ({"KHUB_BACKEND": ""}, '{"backend": "numpy"}', "khub.json"),
]


@pytest.mark.once
@pytest.mark.parametrize(("environment", "settings", "source"), CHOICES)
def test_the_first_source_wins_and_is_named_in_one_line(tmp_path, environment, settings, source):
    done = start(tmp_path, settings=settings, **environment)
    assert done.stdout.strip() == "numpy", done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "numpy" in line and source in line


@pytest.mark.once
def test_without_a_choice_the_first_framework_installed_runs(tmp_path):
    hide = f"import blocking; blocking.hide({blocking.others('numpy')!r})\n"
    done = start(tmp_path, hide + "import khub; print(khub.backend.name)")
    assert done.stdout.strip() == "numpy", done.stderr
    assert "first framework installed" in done.stderr and "KHUB_BACKEND" in done.stderr


REFUSED = [  # environment, khub.json, words of the message
    ({"KHUB_BACKEND": "theano"}, None, ["ValueError", "KHUB_BACKEND", "'theano'", *NAMES]),
    ({"KERAS_BACKEND": "JAX "}, None, ["ValueError", "KERAS_BACKEND", "'JAX '"]),
    ({}, '{"backend": "pytorch"}', ["ValueError", "khub.json", "'pytorch'", "torch"]),
    ({}, '{"backend": 3}', ["ValueError", "khub.json", "3"]),
    ({"KHUB_BACKEND": "numpy"}, "{", ["ValueError", "khub.json", "not valid JSON"]),
    ({"KHUB_BACKEND": "numpy"}, "[]", ["ValueError", "khub.json", "JSON object"]),
    ({"KHUB_BACKEND": "numpy"}, '{"floatx": "float99"}', ["ValueError", "floatx", "float99"]),
]


@pytest.mark.once
@pytest.mark.parametrize(("environment", "settings", "words"), REFUSED)
def test_a_wrong_choice_is_refused(tmp_path, environment, settings, words):
    done = start(tmp_path, settings=settings, **environment)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert [word for word in words if word not in message] == []


@pytest.mark.once
def test_a_backend_that_is_not_installed_is_named_with_its_cure(tmp_path):
    hide = f"import blocking; blocking.hide({blocking.others('numpy')!r})\nimport khub"
    done = start(tmp_path, hide, KHUB_BACKEND="torch")
    assert "ImportError" in done.stderr and "pip install 'khub[torch]'" in done.stderr


@pytest.mark.once
def test_settings_of_the_file_are_applied(tmp_path):
    settings = json.dumps({"backend": "numpy", "floatx": "float64", "epsilon": 1e-5})
    script = "import khub; print(khub.config.floatx(), khub.config.epsilon())"
    assert start(tmp_path, script, settings).stdout.split() == ["float64", "1e-05"]


# --- one framework -------------------------------------------------------------------------------
def test_a_train_step_needs_no_other_framework(tmp_path):
    script = f"""
import blocking, sys; blocking.hide(blocking.others({khub.backend.name!r}))
import khub, numpy as np
x, y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")
model = khub.Sequential([khub.layers.Dense(1)]); model.compile("adam", "mse", metrics=["mae"])
(model.predict if khub.backend.name == "numpy" else model.fit)(x, verbose=0, **(
    {{}} if khub.backend.name == "numpy" else {{"y": y}}))
print(sorted(blocking.others({khub.backend.name!r}) & set(sys.modules)))
"""
    done = start(tmp_path, script, KHUB_BACKEND=khub.backend.name)
    assert done.stdout.strip() == "[]", done.stderr


# --- the contract --------------------------------------------------------------------------------
def definitions(name):
    """Return name -> definition (None: imported or assigned) of what a backend module offers."""
    file = CORE / "backend" / f"{name}.py"
    files = [file] if file.exists() else sorted((CORE / "backend" / name).glob("*.py"))
    found = {}
    for path in files:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found[node.name] = node
            elif isinstance(node, ast.ImportFrom):
                found.update(
                    {a.asname or a.name: found.get(a.asname or a.name) for a in node.names}
                )
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    for each in ast.walk(target):
                        if isinstance(each, ast.Name):
                            found.setdefault(each.id, None)
                        if getattr(each, "id", "") == "SAME":  # a table of the framework's own
                            found.update(dict.fromkeys(node.value.value.split()))
    return found


BACKENDS = {name: definitions(name) for name in NAMES}


def arguments(node):
    """Return (name, default's source) of a definition's parameters."""
    given = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(given) - len(node.args.defaults)) + node.args.defaults
    return [(a.arg, d and ast.unparse(d)) for a, d in zip(given, defaults, strict=True)]


def declared(signature):
    return [
        (p.name, None if p.default is p.empty else repr(p.default))
        for p in signature.parameters.values()
        if p.kind is not p.VAR_KEYWORD
    ]


def used_by_the_core():
    """Return the names read as `active.<name>` outside the backends."""
    names, guarded = set(), set()
    for path in CORE.rglob("*.py"):
        if "backend" in path.parts and path.name not in ("variable.py",):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "active":
                names.add(node.attr)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "hasattr",
                "getattr",
            ):
                first, second = (*node.args, None)[:2]
                if getattr(first, "id", "") == "active" and isinstance(second, ast.Constant):
                    guarded.add(second.value)
    return names - guarded - {"__name__"}


@pytest.mark.parametrize("backend", NAMES)
def test_every_backend_has_what_the_core_uses(backend):
    assert (set(PRIMITIVES) | used_by_the_core()) - BACKENDS[backend].keys() == set()


@pytest.mark.parametrize("backend", NAMES)
def test_functions_have_the_declared_parameters_and_defaults(backend):
    signatures = {name: declared(s) for name, s in PRIMITIVES.items()}
    for name, call in OPS.items():
        if hasattr(call, "reference"):
            signatures[name] = declared(inspect.signature(call.reference))
    differ = {}
    for name, expected in signatures.items():
        if isinstance(BACKENDS[backend].get(name), ast.FunctionDef):
            found = arguments(BACKENDS[backend][name])
            if name in OPS and all(default is None for _, default in found):
                expected = [(argument, None) for argument, _ in expected]  # ops pass all of them
            if found != expected:
                differ[name] = found, expected
    assert differ == {}


def test_engines_have_the_same_parameters():
    functions = {}
    for backend, found in BACKENDS.items():
        for name in used_by_the_core() - set(PRIMITIVES) - {"Base"}:
            if isinstance(found.get(name), ast.FunctionDef):
                functions.setdefault(name, {})[backend] = arguments(found[name])
    unlike = {n: by for n, by in functions.items() if len({str(a) for a in by.values()}) > 1}
    assert len(functions) > 20 and unlike == {}


def test_the_running_backend_is_the_one_that_was_read():
    for name in set(PRIMITIVES) | used_by_the_core():
        found = getattr(active, name)
        node = BACKENDS[khub.backend.name][name]
        if inspect.isfunction(found) and isinstance(node, ast.FunctionDef):
            assert list(inspect.signature(found).parameters)[: len(arguments(node))] == [
                a for a, _ in arguments(node)
            ]
