"""What a text of the command line means: a run, a checkpoint, an export, a registry version or a model of the hub."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from flashslm.evaluation import items as metric_items
from flashslm.evaluation.items import ITEMS_FILE, MetricItems
from flashslm.export import hub
from flashslm.infra.registry import model_registry
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore

ARCHITECTURE = "architecture.json"
FORMS = (
    "a run's directory or its id below runs/, a manifest of an evaluation, a checkpoint or an export (such as "
    "runs/latest/artifacts/chosen.json), a directory of a checkpoint or an export, NAME@VERSION with a version's "
    "number or alias in the registry, or hf://OWNER/NAME[@REVISION] of the hub"
)


@dataclass
class NamedModel:
    """What is known of a model, and how to get it: None for an evaluation without its model."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    items: dict[str, MetricItems] | None = None
    model_directory: Callable[[], Path] | None = None

    def export(self) -> Path:
        """The exported directory, fetched unless it is here. Raises ValueError for an evaluation and a checkpoint."""
        if self.model_directory is None:
            raise ValueError(f"'{self.name}' is an evaluation without its model: give an export, or a run that has one")
        if (found := export_in(self.model_directory())) is None:
            raise ValueError(
                f"'{self.name}' is a checkpoint, which has no tokenizer: `flashslm export` makes an export"
            )
        return found


class ModelFinder:
    """What a text of the command line means. The store and the registry are asked only where a form needs them."""

    def __init__(self, settings: Callable[[], Settings], trees: Path, runs: Path):
        self._get_settings, self._trees, self._runs = settings, trees, runs

    @cached_property
    def _settings(self) -> Settings:
        return self._get_settings()

    def find(self, text: str) -> NamedModel:
        """Raises ValueError for what is none of the forms. Nothing is fetched from the hub yet."""
        if text.startswith(hub.PREFIX):
            return NamedModel(text, model_directory=partial(hub.fetch_model, text))
        for path in (Path(text), self._runs / text):
            if (path / "artifacts").is_dir():
                return self._run(text, path / "artifacts")
            if path.is_file() and path.suffix == ".json":
                return self._manifest(text, Manifest.read(path))
            if (path / ARCHITECTURE).is_file() or export_in(path):
                return NamedModel(text, model_directory=partial(Path, path))
        name, separator, version = text.rpartition("@")
        if separator and name and version:
            return self._version(name, version)
        raise ValueError(f"'{text}' is not a model: give {FORMS}")

    def fetch(self, manifest: Manifest) -> Path:
        return ObjectStore(self._settings).get_tree(manifest, self._trees / manifest.sha256)

    def dataset(self, path: Path) -> Path:
        """The directory of a prepared data set, which is given by itself or by its manifest. Raises ValueError."""
        if path.is_file() and (manifest := Manifest.read(path)).kind == "dataset":
            return self.fetch(manifest)
        if not (path / "tokenizer").is_dir():
            raise ValueError(
                f"'{path}' is not a prepared data set: give its directory, or a manifest of one such as "
                "runs/latest/artifacts/dataset.json"
            )
        return path

    def _run(self, text: str, artifacts: Path) -> NamedModel:
        found = {path.stem: path for path in artifacts.glob("*.json")}
        if "evaluation" not in found:
            raise ValueError(
                f"run '{text}' has no evaluation among its artifacts: it ended before its model was judged"
            )
        items = self._items(Manifest.read(found["evaluation"]))
        if "exported" not in found:  # it ended before the export
            return NamedModel(text, items=items)
        exported = Manifest.read(found["exported"])
        return NamedModel(text, exported.metadata, items, lambda: self.fetch(exported))

    def _manifest(self, text: str, manifest: Manifest) -> NamedModel:
        if manifest.kind == "evaluation":
            return NamedModel(text, items=self._items(manifest))
        return NamedModel(text, manifest.metadata, model_directory=lambda: self.fetch(manifest))

    def _version(self, name: str, wanted: str) -> NamedModel:
        versions = model_registry.list_versions(self._settings, name)
        found = next((v for v in versions if wanted == v.version or wanted in v.aliases), None)
        if found is None:
            known = ", ".join(f"{name}@{v.version}" for v in versions) or "none of that name"
            raise ValueError(f"the registry has no '{name}@{wanted}'; it has {known}")
        evaluation, manifest = found.lineage.evaluation, found.manifest
        items = self._items(evaluation) if evaluation else None
        facts = manifest.metadata | found.facts  # the context of its latency is the manifest's
        return NamedModel(f"{name}@{found.version}", facts, items, lambda: self.fetch(manifest))

    def _items(self, evaluation: Manifest) -> dict[str, MetricItems] | None:
        file = self.fetch(evaluation) / ITEMS_FILE
        return metric_items.load(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def export_in(path: Path) -> Path | None:
    """The exported directory that a path is or holds."""
    places = (path, path / "huggingface", path / "export" / "huggingface")
    return next((place for place in places if (place / "config.json").is_file()), None)
