# Everything runs in $(VENV), made on first use from $(PYTHON) (3.11 or newer); $(CONSTRAINTS) names
# a file of versions to install, such as tests/minimum.txt, and none the newest; $(SKIP) a folder of
# tests that `test` leaves out.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?=
SKIP ?=
BIN := $(VENV)/bin

.NOTPARALLEL:
.PHONY: quickstart test slow chaos fuzz lint check format docs

# Train, align and report a small model on this machine.
quickstart: $(VENV)/run.stamp
	$(BIN)/jaxalign train quickstart

# The fast tests.
test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow" $(SKIP:%=--ignore %)

# The tests that take more than a few seconds each.
slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m slow

# A hundred kills of a run, which ends as if nothing had happened.
chaos: $(VENV)/test.stamp
	JAXALIGN_CHAOS_KILLS=100 $(BIN)/python -m pytest -q -s -m slow tests/run/test_resume.py

# Twenty thousand damaged recipes, data files, checkpoints, tokenizers and runs.
fuzz: $(VENV)/test.stamp
	JAXALIGN_FUZZ_CASES=20000 $(BIN)/python -m pytest -q -n auto -m slow tests/fuzz

# Format, lint and types.
lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --project pyright.strict.json --pythonpath $(BIN)/python

# What a change must pass.
check: lint test

# The documentation site, in site/.
docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Format, and fix what the linter can.
format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Editable, so that only a change of dependencies installs again.
$(VENV)/run.stamp: extras :=
$(VENV)/test.stamp: extras := [test]
$(VENV)/dev.stamp: extras := [dev]
$(VENV)/docs.stamp: extras := [docs]
$(VENV)/%.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.$(extras)' $(CONSTRAINTS:%=--constraint %)
	touch $@
