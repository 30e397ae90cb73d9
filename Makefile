# The words of the house. `make up` and `make test` are the two that a newcomer needs.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
WORKERS ?= 3

.PHONY: setup up demo test fast check bench chaos docs lock

setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml tools/setup.sh
	@PYTHON=$(PYTHON) sh tools/setup.sh

up: setup
	@$(BIN)/varvel up $(ARGS)

demo: setup
	@$(BIN)/varvel demo $(ARGS)

# Everything that a change must pass: style, types, import rules, and the tests with their real peers.
test: setup
	@sh tools/peers.sh
	@$(MAKE) --no-print-directory check
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS) < /dev/null

check: setup
	@$(BIN)/ruff check src tests examples benchmarks tools
	@$(BIN)/ruff format --check src tests examples benchmarks tools
	@$(BIN)/mypy

bench: setup
	@sh tools/peers.sh bench
	@$(BIN)/python -m benchmarks.run $(ARGS)

chaos: setup
	@$(BIN)/python -m tests.faults.chaos $(ARGS)

docs: setup
	@$(BIN)/python tools/docs.py

# Pins everything anew. The lock file names versions and hashes, never an address.
lock: setup
	@$(BIN)/uv pip compile pyproject.toml --quiet --extra fal --group dev --generate-hashes --no-header --no-annotate \
		--python-version 3.11 --upgrade -o requirements.lock
