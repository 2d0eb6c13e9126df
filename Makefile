# Each target stands alone: from a bare clone it installs what is missing, builds, and does its job.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

PYTHON := .venv/bin/python
PACKAGES := facade broker beans notifier console
PYX := $(wildcard facade/engine/*.pyx facade/engine/*.pxd)
ENGINE_SOURCES := $(PYX) $(wildcard facade/engine/*.h)
JOBS := $(shell nproc)

.PHONY: demo test build lint bench soak fuzz asan tsan docs clean setup-build setup-run setup-test setup-fuzz pytest

setup-build:
	@scripts/setup.sh build

setup-run:
	@scripts/setup.sh build run

setup-test:
	@scripts/setup.sh build run test

setup-fuzz:
	@scripts/setup.sh build run test fuzz

# setuptools decides which module is stale. The lock keeps two builds of one checkout apart.
build: setup-build
	@mkdir -p build && flock build/.lock scripts/build.sh

demo: setup-test build
	@$(PYTHON) -m demo

test: setup-fuzz build lint pytest

pytest:
	@$(PYTHON) -m pytest

lint: build
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy
	@PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/cython-lint $(PYX) $(wildcard tests/fuzz/*.pyx)

bench: setup-test build
	@$(PYTHON) -m bench

# Arbitrary bytes for what parses a client's, FUZZ_EXECUTIONS times.
fuzz: setup-fuzz build
	@scripts/fuzz.sh

# Ten million times that, then the engine's, federation and fault tests again and again for
# SOAK_MINUTES.
soak: setup-fuzz build
	@FUZZ_EXECUTIONS=$${FUZZ_EXECUTIONS:-12000000} scripts/fuzz.sh
	@scripts/soak.sh

# The engine's tests on modules built with the address and undefined-behaviour sanitizers.
asan: setup-test
	@scripts/asan.sh

# Its threaded tests on modules built with the thread sanitizer.
tsan: setup-test
	@scripts/tsan.sh

docs: build
	@$(PYTHON) scripts/make_reference.py
	@$(PYTHON) scripts/make_commands_page.py

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f facade/engine/*.c facade/engine/*.so
	find $(PACKAGES) tests bench demo -name __pycache__ -prune -exec rm -rf {} +
