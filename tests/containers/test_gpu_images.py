"""What the GPU images add to their base, as far as a machine without a GPU can tell."""

import json

import pytest

from tests.containers.container import hardened
from tests.containers.engine import Engine

pytestmark = pytest.mark.containers

KERNELS = """
import json, shutil
import einops, fla, triton, torch
from fla.ops.gated_delta_rule import chunk_gated_delta_rule
from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
from mamba_ssm.ops.triton.selective_state_update import selective_state_update
import selective_scan_cuda
try:
    selective_scan_cuda.fwd()
except NotImplementedError as error:
    refused = str(error)
print(json.dumps({"triton": triton.__version__, "refused": refused,
    "compilers": [name for name in ("gcc", "cc", "clang", "g++", "nvcc", "ld") if shutil.which(name)]}))
"""

# The key of the helper is a digest of its source, so a newer Triton with another helper would find nothing here.
HELPER = """
import hashlib, sysconfig
from pathlib import Path
from triton.backends.nvidia import driver
from triton.runtime.build import platform_key
from triton.runtime.cache import get_cache_manager
source = Path(driver.dirname, "driver.c").read_text()
cache = get_cache_manager(hashlib.sha256((source + platform_key()).encode()).hexdigest())
print(type(cache).__name__, cache.get_file("cuda_utils" + sysconfig.get_config_var("EXT_SUFFIX")))
print(cache.get_file("other"), cache.put(b"1", "other") == cache.get_file("other"))
"""

TENSORRT_LLM = """
import importlib.util, json, shutil, sys
print(json.dumps({"prefix": sys.prefix, "flashslm": shutil.which("flashslm"),
    "torch": importlib.util.find_spec("torch") is not None}))
"""


def test_the_cuda_image_has_its_kernels_and_no_compiler(containers: Engine, cuda: str) -> None:
    printed = containers.output("run", *hardened(), cuda, "python3", "-c", KERNELS)
    found = json.loads(printed.splitlines()[-1])
    assert found["compilers"] == [] and found["triton"] == "3.7.1" and "selective scan" in found["refused"]


def test_triton_finds_its_helper_compiled(containers: Engine, cuda: str) -> None:
    first, second = containers.output("run", *hardened(), cuda, "python3", "-c", HELPER).splitlines()
    name, file = first.split()
    assert name == "SeededCache" and file.startswith("/opt/flashslm/triton/") and file.endswith(".so")
    assert second == "None True"


def test_what_a_gpu_adds_is_one_layer(containers: Engine, runtime: str, cuda: str) -> None:
    """Where torch is one, as here, all below it is the CPU image's."""
    inspected = [json.loads(containers.output("image", "inspect", name))[0] for name in (runtime, cuda)]
    cpu_layers, gpu_layers = (image["RootFS"]["Layers"] for image in inspected)
    assert gpu_layers[:-2] == cpu_layers[:-1]


def test_the_cuda_image_runs_a_step_on_a_cpu(containers: Engine, cuda: str) -> None:
    """The project and its command are there, as in the CPU image."""
    printed = containers.output("run", *hardened(), cuda, "flashslm", "describe", "nemotron-flash-1b", "--json")
    assert json.loads(printed.splitlines()[-1])


def test_the_tensorrt_llm_image_leaves_the_bases_python_alone(containers: Engine, tensorrt_llm: str) -> None:
    found = json.loads(containers.output("run", *hardened(), tensorrt_llm, "python3", "-c", TENSORRT_LLM))
    assert found == {"prefix": "/usr", "flashslm": "/opt/flashslm/bin/flashslm", "torch": False}


@pytest.mark.parametrize("image", ["cuda", "tensorrt_llm"])
def test_they_run_as_a_numbered_user(containers: Engine, image: str, request: pytest.FixtureRequest) -> None:
    name = request.getfixturevalue(image)
    (inspected,) = json.loads(containers.output("image", "inspect", name))
    assert inspected["Config"]["User"] == "65532:65532" and not inspected["Config"]["Entrypoint"]
    assert containers.output("run", *hardened(), name, "id", "-u") == "65532"
