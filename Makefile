# `make demo` and `make test` need python3 with pip and nothing else: they set up .venv by themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test stress lint
demo: $(VENV)/.ready
	$(BIN)/irae demo --output demo --overwrite

test: $(VENV)/.ready
	$(BIN)/python -m pytest

stress: $(VENV)/.ready
	$(BIN)/python -m pytest -m stress

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
