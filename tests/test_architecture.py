"""The rules of docs/architecture.md, read off the source: who imports whom, how large it gets."""

import ast
import sys
import tomllib

import pytest
from sources import PACKAGES, ROOT, SOURCES, Source

pytestmark = pytest.mark.once

CORE_LIMIT = 20_900
BASE, BASE_LIMIT = ("khub/ops", "khub/layers", "khub/backend"), 11_100
FILE_LIMIT = 600

FRAMEWORKS = {"jax": "jax", "jaxlib": "jax", "torch": "torch", "tensorflow": "tensorflow"}
# The folders with a module for each framework: docs/decisions/0010-a-module-a-framework.md
NATIVE = ("khub.backend", "khub.distribution", "khub.export")
# Which of the core's folders stands on which: a folder imports only those before it.
# Models stand on the trainer: docs/decisions/0003-models-stand-on-the-trainer.md says why.
FLOORS = ["khub.backend", "khub.ops", "khub.layers", "khub.training", "khub.models"]
# docs/decisions/0008-images-from-words-need-nlp.md
DOMAINS = ["khub.applications", "khub.cv", "khub.nlp"]

# Slow to import, or needed by few: inside the function that uses them.
HEAVY = {"h5py", "PIL", "rich", "tokenizers", "sentencepiece", "huggingface_hub", "safetensors"}
OPTIONAL = {
    "jinja2",
    "scipy",
    "pandas",
    "sklearn",
    "matplotlib",
    "soundfile",
    "onnx",
    "onnxscript",
    "ai_edge_litert",
    "orbax",
    "pydot",
    "ray",
    "tensorboard",
    "starlette",
    "uvicorn",
}
IMPORTED_AS = {"ml-dtypes": "ml_dtypes", "pillow": "PIL", "huggingface-hub": "huggingface_hub"}

# Modules that turn bytes into code or objects of any class (promise 7), and who may use them.
UNSAFE_MODULES = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_MODULES_ALLOWED = set()
UNSAFE_CALLS = {"eval", "exec", "compile"}
UNSAFE_CALLS_ALLOWED = {
    "khub/ops/op.py",  # writes the wrapper of each op from its own template, at import
}

# Programs that a person starts. They use the whole of khub; no other module imports them (but the
# command line, for `khub demo`).
DEMO = "presets/demo.py"
RECIPES = "presets/recipes/"  # does not ship: how the embedded presets were made


def inside(module, package):
    return module == package or module.startswith(package + ".")


def broken(rule):
    """Return "file:line imports module" for each import for which `rule(source, import)` holds."""
    return [
        f"{source.name}:{each.line} imports {each.module}"
        for source in SOURCES
        for each in source.imports
        if rule(source, each)
    ]


def test_the_core_knows_nothing_of_the_hub():
    hub = ["khub.presets", *DOMAINS]

    def upwards(source, each):
        # khub/__init__.py offers `khub.nlp` and the others lazily: by name, not by an import.
        return source.name.startswith("khub/") and any(inside(each.module, name) for name in hub)

    assert broken(upwards) == []


def test_presets_know_nothing_of_the_domains():
    def upwards(source, each):
        program = source.name == DEMO or source.name.startswith(RECIPES)
        library = source.name.startswith("presets/") and not program
        return library and any(inside(each.module, domain) for domain in DOMAINS)

    assert broken(upwards) == []


def test_a_domain_knows_only_those_after_it():
    def upwards(source, each):
        here = [i for i, d in enumerate(DOMAINS) if inside(source.module, d)]
        there = [i for i, d in enumerate(DOMAINS) if inside(each.module, d)]
        return bool(here) and bool(there) and there < here

    assert broken(upwards) == []


def test_only_the_command_line_starts_the_demo():
    def from_a_library(source, each):
        return inside(each.module, "khub.presets.demo") and source.name != "presets/cli.py"

    assert broken(from_a_library) == []


def test_the_core_is_built_floor_upon_floor():
    def floor(module):
        return next((i for i, name in enumerate(FLOORS) if inside(module, name)), None)

    def upwards(source, each):
        here, there = floor(source.module), floor(each.module)
        return here is not None and there is not None and there > here

    assert broken(upwards) == []


def test_only_its_backend_imports_a_framework():
    def foreign(source, each):
        backend = FRAMEWORKS.get(each.module.partition(".")[0])
        homes = [f"{place}.{backend}" for place in NATIVE]
        return backend is not None and not any(inside(source.module, home) for home in homes)

    assert broken(foreign) == []


def test_no_backend_imports_another():
    names = ["numpy", "jax", "torch", "tensorflow"]

    def sideways(source, each):
        here = [n for n in names if inside(source.module, f"khub.backend.{n}")]
        there = [n for n in names if inside(each.module, f"khub.backend.{n}")]
        return bool(here) and bool(there) and here != there

    assert broken(sideways) == []


def test_only_declared_packages_are_imported_and_the_heavy_ones_late():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [d.partition(">")[0].lower().replace("_", "-") for d in project["dependencies"]]
    declared = {IMPORTED_AS.get(name, name) for name in names}
    assert declared >= HEAVY
    at_top = {"khub", *sys.stdlib_module_names, *FRAMEWORKS, *(declared - HEAVY)}
    anywhere = at_top | HEAVY | OPTIONAL

    def undeclared(source, each):
        beside = (
            source.name.startswith(RECIPES) and (source.path.parent / f"{each.module}.py").exists()
        )
        known = each.module.partition(".")[0] in (at_top if each.at_top else anywhere)
        return not known and not beside

    assert broken(undeclared) == []


def test_nothing_that_is_loaded_can_run_code():
    def unsafe(source, each):
        found = each.module.partition(".")[0] in UNSAFE_MODULES
        return found and source.name not in UNSAFE_MODULES_ALLOWED

    calls = [
        f"{source.name}:{node.lineno} calls {node.func.id}"
        for source in SOURCES
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in UNSAFE_CALLS and source.name not in UNSAFE_CALLS_ALLOWED
    ]
    assert broken(unsafe) + calls == []


def test_the_core_stays_small(note):
    lines = {}
    for source in SOURCES:
        parts = source.name.split("/")
        folder = "/".join(parts[:2]) if parts[0] == "khub" and len(parts) > 2 else parts[0]
        lines[folder] = lines.get(folder, 0) + source.logic_lines
    core = sum(count for folder, count in lines.items() if folder.split("/")[0] == "khub")
    note("logic lines (no blanks, comments, docstrings):")
    for folder, count in lines.items():
        note(f"{count:8,}  {folder}/{'*.py' if folder == 'khub' else ''}")
    base = sum(lines[folder] for folder in BASE)
    note(f"{base:8,}  {' + '.join(BASE)}; {BASE_LIMIT:,} at most")
    note(f"{core:8,}  khub/ in all; {CORE_LIMIT:,} at most")
    assert core <= CORE_LIMIT and base <= BASE_LIMIT


def test_no_file_is_too_long_to_hold_in_a_head():
    assert [s.name for s in SOURCES if s.logic_lines > FILE_LIMIT] == []


def test_every_folder_has_sources():
    assert {source.name.split("/")[0] for source in SOURCES} == set(PACKAGES)


EXAMPLE = '''"""Module
docstring."""

# comment
text = """two
lines"""  # why


def function():
    "Docstring."
    return (
        text
    )
'''


def test_logic_lines_leave_out_what_they_should(tmp_path):
    path = tmp_path / "example.py"
    path.write_text(EXAMPLE)
    assert Source(path, tmp_path).logic_lines == 6  # text (2), def, return (3)
