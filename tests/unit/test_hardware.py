import math
import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch

from flashslm import hardware
from flashslm.hardware import DeviceFingerprint, device_fingerprint, peak, pick_device, pick_dtype


def test_fingerprint_of_the_cpu():
    found = device_fingerprint("cpu")
    assert found.kind == "cpu" and found.torch == torch.__version__
    assert found.cores >= 1 and found.cpu
    assert (found.gpu, found.driver, found.cuda) == ("", "", "")
    assert found.name == f"{found.cpu} ({found.cores} cores)"


def test_id_is_stable_and_changes_with_every_field():
    base = DeviceFingerprint(kind="cuda", cpu="c", cores=8, gpu="g", driver="1", torch="2", cuda="13")
    assert base.id == DeviceFingerprint.model_validate_json(base.model_dump_json()).id
    changes = {"kind": "cpu", "cpu": "d", "cores": 9, "gpu": "h", "driver": "2", "torch": "3", "cuda": "14"}
    ids = {base.model_copy(update={key: value}).id for key, value in changes.items()}
    assert len(ids | {base.id}) == len(changes) + 1


def test_peaks_are_dense_data_sheet_values():
    assert peak("NVIDIA H200") == (989.4e12, 4.8e12)
    assert peak("NVIDIA H100 80GB HBM3") == (989.4e12, 3.35e12)
    assert peak("NVIDIA A100-SXM4-80GB") == (312e12, 2.039e12)


@pytest.mark.parametrize("name", ["NVIDIA H200 MIG 1g.18gb", "NVIDIA H20", "Tesla T4", ""])
def test_no_number_rather_than_a_wrong_one(name):
    assert peak(name) is None


def test_device_choice(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="'cuda' but this machine has no usable GPU"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == "cuda"


def test_dtype_choice():
    assert pick_dtype("auto", "cpu") == "float32"
    assert pick_dtype("auto", "cuda") == "bfloat16"
    assert pick_dtype("float32", "cuda") == "float32"


def test_driver_version_is_empty_where_the_tool_is_absent(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware._driver_version() == ""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 580.1.2\necho 580.1.2\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert hardware._driver_version() == "580.1.2"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu.max": "unreadable"}, 64),
        ({"cpu.max": "9900000 100000\n"}, 64),
        ({}, 64),
    ],
)
def test_usable_cores_are_those_of_the_containers_quota(files, cores, monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "_visible_cores", lambda: 64)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert hardware.usable_cores(tmp_path) == cores


def test_threads_keep_to_the_quota_unless_the_user_has_set_them(monkeypatch):
    monkeypatch.setattr(hardware, "_visible_cores", lambda: 64)
    monkeypatch.setattr(hardware, "_quota", lambda _: 4.0)
    environ: dict[str, str] = {}
    hardware.keep_threads_to_quota(environ)
    assert threads(environ) == ("4", "4")
    hardware.keep_threads_to_quota(environ)  # the same again, in a process below that one
    assert threads(environ) == ("4", "4")
    environ = {"OMP_NUM_THREADS": "7"}
    hardware.keep_threads_to_quota(environ)
    assert threads(environ) == ("7", "4")
    monkeypatch.setattr(hardware, "_quota", lambda _: math.inf)
    environ = {}
    hardware.keep_threads_to_quota(environ)
    assert not environ
    environ = {hardware.SIDE_BY_SIDE: "4"}
    hardware.keep_threads_to_quota(environ)
    assert threads(environ) == ("16", "16")


def threads(environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    return environ.get("OMP_NUM_THREADS"), environ.get("TORCHINDUCTOR_COMPILE_THREADS")


@pytest.mark.parametrize(
    ("environ", "processes", "expected"),
    [
        ({}, 4, ("2", "2")),
        ({}, 3, ("2", "2")),
        ({}, 16, ("1", "1")),
        ({"OMP_NUM_THREADS": "8"}, 4, ("8", "2")),
        ({"TORCHINDUCTOR_COMPILE_THREADS": "1"}, 2, ("4", "1")),
        ({hardware.SIDE_BY_SIDE: "2"}, 2, ("2", "2")),
    ],
)
def test_processes_side_by_side_share_the_cores(environ, processes, expected, monkeypatch):
    monkeypatch.setattr(hardware, "_visible_cores", lambda: 64)
    monkeypatch.setattr(hardware, "_quota", lambda _: 8.0)
    assert threads(environ | hardware.thread_shares(processes, environ)) == expected
    kept = dict(environ)
    hardware.keep_threads_to_quota(kept)  # as the parent has done for itself alone
    assert threads(kept | hardware.thread_shares(processes, kept)) == expected


def test_compile_workers_are_no_more_than_inductor_takes(monkeypatch):
    monkeypatch.setattr(hardware, "usable_cores", lambda: 128)
    assert threads(hardware.thread_shares(2, {})) == ("64", "32")


@pytest.mark.parametrize(
    "module",
    [
        "flashslm.hardware",
        "flashslm.profiling.latency_table",
        "flashslm.profiling.depth_width",
        "flashslm.search.worker",
    ],
)
def test_torch_is_not_imported_before_it_is_needed(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_lack_of_memory_is_distinguished_from_other_errors():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60)
    assert hardware.is_lack_of_memory(error.value)
    assert hardware.is_lack_of_memory(torch.OutOfMemoryError("any text")) and hardware.is_lack_of_memory(MemoryError())
    assert not hardware.is_lack_of_memory(RuntimeError("a size does not match"))
