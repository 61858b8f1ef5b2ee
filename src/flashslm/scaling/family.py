"""The small (depth, width) family: a grid and one larger held-out model, each read at several token counts."""

from collections.abc import Callable
from dataclasses import dataclass

from flashslm.config import ModelConfig, ScalingConfig
from flashslm.infra.storage.object_store import Manifest
from flashslm.models.accounting import parameters
from flashslm.models.architecture import build_architecture, repeat_block
from flashslm.models.hybrid import HybridLM
from flashslm.scaling.law import ScalingPoint
from flashslm.scaling.points import evaluation_steps
from flashslm.training.proxy import proxy_training
from flashslm.training.spec import FromArchitecture, OpenDataset, TrainSpec
from flashslm.training.trainer import train


@dataclass(frozen=True)
class Family:
    """Points to fit and, apart, those of the held-out model to check the fit with."""

    points: list[ScalingPoint]
    holdout: list[ScalingPoint]


def train_family(
    config: ScalingConfig,
    sizes: ModelConfig,
    dataset: Manifest,
    open_dataset: OpenDataset,
    *,
    seed: int,
    device: str,
    threads: int,
    on_model: Callable[[str], None] | None = None,
) -> Family:
    """Train every (depth, width) of the grid and the held-out model; `on_model` gets a line about each.

    All models see the same batches under the same settings, without learning-rate decay (`proxy_training`), so that a
    run's earlier points are what shorter runs would give. The data set's metadata have `vocab_size`.
    """
    training = proxy_training(config, threads, decay=False)
    validate_at = evaluation_steps(config.steps, config.checkpoints)

    def points(depth: int, width: int) -> list[ScalingPoint]:
        operators = repeat_block(config.block, depth)
        architecture = build_architecture(operators, width, sizes, dataset.metadata["vocab_size"])
        spec = TrainSpec(
            start=FromArchitecture(architecture=architecture),
            dataset=dataset,
            training=training,
            weight_norm=False,  # as in the paper's depth-width study
            seed=seed,
            validate_at=validate_at,
        )
        outcome = train(spec, HybridLM.build(architecture, device, seed=seed), open_dataset)
        total = parameters(architecture)["total"]
        if on_model:
            loss_nats = outcome.validation_loss_nats
            on_model(f"depth {depth}, width {width}, {total:,} parameters: {loss_nats:.3f} nats")
        return [
            ScalingPoint(
                depth=depth,
                width=width,
                tokens=step * config.batch_size * config.sequence_length,
                loss_nats=loss_nats,
                parameters=total,
            )
            for step, loss_nats in outcome.validation_losses_nats().items()
        ]

    grid = [point for depth in config.depths for width in config.widths for point in points(depth, width)]
    return Family(grid, points(config.holdout_depth, config.holdout_width))
