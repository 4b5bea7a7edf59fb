# Each target sets up what it needs: a virtual environment with nnU-Net, torch and this package.
# VENV=DIR chooses where it lies; it is shared by all checkouts of this machine, because torch is large.
PYTHON ?= python3
VENV ?= $(HOME)/.cache/nnunet_partial/venv
BIN := $(VENV)/bin
OUT ?= demo_output
# one thread per test process: the tests run side by side instead
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

.PHONY: help install lint types quick test study docs demo bench

help:
	@echo "make demo   the whole pipeline on phantoms made on the spot, without a GPU (OUT=DIR: where)"
	@echo "make quick  the unit tests, under 90 seconds on two cores"
	@echo "make test   the tests but the studies; those on real data need NNUNET_PARTIAL_DATA"
	@echo "make study  the tests that ask whether a method is worth its cost"
	@echo "make lint   style and imports (ruff)"
	@echo "make types  types (basedpyright)"
	@echo "make docs   the documentation and the API reference as web pages in site/; a broken link is an error"
	@echo "make bench  the benchmarks that need no data of their own, and a table of them against their bars"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

install: $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/basedpyright --pythonpath $(BIN)/python

quick: install
	$(PYTEST) -m unit

test: install
	$(PYTEST) -m "not study"

study: install
	$(PYTEST) -m study

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

demo: install
	$(BIN)/nnunet_partial demo --out $(OUT)

# one after the other; benchmarks/results/table.md names every bar as met, missed or not measured
bench: install
	$(BIN)/python benchmarks/run_all.py
