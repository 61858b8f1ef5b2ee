"""Independent work on one device, such as trainings: one after the other in this process, or in several at a time."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import TypeVar

from flashslm.hardware import threads_shared_by
from flashslm.infra.process.interrupts import Terminated, away_from_the_terminal, ignore_the_terminal
from flashslm.infra.process.parent import PARENT_PID, die_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerKilled(RuntimeError):
    """A worker process ended without an answer."""


class _Process(SpawnProcess):
    """It hears of Ctrl-C by the SIGTERM of this process, from its start on."""

    def start(self) -> None:
        resource_tracker.ensure_running()  # which unblocks signals
        with away_from_the_terminal():
            super().start()


class _Spawn(SpawnContext):
    Process = _Process


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """What `work` returns for each item: in their order with one worker, else as they end.

    Each of several workers is a process of its own, as CUDA wants, and ends with this one, however that ends; `work`
    and the items are pickled. An error ends all of it once running items are done, a signal at once: a worker ends with
    the item that SIGTERM ends, and takes no other. What is running is lost then: the callers' work keeps a result when
    it is whole and nothing before, so that there is nothing to save and nothing to wait for. `work` itself keeps
    each result, whole or not at all, and the next call finds those. Raises WorkerKilled.
    """
    if workers == 1 or len(items) < 2:
        yield from map(work, items)
        return
    with worker_pool(min(workers, len(items))) as pool:
        for future in as_completed([pool.submit(_work_off, work, item) for item in items]):
            yield future.result()


@contextmanager
def worker_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that share the cores, and end with this one, however that ends.

    An error ends them once running items are done, a signal at once. Raises WorkerKilled.
    """
    with (
        threads_shared_by(processes),
        ProcessPoolExecutor(processes, _Spawn(), initializer=_die_with, initargs=(os.getpid(),)) as pool,
    ):
        try:
            yield pool
        except BrokenProcessPool as error:
            raise WorkerKilled(
                f"one of {processes} workers was killed, for lack of memory perhaps: what is finished is kept, and the "
                "same command goes on; fewer workers need less memory"
            ) from error
        except BaseException as error:
            if not isinstance(error, Exception):  # this process is to end, in seconds
                for worker in multiprocessing.active_children():
                    worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def _work_off(work: Callable[[Item], Result], item: Item) -> Result:
    try:
        return work(item)
    except Terminated:  # the pool would take it for the item's result
        os._exit(128 + signal.SIGTERM)


def _die_with(parent_pid: int) -> None:
    ignore_the_terminal()
    os.environ[PARENT_PID] = str(parent_pid)
    die_with_parent()
