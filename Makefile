# make book, make test: see README.md. Nothing here needs more than make, a POSIX shell and Python.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
EXTRAS := embedded,book,dev,scale
export COMPANION_HOME ?= $(CURDIR)/.companion

# The environment is complete when it holds the stamp of exactly these inputs: a checkout that was moved or changed
# asks for another one. The stamp is written last. An interrupted installation leaves .installing instead, and is begun
# again from nothing: pip cannot go on from a package that is half there.
KEY := $(shell (cat pyproject.toml constraints.txt; echo "$(CURDIR) $(EXTRAS)"; $(PYTHON) --version) | cksum | cut -d' ' -f1)
STAMP := .venv/.installed-$(KEY)

.DEFAULT_GOAL := help
.PHONY: help env book test clean

help:
	@echo "make book    run every chapter and render the site to _build/html"
	@echo "make test    lint, types, import contract, tests, and every notebook"
	@echo "make env     make the environment .venv alone"
	@echo "make clean   delete the site, the artifacts in .companion and all caches; keep .venv"

env: $(STAMP)
	@echo "environment: .venv is complete"

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "found $$($(PYTHON) --version 2>&1), expected Python 3.11 or newer: install it, or set PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "$(PYTHON) cannot make environments: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@rm -f .venv/.installed-*
	@if [ -e .venv/.installing ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1 || \
	    [ "$$(.venv/bin/python --version)" != "$$($(PYTHON) --version)" ]; then $(PYTHON) -m venv --clear .venv; fi
	@touch .venv/.installing
	@echo "environment: installing into .venv, a few minutes the first time"
	@started=$$(date +%s); \
	  .venv/bin/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]" && \
	  echo "environment: installed in $$(($$(date +%s) - started)) s"
	@rm -f .venv/.installing
	@touch $@

book: env
	@.venv/bin/python tools/book.py

test: env
	@.venv/bin/python tools/test.py

clean:
	rm -rf _build .companion .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
