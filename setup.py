"""Finds the packages. `pyproject.toml` says everything else.

The folders at the root of the repository install as one package: `nlp/` is `khub.nlp`.
"""

from setuptools import find_packages, setup

ROOTS = {
    "khub": "khub",
    "khub.applications": "applications",
    "khub.cv": "cv",
    "khub.nlp": "nlp",
    "khub.presets": "presets",
}

setup(
    package_dir=ROOTS,
    packages=[
        package
        for name, folder in ROOTS.items()
        for package in [name, *(f"{name}.{inner}" for inner in find_packages(folder))]
    ],
)
