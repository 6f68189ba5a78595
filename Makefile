# make demo, make test: all that is needed is Python 3.11 or newer and make. See README.md.

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --no-input
INPUTS := pyproject.toml setup.py requirements/ci.txt requirements/vision.txt
# The first of these names that answers as Python 3.11 or newer; `make PYTHON=... test` says otherwise.
PYTHON := $(shell for name in python3.11 python3 python3.12 python3.13 python; do \
	$$name -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo $$name; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow bench lint format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/demo.stamp  ## install khub[jax] into .venv and run `khub demo`
	$(VENV)/bin/khub demo

test: $(VENV)/test.stamp  ## install what the tests need into .venv; ruff, then every test on every backend
	$(RUN) tests/run.py

test-slow: $(VENV)/test.stamp  ## the tests marked slow, on every backend
	$(RUN) tests/run.py --slow

bench: $(VENV)/test.stamp  ## compare speed with native loops and with Keras
	$(RUN) -m benchmarks.compare --all
	$(RUN) -m benchmarks.ops --all
	$(RUN) -m benchmarks.layers --all
	$(RUN) -m benchmarks.augmentation --all
	$(RUN) -m benchmarks.applications --all
	$(RUN) -m benchmarks.nlp
	$(RUN) -m benchmarks.generation --all
	$(RUN) -m benchmarks.cv --all

lint: $(VENV)/test.stamp  ## ruff only
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(VENV)/test.stamp  ## let ruff format and mend what it can
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:  ## remove .venv and everything that a run leaves behind
	rm -rf $(VENV) build dist logs .pytest_cache .ruff_cache khub.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/made.stamp:
	@test -n "$(PYTHON)" || { echo "khub needs Python 3.11 or newer (with its venv module) on the PATH." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Installed in place: in a checkout, the folder khub/ would hide an installed copy from Python.
$(VENV)/demo.stamp: $(VENV)/made.stamp $(INPUTS)
	@echo "Installing khub[jax] into $(VENV): about a minute, the first time only."
	@$(PIP) -c requirements/ci.txt -e '.[jax]'
	@touch $@

$(VENV)/test.stamp: $(VENV)/made.stamp $(INPUTS)
	@echo "Installing the three frameworks and the test tools into $(VENV): minutes, the first time only."
	@$(PIP) -r requirements/ci.txt
	@$(PIP) -c requirements/ci.txt --no-build-isolation -e .
	@$(PIP) --no-deps --upgrade --target $(VENV)/torchvision-site -r requirements/vision.txt
	@touch $@
