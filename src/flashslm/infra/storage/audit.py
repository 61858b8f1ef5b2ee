"""Read everything that is stored: what is damaged is taken out, and put back where this machine has a good copy."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from flashslm.infra.storage.errors import ObjectCorrupt, ObjectMissing
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.storage.tree import CAS, holds, tree_prefix

RECORDS = ("checkpoints/", "preparation/", "pretraining/", "registry/", "scaling/", "schedules/")  # objects of JSON


class Damage(NamedTuple):
    """One tree or record that is not what was stored."""

    key: str
    problem: str
    is_restored: bool


class Audit(NamedTuple):
    """How much was read, and what is wrong with it."""

    trees: int
    records: int
    damages: list[Damage]


def audit(store: ObjectStore, copies: Iterable[Path] = ()) -> Audit:
    """Verify every tree and record. `copies` are directories that may hold trees, such as those of a home's cache."""
    directories, damages, trees, records = list(copies), [], stored_trees(store), 0
    for key, manifest in trees.items():
        try:
            store.verify_tree(manifest)
        except (ObjectCorrupt, ObjectMissing) as error:
            damages.append(Damage(key, str(error), _restore(store, manifest, directories)))
    for key in (key for prefix in RECORDS for key in store.list(prefix) if key.endswith(".json")):
        records += 1
        try:
            store.get_json(key)
        except ObjectCorrupt as error:
            damages.append(Damage(key, str(error), False))
    return Audit(len(trees), records, damages)


def stored_trees(store: ObjectStore) -> dict[str, Manifest]:
    """Every tree that has an index, by the key of that; its kind is not known."""
    trees = {}
    for key, entry in store.entries(CAS).items():
        if found := re.fullmatch(rf"{CAS}[0-9a-f]{{2}}/([0-9a-f]{{64}})\.index\.json", key):
            uri = f"s3://{store.bucket}/{tree_prefix(found[1])}"
            trees[key] = Manifest(kind="tree", uri=uri, sha256=found[1], bytes=entry.bytes)
    return trees


def _restore(store: ObjectStore, manifest: Manifest, directories: list[Path]) -> bool:
    good = next((directory for directory in directories if holds(directory, manifest.sha256)), None)
    if good:
        store.put_tree(good, manifest.kind)
    return good is not None
