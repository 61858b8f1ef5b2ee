"""A lease: one holder at a time among any number of processes and hosts, by conditional puts in S3."""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from flashslm.infra.process import owners
from flashslm.infra.storage.errors import PreconditionFailed, StoreError
from flashslm.infra.storage.object_store import ObjectStore

_POLL_S = 0.2


class LeaseTimeout(RuntimeError):
    """Another process kept the lease for as long as we were ready to wait."""


class Lease:
    """A held lease. It ends with its process on this machine, and by itself `ttl_s` after it was taken: a dead holder
    does not block others for ever.
    """

    def __init__(self, key: str, deadline_s: float):
        self.key = key
        self._deadline_s = deadline_s

    def check(self) -> None:
        """Raise LeaseTimeout if too much time has passed to act as the holder; call it before every write."""
        if time.monotonic() > self._deadline_s:
            raise LeaseTimeout(f"lease '{self.key}' ran out while it was used: run the command again")


@contextmanager
def hold(store: ObjectStore, key: str, ttl_s: float = 60.0, wait_s: float = 30.0) -> Iterator[Lease]:
    """Hold the lease object at `key`, waiting for it up to `wait_s`. Raises LeaseTimeout."""
    holder = uuid.uuid4().hex
    give_up_s = time.monotonic() + wait_s
    while True:
        deadline_s = time.monotonic() + ttl_s / 2  # half, since clocks of hosts differ
        if etag := _try_take(store, key, holder, ttl_s):
            break
        if time.monotonic() > give_up_s:
            raise LeaseTimeout(f"lease '{key}' is held by another process; try again in {ttl_s:.0f} s")
        time.sleep(_POLL_S)
    try:
        yield Lease(key, deadline_s)
    finally:
        with suppress(StoreError):  # it is another process's now, or the store is away: then it runs out by itself
            store.put_json(key, {"holder": "", "expires_s": 0.0}, if_match=etag)


def _try_take(store: ObjectStore, key: str, holder: str, ttl_s: float) -> str:
    """The etag of the lease object that names us, or an empty string."""
    found = _read(store, key)
    if found and found[0].get("holder") == holder:  # our put arrived though its answer did not
        return found[1]
    if found and _is_held(found[0]):
        return ""
    value = {"holder": holder, "owner": owners.owner(), "expires_s": time.time() + ttl_s}
    try:
        return store.put_json(key, value, if_match=found[1]) if found else store.put_json(key, value, if_absent=True)
    except PreconditionFailed:
        return ""


def _read(store: ObjectStore, key: str) -> tuple[dict[str, Any], str] | None:
    """The lease object and its etag; of a damaged one the value is empty, so that it is taken over."""
    found = store.get_bytes(key)
    if found is None:
        return None
    with suppress(ValueError):
        value = json.loads(found[0])
        if isinstance(value, dict):
            return value, found[1]
    return {}, found[1]


def _is_held(value: dict[str, Any]) -> bool:
    """Whether it is held: a process of this machine as long as it runs, another one until its time is over."""
    expires_s, owner = value.get("expires_s"), value.get("owner", "")
    if not value.get("holder") or not isinstance(expires_s, int | float) or expires_s <= time.time():
        return False
    try:
        return not owners.is_gone(owner)
    except (ValueError, AttributeError):  # it names none
        return True
