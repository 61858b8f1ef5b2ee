"""One pretraining run as an order that a process can carry out: the step itself, or each worker of a process group."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from flashslm.config import KernelsConfig, TrainingConfig
from flashslm.data.loader import TokenLoader
from flashslm.hardware import pick_device
from flashslm.models.hybrid import HybridLM
from flashslm.models.serialization import load_architecture, save_weights
from flashslm.ops import kernels
from flashslm.platform.object_store import Manifest, ObjectStore
from flashslm.training.checkpoint import CheckpointStore
from flashslm.training.distributed import current_world, gather_to_main
from flashslm.training.job import OnMetrics
from flashslm.training.trainer import train


class Order(BaseModel):
    """What to train and on what; `run_key` is the identity of the work, under which its checkpoints are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_key: str
    dataset: Manifest
    architecture: Manifest
    training: TrainingConfig
    kernels: KernelsConfig
    weight_norm: bool
    seed: int

    @property
    def key(self) -> str:
        """The object that holds the order for workers on other nodes."""
        return f"pretraining/{self.run_key}/order.json"

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


def execute(
    order: Order, store: ObjectStore, fetch: Callable[[Manifest], Path], on_metrics: OnMetrics | None = None
) -> Outcome | None:
    """Train as ordered in this process' world, from the newest checkpoint; rank 0 stores the result and returns it.

    `fetch` gives the directory of a stored tree. The tree made holds model.safetensors, architecture.json,
    training.json and metrics.jsonl.
    """
    config, world = order.training, current_world()
    dataset, architecture = fetch(order.dataset), load_architecture(fetch(order.architecture))
    model = HybridLM.build(architecture, device=pick_device("auto"), dtype=torch.float32, seed=order.seed)
    rows = micro_batch_rows(config, world.size)
    loader, validation = (
        TokenLoader(dataset, split, config.sequence_length, rows, order.seed, world.rank, world.size)
        for split in ("train", "validation")
    )
    result = train(
        model,
        loader,
        validation,
        config,
        weight_norm=order.weight_norm,
        seed=order.seed,
        checkpoints=CheckpointStore(store, order.run_key, config.keep_checkpoints),
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
