# Everything sets itself up: `make sweep` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
ARGS   ?=
DRY    ?=

# `make gpu` takes a Python that has CUDA torch as it is; DRY=1 goes the same way on a CPU
GPU_PYTHON   ?= $(if $(DRY),$(BIN)/python,python3)
GPU_PACKAGES := build/gpu-packages

.DEFAULT_GOAL := help
.PHONY: help install sweep test check bench contract modes paper gpu wheelhouse docs reference readme clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kvarena needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(READY)  ## set up .venv, pinned by constraints.txt

sweep: $(READY)  ## the main experiment; ARGS='preset=full' for more
	$(BIN)/python -m harness experiment=sweep_page_size $(ARGS)

test: $(READY)  ## the whole suite
	@$(BIN)/python -c 'import torch; print("device:", "cuda (" + torch.cuda.get_device_name(0) + ")" if torch.cuda.is_available() else "cpu")'
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

check: $(READY)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## micro-benchmarks (pytest-benchmark)
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)

contract: $(READY)  ## A=./mine.py:Mine puts an allocator through the contract test
	@test -n "$(A)" || { echo "which allocator? make contract A=./mine.py:Mine, or A=paged"; exit 2; }
	$(BIN)/python -m allocators.contract $(A)

modes: $(READY)  ## every way of decoding under every strategy, beside transformers' tokens
	$(BIN)/python -m experiments modes $(ARGS)

paper: $(READY)  ## the PagedAttention paper's figures beside its numbers; ARGS='preset=full' for more
	$(BIN)/python -m experiments attention_latency
	$(BIN)/python -m harness experiment=paper $(ARGS)

gpu: $(if $(DRY),$(READY))  ## all that a CUDA GPU is asked, with GPU_PYTHON's torch; DRY=1 on a CPU
	@$(GPU_PYTHON) -m experiments.gpu.packages --target $(GPU_PACKAGES)
	@PYTHONPATH=$(CURDIR):$(CURDIR)/$(GPU_PACKAGES) $(GPU_PYTHON) -m experiments gpu $(if $(DRY),--dry) $(ARGS)

wheelhouse:  ## wheels that a GPU machine's Python lacks, for where there is no network
	$(PYTHON) -m pip wheel --quiet --no-deps --constraint constraints.txt --wheel-dir wheelhouse \
	  hydra-core omegaconf antlr4-python3-runtime
	@ls wheelhouse

docs: $(READY)  ## what docs/ shows of its commands' output; ARGS='docs/tutorial.md' for a page
	$(BIN)/python docs/make_docs.py $(ARGS)

reference: $(READY)  ## results/reference/ from fresh runs of the CPU presets; ARGS='--only NAME'
	$(BIN)/python docs/make_reference.py $(ARGS)

readme: $(READY)  ## README's output, tables and pictures, from results/reference/ alone
	$(BIN)/python docs/make_readme.py $(ARGS)

clean:  ## remove what make and Python left behind; results stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
