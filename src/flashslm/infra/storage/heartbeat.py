"""A sign of life in the object store, so that pods which work for a step stop when it no longer waits for them.

A step that is cancelled on a cluster has a second at most to say so: KFP's launcher ends at once, its container too.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from flashslm.infra.storage.errors import StoreError
from flashslm.infra.storage.object_store import ObjectStore

BEAT_S = 60.0
SILENCE_S = 1800.0  # time for a retry of the step to begin


class Abandoned(RuntimeError):
    """The step that waited for this work is gone."""


@contextmanager
def send_heartbeats(store: ObjectStore, key: str, every_s: float = BEAT_S) -> Iterator[None]:
    """Say now and at intervals that a step waits."""

    def beat() -> None:
        store.put_json(key, {"seen_s": time.time()})

    beat()
    with _every(every_s, beat):
        yield


def is_silent(store: ObjectStore, key: str, silence_s: float = 3 * BEAT_S) -> bool:
    """Whether no step has said for `silence_s` that it waits."""
    found = store.get_json(key)
    seen_s = found[0].get("seen_s") if found and isinstance(found[0], dict) else None
    return not isinstance(seen_s, int | float) or time.time() - seen_s > silence_s


@contextmanager
def require_heartbeats(
    store: ObjectStore, key: str, every_s: float = BEAT_S, silence_s: float = SILENCE_S
) -> Iterator[None]:
    """Send this process SIGTERM once that has not been said for `silence_s`; raises Abandoned if so now.

    No signal comes after the block, whatever the store answers then.
    """
    is_working, deciding = True, threading.Lock()

    def listen() -> None:
        if is_silent(store, key, silence_s):
            with deciding:
                if is_working:
                    os.kill(os.getpid(), signal.SIGTERM)

    if is_silent(store, key, silence_s):
        raise Abandoned(f"the step that began this work has not been heard of for {silence_s:.0f} s")
    with _every(every_s, listen):
        try:
            yield
        finally:
            with deciding:
                is_working = False


@contextmanager
def _every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(seconds):
            with suppress(StoreError):  # it is asked again
                act()

    thread = threading.Thread(target=loop, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        stop.set()
