"""continue_pretraining: train the champion's weights on the new data, with some of its first data among it."""

from typing import Any

from flashslm.config import RetrainingConfig, TrainingConfig
from flashslm.steps.context import StepContext
from flashslm.steps.fetch_champion import champions_data
from flashslm.steps.pretrain import Diverged, summarized, train_or_diverge
from flashslm.training.spec import FromExport, Replay, TrainSpec


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `checkpoint`: model.safetensors, architecture.json, training.json, metrics.jsonl; the result's `decision`
    is "trained", or "diverged" where the loss became NaN or infinite: there is no challenger then, and the output holds
    no more than why (metadata `reason`).
    """
    recipe, deployed = context.config, context.manifest("deployed")
    replayed = champions_data(context)[0]
    spec = TrainSpec(
        start=FromExport(exported=deployed),
        dataset=context.manifest("dataset"),
        replay=Replay(dataset=replayed, fraction=recipe.retraining.replay_fraction),
        training=retraining_config(recipe.training, recipe.retraining),
        weight_norm=deployed.metadata.get("weight_norm", "off") == "on",
        seed=recipe.seed,
        kernels=recipe.kernels,
        run_key=context.run_key(),
    )
    outcome = train_or_diverge(context, spec, "the challenger diverged")
    if isinstance(outcome, Diverged):
        return {"decision": "diverged", "summary": outcome.reason}
    return summarized(outcome, "validation loss on new data") | {"decision": "trained"}


def retraining_config(training: TrainingConfig, retraining: RetrainingConfig) -> TrainingConfig:
    """The training section with retraining's own values."""
    own = ("steps", "learning_rate", "min_learning_rate_ratio", "warmup_steps")
    values = {name: getattr(retraining, name) for name in own}
    return training.model_copy(update=values | {"schedule": "cosine", "stages": (), "mixture": ()})
