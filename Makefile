PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := platform,train,serve,evaluation,orchestrate,local,dev
# Where PyTorch comes from. PyPI's wheel for Linux brings the CUDA libraries (some 4 GB); the CPU build does not.
# `auto` takes PyTorch's CPU index unless there is an NVIDIA driver; an empty value takes pip's own index.
CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_INDEX ?= auto
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: setup demo test lint format setup-oldest test-oldest lowest-versions test-unit test-gpu test-containers images pin-images golden golden-losses recipe-reference clean

setup: $(INSTALLED)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "flashslm needs Python 3.11 or newer; found $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq python3-venv; }
	$(PYTHON) -m venv $(VENV)

define CHOOSE_INDEX
if [ "$(TORCH_INDEX)" != auto ]; then index="$(TORCH_INDEX)"; why="TORCH_INDEX says so"; \
	elif command -v nvidia-smi >/dev/null; then index=; why="this machine has an NVIDIA driver"; \
	elif $(BIN)/python -c 'import urllib.request; urllib.request.urlopen("$(CPU_INDEX)/torch/", timeout=10)' 2>/dev/null; \
	  then index=$(CPU_INDEX); why="no NVIDIA driver here, so the CPU build"; \
	else index=; why="$(CPU_INDEX) does not answer"; fi; \
	echo "PyTorch comes from $${index:-the usual index}: $$why (set TORCH_INDEX to choose another)"
endef

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@$(CHOOSE_INDEX); $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  $${index:+--extra-index-url $$index} --editable ".[$(EXTRAS)]"
	@$(BIN)/python -c 'import torch; print(f"installed PyTorch {torch.__version__}, built for", \
	  f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs")'
	touch $@

demo: $(INSTALLED)
	$(BIN)/flashslm run --config configs/demo.yaml

# Files in the order of their folders: those of whole pipelines and services, which take minutes, are not left to the end.
TWO_WORKERS := -n 2 --dist loadfile --no-loadscope-reorder
# Each worker has as many threads as there are cores: one that waits for the others leaves its core to the other worker.
PATIENT_THREADS := OMP_WAIT_POLICY=passive
test: $(INSTALLED) lint
	$(PATIENT_THREADS) $(BIN)/python -m pytest -q $(TWO_WORKERS) --durations 15

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The numerics, training and tracking once more on the oldest versions that pyproject.toml allows, in an environment of
# their own, and under the instruction set that every x86-64 processor has. It is pip that installs them, as it does in
# .venv: uv reads nothing of pip's configuration. Where .venv has a CPU build of PyTorch and none of the oldest version is
# found, .venv's version is taken in place of 4 GB of CUDA libraries, unless TORCH_INDEX is given.
LOWEST := .venv-lowest
LOWEST_EXTRAS := platform,train,evaluation,local,dev
COMMA := ,
setup-oldest: $(LOWEST)/.installed

$(LOWEST)/.installed: constraints-lowest.txt pyproject.toml $(INSTALLED)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "test-oldest needs Python 3.11," \
	  "for which constraints-lowest.txt is resolved: make clean, then make test-oldest PYTHON=/path/to/python3.11"; exit 1; }
	$(BIN)/python -m venv --clear $(LOWEST)
	@$(CHOOSE_INDEX); torch=$$(sed -n 's/^torch==//p' constraints-lowest.txt); libraries='^$$'; \
	present=$$($(BIN)/python -c 'import torch; print(torch.__version__)'); \
	install() { $(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps \
	  $${index:+--extra-index-url $$index} "$$@"; }; \
	case "$(TORCH_INDEX) $$present" in "auto "*+cpu) libraries='^nvidia\|^cuda\|^triton'; \
	  install "torch==$$torch+cpu" 2>/dev/null && torch=$$torch+cpu || torch=$$present;; esac; \
	echo "the oldest versions are installed, with PyTorch $$torch"; \
	sed "s/^torch==.*/torch==$$torch/; /$$libraries/d" constraints-lowest.txt > $(LOWEST)/requirements.txt; \
	install --requirement $(LOWEST)/requirements.txt && install --editable .
	touch $@

# Resolves them again, after a change of a range in pyproject.toml.
lowest-versions: $(INSTALLED)
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --resolution lowest-direct --python-version 3.11 \
	  $(addprefix --extra=,$(subst $(COMMA), ,$(LOWEST_EXTRAS))) --output-file constraints-lowest.txt pyproject.toml

NUMERICS := $(addprefix tests/unit/,training models inference ops export evaluation)
TRACKING := tests/services/test_tracking.py tests/unit/infra/tracking
# Compiled and run by g++: neither versions nor PyTorch's instruction set change it.
OF_NO_VERSION := --ignore=tests/unit/inference/test_projection_kernel.py
PORTABLE := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 OMP_NUM_THREADS=1
test-oldest: $(LOWEST)/.installed
	$(PORTABLE) $(LOWEST)/bin/python -m pytest -q $(TWO_WORKERS) $(TRACKING) $(NUMERICS) $(OF_NO_VERSION)

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

# After a change that is meant to alter the arithmetic of training; read the difference before committing it.
golden-losses: $(INSTALLED)
	FLASHSLM_UPDATE_GOLDEN=1 $(BIN)/python -m pytest -q tests/unit/training/test_golden_losses.py

# From the descriptions in src/flashslm/config.
recipe-reference: $(INSTALLED)
	$(BIN)/flashslm config reference > docs/recipe.md
	$(BIN)/flashslm config schema > configs/recipe.schema.json

clean:
	rm -rf $(VENV) $(LOWEST) build dist .pytest_cache .mypy_cache .ruff_cache
