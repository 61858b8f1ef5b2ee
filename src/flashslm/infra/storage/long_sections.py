"""Sections of a recipe that are too long for a command line travel as objects: a step's arguments are arguments of its
process. Linux takes 128 KiB per argument, and KFP gives a step all of its inputs as one.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from flashslm.infra.storage.errors import ObjectCorrupt, ObjectMissing
from flashslm.infra.storage.object_store import ObjectStore

MAX_INLINE_BYTES = 8_000  # of one of the twelve sections that check_recipe gets
_REFERENCE = "stored_section"


def shortened(section: dict[str, Any], open_store: Callable[[], ObjectStore]) -> dict[str, Any]:
    """The section, or a reference to the object that holds it from now on: equal sections have equal references."""
    text = json.dumps(section, sort_keys=True)
    if len(text) <= MAX_INLINE_BYTES:
        return section
    digest = hashlib.sha256(text.encode()).hexdigest()
    open_store().put_json(_key(digest), text)
    return {_REFERENCE: digest}


def whole(text: str, store: ObjectStore) -> str:
    """A step's configuration with the sections that `shortened` stored. Raises ObjectMissing, ObjectCorrupt."""
    sections = json.loads(text)
    stored = {name: value for name, value in sections.items() if isinstance(value, dict) and set(value) == {_REFERENCE}}
    if not stored:
        return text
    return json.dumps(sections | {name: _read(str(value[_REFERENCE]), store) for name, value in stored.items()})


def _read(digest: str, store: ObjectStore) -> Any:
    found = store.get_json(_key(digest))
    if found is None:
        raise ObjectMissing(f"'{_key(digest)}', an argument of this step, is not in the store: start the run again")
    content = str(found[0])
    if hashlib.sha256(content.encode()).hexdigest() != digest:
        raise ObjectCorrupt(f"'{_key(digest)}', an argument of this step, is damaged: start the run again")
    return json.loads(content)


def _key(digest: str) -> str:
    return f"texts/{digest}.json"
