# The commands of this checkout. Everything is installed into .venv from hashed locks; nothing else is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One more than two cores: each waits for git, the disk or the network at times.
TEST_WORKERS ?= 3
SECONDS_EACH ?= 30
CASES ?= 5000
MINUTES ?= 20
# The locks are whole, so pip resolves nothing (--no-deps): an old pip would let a newer release outdo a pin.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: help setup demo test test-differential test-image test-systemd day fuzz fuzz-http crash lifecycle soak audit check format bench flood lock docs clean
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

# Where the environment forbids bytecode, each of the hundreds of processes would compile the program anew.
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/dev.stamp ## Run the whole test suite (both engines, real git clients)
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal $(ARGS)

fuzz: $(VENV)/dev.stamp ## Fuzz every parser; SECONDS_EACH=120 for longer, PARSERS="names ..." for some (docs/fuzzing.md)
	@$(BIN)/python -m tests.fuzz --seconds-each $(SECONDS_EACH) $(ARGS) $(PARSERS)

# In environments of their own: the tools bring many packages, which neither the mirror nor its tests need.
.venv-fuzz/fuzz-http.stamp: requirements/fuzz-http.lock
	@$(PYTHON) -m venv .venv-fuzz
	@.venv-fuzz/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --no-deps --requirement requirements/fuzz-http.lock
	@touch $@

# Another seed each time; HALVES=streams or described for one half, ARGS="--workers 2" and so on: `python -m tests.httpfuzz --help`.
fuzz-http: $(VENV)/dev.stamp .venv-fuzz/fuzz-http.stamp ## Fuzz a running service over HTTP, SECONDS_EACH=30 for each of two halves; SEED=n (docs/fuzzing.md)
	@$(BIN)/python -m tests.httpfuzz --seconds-each $(SECONDS_EACH) $(if $(SEED),--seed $(SEED)) $(ARGS) $(HALVES)

.venv-audit/audit.stamp: requirements/audit.lock
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip --disable-pip-version-check install --quiet --require-hashes --no-deps --requirement requirements/audit.lock
	@touch $@

audit: .venv-audit/audit.stamp ## Write an SBOM to dist/ (CycloneDX) and look the dependencies up in the list of known vulnerabilities
	@mkdir -p dist
	@.venv-audit/bin/cyclonedx-py requirements requirements/run.lock --pyproject pyproject.toml --output-reproducible --output-format JSON --output-file dist/git-mirror.cdx.json
	@echo "The SBOM is dist/git-mirror.cdx.json"
	@.venv-audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements/run.lock --progress-spinner off >dist/audit.log 2>&1 || { \
		if grep -q 'ConnectionError\|ServiceError\|Traceback\|could not be audited\|not found on' dist/audit.log; then \
			echo "The list of vulnerabilities can't be reached from here, so nothing is known of the dependencies: run this with access to the network (dist/audit.log has the reason)" >&2; exit 2; \
		else cat dist/audit.log >&2; exit 1; fi; }
	@cat dist/audit.log

# Another seed each time; SEED=n asks the same again. On one core about 12 cases a second.
test-differential: $(VENV)/dev.stamp ## Compare CASES=5000 made-up fetches with git's own answers; SEED=n
	@$(BIN)/python -m pytest -n 0 tests/differential --differential-cases=$(CASES) $(if $(SEED),--hypothesis-seed=$(SEED)) $(ARGS)

# As root: debootstrap makes the Debian that it is built on. Needs podman, runc and debootstrap.
test-image: $(VENV)/dev.stamp ## Build the image and run it, as nobody, on a root that can't be written
	@$(BIN)/python -m pytest -n 0 -rs tests/packaging/test_image.py --image $(ARGS)

# As root: a Debian is made by debootstrap, kept, and booted in namespaces. The first time takes three minutes more.
test-systemd: $(VENV)/dev.stamp ## Install the units under a real systemd as the documentation says, and try them
	@$(BIN)/python -m pytest -n 0 -rs tests/packaging/test_systemd.py --systemd $(ARGS)

day: $(VENV)/dev.stamp ## Play deployment days with real parts; SEED=n for a certain one, ROUNDS=k for more of them
	@$(BIN)/python -m pytest -n 0 -rP tests/e2e/test_deployment_day.py --day-seed=$(or $(SEED),$$(date +%s)) --day-rounds=$(or $(ROUNDS),1) $(ARGS)

# STOP=1 ends it at the first violation; ARGS="--load 2 --events killed" and so on: `python -m tests.soak --help`.
soak: $(VENV)/dev.stamp ## Soak for MINUTES=20 under mixed load, and check what must hold; SEED=n, REPORT=file
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(REPORT),--report $(REPORT)) $(if $(STOP),--stop) $(ARGS)

# Kills at random instants and after chosen file-system calls (POINTS=0 for each of them); see tests/crash/__init__.py.
crash: $(VENV)/dev.stamp ## Kill the service KILLS=300 times in all ways and look at what is left; SEED=n, POINTS=100, CUTS=100
	@$(BIN)/python -m pytest -n 0 -rP -o timeout=14400 tests/crash --crash-kills=$(or $(KILLS),300) --crash-points=$(or $(POINTS),100) --crash-cuts=$(or $(CUTS),100) --crash-seed=$(or $(SEED),$$(date +%s)) $(ARGS)

lifecycle: $(VENV)/dev.stamp ## Reloads and upgrades in full, and UPGRADES=3 under RATE=530 polls a second; WORKERS=1
	@$(BIN)/python -m pytest -n 0 -o timeout=600 tests/lifecycle tests/reload --lifecycle --reloads 50 $(ARGS)
	@$(BIN)/python -m tests.lifecycle.under_load --upgrades $(or $(UPGRADES),3) --rate $(or $(RATE),530) --workers $(or $(WORKERS),1)

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
	uv pip compile --group audit --generate-hashes --universal --python-version 3.11 $(UPGRADE) --no-header --no-annotate --quiet --output-file requirements/audit.lock
	uv pip compile --group fuzz-http --generate-hashes --universal --python-version 3.11 $(UPGRADE) --no-header --no-annotate --quiet --output-file requirements/fuzz-http.lock

clean: ## Remove .venv and caches
	rm -rf $(VENV) .venv-audit .venv-fuzz .bench .fuzz .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
