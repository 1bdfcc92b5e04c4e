# `make demo` and `make test` need Python 3.10 to 3.12, make and a package index. Files are written to .venv and out/, and
# trained models to model_repository/.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

VENV := .venv
BIN := $(VENV)/bin
# Other model servers that are compared with Triton. They have their own environment, so that they do not restrict the
# versions of the product.
PEERS := .venv-peers
# Ray and a local S3 server, for the same reason.
BATCH := .venv-batch
# The first usable interpreter, or the first that exists, so that the error message is about that one.
PYTHON = $(shell for python in python3.11 python3.12 python3.10 python3; do \
	test "$$($$python deeplabv3/embedded/interpreter.py 2>/dev/null)" = usable && exec echo $$python; done; \
	command -v python3.11 || command -v python3.12 || command -v python3.10 || echo python3)

# `python -m` must find the packages of the checkout.
unexport PYTHONSAFEPATH

# prometheus and promtool from PATH, or from Debian's package, which is unpacked here but not installed.
PROMETHEUS := out/tools/prometheus

.PHONY: help demo page test check-deploy check-containers check-page check-batch load bench bench-peers docs lint format lock clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/installed ## Build both models, start Triton, segment a photograph
	$(BIN)/python -u demo.py

page: $(VENV)/page ## Build and start like `make demo`, with a web page for your own pictures
	$(BIN)/python -u demo.py --page

test: lint docs ## Run the linters, the type checkers, the link check and the tests, with a real server
	$(BIN)/python -m pytest -m 'not stack and not page and not batch and not containers' --numprocesses 2

check-deploy: $(VENV)/deploy $(PROMETHEUS)/promtool ## Test Triton with Envoy, Prometheus and Locust, which `make test` does not
	$(BIN)/python -m pytest -m stack --numprocesses 2 --dist loadfile

check-containers: $(VENV)/deploy $(PROMETHEUS)/promtool ## Test both images and Compose in a separate engine; needs root, docker.io and debootstrap
	$(BIN)/python -m pytest -m containers

check-page: $(VENV)/page ## Test the web page in Chromium with a real server
	$(BIN)/python -m pytest -m page

check-batch: $(VENV)/installed $(BATCH)/installed ## Test the Ray job: 2,000 pictures of a folder and some of an S3 server, with a kill in the middle
	$(BIN)/python -m pytest -m batch

load: $(VENV)/installed ## Load-test the embedded server for two minutes; reports in out/load
	$(BIN)/python -m load_tests.laptop

bench: $(VENV)/bench $(PEERS)/installed bench-model ## Measure the models in fp32, bf16 and int8, their scaling, the pipeline and the client
	$(BIN)/python -m benchmarks.model
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.pipeline --model-repository out/bench/model_repository
	$(BIN)/python -m benchmarks.client
	$(BIN)/python -m benchmarks.photographs

bench-peers: $(VENV)/installed $(PEERS)/installed bench-model ## Compare Triton with five other model servers
	$(BIN)/python -m benchmarks.peers --model-repository out/bench/model_repository

.PHONY: bench-model
bench-model: $(VENV)/installed
	$(BIN)/python build_models.py --variant resnet50 --weights none --model-repository out/bench/model_repository

# From nothing, because a second run would not repeat the warnings of the first.
docs: $(VENV)/docs ## Build the documentation site, out/docs/index.html; fails on a broken link
	rm -rf out/docs
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . out/docs
	@echo "the site is in out/docs/index.html"

# .phrases has patterns of unclear or British English; grep exits with 1 when it finds none.
lint: $(VENV)/deploy $(VENV)/docs $(VENV)/page ## Run the linters and the type checkers
	@git grep --no-index --exclude-standard -nIE -f .phrases -- . ':!.phrases' ':!LICENSE'; test $$? -eq 1 || \
		{ echo "make: rewrite these phrases; .phrases has the patterns" >&2; exit 1; }
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/basedpyright
	$(BIN)/mypy

format: $(VENV)/installed ## Format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lock: $(VENV)/installed ## Pin the newest versions that pyproject.toml allows in constraints.txt
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.10 --no-annotate --no-header \
		--all-extras --group dev --group bench --group deploy --group docs --group page pyproject.toml client/pyproject.toml --output-file constraints.txt
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.10 --no-annotate --no-header \
		--group peers --output-file benchmarks/peers/constraints.txt
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.10 --no-annotate --no-header \
		--group check-batch pyproject.toml client/pyproject.toml --output-file deploy/batch/constraints.txt

# Keep the rest of out/ and model repositories elsewhere, because they may be somebody's work. Git ignores the files that a
# build adds to model_repository/.
clean: ## Remove the environments, and the files that the other targets have written
	rm -rf $(VENV) $(PEERS) $(BATCH) out/bench out/containers out/demo out/docs out/load out/test out/tools
	rm -f model_repository/*/1/model.pt model_repository/*/1/.model.pt.*

# The stamp of an environment exists when everything is installed, but not while pip runs. It contains the path of the
# checkout, like many files of the environment; stamps of older versions are empty. If the stamp is missing or has another
# path, or with another PYTHON, the environment is created again.
unfinished = test ! -x $(1)/bin/python || test ! -e $(1)/installed || \
	{ test -s $(1)/installed && test "$$(cat $(1)/installed)" != "$$(pwd -P)"; }
ifeq ($(origin PYTHON),command line)
unfinished += || test "$$("$(PYTHON)" -V 2>&1)" != "$$($(1)/bin/python -V 2>&1)"
endif
.PHONY: $(foreach environment,$(VENV) $(PEERS) $(BATCH),$(shell $(call unfinished,$(environment)) && echo $(environment)/installed))

# $(call environment,FOLDER)
define environment
	@python="$(PYTHON)"; fault=$$("$$python" deeplabv3/embedded/interpreter.py 2>/dev/null); \
	if test "$$fault" != usable; then \
		test -n "$$fault" || fault="Python 3.10 to 3.12 is needed, but -V prints '$$("$$python" -V 2>&1 | head -n 1)'"; \
		echo "make: $$python: $$fault; use another one with make PYTHON=/path/to/python" >&2; exit 1; \
	fi; \
	if $(call unfinished,$(1)); then echo "$$python -m venv --clear $(1)"; "$$python" -m venv --clear $(1); fi
endef

# $(call pip,FOLDER,ARGUMENTS): if pip fails, the environment is unchanged and keeps its stamp; if a signal ends pip, the
# stamp is lost.
define pip
	@echo "pip install $(2)"; trap 'exit 1' HUP INT TERM; mv -f $(1)/installed $(1)/was-installed 2>/dev/null; \
	$(1)/bin/python -m pip install --disable-pip-version-check $(2); code=$$?; \
	test $$code -gt 128 || mv -f $(1)/was-installed $(1)/installed 2>/dev/null; exit $$code
endef

DEVELOPMENT := --constraint constraints.txt --group dev --editable 'client[cli,polygons,supervision]'

$(VENV)/installed: pyproject.toml constraints.txt client/pyproject.toml
	$(call environment,$(VENV))
	$(call pip,$(VENV),--quiet --constraint constraints.txt pip)
	$(call pip,$(VENV),$(DEVELOPMENT))
	@# A relative path to the client, because Python decodes this file by the locale, and an absolute path may not be ASCII.
	@find $(VENV)/lib -name '*deeplab_client*.pth' -exec sed -i 's|.*|../../../../client/src|' {} +
	@rm -f $@; pwd -P > $@

$(VENV)/bench: $(VENV)/installed
	$(call pip,$(VENV),--constraint constraints.txt --group bench)
	@touch $@

$(VENV)/deploy: $(VENV)/installed
	$(call pip,$(VENV),--constraint constraints.txt --group deploy)
	@touch $@

$(VENV)/docs: $(VENV)/installed
	$(call pip,$(VENV),--constraint constraints.txt --group docs)
	@touch $@

$(VENV)/page: $(VENV)/installed
	$(call pip,$(VENV),--constraint constraints.txt --group page)
	@touch $@

$(PROMETHEUS)/promtool:
	@mkdir -p $(@D)
	@if command -v prometheus >/dev/null && command -v promtool >/dev/null; then \
		ln -sf "$$(command -v prometheus)" "$$(command -v promtool)" $(@D)/; \
	elif command -v apt-get >/dev/null; then \
		cd $(@D) && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } && \
		dpkg-deb --extract prometheus_*.deb . && mv usr/bin/prometheus usr/bin/promtool . && rm -r usr etc lib var prometheus_*.deb; \
	else \
		echo "make: prometheus and promtool were not found; put version 2.42 or newer on PATH" >&2; exit 1; \
	fi

$(PEERS)/installed: pyproject.toml benchmarks/peers/constraints.txt
	$(call environment,$(PEERS))
	$(call pip,$(PEERS),--quiet --constraint constraints.txt pip)
	$(call pip,$(PEERS),--constraint benchmarks/peers/constraints.txt --group peers)
	@rm -f $@; pwd -P > $@

$(BATCH)/installed: pyproject.toml deploy/batch/constraints.txt client/pyproject.toml
	$(call environment,$(BATCH))
	$(call pip,$(BATCH),--quiet --constraint constraints.txt pip)
	$(call pip,$(BATCH),--constraint deploy/batch/constraints.txt --group check-batch --editable client)
	@rm -f $@; pwd -P > $@
