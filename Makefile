# `make book` and `make test` are the two commands that matter; each prepares .venv by itself.
# Another interpreter: make env PYTHON=python3.12

SHELL := /bin/sh
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
NOTEBOOKS := notebooks/*.ipynb notebooks/training/*.ipynb
# What measures time has the machine for itself, after the others.
TIMED := $(shell grep -l '"measures-time"' $(NOTEBOOKS))
ARGS ?=
UPGRADE ?=
# Workers of the tests, each with one thread: two processes of two threads on two cores are ten times
# slower than one.
WORKERS ?= 2

# Like pip, uv then trusts the certificates that the machine trusts.
export UV_SYSTEM_CERTS ?= 1

# The book's extension: it executes the chapters, and with it jupyter-book renders the site.
EXTENSION := PYTHONPATH=book/_ext $(BIN)/python -m ncsn_book
RENDER := PYTHONWARNINGS=ignore $(BIN)/jupyter-book build . -q -W -n --keep-going

ALONE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest
APART := browser or colab or stress
CHECKED := --jaxtyping-packages=ncsn_core,beartype.beartype --timeout=300
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=600 --nbval-sanitize-with=tests/nbval.cfg

step = @printf '\n== %s\n' '$(1)'

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help env book execute html refresh gallery serve test quick lint types environment unit notebooks strict browser gpu test-colab stress links lock clean

help: ## list the targets
	@awk 'BEGIN {FS = ":[^#]*## "} /^[a-z-]+:[^#]*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

env: $(INSTALLED) ## create .venv and install the locked packages (done by the others when needed)

# uv comes from the lock too, hashed like everything else. The stamp is written last, so that an
# interrupted installation is taken up again. Bytecode is compiled once: without it, and where Python may
# not write it, every kernel compiles torch anew, for six seconds.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo 'Python 3.11 or newer is needed, and $(PYTHON) is not: name one, as in PYTHON=python3.12' >&2; \
		exit 1; }
	@echo 'Installing the packages of requirements.lock into .venv (about 6 GB on Linux)'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@sed -n '/^uv==/,/# via/p' requirements.lock | \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r /dev/stdin
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

book: execute ## execute every chapter (cached), build the site, print the claims and its path
	@NCSN_EXECUTED=1 $(RENDER)
	@$(EXTENSION) scorecard
	@echo 'Open $(CURDIR)/_build/html/index.html'

execute: $(INSTALLED) ## execute what has changed (ARGS="10_ncsn --force", ARGS=--help)
	@$(EXTENSION) execute $(ARGS)

html: $(INSTALLED) ## build the site from the stored outputs, executing nothing
	@$(RENDER)

refresh: $(INSTALLED) ## execute what has changed and store the outputs in notebooks/ (ARGS as above)
	@$(EXTENSION) refresh $(ARGS)

gallery: $(INSTALLED) ## draw the README's picture from the results that ship
	@$(EXTENSION) gallery

serve: ## show the built site at http://127.0.0.1:8000/
	@$(PYTHON) -m http.server --bind 127.0.0.1 --directory _build/html 8000

test: lint types environment unit notebooks strict browser ## run every check below, one after the other
	$(call step,test: all checks passed)

quick: lint types ## lint, types and the fast tests, for the while of writing (options in ARGS)
	$(call step,quick: the tests that start nothing and take seconds at most)
	@$(ALONE) -n $(WORKERS) --dist loadfile -m 'not (slow or serial or $(APART))' --timeout=300 $(ARGS)

lint: $(INSTALLED) ## - ruff: lint and format, notebooks included; imports; claims; workflows
	$(call step,lint: ruff and what else reads text)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@mkdir -p _build && $(BIN)/lint-imports --no-cache > _build/imports.txt || { cat _build/imports.txt; exit 1; }
	@$(BIN)/check-jsonschema --schemafile book/claims.schema.json book/claims.yml
	@$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/zizmor --offline --quiet .github

types: $(INSTALLED) ## - mypy over the package, the benchmark and the book's extension
	$(call step,types: mypy)
	@$(BIN)/mypy

environment: $(INSTALLED) ## - environment.yml agrees with pyproject.toml
	$(call step,environment: environment.yml against pyproject.toml)
	@$(BIN)/python tools/environment.py --check

unit: $(INSTALLED) ## - unit tests, shapes checked at run time (options in ARGS)
	$(call step,unit: pytest with jaxtyping and beartype)
	@$(ALONE) -n $(WORKERS) --dist loadfile -m 'not (serial or $(APART))' $(CHECKED) $(ARGS)
	@$(BIN)/python -m pytest -m 'serial and not ($(APART))' $(CHECKED) $(ARGS)

notebooks: $(INSTALLED) ## - nbval: execute the notebooks, compare with the stored outputs
	$(call step,notebooks: nbval over the chapters and the training notebooks)
	@$(ALONE) -n $(WORKERS) --dist loadfile $(NBVAL) $(filter-out $(TIMED),$(wildcard $(NOTEBOOKS)))
	@$(BIN)/python -m pytest $(NBVAL) $(TIMED)

strict: $(INSTALLED) ## - build the site from the stored outputs, warnings being errors
	$(call step,strict: the site from the stored outputs)
	@rm -rf _build/html _build/.doctrees
	@$(RENDER)

browser: strict ## - a browser looks at every page: offline, light and dark, on a phone
	$(call step,browser: Chromium over the site)
	@$(ALONE) tests/browser -m browser -n $(WORKERS) --timeout=300 $(ARGS)

gpu: $(INSTALLED) ## train and measure the paper's network on this GPU (MINUTES=9 OUT=gpu)
	@$(BIN)/python tools/gpu_notebooks.py $(or $(OUT),gpu) --minutes $(or $(MINUTES),9) $(ARGS)

test-colab: $(INSTALLED) ## published notebooks in a fresh environment like Colab's, without the repository
	$(call step,test-colab: two chapters and the training notebook (NCSN_COLAB=all: every one))
	@$(BIN)/python -m pytest tests/colab -m colab --timeout=1200 $(ARGS)

stress: $(INSTALLED) ## hours of kills, fuzzing, defects, mutants and other seeds, for the page of promises
	$(call step,stress: the long versions of what the suite does in seconds)
	@NCSN_FIGURES=$(CURDIR)/_build/stress $(BIN)/python -m pytest -m stress --timeout=7200 \
		--ignore=tests/test_determinism.py
	@NCSN_FIGURES=$(CURDIR)/_build/stress $(BIN)/python -m pytest -m '' tests/test_determinism.py
	@mkdir -p _build/coverage
	@$(BIN)/python -m coverage run -m pytest --jaxtyping-packages=ncsn_core,beartype.beartype
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage json --quiet -o _build/coverage/report.json
	@HYPOTHESIS_PROFILE=stress $(BIN)/python -m pytest -m hypothesis --timeout=7200
	@$(BIN)/python tools/mutants.py
	@$(BIN)/python tools/alarms.py
	@$(BIN)/python tools/promises.py

links: strict ## every link to another site leads somewhere (needs the internet)
	@$(BIN)/jupyter-book build . --builder linkcheck

lock: $(INSTALLED) ## renew requirements.lock and environment.yml (UPGRADE=--upgrade for new versions)
	@$(BIN)/uv pip compile pyproject.toml --quiet $(UPGRADE) --all-extras --universal \
		--python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command 'make lock' --output-file requirements.lock
	@$(BIN)/python tools/environment.py

clean: ## remove what the builds and checks made, keeping .venv
	@rm -rf _build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find ncsn_core benchmarks book tests tools notebooks -name __pycache__ -prune -exec rm -rf {} +
