# `make demo` and `make test` do everything on a fresh machine; `make` alone lists the targets.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# cuda if an NVIDIA GPU is found, otherwise cpu; to choose: make demo PACKAGES=cpu
PACKAGES ?= $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo cuda || echo cpu)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(PACKAGES)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# One thread for each of two workers: faster on two cores than one process with two threads.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := --numprocesses 2 --dist worksteal
ARGS ?=

ifeq ($(filter $(PACKAGES),cpu cuda),)
$(error PACKAGES=$(PACKAGES): must be cpu or cuda)
endif

.PHONY: help env demo test test-fast test-portable test-gpu lint dist clean docs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY) ## build the environment in .venv (PACKAGES=cpu or cuda; detected by default)

demo: $(READY) ## fine-tune SmolLM2 on the simulated arena and score the held-out fold (ARGS="fold=1 …")
	$(BIN)/python train.py $(ARGS)

test: $(READY) ## run every test that a CPU can run (ARGS="-k prompts")
	$(PYTEST) $(PARALLEL) $(ARGS)

test-fast: $(READY) ## run the tests not marked slow: one to two minutes
	$(PYTEST) $(PARALLEL) -m "not slow and not gpu" $(ARGS)

test-portable: $(READY) ## run the numeric tests as an older CPU computes them
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) $(PARALLEL) -m "numeric and not gpu" $(ARGS)

test-gpu: $(READY) ## run the tests that need an NVIDIA GPU
	$(BIN)/python -m pytest -m gpu $(ARGS)

lint: $(READY) docs ## check style, types and the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY) ## build the documentation in build/site; warnings and broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: $(READY) ## build the sdist, the wheel and a bill of materials in dist/
	rm -rf dist
	$(BIN)/python -c "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"
	$(BIN)/python benchmarks/inventory.py sbom dist/sbom.json

clean: ## remove the environment; runs and caches stay
	rm -rf $(VENV)

$(READY): $(wildcard requirements/*.txt)
	@echo "building $(VENV) for $(PACKAGES): a few minutes, once"
	rm -rf $(VENV)
	$$(requirements/find_python) -m venv $(VENV)
	$(PIP) install --requirement requirements/$(PACKAGES).txt --constraint requirements/constraints.txt
	$(PIP) install $(foreach name,base sweeps serve gptq loggers docs dev,--requirement requirements/$(name).txt) \
		--constraint requirements/constraints.txt
	$(PIP) install --requirement requirements/no-deps.txt --no-deps
	$(PIP) install --no-deps --editable .
	touch $@
