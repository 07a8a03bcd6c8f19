# `make all` and `make test` do their own set-up; `make` alone lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CONFIG ?= configs/mini.yaml
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
# E.g. PIP_ARGS="--extra-index-url <URL of a CPU-only torch index>".
PIP_ARGS ?=
# Further options of `mrisynth`, e.g. ARGS="--arm sdxl --set seed=1".
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
STAGES := preprocess caption finetune generate evaluate classify report
CODE := pipeline stages tests
# Each writes what it found to tests/benchmarks/RESULTS.md, but for the first.
BENCHES := $(patsubst %,tests/benchmarks/bench_%.py,scores training generation captions servers)

# Run a config in a folder that is thrown away; what ends `make` ends the run first.
RUN_AND_FORGET = @folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
  $(BIN)/mrisynth run --data-dir "$$folder" --config $(1) & trap "kill $$!" INT TERM; \
  time wait $$! || wait $$!

.PHONY: help setup all test check lint fast-test smoke bench clean $(STAGES)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo "preprocess, caption, finetune, generate, evaluate, classify, report"
	@echo "              run one stage on fresh inputs, then renew the report if all else is fresh"
	@echo "CONFIG=$(CONFIG) (any file of configs/), ARGS=\"--arm NAME --set stage.key=value\""

setup: $(STAMP) ## make .venv with the tested versions

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed, found $$("$(PYTHON)" --version); set PYTHON=" >&2; exit 2; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	# Apart from the rest: torchmetrics imports it where it can, and fails without torchvision.
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-deps --upgrade \
	  --target .venv/parity torch-fidelity
	# Without its triton, which only GPUs need, and there it comes with torch.
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-deps apache-tvm-ffi xgrammar
	touch $(STAMP)

all: setup ## run the whole experiment CONFIG, to the page
	$(BIN)/mrisynth run --config $(CONFIG) $(ARGS)

$(STAGES): setup
	$(BIN)/mrisynth $@ --config $(CONFIG) $(if $(filter report,$@),,--then-report) $(ARGS)

test: setup ## set up, then every test that needs no GPU
	$(BIN)/python -m pytest -m "not gpu"

check: lint fast-test ## format, lint, strict types, and the quick tests

lint: setup
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy $(CODE)

fast-test: setup
	$(BIN)/python -m pytest -q -m "not slow and not smoke and not gpu"

smoke: setup ## all seven stages on a few phantoms, in a folder that is thrown away
	$(call RUN_AND_FORGET,configs/smoke.yaml)

bench: setup ## time scores, training, generation, captions, servers, and then the stages of CONFIG
	$(BIN)/python -m pytest -q -s $(BENCHES)
	$(BIN)/python -m tests.benchmarks.bench_cuda
	$(call RUN_AND_FORGET,$(CONFIG) $(ARGS))

clean: ## remove runs and caches; .venv and data/raw stay
	test ! -x $(BIN)/mrisynth || $(BIN)/mrisynth clean
	rm -rf data/runs data/cache .mypy_cache .pytest_cache .ruff_cache
	find pipeline stages tests -name __pycache__ -type d -prune -exec rm -rf {} +
