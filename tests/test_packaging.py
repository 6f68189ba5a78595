"""The wheel holds what the tree holds, and works where the tree is not."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from sources import PACKAGES, ROOT

pytestmark = pytest.mark.once

# In the tree and not in the wheel: how the embedded presets were made.
STAYS = ["presets/recipes/"]


def run(*command, cwd, **environment):
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, "KHUB_BACKEND": "numpy", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that a `build/` folder left by another run adds nothing."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    made = tmp_path_factory.mktemp("wheel")
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "wheel", *offline, "--wheel-dir", made, folder, cwd=made)
    return next(made.glob("khub-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel in an environment of its own, with the dependencies (not the khub) of this one.

    Returns (python, site-packages, the names that the wheel added there).
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = next(folder.glob("lib/python*/site-packages"))
    before = set(os.listdir(site))
    # A path file is read for one folder only: the editable install of khub in it stays unseen.
    dependencies = sysconfig.get_path("purelib")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    added = set(os.listdir(site)) - before
    (site / "dependencies.pth").write_text(dependencies + "\n")
    return python, site, added


def shipped(folder):
    """Paths, from the root, of the files that the wheel must hold."""
    for path in sorted((ROOT / folder).rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        hidden = any(part.startswith(".") for part in path.parts[len(ROOT.parts) :])
        if path.is_dir() or hidden or "__pycache__" in path.parts:
            continue
        if not any(name.startswith(prefix) for prefix in STAYS):
            yield name


def test_the_wheel_holds_what_the_tree_holds(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        PACKAGES[folder].replace(".", "/") + name.removeprefix(folder)
        for folder in PACKAGES
        for name in shipped(folder)
    }
    assert sorted(expected - held) == []
    assert sorted(held - expected) == []


def test_only_khub_lands_in_site_packages(installed):
    _, _, added = installed
    assert {re.sub(r"^khub-[0-9.]+\.dist-info$", "khub's dist-info", name) for name in added} == {
        "khub",
        "khub's dist-info",
    }


def test_it_works_from_any_directory(installed, tmp_path):
    python, site, _ = installed
    script = (
        "import khub, khub.nlp, khub.presets, khub.applications, khub.cv\n"
        "from khub import layers, nlp\n"
        "assert layers.Dense(3)(khub.ops.ones((2, 4))).shape == (2, 3)\n"
        "print(khub.__file__, nlp.__file__, sep='\\n')"
    )
    files = run(python, "-c", script, cwd=tmp_path).split("\n")[:2]
    assert files == [str(site / "khub" / "__init__.py"), str(site / "khub/nlp/__init__.py")]


def test_the_command_is_installed(installed, tmp_path):
    python, _, _ = installed
    text = run(python.with_name("khub"), "--help", cwd=tmp_path)
    for command in ("demo", "presets", "info", "download", "verify", "convert"):
        assert command in text


def test_an_embedded_preset_loads_from_the_wheel(installed, tmp_path):
    python, site, _ = installed
    script = (
        "import khub\n"
        "listed = [p.name for p in khub.presets.list() if p.embedded]\n"
        "assert 'bert_micro_en_uncased' in listed, listed\n"
        "model = khub.nlp.BertTextEmbedder.from_preset('bert_micro_en_uncased')\n"
        "print(model.embed(['a fine film', 'a dull film']).shape)"
    )
    assert run(python, "-c", script, cwd=tmp_path, HF_HUB_OFFLINE="1").strip() == "(2, 128)"


def test_the_editable_install_reaches_every_folder(tmp_path):
    script = (
        "import khub.nlp, khub.cv, khub.applications, khub.presets\nprint(khub.presets.__file__)"
    )
    for folder in (tmp_path, ROOT, ROOT / "tests"):
        # With the folder itself on the path, as `python -c` and `python -m` have it.
        assert run(sys.executable, "-c", script, cwd=folder).strip().startswith(str(ROOT))


def test_versions_agree():
    import khub

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert khub.__version__ == project["version"]


def test_what_ci_installs_is_pinned_and_covers_what_khub_needs():
    def plain(name):
        return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()

    lines = (ROOT / "requirements" / "ci.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    assert pins[0].startswith("torch==")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {*project["dependencies"], *extras["jax"], *extras["dev"], *extras["parity"]}
    assert {plain(n) for n in needed} - {plain(p) for p in pins} == {"khub"}  # khub[torch]


def closure(extra):
    """Return the names of all packages that `pip install khub[extra]` brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pending = [*project["dependencies"], *project["optional-dependencies"][extra]]
    # CI has the CPU build; it needs what the other needs.
    pending = [p.replace("tensorflow>", "tensorflow-cpu>") for p in pending]
    seen = set()
    while pending:
        requirement = Requirement(pending.pop())
        name = canonicalize_name(requirement.name)
        for wanted in requirement.extras or {""}:
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            for line in metadata.requires(name) or []:
                marker = Requirement(line).marker
                if marker is None or marker.evaluate({"extra": wanted}):
                    pending.append(line)
    return {name for name, _ in seen}


@pytest.mark.parametrize("extra", ["jax", "torch", "tensorflow"])
def test_an_extra_brings_one_framework(extra):
    frameworks = {"jax", "jaxlib", "torch", "tensorflow", "tensorflow-cpu"}
    own = {"jax": {"jax", "jaxlib"}, "torch": {"torch"}, "tensorflow": {"tensorflow-cpu"}}
    assert closure(extra) & frameworks == own[extra]
