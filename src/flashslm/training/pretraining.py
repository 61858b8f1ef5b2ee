"""One training run as an order that a process can carry out: the step itself, or each worker of a process group."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flashslm.config import KernelsConfig, TrainingConfig
from flashslm.data.loader import TokenLoader
from flashslm.data.replay import ReplayLoader
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.models.hybrid import HybridLM
from flashslm.models.serialization import save_weights
from flashslm.ops import kernels
from flashslm.training.checkpoint import CheckpointStore
from flashslm.training.distributed import current_world, gather_to_main
from flashslm.training.job import OnMetrics
from flashslm.training.trainer import train


class Replay(BaseModel):
    """Old data whose rows are `fraction` of those of each batch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Manifest
    fraction: float


class Order(BaseModel):
    """What to train and on what; `run_key` is the identity of the work, under which its checkpoints are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_key: str
    dataset: Manifest
    start: Manifest  # an architecture, whose weights are drawn by the seed; with `replay` an exported model
    replay: Replay | None = None
    training: TrainingConfig
    kernels: KernelsConfig
    weight_norm: bool
    seed: int

    @property
    def key(self) -> str:
        """The object that holds the order for workers on other nodes."""
        return f"pretraining/{self.run_key}/order.json"

    @property
    def heartbeat_key(self) -> str:
        """What the step that waits for other nodes renews."""
        return f"pretraining/{self.run_key}/heartbeat.json"

    @property
    def outcome_key(self) -> str:
        return f"pretraining/{self.run_key}/outcome.json"

    @property
    def variant(self) -> dict[str, Any]:
        return {"weight_norm": "on" if self.weight_norm else "off", "seed": self.seed}


class Outcome(BaseModel):
    """The stored checkpoint and what the run came to: one row of `history` a logged step, the form each kernel took."""

    checkpoint: Manifest
    summary: dict[str, Any]
    history: list[dict[str, float]]
    kernels: dict[str, str]


def micro_batch_rows(config: TrainingConfig, world_size: int) -> int:
    """Sequences in a micro-batch of all ranks together. Raises ValueError if the ranks do not divide it."""
    rows = config.micro_batch_size or config.batch_size
    if rows % world_size:
        name = "micro_batch_size" if config.micro_batch_size else "batch_size"
        raise ValueError(
            f"training.{name} is {rows} and {world_size} processes train together: make it a multiple of {world_size}, "
            "or set training.processes (on each node) or platform.nodes"
        )
    return rows


Fetch = Callable[[Manifest], Path]  # the directory of a stored tree


def execute(
    order: Order, model: HybridLM, store: ObjectStore, fetch: Fetch, on_metrics: OnMetrics | None = None
) -> Outcome | None:
    """Train the model of `order.start` as ordered in this process' world, from the newest checkpoint; rank 0 stores
    the result and returns it.

    The tree made holds model.safetensors, architecture.json, training.json and metrics.jsonl.
    """
    world, architecture = current_world(), model.architecture
    train_loader, validation = _loaders(order, fetch)
    result = train(
        model,
        train_loader,
        validation,
        order.training,
        weight_norm=order.weight_norm,
        seed=order.seed,
        checkpoints=CheckpointStore(store, order.run_key, order.training.keep_checkpoints),
        on_metrics=on_metrics,
    )
    tensors = gather_to_main(model.state_dict().items())
    if not world.is_main:
        return None
    facts = order.variant | {"validation_loss_nats": result.validation_loss_nats}
    with tempfile.TemporaryDirectory(prefix="flashslm-pretrain-") as name:
        directory = Path(name)
        save_weights(tensors, architecture, directory)
        summary = json.dumps(result.summary() | order.variant, indent=1, sort_keys=True)
        (directory / "training.json").write_text(summary, encoding="utf-8")
        lines = "".join(json.dumps(row) + "\n" for row in result.history)
        (directory / "metrics.jsonl").write_text(lines, encoding="utf-8")
        metadata = facts | {"architecture": architecture.digest, "run_key": order.run_key}
        checkpoint = store.put_tree(directory, "checkpoint", metadata)
    return Outcome(checkpoint=checkpoint, summary=result.summary(), history=result.history, kernels=kernels.decisions())


def _loaders(order: Order, fetch: Fetch) -> tuple[TokenLoader, TokenLoader]:
    """This rank's training and validation rows."""
    world, length = current_world(), order.training.sequence_length
    dataset, rows = fetch(order.dataset), micro_batch_rows(order.training, world.size)
    validation = TokenLoader(dataset, "validation", length, rows, order.seed, world.rank, world.size)
    if order.replay is None:
        return TokenLoader(dataset, "train", length, rows, order.seed, world.rank, world.size), validation
    replay, ranks = order.replay, {"rank": world.rank, "world_size": world.size}
    old = fetch(replay.dataset)
    return ReplayLoader(dataset, old, length, rows, order.seed, replay.fraction, **ranks), validation
