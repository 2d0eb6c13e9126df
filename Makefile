# Each target stands alone: from a bare clone it installs what is missing, builds, and does its job.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

PYTHON := .venv/bin/python
PACKAGES := facade broker beans notifier console
PYX := $(wildcard facade/engine/*.pyx facade/engine/*.pxd)
ENGINE_SOURCES := $(PYX) $(wildcard facade/engine/*.h)
JOBS := $(shell nproc)

.PHONY: demo test build lint bench soak asan docs clean setup-build setup-run setup-test pytest

setup-build:
	@scripts/setup.sh build

setup-run:
	@scripts/setup.sh build run

setup-test:
	@scripts/setup.sh build run test

# setuptools decides which module is stale. The lock keeps two builds of one checkout apart.
build: setup-build
	@mkdir -p build && flock build/.lock scripts/build.sh

demo: setup-test build
	@$(PYTHON) -m demo

test: setup-test build lint pytest

pytest:
	@$(PYTHON) -m pytest

lint: build
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy
	@PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/cython-lint $(PYX)

bench: setup-test build
	@$(PYTHON) -m bench

# The federation and fault tests again and again for SOAK_MINUTES.
soak: setup-test build
	@scripts/soak.sh

# The engine's tests on modules built with the address and undefined-behaviour sanitizers.
asan: setup-test
	@scripts/asan.sh

docs: build
	@$(PYTHON) scripts/make_reference.py
	@$(PYTHON) scripts/make_commands_page.py

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f facade/engine/*.c facade/engine/*.so
	find $(PACKAGES) tests bench demo -name __pycache__ -prune -exec rm -rf {} +
