# The commands of this checkout. Everything is installed into .venv from hashed locks; nothing else is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TEST_WORKERS ?= 2
SECONDS_EACH ?= 30
CASES ?= 5000
MINUTES ?= 20
# The locks are whole, so pip resolves nothing (--no-deps): an old pip would let a newer release outdo a pin.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: help setup demo test test-differential day fuzz soak check format bench flood lock docs clean
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 26

# Debian splits ensurepip from python3; where it is missing, `apt-get` mends it for root, and a sentence for others.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "git-mirror needs Python 3.11 or later; set PYTHON=/path/to/one" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing python3-venv with apt-get ..."; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null; \
	else echo "Python has no venv module with pip here. Run: sudo apt-get install python3-venv" >&2; exit 1; fi
	@$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: requirements/run.lock pyproject.toml | $(BIN)/python
	@echo "Installing the locked dependencies into $(VENV) ..."
	@$(INSTALL) --require-hashes --no-deps --requirement requirements/run.lock
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements/dev.lock $(VENV)/run.stamp
	@echo "Installing the test tools into $(VENV) ..."
	@$(INSTALL) --require-hashes --no-deps --requirement requirements/dev.lock
	@$(BIN)/python -m pip --disable-pip-version-check check
	@touch $@

setup: $(VENV)/dev.stamp ## Make .venv with git-mirror, its dependencies and the test tools

demo: $(VENV)/run.stamp ## Play a deployment on this machine; KEEP=1 leaves it running
	@$(BIN)/git-mirror demo $(if $(KEEP),--keep)

test: $(VENV)/dev.stamp ## Run the whole test suite (both engines, real git clients)
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) $(ARGS)

fuzz: $(VENV)/dev.stamp ## Fuzz every parser; SECONDS_EACH=120 for longer, PARSERS="names ..." for some (docs/fuzzing.md)
	@$(BIN)/python -m tests.fuzz --seconds-each $(SECONDS_EACH) $(ARGS) $(PARSERS)

# Another seed each time; SEED=n asks the same again. On one core about 12 cases a second.
test-differential: $(VENV)/dev.stamp ## Compare CASES=5000 made-up fetches with git's own answers; SEED=n
	@$(BIN)/python -m pytest -n 0 tests/differential --differential-cases=$(CASES) $(if $(SEED),--hypothesis-seed=$(SEED)) $(ARGS)

day: $(VENV)/dev.stamp ## Play deployment days with real parts; SEED=n for a certain one, ROUNDS=k for more of them
	@$(BIN)/python -m pytest -n 0 -rP tests/e2e/test_deployment_day.py --day-seed=$(or $(SEED),$$(date +%s)) --day-rounds=$(or $(ROUNDS),1) $(ARGS)

# STOP=1 ends it at the first violation; ARGS="--load 2 --events killed" and so on: `python -m tests.soak --help`.
soak: $(VENV)/dev.stamp ## Soak for MINUTES=20 under mixed load, and check what must hold; SEED=n, REPORT=file
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(REPORT),--report $(REPORT)) $(if $(STOP),--stop) $(ARGS)

check: $(VENV)/dev.stamp ## Lint, types, the architecture contract, generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/git-mirror config reference | diff -u docs/configuration.md - || { echo "docs/configuration.md is out of date: run make docs" >&2; exit 1; }

format: $(VENV)/dev.stamp ## Format the code and sort its imports
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

docs: $(VENV)/dev.stamp ## Write docs/configuration.md and docs/compatibility.md anew from the code
	@$(BIN)/git-mirror config reference > docs/configuration.md
	@$(BIN)/python -m tests.clients.page > docs/compatibility.md

bench: $(VENV)/dev.stamp ## Measure against peers in 5 minutes; FULL=1 takes longer and writes docs/performance.md
	@$(BIN)/python -m benchmarks $(if $(FULL),--full $(if $(findstring --rows,$(ARGS)),,--markdown docs/performance.md)) $(ARGS)

flood: $(VENV)/dev.stamp ## Measure polls beside misbehaving clients; ARGS="--seconds 20 idle stalled"
	@$(BIN)/python -m benchmarks.floods $(ARGS)

lock: ## Bring the locks up to pyproject.toml (needs uv); UPGRADE=--upgrade takes the newest of everything
	uv pip compile pyproject.toml --group build --generate-hashes --universal --python-version 3.11 $(UPGRADE) --no-header --no-annotate --quiet --output-file requirements/run.lock
	uv pip compile pyproject.toml --group dev --generate-hashes --universal --python-version 3.11 $(UPGRADE) --no-header --no-annotate --quiet --output-file requirements/dev.lock

clean: ## Remove .venv and caches
	rm -rf $(VENV) .bench .fuzz .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
