# `make run` and `make test` are the whole set-up. They need Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help run dev test soak fuzz lint format openapi check-api bench check-alerts audit dist sbom pin-images lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.runtime ## install, create what is missing, and serve on the embedded store
	@$(BIN)/token-vault init
	@exec $(BIN)/token-vault serve

dev: $(VENV)/.dev ## install what development needs into .venv, and run nothing
	@echo "Installed; activate it with: . $(BIN)/activate"

# a folder, a file or one test: make test T=tests/security
T := tests

# keep compiled modules, whatever the environment says: hundreds of processes import the same ones
test soak: export PYTHONDONTWRITEBYTECODE :=

test: $(VENV)/.dev ## install, start PostgreSQL, PostgREST and the gateway, and run the tests; T=tests/security runs a part
	@$(BIN)/python -m tests.support.stack.install
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(T)

soak: $(VENV)/.dev ## run the tests at their exhaustive sizes; takes an hour or more
	@$(BIN)/python -m tests.support.stack.install
	@SOAK=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --timeout 3600 $(T)

fuzz: $(VENV)/.dev ## try every operation of the API with made-up requests, for some minutes
	@$(BIN)/python -m tests.support.stack.install
	@$(BIN)/python -m tests.support.fuzz

lint: $(VENV)/.dev ## check style, types and the layers of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy

format: $(VENV)/.dev ## rewrite the code in its format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

openapi: $(VENV)/.dev ## write docs/openapi.json and the TypeScript types anew, after a change of the API
	@$(BIN)/python -m scripts.write_openapi
	@$(BIN)/python -m tests.support.stack.install
	@PATH="$$PATH:$(CURDIR)/.stack/node/bin" node .stack/typescript/node_modules/openapi-typescript/bin/cli.js docs/openapi.json --output clients/typescript/src/schema.ts

# `go install github.com/oasdiff/oasdiff@v1.37.0` builds it in some minutes; BASE is the release that clients use.
OASDIFF ?= oasdiff
BASE ?= main

check-api: ## compare docs/openapi.json with that of BASE, and fail if a client would break; OASDIFF=path/to/oasdiff
	@command -v $(OASDIFF) >/dev/null || { echo "oasdiff is needed: go install github.com/oasdiff/oasdiff@v1.37.0. Set OASDIFF to its path." >&2; exit 2; }
	@git show $(BASE):docs/openapi.json > .openapi-base.json 2>/dev/null || { rm -f .openapi-base.json; \
	    echo "BASE=$(BASE) has no docs/openapi.json." >&2; exit 2; }
	@$(OASDIFF) breaking --fail-on ERR .openapi-base.json docs/openapi.json; status=$$?; rm -f .openapi-base.json; exit $$status

# OpenBao's program: from its release page, a package of the system, or `go build` in its sources.
BAO ?=

bench: $(VENV)/.dev ## measure side by side, and print a table in Markdown; BAO=path/to/bao takes part, ONLY=refresh runs a part
	@$(BIN)/python -m tests.support.stack.install
	@$(BIN)/python -m benchmarks $(if $(BAO),--bao $(BAO)) $(if $(ONLY),--only $(ONLY))

# promtool comes with Prometheus; `go install github.com/prometheus/prometheus/cmd/promtool@latest` builds it in some
# minutes, which is why `make test` does without it and checks less.
PROMTOOL ?= promtool

check-alerts: ## check the alert rules with promtool, and that they fire; PROMTOOL=path/to/promtool
	@command -v $(PROMTOOL) >/dev/null || { echo "promtool is needed; it comes with Prometheus. Set PROMTOOL to its path." >&2; exit 2; }
	@$(PROMTOOL) check rules deploy/prometheus/token-vault.rules.yml
	@$(PROMTOOL) test rules deploy/prometheus/token-vault.test.yml

audit: $(VENV)/.dev ## look for known vulnerabilities of the locked packages; exits with 2 if the data cannot be reached
	@$(BIN)/python scripts/audit_dependencies.py

dist: $(VENV)/.dev ## build the wheel and the source distribution into dist/, and the wheel of the client
	@rm -rf build dist
	@$(BIN)/python -c "from setuptools.build_meta import build_sdist, build_wheel; build_sdist('dist'); build_wheel('dist')" >/dev/null
	@cd client && ../$(BIN)/python -c "from setuptools.build_meta import build_wheel; build_wheel('../dist')" >/dev/null
	@rm -rf build client/build
	@ls dist

SBOM ?= sbom.cdx.json

sbom: $(VENV)/.dev ## write a CycloneDX list of the locked packages to sbom.cdx.json; SBOM=path chooses another file
	@$(BIN)/python -W ignore::UserWarning -m cyclonedx_py requirements --pyproject pyproject.toml --spec-version 1.6 --output-format JSON \
	    --output-reproducible --output-file $(SBOM) requirements.lock
	@echo "Wrote $(SBOM)"

pin-images: ## write the digests of the container images into Dockerfile and docker-compose.yml; needs Docker
	@$(PYTHON) deploy/pin_images.py

lock: ## write the lock files anew from pyproject.toml; needs uv
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --extra dev pyproject.toml -o requirements-dev.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --group build pyproject.toml -c requirements-dev.lock -o requirements.lock

clean: ## remove what was installed; keeps .env and data/
	rm -rf $(VENV) .stack .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

# The virtual environment: hashes are required for everything that is downloaded.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=python3.x" if sys.version_info < (3, 11) else 0)'
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing what the service needs"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# uv takes a tenth of pip's time; pip is for a machine where only pip knows the package index.
$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	@echo "Installing what the tests need"
	@awk '/^uv==/,!/\\$$/' requirements-dev.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-dev.lock || \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@
