"""Samples of a GPU's use, from a stand-in for nvidia-smi."""

import stat
import time
from pathlib import Path

import pytest

from flashslm.benchmarking.gpu_use import GpuSample, busy_share, gpu_samples

SAMPLES = [GpuSample(10.0, 100.0, 5.0), GpuSample(12.0, 50.0, 5.0), GpuSample(14.0, 0.0, 5.0)]


def test_the_share_is_the_mean_between_two_moments() -> None:
    assert busy_share(SAMPLES, 0.0, 20.0) == pytest.approx(0.5)
    assert busy_share(SAMPLES, 10.0, 12.0) == pytest.approx(0.75)
    assert busy_share(SAMPLES, 15.0, 20.0) is None


def stand_in(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    tool = directory / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def test_every_line_of_nvidia_smi_is_a_sample_and_what_is_no_number_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "echo '87, 1024'\necho '[N/A], 3'\necho '3, 2048'\nexec sleep 60")
    before_s = time.time()
    with gpu_samples() as samples:
        while len(samples) < 2:
            time.sleep(0.01)
    assert [(s.busy_percent, s.memory_mib) for s in samples] == [(87.0, 1024.0), (3.0, 2048.0)]
    assert before_s <= samples[0].time_s <= time.time()


@pytest.mark.parametrize(("visible", "asked"), [("", "0"), ("3", "3"), ("2,0", "2"), ("GPU-5f2e", "GPU-5f2e")])
def test_the_gpu_is_the_first_that_this_environment_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, asked: str
) -> None:
    stand_in(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/asked\necho "1, 1"\nexec sleep 60')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with gpu_samples() as samples:
        while not samples:
            time.sleep(0.01)
    assert f"--id={asked} " in (tmp_path / "asked").read_text()


def test_without_the_tool_there_are_no_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with gpu_samples() as samples:
        pass
    assert samples == []
