# Two commands: `make up` runs the whole stack, `make test` passes the tests. Each sets up what it needs.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
# Tests wait more than they compute, so more workers than cores help.
WORKERS ?= 6
# The order is that of tests/e2e/conftest.py: what takes longest begins first.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# A suite of the matrix that takes longer hangs.
MATRIX_SECONDS ?= 300
# In CI, on a machine whose other guests nobody knows, what failed is tried once more, and that is said.
AGAIN = test -n "$$CI" && echo "FAILED; in CI what failed is tried once more:" && $(PYTEST) --last-failed

# Small sweeps, and the pair of everything: `make sweeps` runs them, so that `make test` is done within five minutes.
SMALL_SWEEPS := tests/e2e/test_pair.py tests/remediator/edge/test_schedules.py tests/remediator/edge/test_schemathesis.py \
	tests/remediator/engine/test_crash_sweep.py tests/remediator/engine/test_device_fault_storage.py \
	tests/remediator/engine/test_storage_failures.py
# Which part of the whole a bounded sweep takes: the same each time, so that only a change can fail it.
SEED ?= 1

.PHONY: up test lint unit e2e e2e-matrix sweeps fault-sweep crash-sweep fuzz node-days soak real-drivers real-servers real-images bench lock clean help

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

up: $(VENV)/.ready ## the whole stack on this machine; MODE=auto|approve|observe GPUS=N PORTS=20000 INCIDENTS=no
	@$(BIN)/python -m deploy.local up

test: lint unit ## style, types and all tests; CI runs e2e-matrix and sweeps too

unit: $(VENV)/.ready-dev ## all tests but small sweeps, the end-to-end ones with the real Prometheus and Alertmanager too
	$(PYTEST) $(addprefix --ignore=,$(SMALL_SWEEPS)) || { $(AGAIN); }

e2e: $(VENV)/.ready-dev ## only the end-to-end tests
	$(PYTEST) tests/e2e

e2e-matrix: $(VENV)/.ready-dev ## the same with the Prometheus and Alertmanager of Debian 13, and of sid where they can be had
	$(BIN)/python -m deploy.local.binaries --suite trixie
	STACK_SUITE=trixie timeout --kill-after=60 $(MATRIX_SECONDS) $(PYTEST) tests/e2e || { export STACK_SUITE=trixie; $(AGAIN) tests/e2e; }
	@if $(BIN)/python -m deploy.local.binaries --suite sid; \
	then set -x; export STACK_SUITE=sid; timeout --kill-after=60 $(MATRIX_SECONDS) $(PYTEST) tests/e2e || { $(AGAIN) tests/e2e; }; \
	else echo "SKIPPED: the end-to-end tests on sid, which moves, and cannot be had now"; fi

sweeps: $(VENV)/.ready-dev ## those below, bounded: a minute or less each; SEED=N takes other cases; CI runs it
	$(PYTEST) $(SMALL_SWEEPS) || { $(AGAIN) $(SMALL_SWEEPS); }
	$(BIN)/python -m tests.exporter.fault_sweep --seconds 45 --seed $(SEED)
	$(BIN)/python -m tests.exporter.soak --seconds 60 --seed $(SEED)
	$(BIN)/python -m tests.remediator.crash_sweep --points 6
	$(BIN)/python -m tests.remediator.schedules --count 1000 --seed $(SEED)
	$(BIN)/python -m tests.remediator.fuzz_webhook --count 20000 --seed $(SEED)
	$(BIN)/python -m tests.remediator.corpus.node_days --days 20 --seconds 40

fault-sweep: $(VENV)/.ready-dev ## every NVML function with every error, or hung, at every time, on every card; an hour
	$(BIN)/python -m tests.exporter.fault_sweep

crash-sweep: $(VENV)/.ready-dev ## the remediator killed, or its disk failing, at every write and step of every playbook
	$(BIN)/python -m tests.remediator.crash_sweep
	$(BIN)/python -m tests.remediator.audit_sweep

fuzz: $(VENV)/.ready-dev ## a million payloads, 10,000 schedules of deliveries, the API against its document; half an hour
	$(BIN)/python -m tests.remediator.schedules --count 10000
	$(BIN)/python -m tests.remediator.fuzz_webhook --count 1000000
	SCHEMATHESIS_EXAMPLES=200 $(BIN)/python -m pytest tests/remediator/edge/test_schemathesis.py
	HELPER_FUZZ=1000000 $(BIN)/python -m pytest tests/remediator/helper/test_protocol.py -k whatever

node-days: $(VENV)/.ready-dev ## 2,000 days of healthy, busy services before the hang verdict: nothing may be restarted; half an hour
	$(BIN)/python -m tests.remediator.corpus.node_days --days 2000

soak: $(VENV)/.ready-dev ## the exporter under scrapes and faults for ten minutes: nothing of it may grow
	$(BIN)/python -m tests.exporter.soak

real-drivers: $(VENV)/.ready-dev ## the process managers on a real Podman, and systemd in SYSTEMD_TEST_ROOT; as root
	REAL_DRIVERS=1 $(BIN)/python -m pytest tests/remediator/drivers tests/exporter/test_container_names.py \
		tests/remediator/helper/test_systemd_real.py

real-servers: $(VENV)/.ready-dev ## the service drivers on a real Ray Serve, vLLM and llama-server, where they are installed
	REAL_SERVERS=1 $(BIN)/python -m pytest tests/remediator/drivers/test_ray_serve_real.py \
		tests/remediator/drivers/test_vllm_real.py tests/remediator/drivers/test_llama_server_real.py \
		tests/remediator/drivers/test_llama_server_memory_real.py tests/remediator/drivers/test_ray_serve_memory_real.py

real-images: $(VENV)/.ready-dev ## the images and the Compose stack on a real Podman; ten minutes, as root
	REAL_IMAGES=$${REAL_IMAGES:-1} $(BIN)/python -m pytest tests/deploy/test_images_real.py

lint: $(VENV)/.ready-dev ## style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready-dev ## the figures of docs/benchmarks.md; minutes, on an idle machine
	$(BIN)/python -m benchmarks.scrape
	$(BIN)/python -m benchmarks.linear
	$(BIN)/python -m benchmarks.hung
	$(BIN)/python -m benchmarks.slow_clients
	$(BIN)/python -m benchmarks.storm
	$(BIN)/python -m benchmarks.reaction

lock: $(VENV)/.ready-dev ## rewrite the lock files from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile $(LOCK_FLAGS) --extra stack --extra build pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile $(LOCK_FLAGS) --extra dev --extra build -c requirements.lock pyproject.toml \
		-o requirements-dev.lock

LOCK_FLAGS := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-header --no-annotate

clean: ## remove what was built and downloaded here
	rm -rf $(VENV) .tools .run build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it (Debian: apt-get install python3 python3-venv), \
	or say which one with make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "This Python cannot make a virtual environment: \
	install its venv module (Debian: apt-get install python3-venv)"; exit 1; }

$(VENV)/.ready: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing the product into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.ready-dev: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing the product and its test tools into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.ready
