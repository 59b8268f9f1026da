# make test and make bench do everything on a fresh machine: they create $(VENV) first.
#   PYTHON=python3.12       the interpreter the environment is made with (3.11 or newer)
#   BENCH_JSON=FILE         where make bench writes its result
#   ARGS="-k mobilenet"     further arguments for pytest
#   JOBS=2                  the processes that the tests share
#   KINDS="sdist native"    what make dist builds, instead of everything that it can build here
#   CELLS="oldest newest"   the rows of noxfile.py's table that make test-matrix takes, instead of all
#   RUN_PYTHON=python3      what make gpu runs, instead of $(VENV): an interpreter that has torch and this package
#   GPU_DIR=DIR             where make gpu keeps its parts
#   OUT=DIR                 where make gpu-first leaves its results

PYTHON ?= python3
VENV ?= .venv
BENCH_JSON ?= benchmarks/results/latest.json
ARGS ?=
RUN_PYTHON ?= $(BIN)/python
GPU_DIR ?= build/gpu
OUT ?= build/gpu-first

# Docker images forbid it, and every process of a run would compile every test anew.
unexport PYTHONDONTWRITEBYTECODE

JOBS ?= $(shell nproc 2>/dev/null || echo 2)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := setup.py pyproject.toml $(shell find csrc -type f 2>/dev/null)
BENCH := $(BIN)/python -m pytest benchmarks/ --benchmark-only --benchmark-json=$(BENCH_JSON)

GPU_SETUP := $(if $(filter $(BIN)/python,$(RUN_PYTHON)),setup)
GPU_BENCHES := gpu-bench-32 gpu-bench-256 gpu-bench-models gpu-bench-cfsam gpu-bench-lga \
               gpu-bench-interaction gpu-bench-32-tuned gpu-bench-256-tuned
TEN_MINUTES := timeout --foreground --signal=INT --kill-after=20 575

.PHONY: help setup test test-full test-matrix dist dist-test bench bench-full gpu gpu-first gpu-test $(GPU_BENCHES) gpu-report kernels lint sanitize clean

help:
	@echo "make setup        create $(VENV): torch, this package (editable), everything the other targets need"
	@echo "make test         run the tests that an install is trusted on: minutes"
	@echo "make test-full    run all tests"
	@echo "make test-matrix  run some on several versions of Python and torch: see noxfile.py"
	@echo "make dist         build the source archive and the wheels into dist/: KINDS=\"sdist native\" those alone"
	@echo "make dist-test    install the wheels into fresh environments and test them there, and what the archive builds"
	@echo "make bench        run the default benchmarks, write $(BENCH_JSON)"
	@echo "make bench-full   run every benchmark"
	@echo "make gpu          on a GPU: the tests and the benchmarks, in parts of at most ten minutes, which are"
	@echo "                  gpu-test $(GPU_BENCHES),"
	@echo "                  and gpu-report: write benchmarks/results/<gpu>.json, print the tables for docs/results.md"
	@echo "make gpu-first    on a GPU: what must be known, in eight minutes (docs/gpu.md)"
	@echo "make kernels      compile the GPUs' kernels for their architectures, no GPU needed: registers, spills, widths"
	@echo "make lint         ruff, its format, mypy, and clang-format"
	@echo "make sanitize     run the native tests and the fuzzer under AddressSanitizer and UndefinedBehaviorSanitizer,"
	@echo "                  and what threads do together under ThreadSanitizer"
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

# Processes side by side; tests that share what takes long to make share a process too (xdist_group).
TESTS := -m pytest --numprocesses $(JOBS) --dist loadgroup

# All tests natively, then those marked triton under Triton's interpreter, which is chosen before Triton is imported and
# may find none among what ARGS names (5).
test test-full: setup
	failed=0; \
	$(BIN)/python $(TESTS) $(SELECTION) $(ARGS) || failed=1; \
	TRITON_INTERPRET=1 $(BIN)/python $(TESTS) $(SELECTION) $(ARGS) || [ $$? -eq 5 ] || failed=1; \
	exit $$failed
test-full: SELECTION := --full

test-matrix: setup
	$(BIN)/python -m nox $(if $(CELLS),--session $(CELLS)) $(if $(ARGS),-- $(ARGS))

dist: setup
	$(BIN)/python wheels/build.py $(KINDS)

dist-test: setup
	$(BIN)/python wheels/check.py $(ARGS)

bench: setup
	$(BENCH) $(ARGS)

bench-full: setup
	$(BENCH) --full $(ARGS)

# A part that fails or is cut off loses only itself; the exit status tells.
gpu: $(GPU_SETUP)
	@$(RUN_PYTHON) -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'PyTorch sees no GPU here')"
	@rm -f $(GPU_DIR)/*.json
	@failed=; for target in gpu-test $(GPU_BENCHES) gpu-report; do \
	    $(MAKE) --no-print-directory $$target || failed="$$failed $$target"; \
	done; \
	if [ -n "$$failed" ]; then echo "not all of it went well:$$failed" >&2; exit 1; fi

gpu-first: $(GPU_SETUP)
	$(RUN_PYTHON) -m benchmarks.gpu_first --out $(OUT) $(ARGS)

gpu-test: $(GPU_SETUP)
	FASTATTN_TEST_DEVICE=cuda $(TEN_MINUTES) $(RUN_PYTHON) $(TESTS) --full $(ARGS)

$(GPU_BENCHES): gpu-bench-%: $(GPU_SETUP)
	$(TEN_MINUTES) $(RUN_PYTHON) -m pytest benchmarks/bench_gpu.py --benchmark-only \
	    --part=$* --part-json=$(GPU_DIR)/$*.json $(ARGS)

gpu-report: $(GPU_SETUP)
	$(RUN_PYTHON) -m benchmarks.merge $(GPU_DIR)

kernels: setup
	$(BIN)/python -m benchmarks.machine_code $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

sanitize: setup
	PYTHON=$(BIN)/python bash tests/run_sanitizers.sh address $(ARGS)
	PYTHON=$(BIN)/python bash tests/run_sanitizers.sh thread

clean:
	rm -rf $(VENV) .nox build dist .pytest_cache .benchmarks .hypothesis .mypy_cache .ruff_cache fastattn.egg-info
	rm -f fastattn/_native*.so benchmarks/results/latest.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
