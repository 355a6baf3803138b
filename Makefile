# `make demo` and `make test` need Python 3.11 or newer, make and the package registries; all else is brought by them.
VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
SOURCES := pyproject.toml constraints.txt
TYPING := build/typing/natscope
ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 3

.PHONY: help demo test check lint audit format bench results docs clean
help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1 \t/'

demo: $(VENV)/.installed ## install, build the embedded bundle, open the app (ARGS="--port 8600 --no-browser")
	@$(BIN)/natscope demo $(ARGS)

test: $(VENV)/.installed-dev ## install what tests need, a browser too, and run them (PYTEST_ARGS="-k greedy" WORKERS=0)
	@$(BIN)/python -m tests.browser
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10 $(PYTEST_ARGS)

check: lint ## lint, and the tests that need neither a browser nor a build from scratch (two minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not browser" $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev $(TYPING) ## check style, types and what could be unsafe
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@$(BIN)/bandit --quiet --configfile pyproject.toml --recursive natscope app core precompute assets benchmarks

audit: $(VENV)/.installed-dev ## ask the vulnerability service about the tested versions (needs the network)
	@$(BIN)/python -m tests.audit

format: $(VENV)/.installed-dev ## format the code
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(VENV)/.installed-dev ## print the measured ratios (needs a few minutes)
	@$(BIN)/python -m benchmarks

results: $(VENV)/.installed ## run a small version of each experiment but LDS into build/results (about ten minutes)
	@$(BIN)/python -m natscope.app.cli.rerun

docs: $(VENV)/.installed-dev $(TYPING) ## build the documentation into build/site (it needs no network, nor do its readers)
	@$(BIN)/python -m docs.pages build/docs && $(BIN)/python -m zensical build --clean --strict

clean: ## remove the environment and caches of tools
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The package as it is imported, for tools that do not ask how it was installed.
$(TYPING): $(wildcard natscope/*)
	@rm -rf $@ && mkdir -p $@ && ln -s $(foreach part,app assets core precompute $(wildcard natscope/*),$(CURDIR)/$(part)) $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "natscope needs Python 3.11 or newer: install it, or name it with make PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments: install its venv module (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# A stamp is written only when everything is installed, so an interrupted install is simply done again.
$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	@$(call install,.)
	@touch $@

$(VENV)/.installed-dev: $(SOURCES) | $(BIN)/python
	@$(call install,.[dev])
	@touch $@ $(VENV)/.installed

# Tested versions first; where they do not exist (another Python or platform), whatever the lower bounds allow.
define install
echo "Installing natscope and its libraries (a few minutes the first time) ..."; \
$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(1)' || { \
	echo "The tested versions do not install here; trying the newest that fit."; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '$(1)' || { \
	echo "The libraries could not be installed: check the network and the package registry, then run make again." >&2; exit 1; }; }
endef
