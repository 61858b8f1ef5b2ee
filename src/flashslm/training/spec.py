"""What a training run is made of and what it comes to: plain values, the same for a step, its workers and a proxy."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flashslm.config import KernelsConfig, OutputInit, TrainingConfig, digest
from flashslm.data.files import Files
from flashslm.infra.storage.object_store import Manifest
from flashslm.models.architecture import Architecture

OnMetrics = Callable[[int, dict[str, float]], None]
TRAIN_LOSS, VALIDATION_LOSS = "train/loss_nats", "validation/loss_nats"  # columns of the history
OnResume = Callable[[int, str], None]  # the step and the checkpoint that a run continues from
# Of the device and the moment, not of what was trained: columns of the history.
SPEEDS = ("tokens_per_s", "step_time_ms", "tflops_per_s", "mfu", "peak_memory_bytes")
OpenDataset = Callable[[Manifest], Path | Files]  # of a stored data set


class NonFiniteLoss(RuntimeError):
    """Training diverged: the validation loss, or the gradients of more steps than are allowed, are NaN or infinite."""


class _Values(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FromArchitecture(_Values):
    """A new model, whose weights are drawn with the run's seed."""

    kind: Literal["architecture"] = "architecture"
    architecture: Architecture
    output_init: OutputInit = "normal"  # a recipe's model.output_init


class FromExport(_Values):
    """The weights in `huggingface/` of an exported model's tree."""

    kind: Literal["exported_model"] = "exported_model"
    exported: Manifest


class Replay(_Values):
    """Old data whose rows are `fraction` of those of each batch."""

    dataset: Manifest
    fraction: float


class TrainSpec(_Values):
    """One training run. Of `training` the lists weight_norm and seeds, the variants of an ablation, are not read."""

    start: Annotated[FromArchitecture | FromExport, Field(discriminator="kind")]
    dataset: Manifest
    replay: Replay | None = None
    training: TrainingConfig
    weight_norm: bool
    seed: int
    validate_at: tuple[int, ...] = ()  # step counts besides those of training.validate_every_steps and the last
    kernels: KernelsConfig | None = None  # what worker processes run; None = nothing is set in this process
    run_key: str = ""  # the identity of the work, under which its checkpoints are kept; "" = none are

    @model_validator(mode="after")
    def _validations_are_in_the_run(self) -> "TrainSpec":
        if any(not 1 <= step <= self.training.steps for step in self.validate_at):
            raise ValueError(f"validate_at is {self.validate_at}: step counts from 1 to steps ({self.training.steps})")
        return self

    @property
    def run_training(self) -> TrainingConfig:
        """`training` with the learning rate of this run's variant."""
        if not self.weight_norm:
            return self.training
        rate = self.training.learning_rate * self.training.weight_norm_rate_factor
        return self.training.model_copy(update={"learning_rate": rate})

    def object_key(self, name: Literal["spec", "heartbeat", "outcome"]) -> str:
        """The object by which the step and its workers exchange the spec, a sign of life, and the outcome.

        Steps that execute the same run in other ways share all but the spec: workers of one read no other's.
        """
        own = f"-{digest(self.model_dump(mode='json'))[:16]}" if name == "spec" else ""
        return f"pretraining/{self.run_key}/{name}{own}.json"

    def check_ranks(self, world_size: int) -> None:
        """Raise ValueError if the ranks do not divide the micro-batch of some stage, or into groups that shard."""
        remedy = f"{world_size} processes train together: make it a %s of {world_size}, or set training.processes (on "
        remedy += "each node) or platform.nodes"
        for shape in self.training.for_processes(world_size).batch_shapes:
            rows = shape.micro_batch_size
            if rows % world_size:
                name = "batch_size" if rows == shape.batch_size else "micro_batch_size"
                raise ValueError(f"training.{name} is {rows} and {remedy % 'multiple'}")
            if shape.batch_size % rows:
                raise ValueError(
                    f"training.batch_size is {shape.batch_size} and each of {world_size} processes passes "
                    f"{rows // world_size} sequences at a time (micro_batch_size): make it a multiple of {rows}"
                )
        if (group := self.training.shard_processes) and world_size > 1 and world_size % group:
            raise ValueError(f"training.shard_processes is {group} and {remedy % 'divisor'}")

    def for_processes(self, processes: int) -> "TrainSpec":
        """What so many processes train; raises ValueError if they cannot."""
        self.check_ranks(processes)
        return self.model_copy(update={"training": self.training.for_processes(processes)})


class TrainOutcome(_Values):
    """What a run came to. `history` has one row per logged step: `step` and the metrics, units in their names."""

    steps: int
    tokens_seen: int
    train_loss_nats: float  # of the last step's batch
    validation_loss_nats: float  # over the fixed sample of the validation split, after the last step
    tokens_per_s: float
    train_time_s: float  # in steps alone: no validation, no checkpoints; over all attempts
    precision: str
    device: str
    world_size: int
    resumed_from_step: int  # 0 = it began at the first step
    skipped_steps: int = 0  # whose gradient was not finite
    history: list[dict[str, int | float]]
    kernels: dict[str, str]  # the implementation that each kernel took
    checkpoint: Manifest | None = None  # the trained model, where it was stored

    def results(self) -> dict[str, Any]:
        """The numbers of the whole run that another run of the same work has too."""
        same = {"steps", "tokens_seen", "train_loss_nats", "validation_loss_nats", "precision", "skipped_steps"}
        return self.model_dump(include=same)

    def measured(self) -> dict[str, Any]:
        """Those of this run alone: its speed and where it ran."""
        alone = {"tokens_per_s", "train_time_s", "device", "world_size", "resumed_from_step"}
        times_ms = [row["step_time_ms"] for row in self.history]
        return self.model_dump(include=alone) | {"step_time_ms": statistics.median(times_ms)}

    def curve(self) -> list[dict[str, int | float]]:
        """The history without speeds."""
        return [{key: value for key, value in row.items() if key not in SPEEDS} for row in self.history]

    def validation_losses_nats(self) -> dict[int, float]:
        """By step count, wherever it was taken."""
        return {int(row["step"]): row[VALIDATION_LOSS] for row in self.history if VALIDATION_LOSS in row}
