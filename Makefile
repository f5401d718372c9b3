# `make demo` and `make test` work on a fresh clone: both first bring .venv up to date.
PYTHON ?= python3
LEGACY_PYTHON ?= python3.10
VENV_PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint env test-legacy env-legacy clean

help:  ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */make \1\t/' | expand -t 18

demo: env  ## distil small students and show what they gained; TASK=cls, det or seg picks one task
	@$(VENV_PYTHON) -m examples.digits.demo $(if $(TASK),--task $(TASK))

# Two workers of one thread each: on few cores they beat one process of two threads.
test: lint  ## lint, then run the tests, all but the long soaks
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2

lint: env  ## ruff and mypy
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m mypy

env:  ## build .venv or bring it up to date (PYTHON=... chooses the interpreter)
	@$(PYTHON) tools/misc/install.py

test-all: lint  ## `make test`, then the long soaks that it leaves out
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2 -m 'soak or not soak'

test-legacy: env-legacy  ## run the same test suite with OpenMMLab's own last releases
	@OMP_NUM_THREADS=1 .venv-legacy/bin/python -m pytest -n 2

env-legacy:  ## build .venv-legacy or bring it up to date (LEGACY_PYTHON=... chooses a Python 3.10)
	@$(PYTHON) tools/misc/install.py --legacy --python $(LEGACY_PYTHON)

clean:  ## remove builds and caches; the environments stay, as they take long to build
	rm -rf build dist *.egg-info dskd_mm/.mim .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
