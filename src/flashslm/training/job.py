"""What a training run is made of and what it comes to."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from flashslm.config import TrainingConfig
from flashslm.data.loader import TokenLoader
from flashslm.models.hybrid import HybridLM
from flashslm.training.checkpoint import CheckpointStore

OnMetrics = Callable[[int, dict[str, float]], None]


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became NaN or infinite; the message names the step and the last good checkpoint."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to. `history` has one row per logged step: `step` and the metrics, units in their names."""

    steps: int
    tokens_seen: int
    loss_nats: float
    validation_loss_nats: float
    tokens_per_s: float
    train_time_s: float  # in steps alone: no validation, no checkpoints; over all attempts
    precision: str
    device: str
    world_size: int
    resumed_from_step: int  # 0 = started afresh
    history: list[dict[str, float]]

    def summary(self) -> dict[str, Any]:
        """Everything but the history."""
        return {key: value for key, value in asdict(self).items() if key != "history"}


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """All that a run is made of; the validation loss is taken after each step count in `validate_at` and at the end."""

    model: HybridLM
    train_loader: TokenLoader
    validation_loader: TokenLoader
    config: TrainingConfig
    weight_norm: bool
    seed: int
    validate_at: frozenset[int]
    checkpoints: CheckpointStore | None = None
    on_metrics: OnMetrics | None = None
