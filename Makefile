# `make quickstart` and `make test` do all set-up themselves, in .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A driver that answers decides; everything else follows from it.
HARDWARE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
REQUIREMENTS := requirements/$(HARDWARE).txt
# Test files at a time. Each may start an engine of its own, and two of those do not fit on a GPU.
WORKERS ?= $(if $(filter gpu,$(HARDWARE)),1,2)
INSTALLED := $(VENV)/.installed-$(HARDWARE)
TORCH := $(shell sed -n 's/^torch==\([0-9.]*\).*/\1/p' $(REQUIREMENTS))
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -qq --no-deps

export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help setup quickstart test lint format bench lock clean

help:
	@echo "make quickstart  set up, then a language model teaches itself (10 to 15 minutes on 2 cores)"
	@echo "make test        set up, then the test suite"
	@echo "make lint        ruff and mypy"
	@echo "make bench       every benchmark; results in benchmarks/results/"
	@echo "make lock        resolve the pinned lists anew (needs uv)"

setup: $(INSTALLED)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || \
	  { echo "rlsf needs Python 3.11 to 3.14; say which with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(BIN)/python $(REQUIREMENTS) pyproject.toml
	@# A list for other hardware has the same torch by number: pip would keep the wrong build, so begin anew.
	@if ls $(filter-out $(INSTALLED),$(VENV)/.installed-cpu $(VENV)/.installed-gpu) >/dev/null 2>&1; then \
	  echo "$(VENV) was made for other hardware: making it anew for $(HARDWARE)."; \
	  "$$($(BIN)/python -c 'import sys; print(sys._base_executable)')" -m venv --clear $(VENV); \
	fi
	@echo "Installing the pinned list for this machine ($(REQUIREMENTS)); this takes some minutes."
ifeq ($(HARDWARE),cpu)
	@# The CPU build of torch: from wherever pip is told to look, else from PyTorch's own index.
	$(PIP_INSTALL) "torch==$(TORCH)+cpu" 2>/dev/null || \
	  $(PIP_INSTALL) --index-url https://download.pytorch.org/whl/cpu "torch==$(TORCH)+cpu"
endif
	$(PIP_INSTALL) -r $(REQUIREMENTS)
	$(PIP_INSTALL) --no-build-isolation --editable .
	@touch $@

quickstart: setup
	$(BIN)/rlsf run configs/quickstart.yaml --overwrite

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks

lock:
	requirements/lock.sh

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
