"""What the documentation shows runs, and its links lead somewhere."""

import os
import re
import subprocess
import sys

import pytest
from sources import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
HEADING_OR_CODE = re.compile(r"^#+ ([^\n]+)$|^```python\n(.*?)^```$", re.M | re.S)


def snippets(page):
    """Return (heading, code) of each block of Python on the page."""
    found, heading = [], ""
    for match in HEADING_OR_CODE.finditer(page.read_text()):
        if match[1]:
            heading = match[1]
        else:
            found.append((heading, match[2]))
    return found


README = snippets(ROOT / "README.md")


def test_the_readme_has_its_snippets():
    assert len(README) == 4


@pytest.mark.parametrize("code", [code for _, code in README], ids=[name for name, _ in README])
def test_the_readme_runs(code, tmp_path):
    import khub

    if khub.backend.name == "numpy":
        pytest.skip("NumPy has no gradients: nothing to fit with")
    # The page names one backend for all its readers; this run has its own.
    code = code.replace('"KHUB_BACKEND"] = "torch"', f'"KHUB_BACKEND"] = "{khub.backend.name}"')
    run(code, tmp_path)


def run(code, folder):
    import khub

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "KHUB_BACKEND": khub.backend.name},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


OTHERS = [page for page in PAGES if page.name != "README.md" and snippets(page)]


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_other_pages_run(page, tmp_path):
    """A page's snippets in one process: later ones may build on earlier ones."""
    run("\n".join(code for _, code in snippets(page)), tmp_path)


@pytest.mark.once
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (page.parent / link).exists()] == []
