PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := platform,train,evaluation,orchestrate,local,dev
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: setup demo test lint format test-unit test-gpu test-containers images pin-images golden clean

setup: $(INSTALLED)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "flashslm needs Python 3.11 or newer; found $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq python3-venv; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/flashslm run --config configs/demo.yaml

test: $(INSTALLED) lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations 15

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-unit: $(INSTALLED)
	$(BIN)/python -m pytest -q tests/unit

# On a machine with an NVIDIA GPU and the extra `cuda`; GPU_PYTHON is the interpreter that has it.
GPU_PYTHON ?= $(BIN)/python
test-gpu:
	$(GPU_PYTHON) benchmarks/gpu_tests.py

# Builds the images and runs a pipeline in them: root, Debian's packages, about six minutes, 12 GB below $TMPDIR.
CONTAINER_PACKAGES := docker.io debootstrap iproute2
test-containers: $(INSTALLED)
	@[ "$$(id -u)" = 0 ] || command -v sudo >/dev/null || \
	  { echo "test-containers starts a container engine: run it as root, or install sudo"; exit 1; }
	@for command in docker dockerd debootstrap ip; do \
	    PATH=$$PATH:/usr/sbin:/sbin command -v $$command >/dev/null || missing=1; done; \
	  [ -z "$$missing" ] || ! command -v apt-get >/dev/null || { $(SUDO) apt-get update -qq -o Acquire::Retries=1 && \
	    $(SUDO) apt-get install -y -qq -o Acquire::Retries=1 --no-install-recommends $(CONTAINER_PACKAGES); }
	$(SUDO) env FLASHSLM_TEST_CONTAINERS=1 TMPDIR=$${TMPDIR:-/tmp} $(BIN)/python -m pytest -q -m containers --durations 10 \
	  -p no:cacheprovider tests/containers

images:
	images/build $(IMAGES)

pin-images: $(INSTALLED)
	$(BIN)/python -m manifests.pin_images $(IMAGES)

golden: $(INSTALLED)
	FLASHSLM_UPDATE_GOLDEN=1 $(BIN)/python -m pytest -q tests/pipeline -k golden

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
