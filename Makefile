PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
SOURCES := setup.cfg pyproject.toml constraints.txt

.PHONY: demo test test-all lint clean

# Renders new views of the sample capture with the bundled checkpoint.
demo: $(VENV)/.installed-demo
	$(BIN)/kaleido render sample --trajectory keyframes --output renders

# Lint and the tests that a commit must pass.
test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -m "not slow"

# Every test, the slow ones too.
test-all: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: $(SOURCES) | $(BIN)/python
	test -e $(VENV)/.installed-dev || $(PIP) --editable '.[video]'
	touch $@

$(VENV)/.installed-dev: $(SOURCES) | $(BIN)/python
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.installed-demo

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache renders
