# Everything runs in a virtual environment of its own, .venv, which is built when it is first needed.

PYTHON ?= python3
RUN ?= runs/demo
TESTS_AT_ONCE ?= auto

BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt

BENCHMARKS := $(wildcard benchmarks/*.py)
GENERATORS := $(wildcard docs/*.py)

.PHONY: help setup demo test faults lint bench docs

help:
	@echo "make setup   build .venv with the pinned packages (PYTHON=... names another Python, 3.11 or newer)"
	@echo "make demo    train a small real model on real preferences, with a report (RUN=$(RUN) is its folder)"
	@echo "make test    run all tests, a file on every core (TESTS_AT_ONCE=$(TESTS_AT_ONCE); 0 for one after the other)"
	@echo "make faults  kill training and the page of comparisons some hundred times each (make test: 20 times)"
	@echo "make lint    check style, format and types"
	@echo "make bench   run benchmarks/*.py (there are $(words $(BENCHMARKS)) so far)"
	@echo "make docs    run docs/*.py, which write pages from the code (there are $(words $(GENERATORS)) so far)"

setup: $(READY)

# PyTorch goes first and by itself: where pip is set up to find a build for CPUs alone, that one is taken.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Dipole needs Python 3.11 or newer, and $(PYTHON) isn't. Name one: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12"; exit 1; }
	@echo "Setting up .venv with PyTorch and $$(grep -c == constraints.txt) pinned packages; the first time this takes a few minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) torch
	@$(PIP) --editable '.[demo,dev,studio]'
	@touch $@

demo: $(READY)
	@$(BIN)/dipole demo --output $(RUN)

test: $(READY)
	@echo "Running the tests; this takes some minutes."
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile --max-worker-restart 0

faults: $(READY)
	@FAULTS=long $(BIN)/python -m pytest --timeout 3000 tests/faults tests/feedback/test_studio_kills.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	@for script in $(BENCHMARKS); do echo "$$script"; $(BIN)/python $$script || exit 1; done

docs: $(READY)
	@for script in $(GENERATORS); do echo "$$script"; $(BIN)/python $$script || exit 1; done
