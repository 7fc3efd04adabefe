# The words people type. Each sets up what it needs in .venv.

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

demo: .venv/installed  ## train on images of clothes, embed, evaluate, draw: demo/, or demo_mae/ by OBJECTIVE=mae
	# the loader shares the cores: threads that wait must not spin
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python examples/demo.py --objective $(OBJECTIVE) --output $(DEMO)

test: .venv/installed
	# transformers' own tests of every model, which its wheel lacks: downloaded once
	$(BIN)/python -m tests.conventions.transformers_source
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed  ## write docs/configuration.md anew, from the dataclasses
	$(BIN)/python docs/write_configuration_reference.py

build: .venv/installed  ## wheel and source distribution: dist/
	$(BIN)/python -m build

bench: .venv/installed  ## what the demo gives, and how selfvit trains beside Lightly: benchmarks/results
	$(BIN)/python benchmarks/demo_curve.py --objective $(OBJECTIVE)
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.objectives

clean:
	rm -rf .venv build dist demo demo_* *.egg-info
