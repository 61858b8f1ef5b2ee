import threading

import pytest
import torch

from flashslm.data.loader import Batch
from flashslm.training.prefetch import prefetched


@pytest.fixture
def unpinned(monkeypatch):
    """A machine without a GPU has no pinned memory; copies then go to the CPU."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)


def make(index: int) -> Batch:
    return Batch(*(torch.full((2, 3), 10 * index + place) for place in range(3)))


def test_a_cpu_gets_batches_as_they_are_made():
    with prefetched(make, torch.device("cpu")) as batches:
        assert batches is make


def test_batches_come_in_the_order_asked_for_and_the_next_is_made_meanwhile(unpinned, monkeypatch):
    made, all_made = [], threading.Event()

    def noted(index: int) -> Batch:
        made.append((index, threading.current_thread() is threading.main_thread()))
        if len(made) == 8:
            all_made.set()
        return make(index)

    cuda = torch.device("cuda")
    with prefetched(noted, cuda) as batches:
        batches._device = torch.device("cpu")
        for index in (0, 1, 7, 8, 1):
            batch = batches(index)
            assert all(torch.equal(a, b) and a.dtype == torch.int64 for a, b in zip(batch, make(index), strict=True))
        assert all_made.wait(300)
    assert [index for index, _ in made] == [0, 1, 2, 7, 8, 9, 1, 2]
    assert not any(in_main for _, in_main in made)


def test_what_goes_wrong_in_the_thread_is_raised_by_the_batch_it_concerns(unpinned):
    def fails(index: int) -> Batch:
        if index == 1:
            raise OSError("the shard is gone")
        return make(index)

    with prefetched(fails, torch.device("cuda")) as batches:
        batches._device = torch.device("cpu")
        batches(0)
        with pytest.raises(OSError, match="the shard is gone"):
            batches(1)
