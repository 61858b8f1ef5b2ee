"""What a home keeps of earlier runs: damaged entries and manifests count no more, lost objects are made again."""

import json
from pathlib import Path
from typing import Any

import pytest

from flashslm.infra.storage.errors import ObjectCorrupt
from flashslm.infra.storage.tree import Manifest
from flashslm.launch.local.kept_results import cache_directory, drop_lost, kept_manifests

DIGESTS = ["a" * 64, "b" * 64]


class FakeStore:
    """Knows the trees it is given."""

    def __init__(self, *digests: str) -> None:
        self.digests = digests

    def list(self, prefix: str) -> list[str]:
        assert prefix == "cas/"
        return list(self.digests)

    def index_key(self, manifest: Manifest) -> str:
        if "elsewhere" in manifest.uri:
            raise ObjectCorrupt("not its address")
        return manifest.sha256


def keep(home: Path, name: str, digest: str, uri: str = "s3://b/cas", parts: tuple[str, ...] = ()) -> tuple[Path, Path]:
    """An entry of the cache and the manifest that it names, which stands for the trees `parts`."""
    file = home / "kfp" / "artifacts" / name
    named = [{"kind": "part", "uri": uri, "sha256": part, "bytes": 1} for part in parts]
    Manifest(kind=name, uri=uri, sha256=digest, bytes=1, metadata={"parts": named}).write(file)
    entry = cache_directory(home) / f"{name}.json"
    entry.parent.mkdir(parents=True, exist_ok=True)
    artifact = {"uri": str(file), "name": name, "schema_title": "system.Model", "metadata": {}}
    numbers = artifact | {"uri": str(home / "metrics"), "schema_title": "system.Metrics"}
    outputs = {"model": artifact, "metrics": numbers}
    marked = {key: value | {"__kfp_artifact__": True} for key, value in outputs.items()}
    listed = {"all": {"__kfp_artifact_list__": True, "artifacts": [marked["model"]]}, "decision": "hold"}
    entry.write_text(json.dumps(marked | listed))
    return entry, file


def test_a_manifest_whose_tree_is_gone_is_removed(tmp_path: Path) -> None:
    (_, first), (_, second) = (keep(tmp_path, name, digest) for name, digest in zip("xy", DIGESTS, strict=True))
    _, third = keep(tmp_path, "z", DIGESTS[0], "s3://b/elsewhere")
    assert drop_lost(FakeStore(DIGESTS[0]), tmp_path) == 2  # type: ignore[arg-type]
    assert first.exists() and not second.exists() and not third.exists()


def test_a_manifest_stands_for_its_parts(tmp_path: Path) -> None:
    _, whole = keep(tmp_path, "x", DIGESTS[0], parts=(DIGESTS[0],))
    _, lacking = keep(tmp_path, "y", DIGESTS[0], parts=(DIGESTS[0], DIGESTS[1]))
    assert drop_lost(FakeStore(DIGESTS[0]), tmp_path) == 1  # type: ignore[arg-type]
    assert whole.exists() and not lacking.exists()


@pytest.mark.parametrize("damage", ["", "{", "[1]", "\ud800", '{"kind": "x"}'])
def test_a_damaged_manifest_or_entry_is_set_aside_and_the_others_stay(damage: str, tmp_path: Path) -> None:
    for which in (0, 1):
        paths = keep(tmp_path, "damaged", DIGESTS[0])
        _, good = keep(tmp_path, "good", DIGESTS[1])
        content = damage.encode(errors="surrogatepass")
        paths[which].write_bytes(content)
        found = [file for file, _ in kept_manifests(tmp_path)]
        if which or damage != '{"kind": "x"}':  # as an entry it is a plain output value
            assert not paths[which].exists(), paths[which]
            (aside,) = paths[which].parent.glob("damaged*.damaged-*")
            assert aside.read_bytes() == content
            aside.unlink()
        assert set(found) == {good}


@pytest.mark.parametrize(
    "value",
    [
        {"__kfp_artifacT__": True, "uri": "x"},
        {"__kfp_artifact__": True, "uri": 7, "name": "n", "schema_title": "t", "metadata": {}},
        {"__kfp_artifact__": True, "uri": "x", "name": "n", "schema_title": "t", "metadata": None},
        {"__kfp_artifact_list__": True, "artifacts": "x"},
    ],
)
def test_an_entry_whose_output_is_no_artifact_is_set_aside(value: Any, tmp_path: Path) -> None:
    entry, _ = keep(tmp_path, "x", DIGESTS[0])
    entry.write_text(json.dumps({"model": value}))
    assert list(kept_manifests(tmp_path)) == [] and not entry.exists()
