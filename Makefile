# Every command sets up what it needs; nothing has to be installed or started by hand first.
PYTHON ?= python3
# Libraries are imported in many short processes: their compiled form must be kept.
export PYTHONDONTWRITEBYTECODE :=
BIN := .venv/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.8

# A machine with an NVIDIA GPU gets the official vLLM, any other Linux machine its CPU build.
TARGET ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
LOCK := $(if $(filter cuda,$(TARGET)),requirements-cuda.lock,requirements.lock)
# The CPU build of torch: from a folder of wheels where pip knows one, else from torch's own index.
FIND_LINKS := $(foreach link,$(PIP_FIND_LINKS),--find-links $(link))
TORCH := $(if $(filter cuda,$(TARGET)),,$(if $(FIND_LINKS),$(FIND_LINKS),--torch-backend cpu))
COMPILE := $(UV) pip compile pyproject.toml --group dev --python-version 3.11 --no-header \
	--no-annotate --upgrade

# A file of tests beside another, one more than there are cores, for many wait for a server; one file
# alone needs no more than `.venv/bin/python -m pytest tests/unit/test_X.py`.
NUM_FILES := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
SIDE_BY_SIDE := --numprocesses $(NUM_FILES) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo real test test-fast check format bench lock wheel clean

setup: .venv/ready

.venv/ready: $(LOCK) pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip install --quiet --no-deps $(TORCH) -r $(LOCK)
	$(UV) pip install --quiet --no-deps --editable .
	@touch $@

demo: setup
	$(BIN)/retort run examples/quickstart/job.yaml

# Refused by its gate (3) the job has run to its end, too.
real: setup
	$(BIN)/python examples/real/make.py
	$(BIN)/retort run examples/real/job.yaml || test $$? -eq 3

test: setup
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-fast: setup
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/unit

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks.quickstart
	$(BIN)/python -m benchmarks.export
	$(BIN)/python -m benchmarks.signal_store
	$(BIN)/python -m benchmarks.prepare
	$(BIN)/python -m benchmarks.expand
	$(BIN)/python -m benchmarks.duplicates
	$(BIN)/python -m benchmarks.losses
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.gpu
	$(BIN)/python -m benchmarks.gpu_rounds
	$(BIN)/python -m benchmarks.intervals
	$(BIN)/python -m benchmarks.evaluate
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.generate
	$(BIN)/python -m benchmarks.failures
	$(BIN)/python -m benchmarks.operations
	$(BIN)/python -m benchmarks.cluster
	$(BIN)/python -m benchmarks.fuzz
	$(BIN)/python -m benchmarks.real_model
	$(BIN)/python -m benchmarks.from_teacher
	$(BIN)/python -m benchmarks.shadow
	$(BIN)/python -m benchmarks.plan
	$(BIN)/python -m benchmarks.sweep
	$(BIN)/python -m benchmarks.choose
	# These train many students, and take a quarter of an hour or more each.
	$(BIN)/python -m benchmarks.on_policy
	$(BIN)/python -m benchmarks.any_teacher
	$(BIN)/python -m benchmarks.routed_teachers
	$(BIN)/python -m benchmarks.endpoint_signal

# Pins every version anew for both targets; no index host is written.
lock: .venv/ready
	$(COMPILE) --extra cpu --universal $(TORCH) -o requirements.lock
	$(COMPILE) --extra cuda --python-platform x86_64-manylinux_2_28 -o requirements-cuda.lock
	$(UV) pip compile docker/orchestrator.in -c requirements.lock --python-version 3.11 --no-header \
		--no-annotate --python-platform x86_64-manylinux_2_28 -o docker/orchestrator.lock

wheel: setup
	$(UV) build --wheel

clean:
	rm -rf .venv .retort dist
