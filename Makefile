PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
SOURCES := setup.cfg pyproject.toml constraints.txt

.PHONY: demo test test-docs test-all lint mutants docs clean

# Renders kept-back photos of two samples, and flights past them, with the bundled checkpoint.
demo: $(VENV)/.installed-demo
	$(BIN)/kaleido render skull --trajectory keyframes --views 16 --output renders
	$(BIN)/kaleido render sample --trajectory keyframes --views 16 --output renders

# Lint and the tests that a commit must pass, in as many processes of one thread as there are cores. A file stays in one
# process: its tests share what they have built. The files are taken in the order of tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev lint
	$(PYTEST) -m "not slow and not documentation"

# The commands and the Python of README and docs/, page by page: what they use has tests of its own above.
test-docs: $(VENV)/.installed-dev
	$(PYTEST) --dist worksteal -m documentation

# Every test, those of the documentation and the slow ones too.
test-all: $(VENV)/.installed-dev lint
	$(PYTEST)

# Fresh cases for readers of files of others: `make fuzz CASES=2000`.
CASES ?= 300
fuzz: $(VENV)/.installed-dev
	KALEIDO_FUZZ=$(CASES) $(BIN)/python -m pytest --hypothesis-seed=random tests/test_fuzz.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# The site, in build/site: README, docs/ as they are, and a reference made from docstrings.
docs: $(BIN)/python
	$(PIP) --editable '.[docs]'
	$(BIN)/mkdocs build --strict

# Changes the arithmetic in small ways and looks whether the tests notice; takes hours, and stops and goes on at will.
# MUTANTS="kaleido_diffusers.schedulers.*" for a part of it. What survived, and why: tests/mutants.md.
mutants: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(MUTANTS)
	$(BIN)/mutmut results

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: $(SOURCES) | $(BIN)/python
	test -e $(VENV)/.installed-dev || $(PIP) --editable '.[video]'
	touch $@

$(VENV)/.installed-dev: $(SOURCES) | $(BIN)/python
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.installed-demo

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache mutants renders
