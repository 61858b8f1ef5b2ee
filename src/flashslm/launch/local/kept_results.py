"""What earlier runs left in a home for the next one: entries of kfp's cache and the manifests that they name.

A step whose entry or manifest is damaged, or whose object has left the store, runs again.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashslm.infra.state_files import read_state
from flashslm.infra.storage.errors import StoreError
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.storage.tree import ArtifactFile

_ARTIFACT, _ARTIFACTS = "__kfp_artifact__", "__kfp_artifact_list__"  # as kfp.local.cache writes them
_WITHOUT_MANIFEST = {"system.HTML", "system.Metrics"}


def cache_directory(home: Path) -> Path:
    """Where kfp keeps one entry for each task that it has run."""
    return home / "kfp" / "cache"


def kept_manifests(home: Path) -> Iterator[tuple[Path, Manifest]]:
    """The manifests that entries of the cache name. What is damaged is set aside, and its entry counts no more."""
    for entry in sorted(cache_directory(home).glob("*.json")):
        for file in read_state(entry, _manifest_files) or []:
            artifact = read_state(file, ArtifactFile.model_validate_json)
            if artifact:
                yield file, artifact.manifest


def drop_lost(store: ObjectStore, home: Path) -> int:
    """Remove the manifests whose tree is not in the store, so that their steps run again; returns how many."""
    present, lost = set(store.list("cas/")), 0
    for file, manifest in kept_manifests(home):
        if not _is_present(store, manifest, present):
            file.unlink(missing_ok=True)
            lost += 1
    return lost


def _is_present(store: ObjectStore, manifest: Manifest, present: set[str]) -> bool:
    """Whether the tree is there, and those that it stands for (metadata `parts`)."""
    try:
        trees = [manifest, *map(Manifest.model_validate, manifest.metadata.get("parts", ()))]
        return all(store.index_key(tree) in present for tree in trees)
    except StoreError:  # an address that is not its digest's, or one in another bucket
        return False


def _manifest_files(content: bytes) -> list[Path]:
    """The files that an entry (output -> a value, an artifact, a list of artifacts) names. Raises ValueError."""
    entry = json.loads(content)
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    artifacts = [artifact for value in entry.values() if isinstance(value, dict) for artifact in _artifacts(value)]
    return [Path(artifact["uri"]) for artifact in artifacts if artifact["schema_title"] not in _WITHOUT_MANIFEST]


def _artifacts(value: dict[str, Any]) -> list[dict[str, Any]]:
    listed = value.get("artifacts") if value.get(_ARTIFACTS) else [value]
    if not isinstance(listed, list):
        raise ValueError("an output is not a list of artifacts")
    for artifact in listed:
        fields = artifact if isinstance(artifact, dict) and artifact.get(_ARTIFACT) is True else {}
        if not all(isinstance(fields.get(key), str) for key in ("uri", "name", "schema_title")):
            raise ValueError("an output is not an artifact")
        if not isinstance(fields.get("metadata"), dict):
            raise ValueError("an output has no metadata")
    return listed
