"""The host's memory for checkpoints, with stand-ins for a GPU and for pinning."""

import logging
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flashslm.ops.timing_lock import TIMING
from flashslm.training import distributed, state
from flashslm.training.checkpoint import CheckpointStore
from flashslm.training.distributed import World
from flashslm.training.state import HostCopy
from flashslm.training.trainer import train
from tests.unit.training import tiny


class Pinning:
    """Pins by doing nothing; may be held before a tensor, or fail there."""

    def __init__(self) -> None:
        self.by_thread: list[tuple[str, int]] = []  # the thread's name and the elements of each tensor
        self.held_at, self.fails_at = -1, -1  # after so many tensors
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, tensor: Tensor) -> Tensor:
        if len(self.by_thread) == self.fails_at:
            raise RuntimeError("CUDA error: out of memory")
        if len(self.by_thread) == self.held_at:
            self.reached.set()
            assert self.go_on.wait(300)
        self.by_thread.append((threading.current_thread().name, tensor.numel()))
        return tensor

    def threads(self) -> list[str]:
        return [name for name, _ in self.by_thread]


@pytest.fixture
def pinning(monkeypatch: pytest.MonkeyPatch) -> Pinning:
    found = Pinning()
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: found(tensor))
    monkeypatch.setattr(state, "_on_gpu", lambda tensors: True)
    monkeypatch.setattr(state, "_beside_the_loop", lambda device: nullcontext())
    return found


@pytest.fixture
def copy() -> Iterator[HostCopy]:
    made = HostCopy()
    yield made
    made.stop_preparing()


def tensors(value: float) -> dict[str, Tensor]:
    return {name: torch.full((size,), value + size) for size, name in enumerate("abc", 2)} | {
        "step": torch.tensor(value)
    }


def assert_copied(copy: HostCopy, value: float) -> None:
    copied = copy(tensors(value))
    torch.testing.assert_close(copied, tensors(value), atol=0, rtol=0)


def wait_until_taken(copy: HostCopy) -> None:
    assert copy._thread is not None
    copy._thread.join(300)
    assert not copy.preparing


def test_memory_that_was_taken_ahead_is_what_checkpoints_use(pinning: Pinning, copy: HostCopy) -> None:
    copy.prepare(tensors(1.0))
    wait_until_taken(copy)
    assert pinning.by_thread == [("pin", 2), ("pin", 3), ("pin", 4)]
    assert_copied(copy, 5.0)
    assert_copied(copy, 6.0)
    assert len(pinning.by_thread) == 3


def test_a_checkpoint_that_comes_earlier_takes_the_rest(pinning: Pinning, copy: HostCopy) -> None:
    pinning.held_at = 1
    copy.prepare(tensors(1.0))
    assert pinning.reached.wait(300) and copy.preparing
    copy._stop.set()  # what the checkpoint's call begins with, before it waits for the piece at hand
    pinning.go_on.set()
    assert_copied(copy, 5.0)
    assert pinning.by_thread == [("pin", 2), ("pin", 3), ("MainThread", 4)]


def test_no_memory_is_taken_while_kernels_are_timed(
    pinning: Pinning, copy: HostCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    class Asked:
        def __enter__(self) -> None:
            asked.set()
            TIMING.acquire()

        def __exit__(self, *error: object) -> None:
            TIMING.release()

    monkeypatch.setattr(state, "TIMING", Asked())
    with TIMING:
        copy.prepare(tensors(1.0))
        assert asked.wait(300) and pinning.by_thread == []
    wait_until_taken(copy)
    assert pinning.threads() == ["pin"] * 3


def test_memory_that_is_not_there_is_asked_for_again(
    pinning: Pinning, copy: HostCopy, caplog: pytest.LogCaptureFixture
) -> None:
    pinning.fails_at = 1
    with caplog.at_level(logging.WARNING, state.__name__):
        copy.prepare(tensors(1.0))
        wait_until_taken(copy)
    assert "was not taken ahead: CUDA error: out of memory" in caplog.text
    with pytest.raises(RuntimeError, match="out of memory"):
        copy(tensors(5.0))
    pinning.fails_at = -1
    assert_copied(copy, 5.0)
    assert pinning.threads() == ["pin", "MainThread", "MainThread"]


def test_a_training_takes_it_before_its_first_checkpoint(
    pinning: Pinning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives the same run as one on a CPU, which takes none."""
    fetch, models = tiny.fetching(tiny.write_dataset(tmp_path / "dataset")), (tiny.model(), tiny.model())
    spec = tiny.spec(tiny.config(), weight_norm=True)
    plain = train(spec, models[0], fetch)
    assert pinning.by_thread == [], "without a store nothing is saved"
    asked, prepare = list[set[str]](), HostCopy.prepare

    def noted(copy: HostCopy, tensors: dict[str, Tensor]) -> None:
        asked.append(set(tensors))
        prepare(copy, tensors)

    monkeypatch.setattr(HostCopy, "prepare", noted)
    stored = train(spec, models[1], fetch, tiny.DirectoryStore(tmp_path / "store"))
    assert stored.curve() == plain.curve() and pinning.by_thread
    # A weight, two moments and a count of steps for each parameter.
    assert [len(names) for names in asked] == [4 * len(list(models[1].parameters()))]
    states = models[0].state_dict(), models[1].state_dict()
    torch.testing.assert_close(*states, atol=0, rtol=0)


def test_each_of_several_copies_of_a_model_takes_its_share(
    pinning: Pinning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of what the ranks hold alike, in each of them, would be as many times the host's memory and copying."""
    whole, taken = tensors(1.0) | {"d": torch.zeros(5)}, list[set[str]]()
    stores = [CheckpointStore(tiny.DirectoryStore(tmp_path), "run", keep=1) for _ in range(2)]
    for rank, store in enumerate(stores):
        monkeypatch.setattr(distributed, "current_world", partial(World, rank, 2))
        pinning.by_thread.clear()
        store.prepare(whole)
        wait_until_taken(store._copy)
        taken.append(set(store._copy._stagers))
        assert 6 <= sum(elements for _, elements in pinning.by_thread) <= 8
    assert taken[0] | taken[1] == set(whole) and not taken[0] & taken[1]


def test_an_end_before_the_first_checkpoint_stops_it(pinning: Pinning, tmp_path: Path) -> None:
    pinning.held_at = 0
    store = CheckpointStore(tiny.DirectoryStore(tmp_path), "run", keep=1)
    with pytest.raises(KeyboardInterrupt), store:
        store.prepare(tensors(1.0))
        assert pinning.reached.wait(300) and not store.is_prepared()
        store._copy._stop.set()
        pinning.go_on.set()
        raise KeyboardInterrupt
    assert store.is_prepared() and pinning.by_thread == [("pin", 2)]


def test_a_cpu_takes_none(copy: HostCopy) -> None:
    copy.prepare(tensors(1.0))
    assert not copy.preparing and copy._thread is None
    assert_copied(copy, 5.0)
