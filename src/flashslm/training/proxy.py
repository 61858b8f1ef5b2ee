"""Short training runs that rank architectures (section 3.2, appendix C) and feed the scaling law (section 3.1)."""

from flashslm.config import ScalingConfig, SearchConfig, TrainingConfig

MAX_WARMUP_STEPS = 100
LOG_ROWS = 50  # a proxy's curve is looked at, not analysed


def proxy_training(section: ScalingConfig | SearchConfig, threads: int, *, decay: bool) -> TrainingConfig:
    """The training section of a proxy run; runs compare only under the same one, and without weight normalisation.

    The schedule is a linear warm-up (a tenth of the steps, at most 100), then with `decay` a cosine to a tenth of the
    peak, else a constant rate: every point of such a run is what a shorter run would have reached, so one run gives
    the law several points in N (those of a cosine run would mix the tokens' effect with the decay's).
    """
    return TrainingConfig(
        steps=section.steps,
        batch_size=section.batch_size,
        sequence_length=section.sequence_length,
        learning_rate=section.learning_rate,
        min_learning_rate_ratio=0.1 if decay else 1.0,
        warmup_steps=min(MAX_WARMUP_STEPS, section.steps // 10),
        threads=threads,
        cuda_graph=section.cuda_graph,
        validation_tokens=section.validation_tokens,
        validate_every_steps=section.steps,
        log_every_steps=max(1, section.steps // LOG_ROWS),
    )
