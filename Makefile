# `make demo` and `make test` work on a fresh clone: both first bring .venv up to date.
# PYTHON=... chooses the interpreter that it is made with.
PYTHON ?= python3
VENV_PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint docs env test-legacy env-legacy clean

help:  ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */make \1\t/' | expand -t 18

demo: env  ## distil small students and show what they gained; TASK=cls, det or seg picks one task
	@$(VENV_PYTHON) -m examples.digits.demo $(if $(TASK),--task $(TASK))

# Two workers of one thread each: on few cores they beat one process of two threads.
test: lint  ## lint, then run the tests, all but the long soaks
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2

test-all: lint  ## `make test`, then the long soaks that it leaves out
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2 -m 'soak or not soak'

lint: env  ## ruff, its format and mypy
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m mypy

docs: env  ## build the docs' site in build/docs; a warning is an error
	@$(VENV_PYTHON) -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/docs

env:  ## build .venv or bring it up to date; COMPILE=1 compiles mmcv's own operators
	@$(PYTHON) tools/misc/install.py $(if $(COMPILE),--compile)

test-legacy: env-legacy  ## run the same tests with OpenMMLab's own last releases
	@OMP_NUM_THREADS=1 .venv-legacy/bin/python -m pytest -n 2

env-legacy:  ## build .venv-legacy or bring it up to date; needs Python 3.10
	@$(PYTHON) tools/misc/install.py --legacy

clean:  ## remove builds and caches; the environments stay
	rm -rf build dist docs/en/api *.egg-info dskd_mm/.mim .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
