# make demo    from nothing to a pretrained encoder and its pictures, on a CPU       (VIDEOS=DIR for your own videos)
# make gpu     tests and speeds on an NVIDIA GPU, without a network, resumable     (STAGE=kernels: one stage; VIDEOS=DIR: your videos)
# make test    lint, types and all tests                                             (PYTHON=python3.12 picks the interpreter)
# make docs    the pages and the interface in Python as a site, in build/docs/site; a link that leads nowhere is an error
# make notebooks    the tutorials as notebooks, in build/notebooks
# make compat  does it run on Python 3.10 to 3.13, on the newest and the oldest packages? A table; needs a network and some hours
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VIDEOS ?=
STAGE ?=
ARGS ?=

.PHONY: help demo test test-slow gpu compat docs notebooks lint typing setup setup-dev setup-docs clean

help:
	@sed -n 's/^# make /make /p' Makefile

demo: setup
	$(BIN)/trocar demo $(if $(VIDEOS),--videos '$(VIDEOS)') $(ARGS)

# One process a core; each computes on one thread, so that they do not wait for each other.
test: lint typing
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

test-slow: setup-dev
	$(BIN)/pytest -m slow -s $(ARGS)

compat:
	$(PYTHON) .ci/compat.py $(ARGS)

# mkdocstrings reads folders that are named as the package is; it follows no links.
docs: setup-docs
	@rm -rf build/docs && mkdir -p build/docs/trocar
	@cp -r bench engine judge kernels loaders ssl build/docs/trocar
	$(BIN)/mkdocs build --strict --config-file .ci/mkdocs.yml

notebooks:
	$(PYTHON) .ci/notebooks.py

# On a machine with an NVIDIA GPU, which needs no network: STAGE=tests, feed, step, kernels, loading, training, compiled or cluster; all of them where unset.
gpu:
	@PYTHON='$(PYTHON)' VENV='$(VENV)' bash gpu.sh $(STAGE) $(if $(VIDEOS),--videos '$(VIDEOS)') $(ARGS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# pyright wants folders that are named as the package is: links, so that nothing is copied.
typing: setup-dev
	@mkdir -p build/typing/trocar
	@for name in __init__.py bench configs engine judge kernels loaders ssl; do ln -sfn ../../../$$name build/typing/trocar/$$name; done
	$(BIN)/pyright --project pyproject.toml --pythonpath $(BIN)/python

setup: EXTRA :=
setup setup-dev setup-docs:
	@PYTHON='$(PYTHON)' VENV='$(VENV)' bash setup.sh '$(EXTRA)'
setup-dev: EXTRA := [dev]
setup-docs: EXTRA := [dev,docs]

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
