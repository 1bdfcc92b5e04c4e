# `make demo` and `make test` need Python 3.10 to 3.12, make and a package index. Everything goes into .venv and out/.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

VENV := .venv
BIN := $(VENV)/bin
# The other model servers that are measured beside Triton: what they need must not choose the product's versions.
PEERS := .venv-peers
# The first of these that runs and is a version that Triton's wheel and numpy 1.26 have builds for.
PYTHON := $(shell for python in python3.11 python3.12 python3.10 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)

# prometheus and promtool: those on PATH, or Debian's package, unpacked here and not installed.
PROMETHEUS := out/tools/prometheus

.PHONY: help demo test check-deploy load bench bench-peers lint format lock clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

demo: $(VENV)/installed ## Build both models, start Triton, segment a photograph
	$(BIN)/python -u demo.py

test: $(VENV)/deploy lint ## Linters, types, tests with a real server
	$(BIN)/python -m pytest -m 'not stack'

check-deploy: $(VENV)/deploy $(PROMETHEUS)/promtool ## Triton behind Envoy, under Prometheus and Locust: what `make test` leaves out
	$(BIN)/python -m pytest -m stack

load: $(VENV)/installed ## Load the embedded server for two minutes with Locust; reports in out/load
	$(BIN)/python -m load_tests.laptop

bench: $(VENV)/bench $(PEERS)/installed bench-model ## Measure the traced models, the pipeline around them and the client
	$(BIN)/python -m benchmarks.model --rounds 5
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.pipeline --model-repository out/bench/model_repository
	PYTHONPATH=tests:tests/server $(BIN)/python benchmarks/client.py

bench-peers: $(VENV)/installed $(PEERS)/installed bench-model ## Measure Triton beside five other model servers
	$(BIN)/python -m benchmarks.peers --model-repository out/bench/model_repository

.PHONY: bench-model
bench-model: $(VENV)/installed
	$(BIN)/python build_models.py --variant resnet50 --weights none --model-repository out/bench/model_repository

lint: $(VENV)/installed ## Linters and the type checker
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/basedpyright

format: $(VENV)/installed ## Format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lock: $(VENV)/installed ## Pin the newest versions that pyproject.toml admits in constraints.txt
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.10 --no-annotate --no-header \
		--all-extras --group dev --group bench --group deploy pyproject.toml client/pyproject.toml --output-file constraints.txt
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.10 --no-annotate --no-header \
		--group peers --output-file benchmarks/peers/constraints.txt

clean: ## Remove the environment, the built models, what they changed in the configs, and all output
	test ! -x $(BIN)/python || $(BIN)/python build_models.py --configs-only
	rm -rf $(VENV) $(PEERS) out model_repository/*/1/model.pt

$(VENV)/installed: pyproject.toml constraints.txt client/pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.10, 3.11 or 3.12 found; install one, or make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --group dev \
		--editable 'client[cli,polygons,supervision]'
	@touch $@

$(VENV)/bench: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --group bench
	@touch $@

$(VENV)/deploy: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --group deploy
	@touch $@

$(PROMETHEUS)/promtool:
	@mkdir -p $(@D)
	@if command -v prometheus >/dev/null && command -v promtool >/dev/null; then \
		ln -sf "$$(command -v prometheus)" "$$(command -v promtool)" $(@D)/; \
	elif command -v apt-get >/dev/null; then \
		cd $(@D) && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } && \
		dpkg-deb --extract prometheus_*.deb . && mv usr/bin/prometheus usr/bin/promtool . && rm -r usr etc lib var prometheus_*.deb; \
	else \
		echo "make: put prometheus and promtool 2.42 or newer on PATH" >&2; exit 1; \
	fi

$(PEERS)/installed: pyproject.toml benchmarks/peers/constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.10, 3.11 or 3.12 found; install one, or make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip
	$(PEERS)/bin/python -m pip install --disable-pip-version-check --constraint benchmarks/peers/constraints.txt --group peers
	@touch $@
