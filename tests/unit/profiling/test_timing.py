import time
from itertools import groupby

import pytest
import torch

from flashslm.profiling.timing import cpu_threads, measure, measure_rounds


def busy(milliseconds: float) -> None:
    until = time.thread_time() + milliseconds / 1e3
    while time.thread_time() < until:
        pass


@pytest.fixture(autouse=True)
def one_thread():
    with cpu_threads(1):
        yield


def test_measured_time_is_the_steps_time():
    found = measure(lambda: busy(2.0), warmup=1, repeats=9, device="cpu")
    assert found.repeats == 9
    assert found.p10_ms <= found.median_ms <= found.p90_ms
    assert 2.0 <= found.median_ms < 2.6


def test_other_processes_time_does_not_count():
    found = measure(lambda: (busy(1.0), time.sleep(0.005)), warmup=0, repeats=5, device="cpu")
    assert 1.0 <= found.median_ms < 2.0


def test_with_several_threads_the_wall_clock_counts():
    with cpu_threads(2):
        found = measure(lambda: time.sleep(0.002), warmup=0, repeats=5, device="cpu")
    assert found.median_ms >= 2.0


def test_short_steps_are_batched_long_ones_are_not():
    calls = []
    measure(lambda: calls.append(busy(0.02)), warmup=0, repeats=5, device="cpu")
    assert len(calls) >= 3 + 5 * 5, "at 20 us per call, a sample of 0.2 ms takes about ten"
    calls.clear()
    measure(lambda: calls.append(busy(1.0)), warmup=2, repeats=5, device="cpu")
    assert len(calls) == 2 + 3 + 5


def test_thread_count_is_restored():
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("keep", [True, False])
def test_rounds_visit_every_group_and_time_each_step_apart(keep):
    visits, built = [], []

    def group(name, steps):
        def build():
            built.append(name)
            return [(key, lambda ms=ms: (visits.append(name), busy(ms))) for key, ms in steps]

        return build

    builds = {"a": group("a", [("short", 0.3), ("long", 1.2)]), "b": group("b", [("single", 0.6)])}
    found = measure_rounds(builds, warmup=1, repeats=6, device="cpu", keep=keep)
    assert 0.3 <= found["short"].median_ms < 0.6 <= found["single"].median_ms < 1.2 <= found["long"].median_ms
    assert found["short"].repeats == 6
    assert sorted(built) == (["a", "b"] if keep else ["a"] * 3 + ["b"] * 3)
    turns = "".join(visits)
    assert "ab" in turns and "ba" in turns, "rounds alternate between the groups"


class FakeEvent:
    """A CUDA event on the host's clock."""

    count = 0

    def __init__(self, enable_timing):
        FakeEvent.count += 1

    def record(self):
        self.at = time.thread_time()

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.fixture
def fake_cuda(monkeypatch):
    """Events on the host's clock; the list grows by one whenever the host waits for the device."""
    waits = []
    FakeEvent.count = 0
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(True))
    return waits


def test_cuda_samples_are_events_around_a_batch_of_calls(fake_cuda):
    calls = []
    found = measure(lambda: calls.append(busy(0.1)), warmup=0, repeats=4, device="cuda")
    assert 0.1 <= found.median_ms < 0.2
    assert found.repeats == 4
    assert len(fake_cuda) == 3, "the host waits once for the estimate, the settling and all samples"
    assert FakeEvent.count == (1 + 3) + (1 + 10) + (1 + 4)
    assert 3 + (10 + 4) * 5 <= len(calls) <= 3 + (10 + 4) * 10, "a sample takes a millisecond: up to 10 calls"


def test_on_a_gpu_one_group_is_in_memory_at_a_time_and_its_steps_do_not_alternate(fake_cuda):
    """Steps of one group may share a state, so the calls of each are made in a row."""
    alive, calls = [], []

    class Memory:
        def __init__(self, name):
            self.name = name
            assert not alive, f"{alive} is still there when {name} is built"
            alive.append(name)

        def __del__(self):
            alive.remove(self.name)

    def group(name):
        def build():
            memory = Memory(name)
            return [((name, i), lambda i=i, memory=memory: calls.append((memory.name, i, busy(1.1)))) for i in range(2)]

        return build

    found = measure_rounds({name: group(name) for name in "ab"}, warmup=1, repeats=3, device="cuda", keep=True)
    assert {key: timing.repeats for key, timing in found.items()} == {(n, i): 3 for n in "ab" for i in range(2)}
    assert alive == []
    visits = [call[:2] for call in calls]
    assert len(list(groupby(visits))) == 4
