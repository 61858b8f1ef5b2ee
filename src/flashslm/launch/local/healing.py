"""A run that meets a damaged object makes it again: readers take such objects out of the store."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console

from flashslm.infra.storage.errors import ObjectCorrupt, ObjectMissing, StoreError
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.launch.local.kept_results import drop_lost
from flashslm.launch.local.launcher import LocalResult

_MAX_ROUNDS = 30  # each takes out what it met, and goes further


class Attempt(Protocol):
    """What one round of a run came to."""

    local: LocalResult


Result = TypeVar("Result", bound=Attempt)


def healed(attempt: Callable[[], Result], store: ObjectStore, home: Path, run_dir: Path, console: Console) -> Result:
    """Run the pipeline, and again as long as it fails because a damaged object was found and taken out of the store.

    The steps that make such objects run again, the others come from the cache. `attempt` may raise ObjectCorrupt or
    ObjectMissing while it copies the result.
    """
    drop_lost(store, home)
    for rounds in range(1, _MAX_ROUNDS + 1):
        last = rounds == _MAX_ROUNDS
        try:
            outcome = attempt()
        except (ObjectCorrupt, ObjectMissing):
            if not drop_lost(store, home) and rounds > 1:  # the first time it may be the report itself, never cached
                raise
            if last:
                raise
        else:
            if outcome.local.state != "FAILURE" or last or not _is_lost(store, home, outcome.local):
                return outcome
        console.print("a damaged object was taken out of the store: the step that makes it runs again")
        (run_dir / "events.jsonl").replace(run_dir / f"events-{rounds}.jsonl")
    raise AssertionError("the last round returns or raises")


def _is_lost(store: ObjectStore, home: Path, local: LocalResult) -> bool:
    """Whether an object that this run or an earlier one made is no longer in the store."""
    try:
        dropped = drop_lost(store, home)
    except StoreError:  # it is away: that is why the run failed
        return False
    paths = [path for step in local.steps for path in step.artifacts.values()]
    return bool(dropped) or not all(_is_stored(store, path) for path in paths if path.is_file())


def _is_stored(store: ObjectStore, file: Path) -> bool:
    try:
        return bool(store.list(store.index_key(Manifest.read(file))))
    except (ValueError, StoreError):
        return True  # no manifest, or the store is away: no reason to run again
