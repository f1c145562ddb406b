# Each target does its own set-up: a virtual environment in .venv, made and filled when it is missing or when
# pyproject.toml has changed. Needed beforehand: Python 3.11 or later with its venv module (Debian: python3-venv), make.

PYTHON ?= python3
WORKERS ?= auto

BIN := .venv/bin
# The workers share one cache of compiled programs, made afresh by each target: what one has compiled no other compiles.
CACHE := $(CURDIR)/.jax_cache
PYTEST := JAX_COMPILATION_CACHE_DIR=$(CACHE) JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2 \
  $(BIN)/python -m pytest --numprocesses=$(WORKERS) --maxprocesses=8 --dist=worksteal
# Most tests run small programs once, so that the compiler is their cost: it does not optimise for them, nor does it cut
# a program into parts to compile side by side.
LIGHTLY = JAX_DISABLE_MOST_OPTIMIZATIONS=true $(shell XLA_FLAGS="$(FLAGS)" $(BIN)/python -c $(ASK) && echo 'XLA_FLAGS="$(FLAGS)"')
FLAGS := --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1
ASK := 'import jax; jax.devices()' >/dev/null 2>&1 # a flag that XLA does not know ends the process
OPTIMISED = $(shell grep -rl --include='test_*.py' 'mark\.optimised' tests)
comma := ,

# For CPUs, by name: the plain name brings gigabytes for accelerators along. Not every index has it.
TORCH := torch==2.13.0+cpu

.DEFAULT_GOAL := help
.PHONY: help setup tools demo test test-slow torture check docs release-check bench-env bench bench-full clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 15

setup: .venv/.dev ## Make .venv with everything that the other targets need for development

tools: .venv/.dev+optuna+loggers+notebooks .venv/.torch ## Add Optuna, loggers, Jupyter and PyTorch to .venv: their tests then run

demo: .venv/.cli ## Tune 65 penalties on diabetes with squares and products, and leave out/products/report.html
	rm -rf out/products
	$(BIN)/hyprax tune examples/products.toml --out out/products

test: .venv/.dev ## Run the tests, the slow ones excepted
	rm -rf $(CACHE)
	$(LIGHTLY) $(PYTEST) -m "not slow and not optimised"
	$(PYTEST) -m "not slow and optimised" $(OPTIMISED)

test-slow: .venv/.dev ## Run the slow tests, and the properties on many more random problems
	rm -rf $(CACHE)
	HYPRAX_THOROUGH=1 $(LIGHTLY) $(PYTEST) -m "(slow or hypothesis) and not optimised"
	HYPRAX_THOROUGH=1 $(PYTEST) -m "(slow or hypothesis) and optimised" $(OPTIMISED)

torture: .venv/.dev ## Kill runs, fill disks, damage records, fuzz input for hours; leaves experiments/torture/RESULTS.md
	$(BIN)/python -m experiments.torture

check: .venv/.dev ## Lint, format, types, import arrows, undocumented names
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python docs/check_public_names.py

docs: .venv/.dev ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

release-check: .venv/.dev ## Build sdist and wheel; install and try them on Python 3.11, 3.12 and 3.13
	.ci/release-check

bench-env: .venv/.dev+bench ## Make environments for the libraries that the benchmarks compare with, below .bench/
	$(BIN)/python -m benchmarks.harness.environments

bench: .venv/.dev+bench ## Compare with other libraries, section by section; writes benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.harness

bench-full: .venv/.dev+bench ## The same at length, and how times grow
	$(BIN)/python -m benchmarks.harness --full

clean: ## Remove everything that the targets make
	rm -rf .venv .bench out site build dist .jax_cache .ruff_cache .import_linter_cache .hypothesis .pytest_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# Which extras an environment holds is kept as an empty file named after them: .venv/.cli, .venv/.dev, .venv/.dev+bench.
.venv/.dev .venv/.cli .venv/.dev+bench .venv/.dev+optuna+loggers+notebooks: .venv/.%: .venv/.created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[$(subst +,$(comma),$*)]"
	@touch $@

.venv/.torch: .venv/.created Makefile
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "hyprax needs Python 3.11 or later, found: $$($(PYTHON) --version 2>&1). Say which to use: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { \
	  echo "No virtual environment could be made. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@
