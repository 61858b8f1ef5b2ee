"""The small (depth, width) family: a grid and one larger held-out model, each read at several token counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from flashslm.config import ModelConfig, ScalingConfig
from flashslm.infra.storage.object_store import Manifest
from flashslm.models.accounting import parameters
from flashslm.models.architecture import build_architecture, repeat_block
from flashslm.scaling.law import ScalingPoint
from flashslm.scaling.points import evaluation_steps
from flashslm.training.new_model import new_model
from flashslm.training.proxy import proxy_training
from flashslm.training.spec import FromArchitecture, OpenDataset, TrainSpec
from flashslm.training.trainer import train


class Member(NamedTuple):
    """One model: repeats of the block, and hidden size."""

    depth: int
    width: int


class TrainedMember(BaseModel):
    """What a model's training came to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    member: Member
    points: list[ScalingPoint]
    kernels: dict[str, str]  # the implementation that each kernel took

    @property
    def summary(self) -> str:
        last = self.points[-1]
        return f"depth {last.depth}, width {last.width}, {last.parameters:,} parameters: {last.loss_nats:.3f} nats"


@dataclass(frozen=True)
class Family:
    """Points to fit and, apart, those of the held-out model to check the fit with."""

    points: list[ScalingPoint]
    holdout: list[ScalingPoint]


@dataclass(frozen=True)
class FamilyTraining:
    """How each model is trained. The data set's metadata have `vocab_size`.

    All models see the same batches under the same settings, without learning-rate decay (`proxy_training`), so that a
    run's earlier points are what shorter runs would give.
    """

    config: ScalingConfig
    sizes: ModelConfig
    dataset: Manifest
    seed: int
    device: str
    threads: int

    def train(self, member: Member, open_dataset: OpenDataset) -> TrainedMember:
        """Train one model; its points are those of `checkpoints` token counts."""
        config = self.config
        operators = repeat_block(config.block, member.depth)
        architecture = build_architecture(operators, member.width, self.sizes, self.dataset.metadata["vocab_size"])
        start = FromArchitecture(architecture=architecture, output_init=self.sizes.output_init)
        spec = TrainSpec(
            start=start,
            dataset=self.dataset,
            training=proxy_training(config, self.threads, decay=False),
            weight_norm=False,  # as in the paper's depth-width study
            seed=self.seed,
            validate_at=evaluation_steps(config.steps, config.checkpoints),
        )
        outcome = train(spec, new_model(start, self.device, self.seed), open_dataset)
        points = [
            ScalingPoint(
                depth=member.depth,
                width=member.width,
                tokens=step * config.batch_size * config.sequence_length,
                loss_nats=loss_nats,
                parameters=parameters(architecture)["total"],
            )
            for step, loss_nats in outcome.validation_losses_nats().items()
        ]
        return TrainedMember(member=member, points=points, kernels=outcome.kernels)


def holdout_of(config: ScalingConfig) -> Member:
    """The model that the law has to predict."""
    return Member(config.holdout_depth, config.holdout_width)


def members(config: ScalingConfig) -> list[Member]:
    """The grid, then the held-out model."""
    return [*(Member(depth, width) for depth in config.depths for width in config.widths), holdout_of(config)]


def family_of(config: ScalingConfig, trained: Mapping[Member, TrainedMember]) -> Family:
    """The points in the order of `members`, in whichever order they were trained."""
    *grid, holdout = members(config)
    return Family([point for member in grid for point in trained[member].points], trained[holdout].points)
