# Every verb does its own set-up on a fresh machine. CI calls `check` and `test` only.
PY ?= python3
VENV := .venv
HARBOR := .harbor
TRAINERS := .trainers
BIN := $(VENV)/bin
OUT ?= runs/quickstart

.PHONY: help install install-model quickstart check test test-fast bench build clean

help:
	@echo "make quickstart   real episodes: model, sandboxes, verifiers, shards, summary"
	@echo "make test         the whole suite, real parts included"
	@echo "make check        format, lint, types, layers"
	@echo "make install      .venv in this checkout    make install-model   and a vLLM that fits"
	@echo "make bench        the benchmarks            make build           wheel and sdist"

$(VENV)/.installed: pyproject.toml scripts/system-packages.sh
	@scripts/system-packages.sh
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

install: $(VENV)/.installed

$(VENV)/.model: $(VENV)/.installed scripts/install-vllm.sh
	@scripts/install-vllm.sh $(BIN)/python
	@touch $@

install-model: $(VENV)/.model

quickstart: $(VENV)/.model
	$(BIN)/headrace run quickstart --out $(OUT)
	$(BIN)/headrace show $(OUT)

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing/api.py
	$(BIN)/lint-imports

# What compares us with Harbor; without it those tests are skipped with the reason.
$(HARBOR)/.installed: scripts/install-harbor.sh
	@if scripts/install-harbor.sh $(HARBOR); then touch $@; fi

# What reads our data in the tests; likewise.
$(TRAINERS)/.installed: $(VENV)/.installed scripts/install-trainers.sh
	@if scripts/install-trainers.sh $(TRAINERS); then touch $@; fi

test: $(VENV)/.model $(HARBOR)/.installed $(TRAINERS)/.installed
	@scripts/system-packages.sh buildah
	PYTHON=$(BIN)/python scripts/with-docker-engine.sh $(BIN)/python -m pytest

test-fast: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not docker and not namespace and not vllm and not trainers"

bench: $(VENV)/.installed $(HARBOR)/.installed
	scripts/with-docker-engine.sh scripts/bench-all.sh $(BIN)/python

build: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
