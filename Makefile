# Each target sets up what it needs: a virtual environment with nnU-Net, torch and this package.
# VENV=DIR chooses where it lies; it is shared by all checkouts of this machine, because torch is large.
PYTHON ?= python3
VENV ?= $(HOME)/.cache/nnunet_partial/venv
BIN := $(VENV)/bin
OUT ?= demo_output

.PHONY: help install test demo bench

help:
	@echo "make demo   the whole pipeline on phantoms made on the spot, without a GPU (OUT=DIR: where)"
	@echo "make test   the tests; those on real data need NNUNET_PARTIAL_DATA"
	@echo "make bench  the benchmarks that need no data of their own, and a table of them against their bars"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

install: $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test,onnx]"

# one thread per test process: the tests run side by side instead
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

demo: install
	$(BIN)/nnunet_partial demo --out $(OUT)

# one after the other; benchmarks/results/table.md names every bar as met, missed or not measured
bench: install
	$(BIN)/python benchmarks/run_all.py
