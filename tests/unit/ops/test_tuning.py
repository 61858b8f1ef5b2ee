"""The winners of tuning on disk, with a tuner that has what Triton's has."""

import errno
import json
import threading
from types import SimpleNamespace

import pytest

from flashslm.ops import kernel_cache
from flashslm.ops.fused import tuning

HEADS = ("H", "HV", "K")


class Config:
    def __init__(self, block: int, pre_hook: object = None) -> None:
        self.block, self.pre_hook = block, pre_hook

    def __str__(self) -> str:
        return f"BLOCK: {self.block}"


class Tuner:
    """Times of configurations by block; `tuned` counts how often they were taken."""

    def __init__(self, times: dict[int, float], source: str = "source", keys: tuple[str, ...] = ("K",)) -> None:
        self.configs = [Config(block, pre_hook=print) for block in times]
        self.fn = SimpleNamespace(fn=SimpleNamespace(cache_key=source))  # behind a wrapper, as heuristics are
        self.base_fn = SimpleNamespace(__name__="_kernel")
        self.keys = keys
        self.cache: dict[object, Config] = {}
        self.times, self.tuned = times, 0

    def get(self, key: object = (64, "bf16")) -> int:
        def bench() -> None:
            self.tuned += 1
            self.configs_timings = {c: [self.times[c.block]] * 3 for c in self.configs}
            self.cache[key] = min(self.configs, key=lambda c: self.times[c.block])

        tuning._look_up_or_tune(self, key, self.configs, bench)
        return self.cache[key].block


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(kernel_cache.VARIABLE, str(tmp_path))
    return tmp_path


def test_a_second_process_takes_the_winner_without_tuning():
    first = Tuner({16: 3.0, 32: 1.0, 64: float("inf")})
    assert first.get() == 32 and first.tuned == 1
    second = Tuner({16: 0.5, 32: 1.0, 64: 2.0})
    assert second.get() == 32 and second.tuned == 0


def test_nothing_that_disturbs_times_runs_meanwhile():
    taken: list[bool] = []

    class Disturbed(Tuner):
        def get(self, key=(64, "bf16")):
            def bench():
                other = threading.Thread(target=lambda: taken.append(tuning.TIMING.acquire(blocking=False)))
                other.start()
                other.join()
                self.cache[key], self.configs_timings = self.configs[0], {self.configs[0]: [1.0]}

            tuning._look_up_or_tune(self, key, self.configs, bench)
            return self.cache[key].block

    assert Disturbed({16: 3.0, 32: 1.0}).get() == 16 and taken == [False]


def test_of_two_that_need_a_kernel_at_the_same_time_one_tunes(monkeypatch):
    second_waits, locked_file = threading.Event(), tuning.locked_file

    def noted(path):
        if threading.current_thread() is waiting:
            second_waits.set()
        return locked_file(path)

    class Slow(Tuner):
        def get(self, key=(64, "bf16")):
            def bench():
                waiting.start()
                assert second_waits.wait(60)
                self.cache[key], self.configs_timings = self.configs[0], {self.configs[0]: [1.0]}

            tuning._look_up_or_tune(self, key, self.configs, bench)
            return self.cache[key].block

    monkeypatch.setattr(tuning, "locked_file", noted)
    second = Tuner({16: 3.0, 32: 1.0})
    waiting = threading.Thread(target=second.get)
    assert Slow({16: 3.0, 32: 1.0}).get() == 16
    waiting.join()
    assert second.get() == 16 and second.tuned == 0


def test_a_cache_on_a_file_system_without_locks_is_tuned_and_kept(monkeypatch):
    def refused(path):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(tuning, "locked_file", refused)
    assert Tuner({16: 3.0, 32: 1.0}).get() == 32
    second = Tuner({16: 3.0, 32: 1.0})
    assert second.get() == 32 and second.tuned == 0


def test_another_key_source_or_list_of_configurations_is_tuned():
    times = {16: 3.0, 32: 1.0}
    Tuner(times).get()
    for other, key in ((Tuner(times), (128, "bf16")), (Tuner(times, "changed"), (64, "bf16"))):
        assert other.get(key) == 32 and other.tuned == 1
    wider = Tuner(times | {64: 0.5})
    assert wider.get() == 64 and wider.tuned == 1


@pytest.mark.parametrize("text", ["", "{", "{}", '{"config": "BLOCK: 7"}'])
def test_a_file_that_names_no_configuration_is_written_again(text, cache):
    Tuner({16: 3.0, 32: 1.0}).get()
    (file,) = cache.rglob("*.json")
    file.write_text(text)
    again = Tuner({16: 3.0, 32: 1.0})
    assert again.get() == 32 and again.tuned == 1
    assert json.loads(file.read_text())["config"] == "BLOCK: 32"


def test_the_file_says_what_was_measured(cache):
    Tuner({16: 3.0, 64: float("inf")}).get()
    (file,) = cache.rglob("*.json")
    found = json.loads(file.read_text())
    assert found["kernel"] == "_kernel" and found["median_ms"] == {"BLOCK: 16": 3.0, "BLOCK: 64": None}


def test_a_number_of_heads_takes_the_winner_of_the_nearest():
    fast, slow = {16: 1.0, 32: 2.0}, {16: 2.0, 32: 1.0}
    assert Tuner(fast, keys=HEADS).get((4, 4, 64, "bf16")) == 16
    assert Tuner(slow, keys=HEADS).get((16, 16, 64, "bf16")) == 32
    for heads, block in ((3, 16), (5, 16), (12, 32), (16, 32), (4, 16), (32, 32)):
        other = Tuner({16: 5.0, 32: 5.0}, keys=HEADS)
        assert (other.get((heads, heads, 64, "bf16")), other.tuned) == (block, 0)
    for key in ((1, 1, 64, "bf16"), (33, 33, 64, "bf16"), (4, 16, 64, "bf16"), (4, 4, 128, "bf16")):
        other = Tuner(fast, keys=HEADS)
        assert other.get(key) == 16 and other.tuned == 1, key


def test_any_number_of_rows_takes_the_one_winner():
    assert Tuner({16: 1.0, 32: 2.0}, keys=("D", "NB")).get((128, 1, "bf16")) == 16
    many = Tuner({16: 2.0, 32: 1.0}, keys=("D", "NB"))
    assert (many.get((128, 64, "bf16")), many.tuned) == (16, 0)
    wider = Tuner({16: 2.0, 32: 1.0}, keys=("D", "NB"))
    assert (wider.get((64, 64, "bf16")), wider.tuned) == (32, 1)


def test_a_borrowed_winner_is_not_written_for_its_borrower(cache):
    """Or winners would wander from one number of heads to the next, away from what was measured."""
    Tuner({16: 1.0, 32: 2.0}, keys=HEADS).get((4, 4, 64, "bf16"))
    Tuner({16: 2.0, 32: 1.0}, keys=HEADS).get((8, 8, 64, "bf16"))
    far = Tuner({16: 2.0, 32: 1.0}, keys=HEADS)
    assert far.get((16, 16, 64, "bf16")) == 32 and far.tuned == 1
    assert {file.name for file in cache.rglob("*.json")} == {"4-4.json", "16-16.json"}
