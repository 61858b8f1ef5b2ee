"""Texts that are too long for a command line travel as objects: a step's arguments are arguments of its process.

Linux takes 128 KiB per argument, and KFP gives a step all of its inputs as one.
"""

import hashlib
from collections.abc import Callable

from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.storage.s3 import ObjectCorrupt, ObjectMissing

MAX_INLINE_BYTES = 24_000
_REFERENCE = "stored-text:"


def shortened(text: str, open_store: Callable[[], ObjectStore]) -> str:
    """The text, or a reference to the object that holds it from now on: equal texts have equal references."""
    content = text.encode()
    if len(content) <= MAX_INLINE_BYTES:
        return text
    digest = hashlib.sha256(content).hexdigest()
    open_store().put_json(_key(digest), text)
    return _REFERENCE + digest


def whole(text: str, store: ObjectStore) -> str:
    """What `shortened` was given. Raises ObjectMissing, ObjectCorrupt."""
    if not text.startswith(_REFERENCE):
        return text
    digest = text.removeprefix(_REFERENCE)
    found = store.get_json(_key(digest))
    if found is None:
        raise ObjectMissing(f"'{_key(digest)}', an argument of this step, is not in the store: start the run again")
    content = str(found[0])
    if hashlib.sha256(content.encode()).hexdigest() != digest:
        raise ObjectCorrupt(f"'{_key(digest)}', an argument of this step, is damaged: start the run again")
    return content


def _key(digest: str) -> str:
    return f"texts/{digest}.json"
