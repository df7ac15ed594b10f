# make demo   record, recall, distil, gate, serve and answer on a generated history; results in build/demo
# make test   linters, types, layers and all tests
# make test-vllm   the tests against a real vLLM (RTM_TEST_VLLM_PYTHON=PATH of a Python that has one)
# All make the same environment (.venv) first, and do nothing twice. PYTHON chooses the interpreter (3.11 or newer).

PYTHON ?= python3
VENV ?= .venv
DEMO ?= build/demo
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INTEGRATIONS := langchain llama-index

.PHONY: demo test test-vllm install format clean

demo: $(INSTALLED)
	$(BIN)/python -m rag_tuned_memory.demo.run --folder $(DEMO)

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest
	for name in $(INTEGRATIONS); do (cd integrations/$$name && $(abspath $(BIN))/mypy && $(abspath $(BIN))/pytest) || exit 1; done

test-vllm: $(INSTALLED)
	$(BIN)/pytest tests/vllm

install: $(INSTALLED)

$(INSTALLED): pyproject.toml $(INTEGRATIONS:%=integrations/%/pyproject.toml) constraints.txt scripts/install.py
	$(PYTHON) scripts/install.py $(VENV)
	touch $@

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
