"""What a step is given: its sections of the recipe, its inputs, the object store and its MLflow run."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashslm.config import RunConfig, digest
from flashslm.infra.events import Events
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.storage.streamed_tree import StreamedTree
from flashslm.infra.storage.tree import Origins
from flashslm.infra.tracking.mlflow_runs import TrackedRun


def tree_cache() -> Path:
    """Where fetched trees are kept between steps, by sha256: $FLASHSLM_CACHE, else .flashslm/trees."""
    return Path(os.environ.get("FLASHSLM_CACHE", ".flashslm/trees"))


def fetch_tree(store: ObjectStore, manifest: Manifest) -> Path:
    """The directory of a whole tree, verified."""
    return store.get_tree(manifest, tree_cache() / manifest.sha256)


def stream_tree(store: ObjectStore, settings: Settings, manifest: Manifest) -> StreamedTree:
    """A tree whose files are fetched when they are read, into one cache of bounded size for all."""
    return StreamedTree(store, manifest, tree_cache() / "files", settings.data_cache_bytes)


_MAX_SHOWN_BYTES = 1_000_000  # of a document that is an artifact of the step's MLflow run too


@dataclass
class StepContext:
    """Inputs are manifests (a list where a step collects several); outputs appear in `outputs` once published."""

    step: str
    config: RunConfig
    settings: Settings
    store: ObjectStore
    mlflow_run: TrackedRun
    events: Events
    inputs: dict[str, Manifest | list[Manifest]]
    parameters: dict[str, str]
    origins: Origins = field(default_factory=Origins)  # what the outputs are made of
    outputs: dict[str, Manifest] = field(default_factory=dict)
    streams: dict[str, StreamedTree] = field(default_factory=dict)  # by the sha256 of the tree
    pages: dict[str, str] = field(default_factory=dict)  # HTML that KFP shows, by the name of its output

    def manifest(self, name: str) -> Manifest:
        found = self.inputs[name]
        assert isinstance(found, Manifest)
        return found

    def manifests(self, name: str) -> list[Manifest]:
        found = self.inputs[name]
        return found if isinstance(found, list) else [found]

    def fetch(self, name: str) -> Path:
        """The directory of one input, verified against its sha256."""
        return self.fetch_manifest(self.manifest(name))

    def fetch_manifest(self, manifest: Manifest) -> Path:
        return fetch_tree(self.store, manifest)

    def stream(self, dataset: Manifest) -> StreamedTree:
        """A data set whose files are fetched when they are read."""
        if dataset.sha256 not in self.streams:
            self.streams[dataset.sha256] = stream_tree(self.store, self.settings, dataset)
        return self.streams[dataset.sha256]

    def read_json(self, name: str, file: str) -> Any:
        return self.read_json_of(self.manifest(name), file)

    def read_json_of(self, manifest: Manifest, file: str) -> Any:
        """A JSON document of one of several inputs of a name."""
        return json.loads((self.fetch_manifest(manifest) / file).read_text(encoding="utf-8"))

    def publish(self, name: str, directory: Path, metadata: dict[str, Any]) -> Manifest:
        """Store a directory as this step's output `name`; `metadata` travels in the manifest."""
        self.outputs[name] = self.store.put_tree(directory, kind=name, metadata=metadata)
        return self.outputs[name]

    def publish_json(self, name: str, files: dict[str, Any], metadata: dict[str, Any]) -> Manifest:
        """Store JSON documents (file name -> value) as this step's output `name`."""
        with self.scratch() as directory:
            for file, value in files.items():
                write_json(directory / file, value)
                if (directory / file).stat().st_size <= _MAX_SHOWN_BYTES:
                    self.mlflow_run.log_file(directory / file, name)
            return self.publish(name, directory, metadata)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=f"flashslm-{self.step}-") as directory:
            yield Path(directory)

    def run_key(self, **extra: str) -> str:
        """Identity of this step's work: configuration but for how it is executed, inputs, code. What a retry of the
        same work finds again."""
        return digest(
            {
                "step": self.step,
                "config": self.config.work_of(self.step),
                "inputs": {name: [m.sha256 for m in self.manifests(name)] for name in sorted(self.inputs)},
                "code": self.parameters.get("code_digest", ""),
                **extra,
            }
        )[:32]


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
