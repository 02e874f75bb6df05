# Everything a person does here is one `make` word; `make` alone lists them. All set-up happens by itself.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# Tests mostly wait: one more of them than there are cores.
JOBS ?= $(shell expr $$(nproc) + 1)
PYTEST_FLAGS ?=
# Of the bundle: the Python it is for; whether it carries NVRTC (90 MB).
PYTHON ?= 3.12
NVRTC ?= 0

.PHONY: help
help: ## list the words
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: setup
setup: venv criu native ## get everything: .venv from the lock file, native libraries, CRIU

.PHONY: venv
venv:
	@scripts/setup.sh

.PHONY: native
native: venv ## build the preload library and the simulated driver into build/native
	@scripts/native.sh build/native

.PHONY: criu
criu:
	@scripts/criu.sh

.PHONY: demo
demo: setup ## the main job: three model servers that don't fit together and a training job, behind one address
	@$(BIN)/kybernate demo

.PHONY: test
test: setup lint s3server chromium ## lint and run all tests this machine can run
	@$(BIN)/pytest -q -n $(JOBS) --dist worksteal $(PYTEST_FLAGS)

.PHONY: fast
fast: venv ## the tests of pure parts alone, under a minute: no root, no other process, nothing else to build
	@$(BIN)/pytest -q -n $(JOBS) -m unit $(PYTEST_FLAGS)

TESTS ?= tests
# In per cent, of all tests; parts of them have none.
FLOOR ?= $(if $(filter tests,$(TESTS)),85,0)
# Its plugin lies in tests/.
COVERAGE := PYTHONPATH=$(CURDIR) $(BIN)/coverage
.PHONY: coverage
coverage: setup s3server chromium ## which lines the tests run, in started processes too: make coverage TESTS=tests/store
	@rm -rf build/coverage && mkdir -p build/coverage
	@$(COVERAGE) run -m pytest -q -n $(JOBS) $(PYTEST_FLAGS) $(TESTS)
	@$(COVERAGE) combine --quiet && $(COVERAGE) html --quiet
	@$(COVERAGE) report --fail-under=$(FLOOR)

.PHONY: s3server
s3server: ## build the S3 server that the tests use
	@scripts/s3server.sh >/dev/null

.PHONY: chromium
chromium: ## get a browser for the tests of the dashboard
	@scripts/chromium.sh >/dev/null

.PHONY: lint
lint: venv ## ruff, mypy --strict, import-linter, codespell, clang-format, C warnings, bench-check
	@scripts/lint.sh

.PHONY: format
format: venv ## let ruff format all Python files, and clang-format all C files
	@$(BIN)/ruff format --quiet $(wildcard src tests bench examples scripts native)
	@scripts/clang-format.sh -i

SECONDS ?= 1800
.PHONY: soak
soak: setup s3server ## random orders and faults on workloads in all tiers: make soak SECONDS=1800 SEED=7
	@$(BIN)/python -m tests.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

.PHONY: soak-growing
soak-growing: setup ## a training job that grows beside two models that are asked in turn, twenty times
	@$(BIN)/python -m tests.soak.growing --times 20

.PHONY: soak-serving
soak-serving: setup ## random requests while all that serves them is killed and reordered: make soak-serving SECONDS=3600 SEED=7
	@$(BIN)/python -m tests.soak.serving --seconds $(if $(filter file,$(origin SECONDS)),3600,$(SECONDS)) $(if $(SEED),--seed $(SEED))

.PHONY: sanitize
sanitize: setup ## native code and its tests under AddressSanitizer and ThreadSanitizer
	@scripts/sanitize.sh

.PHONY: bench
bench: setup ## measure; writes bench/results/*.json
	@$(BIN)/kybernate bench pause

.PHONY: bench-check
bench-check: venv ## README and docs say what bench/results say; `make lint` looks, too
	@$(BIN)/python bench/report.py --check

.PHONY: docs
docs: venv ## the documentation as web pages in build/docs/site; every link is checked
	@scripts/docs.sh

.PHONY: release
release: setup ## what a release consists of, in dist/release: wheel, sdist, bundles, bill of materials, SHA256SUMS
	@scripts/release.sh $(PYTHON)

.PHONY: bundle
bundle: setup ## one archive that installs with no network: make bundle PYTHON=3.12 NVRTC=0
	@scripts/bundle.sh $(PYTHON) $(NVRTC)

# A real Kubernetes of one or more nodes, from Go modules and local images: docs/kubernetes-notes.md.
CLUSTER := $(BIN)/python -m tests.cluster.harness
NODES ?= 1

.PHONY: cluster-binaries
cluster-binaries: venv ## build Kubernetes, etcd, containerd, runc ... into .kube-bin (ten minutes the first time)
	@$(BIN)/python -m tests.cluster.harness.build

.PHONY: cluster-up
cluster-up: venv ## start a real Kubernetes that stays: make cluster-up NODES=2 (0: control plane only)
	@$(CLUSTER) up --build --nodes="$(NODES)"

.PHONY: cluster-down
cluster-down: venv ## end it; nothing is left
	@$(CLUSTER) down

.PHONY: cluster-soak
cluster-soak: cluster-binaries ## up and down twenty times with a pod each; fails if anything is left behind
	@$(BIN)/python -m tests.cluster.soak --rounds 20

.PHONY: cluster-scale
cluster-scale: cluster-binaries ## 1,000 simulated nodes and 10,000 pods on a real control plane
	@$(BIN)/python -m tests.cluster.scale --nodes 1000 --pods 10000

.PHONY: clean
clean: ## remove what was built; .venv and .criu stay
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
