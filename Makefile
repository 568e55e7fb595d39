# Two commands: `make book` and `make test`. Everything else is below; `make` alone lists it.
SHELL := bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup data book test lint unit notebooks lab bench bench-publish topaz axe check-book check-data check-product record readme colab clean

PYTHON ?= python3
PROFILE ?= cpu
PROFILES := smoke cpu gpu paper
BIN := .venv/bin
COLAB_PYTHON ?= $(BIN)/python
READY := .venv/.ready
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# The folder of test data, when there is one beside the repository and the user has not chosen another.
ifeq ($(origin EMLAB_MIRROR),undefined)
ifneq ($(wildcard ../shared/data),)
export EMLAB_MIRROR := $(abspath ../shared/data)
endif
endif

ifeq ($(filter $(PROFILE),$(PROFILES)),)
$(error PROFILE=$(PROFILE) is not one of: $(PROFILES))
endif

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo "PROFILE is one of: $(PROFILES) (default cpu), for example: make book PROFILE=smoke"
	@echo "make book takes JOBS=N (chapters side by side) and MINUTES=N (leave out what does not end in time)"

setup: $(READY) ## create .venv with the pinned environment (done by the others when needed)

$(READY): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "emlab needs Python 3.11 or newer; choose one with: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }; \
	  echo "Creating .venv: torch, then everything else as pinned in constraints.txt (about 2 GB, a few minutes)"; \
	  $(PYTHON) -m venv .venv; \
	fi
	@$(PIP) torch setuptools
	@$(PIP) --no-build-isolation -e '.[notebooks,book,volumes,folders,cryoem,peers,test]'
	@touch $@

data: $(READY) ## fetch the real data of the chapters (says first how much); stand-ins are used without
	@$(BIN)/emlab data fetch --chapters

book: $(READY) ## fetch what chapters lack, run them in PROFILE, check their numbers, build the book
	@$(BIN)/python -m tools.book --profile $(PROFILE) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(JOBS),--jobs $(JOBS))

test: lint unit notebooks ## lint, types, unit tests, chapters in smoke with their expected numbers

lint: $(READY) ## ruff, formatting, mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

unit: $(READY) ## unit tests and the checks of the repository itself
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile tests/unit

notebooks: $(READY) ## chapters in the smoke profile, against tests/expected/smoke
	@$(BIN)/python -m pytest -q tests/notebooks

check-book: $(READY) ## open every page of the built book in headless Chromium, network blocked
	@$(BIN)/python -m pytest -q -n 2 --dist loadgroup tests/book

check-data: $(READY) ## chapters in smoke with every one of their data sets taken away in turn
	@$(BIN)/python -m pytest -q tests/data

check-product: $(READY) ## end to end: wheel, JupyterLab, interrupted and distributed work
	@$(BIN)/python -m pytest -q tests/product

lab: $(READY) ## open the chapters in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir notebooks

bench: $(READY) ## what things cost, each a ratio within one run (_build/bench.json)
	@$(BIN)/python -m benchmarks

bench-publish: $(READY) ## bench, and keep its numbers for the page on scale
	@$(BIN)/python -m benchmarks --publish

topaz: $(READY) ## put Topaz 0.3.20 (GPL, 48 MB, a program of its own) where chapter 02 finds it
	@[ -f .programs/topaz/topaz/main.py ] || \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --target .programs/topaz topaz-em==0.3.20

axe: ## put axe-core 4.14.1 (MPL-2.0, a program of its own) where check-book finds it; needs npm
	@[ -f .programs/axe/node_modules/axe-core/axe.min.js ] || \
	  npm install --silent --no-audit --no-fund --ignore-scripts --prefix .programs/axe axe-core@4.14.1

record: $(READY) ## measure again what chapters show as recorded, where it is stale
	@$(BIN)/python -m tools.record

readme: $(READY) ## fill the measured numbers of README.md from the last `make book`
	@$(BIN)/python -m tools.readme --profile $(PROFILE)

colab: $(if $(filter $(BIN)/%,$(COLAB_PYTHON)),$(READY)) ## chapters in smoke as on Colab: only torch, NumPy, matplotlib, ipywidgets before the first cell
	@$(COLAB_PYTHON) -m tools.colab

clean: ## remove what was built or run; keeps .venv and .programs
	@rm -rf _build runs build .pytest_cache .mypy_cache .ruff_cache
