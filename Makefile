# make demo    from nothing to a pretrained encoder and its pictures, on a CPU       (VIDEOS=DIR for your own videos)
# make gpu     tests and speeds of decoding and kernels on an NVIDIA GPU           (VIDEOS=DIR adds loading and training)
# make test    lint, types and all tests                                             (PYTHON=python3.12 picks the interpreter)
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VIDEOS ?=
ARGS ?=

.PHONY: help demo test test-slow gpu lint typing setup setup-dev clean

help:
	@sed -n 's/^# //p' Makefile

demo: setup
	$(BIN)/trocar demo $(if $(VIDEOS),--videos '$(VIDEOS)') $(ARGS)

# One process a core; each computes on one thread, so that they do not wait for each other.
test: lint typing
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" --numprocesses auto --maxprocesses 8 --dist worksteal $(ARGS)

test-slow: setup-dev
	$(BIN)/pytest -m slow -s $(ARGS)

# On a machine with an NVIDIA GPU: the tests of decoding and of the kernels on the device, then their speeds.
gpu: setup-dev
	$(BIN)/pytest -m "not slow" tests/test_dali.py tests/test_dali_pipeline.py
	$(BIN)/pytest -m "not slow" tests/test_patch_embed.py tests/test_pixel_loss.py tests/test_decoder_tokens.py tests/test_row_sums.py \
		tests/test_feature_loss.py tests/test_ema.py tests/test_mask_sampler.py tests/test_rope3d.py tests/test_kmeans_assign.py \
		tests/test_mae_kernels.py tests/test_jepa_kernels.py tests/test_launch.py tests/test_kernel_compile.py
	$(BIN)/pytest -m "not slow" tests/test_kmeans.py
	$(BIN)/trocar bench clustering --rows 10000000 --width 768 --levels 4096,400,40 --device cuda
	$(BIN)/trocar bench decode
	$(BIN)/trocar bench kernels $(ARGS)
	$(if $(VIDEOS),$(BIN)/trocar index '$(VIDEOS)' --out runs/gpu/corpus)
	$(if $(VIDEOS),$(BIN)/trocar pack runs/gpu/corpus --out runs/gpu/packed)
	$(if $(VIDEOS),$(BIN)/trocar bench loading runs/gpu/corpus --packed runs/gpu/packed)
	$(if $(VIDEOS),$(BIN)/trocar bench data-wait originals=runs/gpu/corpus proxies=runs/gpu/packed --set optim.batch=64 optim.accumulation=1)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# pyright wants folders that are named as the package is: links, so that nothing is copied.
typing: setup-dev
	@mkdir -p build/typing/trocar
	@for folder in bench configs engine kernels loaders ssl; do ln -sfn ../../../$$folder build/typing/trocar/$$folder; done
	$(BIN)/pyright --project pyproject.toml

setup: EXTRA :=
setup setup-dev:
	@PYTHON='$(PYTHON)' VENV='$(VENV)' bash setup.sh '$(EXTRA)'
setup-dev: EXTRA := [dev]

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
