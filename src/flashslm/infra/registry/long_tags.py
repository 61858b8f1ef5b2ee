"""Tags of a model version that are longer than MLflow takes: kept in the store, and named by their digest."""

import hashlib

from flashslm.infra.storage.object_store import ObjectStore

PREFIX = "tags/"
_MARK = "flashslm.long-tag:"
_MAX_TAG_BYTES = 4000  # MLflow takes 100,000 characters, databases behind it less


def within_bounds(store: ObjectStore, value: str) -> str:
    """A tag's value; one that MLflow would refuse for its length is kept in the store, and the tag names it."""
    if len(value.encode()) <= _MAX_TAG_BYTES:
        return value
    digest = hashlib.sha256(value.encode()).hexdigest()
    store.put_json(f"{PREFIX}{digest}.json", value)
    return _MARK + digest


def whole(store: ObjectStore, value: str) -> str:
    """What `within_bounds` was given. Raises ValueError where the store has lost it."""
    if not value.startswith(_MARK):
        return value
    digest = value.removeprefix(_MARK)
    found = store.get_json(f"{PREFIX}{digest}.json")
    if found is None or hashlib.sha256(str(found[0]).encode()).hexdigest() != digest:
        raise ValueError(f"{PREFIX}{digest}.json is gone or damaged")
    return str(found[0])
