# Two commands do everything on a machine with Python 3.11 to 3.13, git and make:
#   make book    make test
# `make help` lists the rest.

PROFILE ?= quick
JOBS    ?=
DATA    ?=
# Another interpreter: make book PYTHON=python3.12
PYTHON  ?= python3

VENV  := .venv/bin
RUN   := $(VENV)/python
AGE   := import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
 "The book needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d: give another, as in make book PYTHON=python3.12" % v)

ifneq ($(DATA),)
export FSLIB_DATA := $(abspath $(DATA))
endif

.PHONY: help book test lab records edition site twins check lint lock clean environment
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):[^#]*## /\1\t/' | expand -t 10

environment:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): give another, as in make book PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c '$(AGE)'
	@$(PYTHON) ci/setup.py

book: environment ## run every page (PROFILE=quick) and render the book into build/html
	@$(RUN) ci/book.py --profile $(PROFILE) $(JOBS:%=--jobs %)

test: environment ## run the tests
	@OMP_NUM_THREADS=1 $(RUN) -m pytest

lab: environment ## open the pages in JupyterLab
	@$(VENV)/jupyter lab book

records: environment ## make the records of the edition that are missing (hours; DATA=...)
	@$(RUN) ci/records.py $(JOBS:%=--jobs %)

edition: PROFILE := cpu
edition: environment ## run the published edition into results/notebooks (PROFILE=cpu DATA=...)
	@$(RUN) ci/execute.py --profile $(PROFILE) $(JOBS:%=--jobs %) --output results/notebooks
	@$(RUN) ci/check.py --sources --executed results/notebooks
	@echo "The edition is in results/notebooks; make site renders it"

site: environment ## render results/notebooks into build/html without running anything
	@$(RUN) ci/book.py --edition

twins: environment ## let every .ipynb of the book follow its .py
	@$(RUN) ci/twins.py

check: environment ## check the sources of the book: twins, parameters, line lengths
	@$(RUN) ci/check.py --sources
	@echo "The sources of the book are in order"

lint: environment ## ruff over everything
	@$(VENV)/ruff check . && $(VENV)/ruff format --check .

lock: environment ## resolve requirements.lock again (UPGRADE=1: to the newest of everything)
	@$(VENV)/uv pip compile pyproject.toml --all-extras --universal --fork-strategy fewest \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header \
	  $(if $(UPGRADE),--upgrade) --quiet --output-file requirements.lock
	@echo "requirements.lock is new; make test installs and tries it"

clean: ## remove what was built (data, runs and the environment stay)
	@rm -rf build .pytest_cache .ruff_cache
