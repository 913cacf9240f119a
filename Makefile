# `make` lists the targets. Needs GNU make and Python 3.11 or newer; the rest goes into .venv.

PYTHON ?= python3
SOAK_SECONDS ?= 1800
ARGS ?=
ENGINE ?= sqlite

BIN := .venv/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-input
STAMP := .venv/.stamp
BENCH_STAMP := bench/.venv/.stamp

# What the caller's shell sets for another Python must not reach this one.
unexport PYTHONHOME PYTHONPATH PYTHONDONTWRITEBYTECODE

# An environment is tied to its folder: one that came along with a copied or moved tree is made anew.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
$(STAMP): remake
endif
ifneq ($(shell cat $(BENCH_STAMP) 2>/dev/null),$(CURDIR))
$(BENCH_STAMP): remake
endif

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-fast services soak check format bench build lock clean python remake
remake:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  PYTHON=$(PYTHON)  the Python to make .venv with"
	@echo "  SOAK_SECONDS=$(SOAK_SECONDS)"
	@echo "  ENGINE=$(ENGINE)  what bench runs on: sqlite, postgres, kafka"
	@echo "  ARGS=...  more arguments for test, services, soak, bench and demo: make test ARGS='-k lease'"

venv: $(STAMP) ## .venv with the locked dependencies and this package, editable

demo: $(STAMP) ## a short show of what it does
	@$(BIN)/respool demo $(ARGS)

test: $(STAMP) ## all tests but the soak
	@$(BIN)/python -m compileall -q src
	@$(BIN)/python -m tests.services --prepare
	@$(BIN)/python -m pytest -n 6 --dist worksteal $(ARGS)

test-fast: $(STAMP) ## those tests that need no server
	@$(BIN)/python -m compileall -q src
	@$(BIN)/python -m pytest -n 4 --dist worksteal -m "not server" $(ARGS)

services: $(STAMP) ## real PostgreSQL, PgBouncer and Kafka for tests, until Ctrl-C
	@$(BIN)/python -m tests.services $(ARGS)

soak: export SOAK_SECONDS := $(SOAK_SECONDS)
soak: $(STAMP) ## the long tests: kills on all engines for over twice SOAK_SECONDS, and a long backlog
	@$(BIN)/python -m tests.services --prepare
	@$(BIN)/python -m pytest tests/soak -p no:xdist -s \
		--timeout $$(($(SOAK_SECONDS) + 300)) -o faulthandler_timeout=0 $(ARGS)

check: $(STAMP) ## lint, formatting, types, layers
	@$(BIN)/python -m ruff check
	@$(BIN)/python -m ruff format --check || { echo "To format: make format" >&2; exit 1; }
	@$(BIN)/python -m mypy
	@$(BIN)/lint-imports --no-logo

format: $(STAMP) ## format and fix what can be fixed
	@$(BIN)/python -m ruff check --fix-only --quiet
	@$(BIN)/python -m ruff format

bench: $(STAMP) $(BENCH_STAMP) ## rates side by side with peers
	@$(BIN)/python bench/run.py --engine $(ENGINE) $(ARGS)

build: $(STAMP) ## wheel and sdist, in dist/
	@$(BIN)/python -m build --no-isolation --outdir dist

lock: python ## pin the newest dependencies anew (needs the network)
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(PYTHON) -m venv "$$tmp" && "$$tmp/bin/python" $(PIP_INSTALL) uv; \
	export UV_CUSTOM_COMPILE_COMMAND='make lock'; \
	pin() { echo "pinning $$1"; out=$$1; shift; "$$tmp/bin/uv" --no-config --no-cache pip compile --quiet --upgrade \
		--universal --python-version 3.11 --generate-hashes --output-file "$$out" "$$@" >/dev/null; }; \
	pin requirements-dev.lock pyproject.toml --group dev; \
	pin bench/requirements.lock --group bench

clean: ## remove environments, caches and builds (never a database)
	@rm -rf .venv bench/.venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@command -v '$(PYTHON)' >/dev/null || { echo "make: '$(PYTHON)' was not found; Respool needs Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit( \
		"make: $(PYTHON) is Python %s; Respool needs 3.11 or newer. Name one: make venv PYTHON=python3.12" % v)'

# Made again only when the lock or pyproject.toml changes.
$(STAMP): requirements-dev.lock pyproject.toml | python
	@test "$$(cat $@ 2>/dev/null)" = '$(CURDIR)' || { echo "making .venv"; $(PYTHON) -m venv --clear .venv; }
	@rm -f $@
	@echo "installing the locked dependencies"
	@$(BIN)/python $(PIP_INSTALL) --requirement requirements-dev.lock
	@$(BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@echo '$(CURDIR)' > $@

$(BENCH_STAMP): bench/requirements.lock | python
	@echo "making bench/.venv"
	@$(PYTHON) -m venv --clear bench/.venv
	@bench/.venv/bin/python $(PIP_INSTALL) --requirement $<
	@echo '$(CURDIR)' > $@
