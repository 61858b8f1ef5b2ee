"""Short training runs that rank architectures (section 3.2, appendix C) and feed the scaling law (section 3.1)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from flashslm.config import TrainingConfig
from flashslm.data.loader import TokenLoader
from flashslm.models.architecture import Architecture
from flashslm.models.hybrid import HybridLM
from flashslm.training.job import OnMetrics, TrainingJob
from flashslm.training.trainer import run_job

MAX_WARMUP_STEPS = 100
LOG_ROWS = 50  # a proxy's curve is looked at, not analysed


@dataclass(frozen=True, kw_only=True)
class ProxySettings:
    """One proxy protocol; runs compare only under the same settings.

    `evaluate_at` are step counts at which the validation loss is also taken. The schedule is linear warm-up (a tenth of
    the steps, at most 100), then for "cosine" a cosine to a tenth of the peak, for "stable" a constant rate: every
    point of a stable run is then what a shorter run would have reached, so one run gives the law several points in N
    (those of a cosine run would mix the tokens' effect with the decay's).
    """

    steps: int
    batch_size: int
    sequence_length: int
    learning_rate: float
    seed: int = 0
    validation_batches: int = 16
    weight_norm: bool = False  # as in the paper's search and depth-width studies
    evaluate_at: tuple[int, ...] = ()
    schedule: Literal["cosine", "stable"] = "cosine"
    device: str = "cpu"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        if any(not 1 <= step <= self.steps for step in self.evaluate_at):
            raise ValueError(f"evaluate_at is {self.evaluate_at}: step counts from 1 to steps ({self.steps})")

    def training_config(self) -> TrainingConfig:
        return TrainingConfig(
            steps=self.steps,
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            learning_rate=self.learning_rate,
            min_learning_rate_ratio=1.0 if self.schedule == "stable" else 0.1,
            warmup_steps=min(MAX_WARMUP_STEPS, self.steps // 10),
            precision=self.precision,
            threads=self.threads,
            validation_batches=self.validation_batches,
            log_every_steps=max(1, self.steps // LOG_ROWS),
        )


@dataclass(frozen=True)
class ProxyResult:
    """Validation losses in nats: at the end, and after each step count of `evaluate_at`."""

    loss_nats: float
    losses_nats: dict[int, float]
    tokens_seen: int
    train_time_s: float
    precision: str


def train_proxy(
    architecture: Architecture, dataset_dir: Path, settings: ProxySettings, on_metrics: OnMetrics | None = None
) -> ProxyResult:
    """Train a fresh model for `settings.steps` steps; the result is a pure function of the arguments on one device."""
    config = settings.training_config()
    model = HybridLM.build(architecture, device=settings.device, dtype=torch.float32, seed=settings.seed)
    train_loader, validation_loader = (
        TokenLoader(dataset_dir, split, settings.sequence_length, settings.batch_size, settings.seed)
        for split in ("train", "validation")
    )
    result = run_job(
        TrainingJob(
            model=model,
            train_loader=train_loader,
            validation_loader=validation_loader,
            config=config,
            weight_norm=settings.weight_norm,
            seed=settings.seed,
            validate_at=frozenset(settings.evaluate_at),
            on_metrics=on_metrics,
        )
    )
    validation = {int(r["step"]): r["validation_loss_nats"] for r in result.history if "validation_loss_nats" in r}
    return ProxyResult(
        loss_nats=result.validation_loss_nats,
        losses_nats={step: validation[step] for step in settings.evaluate_at},
        tokens_seen=result.tokens_seen,
        train_time_s=result.train_time_s,
        precision=result.precision,
    )
