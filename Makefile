# Everything runs in .venv, which these targets make and fill themselves.

# The first of these that is supported and runs (a pyenv shim may not).
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-all docs lint format clean

demo: .venv/installed  ## Trains configs/digits.py in runs/digits, and samples it.
	$(BIN)/python main.py

test: .venv/installed-dev  ## The suite without the long proofs.
	$(PYTEST)

test-all: .venv/installed-dev  ## All of the suite.
	$(PYTEST) -m ''

docs: .venv/installed  ## Runs the documents, which draw their figures, and the experiments.
	$(BIN)/python -m doctest docs/score_matching.md
	for name in manifold low_density slow_mixing; do \
		$(BIN)/python -m experiments.$$name && cp runs/experiments/$$name.png runs/experiments/$$name.json docs/images || exit 1; \
	done

lint: .venv/installed-dev  ## Format, lint, types and plain English, as the pre-commit hooks check them.
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/python .ci/plain_english.py

format: .venv/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 found; name one: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[app]'
	touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ .venv/installed
