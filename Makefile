# Everything a developer needs; each target installs what it uses into .venv.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# The CPU build of torch; a plain "torch" may bring gigabytes of CUDA packages.
TORCH := torch==2.13.0

.PHONY: serve test test-slow lint bench gpu-check demo clean

serve: $(VENV)/.serving
	$(BIN)/saccade serve

test: $(VENV)/.development
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 3 --dist loadgroup

test-slow: $(VENV)/.development
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.development
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.development
	$(BIN)/python -m bench.server_vs_bare

# On a machine with a GPU of its own, where torch is there already: python -m bench.gpu_check
gpu-check: $(VENV)/.development
	$(BIN)/python -m bench.gpu_check

demo: $(VENV)/.development
	$(BIN)/python -m export.demo.build vit --work build/demo --repository build/repository
	$(BIN)/python -m export.demo.build swin --work build/demo --repository build/repository
	$(BIN)/python -m export.demo.build detr --work build/demo --repository build/repository
	$(BIN)/python -m export.demo.build mask2former --work build/demo --repository build/repository

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The serving dependencies alone: no torch.
$(VENV)/.serving: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu]'
	touch $@

$(VENV)/.development: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ $(VENV)/.serving
