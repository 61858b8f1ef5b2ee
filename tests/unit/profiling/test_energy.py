"""Joules per token against an energy counter that is made up; a real one needs an NVIDIA GPU."""

import sys
from types import SimpleNamespace

import pytest

from flashslm.profiling import energy
from flashslm.profiling.energy import joules_per_token


class Gpu:
    """Takes 3 joules for each step, on a clock of 0.01 s for each."""

    def __init__(self) -> None:
        self.steps = 0
        self.asked: list[str] = []

    def step(self) -> None:
        self.steps += 1

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return 7_000_000 + 3000 * self.steps  # millijoules since the driver was loaded


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(energy, "_uuid", lambda: "GPU-of-this-process")
    monkeypatch.setattr(energy, "_synchronise", lambda: None)
    monkeypatch.setattr(energy, "time", SimpleNamespace(monotonic=lambda: 0.01 * made.steps))
    return made


def test_the_counters_difference_is_divided_by_the_tokens(gpu: Gpu) -> None:
    assert joules_per_token(gpu.step, 4, "cuda") == pytest.approx(3 / 4)
    assert gpu.steps >= 200 and gpu.asked == ["GPU-of-this-process"]


def test_without_a_counter_there_is_no_energy(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    assert joules_per_token(gpu.step, 1, "cpu") is None and gpu.steps == 0

    def missing(handle: str) -> int:
        raise RuntimeError("Not Supported")

    monkeypatch.setattr(gpu, "nvmlDeviceGetTotalEnergyConsumption", missing)
    assert joules_per_token(gpu.step, 1, "cuda") is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert joules_per_token(gpu.step, 1, "cuda") is None
