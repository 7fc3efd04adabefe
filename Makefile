# Each target sets up what it needs in .venv.

PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(shell nproc)

.PHONY: demo test lint docs build bench clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

OBJECTIVE ?= dino
DEMO := $(if $(filter dino,$(OBJECTIVE)),demo,demo_$(OBJECTIVE))

demo: .venv/installed  ## train on images of clothes, embed, evaluate and draw; writes demo/, or demo_mae/ with OBJECTIVE=mae (or dinov2, distill, lejepa, pmsn)
	# DataLoader workers share the cores with torch, so its idle threads must not spin.
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python examples/demo.py --objective $(OBJECTIVE) --output $(DEMO)

test: .venv/installed
	# transformers' own model tests are not in its wheel, so they are downloaded once.
	$(BIN)/python -m tests.conventions.transformers_source
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed  ## write docs/configuration.md from the dataclasses
	$(BIN)/python docs/write_configuration_reference.py

build: .venv/installed  ## build wheel and source distribution in dist/
	$(BIN)/python -m build

bench: .venv/installed  ## measure the demo and compare with Lightly; results are in benchmarks/results
	$(BIN)/python benchmarks/demo_curve.py --objective $(OBJECTIVE)
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.objectives

clean:
	rm -rf .venv build dist demo demo_* *.egg-info
