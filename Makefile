# Only Python and make are needed. `make train` and `make test` set up what they use.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
CASES ?= 20000

.PHONY: train test lint style pages fuzz kills compile-all gpu clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/'

train: $(VENV)/.installed  ## train LeNet on real handwritten digits
	$(BIN)/lightconv train
	@echo "next: $(BIN)/lightconv --help, or: . $(BIN)/activate; lightconv --help"

test: $(VENV)/.installed-dev  ## run all tests, offline, without a GPU
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m "compile and not every_tile"

lint: $(VENV)/.installed-dev  ## ruff, mypy, and the measure of prose and density
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTHON) tools/style.py --check lightconv lightconv_autoload.py

style:  ## measure prose and density, and show the hardest sentences
	$(PYTHON) tools/style.py --worst 10 lightconv lightconv_autoload.py

pages: $(VENV)/.installed-dev  ## run every command and snippet of README and docs/ as typed
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/pytest -n auto -m pages

fuzz: $(VENV)/.installed-dev  ## check CASES random convolution blocks in Triton's interpreter
	$(BIN)/python -W ignore tests/fuzz.py --cases $(CASES)

kills: $(VENV)/.installed-dev  ## kill runs at random moments, damage their checkpoints, and resume
	OMP_NUM_THREADS=1 $(BIN)/python tests/kills.py

compile-all: $(VENV)/.installed-dev  ## compile every tile of every table for every architecture
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto -m compile

gpu: $(VENV)/.installed-dev  ## on a GPU: its tests, and the kernels measured into bench_kernels.md
	@$(BIN)/python -c "import torch; raise SystemExit(None if torch.cuda.is_available() else 'make gpu: no GPU here')"
	$(BIN)/pytest -m gpu
	$(BIN)/lightconv bench what=kernels output=bench_kernels.md

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing lightconv and torch into $(VENV): this takes minutes"
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what the tests need into $(VENV): this takes a minute"
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,lint]'
	touch $@

clean:  ## remove the environment and the caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
