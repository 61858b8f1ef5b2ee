"""A latency table that was measured on one machine is not the cached result of another."""

import sys

import pytest

from flashslm import hardware
from flashslm.config import RunConfig
from flashslm.hardware import machine_digest
from flashslm.launch.compiling import pipeline_arguments

CONFIG = RunConfig(name="toy")


def test_other_hardware_is_another_cache_key(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {machine_digest()}
    for gpu in ("NVIDIA H200, 580.1", "NVIDIA H200, 590.2", "NVIDIA H100, 590.2"):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\necho '{gpu}'\n")
        tool.chmod(0o755)
        assert machine_digest() == machine_digest()
        found.add(machine_digest())
    monkeypatch.setattr(hardware, "_cpu_model", lambda: "another processor")
    found.add(machine_digest())
    assert len(found) == 5


def test_torch_is_not_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert len(machine_digest()) == 64, "longer than what progress shows as a task's label"


@pytest.mark.parametrize("device, expected", [("", machine_digest()), ("h200-pool", "h200-pool")])
def test_it_is_this_machine_unless_the_launch_says_which(device, expected):
    assert pipeline_arguments(CONFIG, "code", "source", device)["device_digest"] == expected
