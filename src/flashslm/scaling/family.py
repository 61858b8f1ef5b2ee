"""The small (depth, width) family: a grid and one larger held-out model, each read at several token counts."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flashslm.config import ModelConfig, ScalingConfig
from flashslm.models.accounting import parameters
from flashslm.models.architecture import build_architecture, repeat_block
from flashslm.scaling.law import ScalingPoint
from flashslm.training.proxy import ProxySettings, train_proxy


@dataclass(frozen=True)
class Family:
    """Points to fit and, apart, those of the held-out model to check the fit with."""

    points: list[ScalingPoint]
    holdout: list[ScalingPoint]


def evaluation_steps(steps: int, checkpoints: int) -> tuple[int, ...]:
    """`checkpoints` step counts from a quarter of the run to its end, evenly spaced in log N.

    The first quarter holds the warm-up and the descent to the unigram loss, which no power law in N describes: on a
    family of small models, points from an eighth on doubled the fit's residuals and tripled the held-out error.
    """
    return tuple(sorted({max(1, round(steps * 4 ** (i / (checkpoints - 1) - 1))) for i in range(checkpoints)}))


def train_family(
    config: ScalingConfig,
    sizes: ModelConfig,
    vocab_size: int,
    dataset_dir: Path,
    *,
    seed: int,
    device: str,
    threads: int,
    on_model: Callable[[str], None] | None = None,
) -> Family:
    """Train every (depth, width) of the grid and the held-out model; `on_model` gets a line about each.

    All models see the same batches under the same settings, without learning-rate decay (`ProxySettings`), so that a
    run's earlier points are what shorter runs would give.
    """
    settings = ProxySettings(
        steps=config.steps,
        batch_size=config.batch_size,
        sequence_length=config.sequence_length,
        learning_rate=config.learning_rate,
        seed=seed,
        evaluate_at=evaluation_steps(config.steps, config.checkpoints),
        schedule="stable",
        device=device,
        threads=threads,
    )

    def points(depth: int, width: int) -> list[ScalingPoint]:
        architecture = build_architecture(repeat_block(config.block, depth), width, sizes, vocab_size)
        total = parameters(architecture)["total"]
        result = train_proxy(architecture, dataset_dir, settings)
        if on_model:
            on_model(f"depth {depth}, width {width}, {total:,} parameters: {result.loss_nats:.3f} nats")
        return [
            ScalingPoint(
                depth=depth,
                width=width,
                tokens=step * config.batch_size * config.sequence_length,
                loss_nats=loss_nats,
                parameters=total,
            )
            for step, loss_nats in result.losses_nats.items()
        ]

    grid = [point for depth in config.depths for width in config.widths for point in points(depth, width)]
    return Family(grid, points(config.holdout_depth, config.holdout_width))
