# Everything happens in .venv. Needs python3.11 or newer, pip and make, nothing else.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
JOBS   ?= 2
DEMO   ?= demo
BENCH  ?= bench
PEER   ?= $(BENCH)/peer
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DEPS   := pyproject.toml constraints.txt

.PHONY: help demo test faults check format bench bench-peer bench-docs docs clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# A stamp says which extras are installed; it is remade when the requirements change.
.venv/.core: $(DEPS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e .
	@$(BIN)/python -m compileall -q src  # as pip does with what it copies
	@touch $@

.venv/.test: .venv/.core
	$(PIP) -e '.[test]'
	@touch $@

.venv/.dev: .venv/.core
	$(PIP) -e '.[dev]'
	@touch $@

demo: .venv/.core  ## make small checkpoints in demo/, merge them, show what happened
	$(BIN)/mergegraph demo $(DEMO)

test: .venv/.test  ## run the whole suite
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

faults: .venv/.test  ## run only the fault tests: short reads, full disks, kills
	$(BIN)/python -m pytest tests/faults $(ARGS)

check: .venv/.dev  ## lint, format, types, architecture, generated documents
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python docs/generate.py --check

format: .venv/.dev  ## format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/.bench: .venv/.core
	$(PIP) -e '.[bench]'
	@touch $@

bench: .venv/.bench  ## time merges against the floor; SUITES='methods plan' picks suites, ARGS=--quick tries it
	$(BIN)/python -m benchmarks $(SUITES) --models $(BENCH)/models --work $(BENCH)/work --json $(BENCH)/result.json \
		--charts $(BENCH)/charts $(if $(wildcard $(PEER)/bin/mergekit-yaml),--peer $(PEER)) $(ARGS)

bench-peer: $(PEER)/.done  ## install mergekit into a venv of its own, for `make bench` to time it too

# Its own versions of everything: the constraints here are not its.
$(PEER)/.done:
	test -x $(PEER)/bin/python || $(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 mergekit==0.1.5
	@touch $@

bench-docs: .venv/.bench  ## put what `make bench` measured into docs/performance.md
	$(BIN)/python -m benchmarks.report $(BENCH)/result.json --docs docs/performance.md

docs: .venv/.core  ## regenerate the generated documents
	$(BIN)/python docs/generate.py

clean:  ## remove caches and what demo wrote (.venv and bench/ stay)
	rm -rf $(DEMO) build .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find src tests benchmarks docs -name __pycache__ -prune -exec rm -rf {} +
