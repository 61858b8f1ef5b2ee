"""A data set, architecture, recipe and object store small enough for a training run in well under a second."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flashslm.config import ModelConfig, TrainingConfig
from flashslm.data.loader import TokenLoader
from flashslm.data.shards import ShardWriter
from flashslm.infra.storage.errors import ObjectCorrupt, ObjectMissing
from flashslm.infra.storage.object_store import Manifest
from flashslm.models.architecture import Architecture, build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.training.spec import FromArchitecture, OpenDataset, TrainOutcome, TrainSpec

VOCAB = 64
# Weight matrices that are normalised in another way than the paper's: by heads, the other way round, not at all.
AXES = {
    "A.q_proj": "heads",
    "A.k_proj": "heads",
    "A.o_proj": "heads",
    "D.q_proj": "columns",
    "D.b_proj": "none",
    "M.in_proj": "heads",
    "F.down_proj": "rows",
    "L.k_proj": "heads",
    "G.g_proj": "heads",
}
SIZES = ModelConfig(head_dim=8, kv_group=2, ffn_ratio=2, mamba_state=8, mamba_head_dim=8, num_meta_tokens=4)


def write_dataset(directory: Path, tokens: int = 6000) -> Path:
    """Text in which a token decides the next with probability 0.8: there is something to learn, and a floor."""
    rng = np.random.default_rng(0)
    successor = rng.permutation(np.arange(1, VOCAB))
    for split, size in (("train", tokens), ("validation", tokens // 4), ("test", tokens // 4)):
        writer = ShardWriter(directory / split, VOCAB, end_of_document_id=0, shard_tokens=4096)
        while writer.tokens < size:
            document = [int(rng.integers(1, VOCAB))]
            for _ in range(int(rng.integers(20, 60))):
                likely = int(successor[document[-1] - 1])
                document.append(likely if rng.random() < 0.8 else int(rng.integers(1, VOCAB)))
            writer.add(document, num_bytes=len(document))
        writer.close()
    return directory


def architecture(operators: str = "DFMFAF", width: int = 16) -> Architecture:
    return build_architecture(operators, width, SIZES, VOCAB)


def model(operators: str = "DFMFAF", width: int = 16, seed: int = 0) -> HybridLM:
    return HybridLM.build(architecture(operators, width), seed=seed)


def config(**changes: object) -> TrainingConfig:
    values: dict[str, object] = {
        "steps": 8,
        "batch_size": 4,
        "sequence_length": 16,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "validation_tokens": 128,
        "validate_every_steps": 4,
        "checkpoint_every_steps": 3,
        "log_every_steps": 1,
    }
    return TrainingConfig.model_validate(values | changes)


def manifest(**metadata: object) -> Manifest:
    """Of the data set that `fetching` gives, whatever it is."""
    return Manifest(kind="dataset", uri="s3://bucket/cas/x", sha256="0" * 64, bytes=1, metadata=metadata)


def spec(settings: TrainingConfig | None = None, **changes: Any) -> TrainSpec:
    values = {"start": FromArchitecture(architecture=architecture()), "dataset": manifest(), "run_key": "run"}
    training = {"training": settings or config(), "weight_norm": False, "seed": 0}
    return TrainSpec(**values | training | changes)


def outcome(loss_nats: float, **changes: Any) -> TrainOutcome:
    """Of a run that did not take place."""
    sizes = {"steps": 4, "tokens_seen": 256, "world_size": 1, "resumed_from_step": 0}
    speed = {"tokens_per_s": 1e3, "train_time_s": 0.0, "precision": "float32", "device": "cpu"}
    losses = {"train_loss_nats": loss_nats, "validation_loss_nats": loss_nats, "history": [], "kernels": {}}
    return TrainOutcome(**sizes | speed | losses | changes)


def fetching(dataset: Path) -> OpenDataset:
    return lambda manifest: dataset


def loaders(dataset: Path, settings: TrainingConfig) -> tuple[TokenLoader, ...]:
    rows = settings.micro_batch_size or settings.batch_size
    return tuple(TokenLoader(dataset, split, settings.sequence_length, rows, 0) for split in ("train", "validation"))


class DirectoryStore:
    """The object store's trees and JSON objects as plain files."""

    def __init__(self, root: Path):
        self.root = root

    def put_tree(self, directory: Path, kind: str, metadata: dict) -> Manifest:
        sha256 = _digest(directory)
        target = self.root / "cas" / sha256
        if not target.exists():
            shutil.copytree(directory, target)
        size = sum(file.stat().st_size for file in target.iterdir())
        return Manifest(kind=kind, uri=f"s3://bucket/cas/{sha256}", sha256=sha256, bytes=size, metadata=metadata)

    def get_tree(self, manifest: Manifest, directory: Path) -> Path:
        source = self.root / "cas" / manifest.sha256
        if not source.exists():
            raise ObjectMissing(manifest.uri)
        if _digest(source) != manifest.sha256:
            raise ObjectCorrupt(manifest.uri)
        if not directory.exists():  # as in the real one, whole or absent
            partial = directory.with_name(f"{directory.name}.{os.getpid()}")
            shutil.copytree(source, partial)
            partial.rename(directory)
        return directory

    def delete_tree(self, manifest: Manifest) -> None:
        shutil.rmtree(self.root / "cas" / manifest.sha256, ignore_errors=True)

    def put_json(self, key: str, value: object) -> str:
        file = self.root / key
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".partial")
        temporary.write_text(json.dumps(value))
        temporary.rename(file)
        return ""

    def get_json(self, key: str) -> tuple[object, str] | None:
        file = self.root / key
        if not file.exists():
            return None
        try:
            return json.loads(file.read_text()), ""
        except ValueError as error:
            raise ObjectCorrupt(key) from error

    def damage(self, key: str) -> None:
        (self.root / key).write_text("{")

    def list(self, prefix: str) -> list[str]:
        found = (file.relative_to(self.root).as_posix() for file in self.root.rglob("*.json"))
        return sorted(key for key in found if key.startswith(prefix))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            (self.root / key).unlink(missing_ok=True)


def _digest(directory: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(directory.iterdir()))).hexdigest()
