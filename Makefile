# make test and make bench do everything on a fresh machine: they create $(VENV) first.
#   PYTHON=python3.12       the interpreter the environment is made with (3.11 or newer)
#   BENCH_JSON=FILE         where make bench writes its result
#   ARGS="-k mobilenet"     further arguments for pytest

PYTHON ?= python3
VENV ?= .venv
BENCH_JSON ?= benchmarks/results/latest.json
ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := setup.py pyproject.toml $(shell find csrc -type f 2>/dev/null)
BENCH := $(BIN)/python -m pytest benchmarks/ --benchmark-only --benchmark-json=$(BENCH_JSON)

.PHONY: help setup test bench bench-full lint sanitize clean

help:
	@echo "make setup        create $(VENV): torch, this package (editable), everything the other targets need"
	@echo "make test         run the tests"
	@echo "make bench        run the default benchmarks, write $(BENCH_JSON)"
	@echo "make bench-full   run every benchmark"
	@echo "make lint         ruff"
	@echo "make sanitize     run the native tests under AddressSanitizer and UndefinedBehaviorSanitizer"
	@echo "make clean        remove $(VENV) and everything that was built"

setup: $(READY)

# $(PYTHON) where it is new enough, else the first of the usual names that is (and that truly starts).
$(READY): $(SOURCES)
	@set -eu; \
	if ! [ -x $(BIN)/python ]; then \
	    chosen=; \
	    for candidate in "$(PYTHON)" python3.12 python3.11 python3.13; do \
	        if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	            chosen=$$candidate; break; \
	        fi; \
	    done; \
	    if [ -z "$$chosen" ]; then \
	        echo "fastattn needs Python 3.11 or newer: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; \
	    fi; \
	    [ "$$chosen" = "$(PYTHON)" ] || echo "$(PYTHON) is missing or older than 3.11: using $$chosen"; \
	    "$$chosen" -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install torch
	$(BIN)/python -m pip install --editable ".[bench,test,dev]"
	@$(BIN)/python -m fastattn info
	@touch $(READY)

test: setup
	$(BIN)/python -m pytest $(ARGS)

bench: setup
	$(BENCH) $(ARGS)

bench-full: setup
	$(BENCH) --full $(ARGS)

lint: setup
	$(BIN)/ruff check .

sanitize: setup
	PYTHON=$(BIN)/python bash tests/run_sanitizers.sh

clean:
	rm -rf $(VENV) build dist .pytest_cache .benchmarks .hypothesis .mypy_cache .ruff_cache fastattn.egg-info
	rm -f fastattn/_native*.so benchmarks/results/latest.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
