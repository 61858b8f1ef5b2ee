"""Times by a clock that only the timed work moves."""

import pytest
import torch

from flashslm.benchmarking import clock, memory


class FakeTime:
    """Seconds that pass when `spend` is called, on the host's clock and on CUDA's events."""

    def __init__(self, monkeypatch):
        self.now_ms, self.waits = 0.0, 0
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now_ms / 1e3)
        fake = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at_ms = fake.now_ms

            def elapsed_time(self, end):
                assert fake.waits, "read before the device was waited for"
                return end.at_ms - self.at_ms

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)

    def wait(self):
        self.waits += 1

    def spend(self, *durations_ms):
        """A step whose calls take these times in turn, the last one for ever."""
        left = list(durations_ms)

        def step():
            self.now_ms += left.pop(0) if len(left) > 1 else left[0]

        return step


@pytest.fixture
def fake_time(monkeypatch):
    return FakeTime(monkeypatch)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_step_has_its_time(fake_time, device):
    assert clock.step_times_ms(fake_time.spend(1, 5, 2), 3, device) == pytest.approx([1, 5, 2])
    assert fake_time.waits == (device == "cuda")  # once, after the last step


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_whole_run(fake_time, device):
    assert clock.whole_time_ms(fake_time.spend(1, 5, 2), 4, device) == pytest.approx(10)


def test_what_counts_of_steps(fake_time):
    restarts = []
    warm_up, first, second, whole = [100.0] * clock.WARM_UP_STEPS, [1.0, 2.0, 9.0], [2.0, 3.0, 3.0], [4.0, 4.0, 10.0]
    step = fake_time.spend(*warm_up, *first, *second, *whole)
    times = clock.time_steps(lambda: restarts.append(fake_time.now_ms), step, 3, 2, "cpu")
    assert restarts == pytest.approx([0, 500, 512, 520])
    assert times.tpot_ms_median == pytest.approx(2.5)
    assert times.tpot_ms_p90 == pytest.approx(6.0)  # between 3 and 9, half way
    assert times.tpot_ms_mean == pytest.approx(6.0)  # of the last run alone
    assert times.tpot_ms_median_repeats == pytest.approx((2, 3))


def test_the_first_prefill_does_not_count(fake_time):
    class Decoder:
        prefills = (900.0, 10.0, 30.0, 20.0)

        def __init__(self):
            self.spend, self.advance, self.seen = fake_time.spend(*self.prefills), fake_time.spend(1.0), []

        def prefill(self, tokens_BT):
            self.spend()
            self.seen.append(tokens_BT)
            return torch.zeros(2, dtype=torch.int64)

    decoder, prompts_BT = Decoder(), torch.ones(2, 5, dtype=torch.int64)
    times = clock.time_decoder(decoder, prompts_BT, 4, 2, "cpu")
    assert times.ttft_ms_repeats == pytest.approx((10, 30, 20)) and times.ttft_ms == pytest.approx(20)
    assert times.tpot_ms_median == pytest.approx(1)
    assert all(seen is prompts_BT for seen in decoder.seen)


def test_a_copy_counts_its_bytes_twice(fake_time, monkeypatch):
    monkeypatch.setattr(memory, "step_times_ms", lambda step, steps, device: [step(), [2.0] * steps][1])
    monkeypatch.setitem(memory.COPIED_BYTES, "cpu", 1000)
    assert memory.copy_bytes_per_s("cpu") == pytest.approx(2 * 1000 / 2e-3)


def test_memory_on_a_cpu():
    assert memory.peak_bytes("cpu") > 50e6  # this process has torch in it
    assert 2**20 < memory.free_bytes("cpu") < 2**50
