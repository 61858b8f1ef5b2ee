"""pretrain: train the found architecture once, with or without weight normalisation, from one seed."""

from typing import Any

from flashslm.steps.context import StepContext
from flashslm.steps.training_run import run_order, summarized
from flashslm.training.pretraining import Order


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `checkpoint`: model.safetensors, architecture.json, training.json, metrics.jsonl."""
    weight_norm, seed = context.parameters["weight_norm"] == "on", int(context.parameters["seed"])
    order = Order(
        run_key=context.run_key(weight_norm=str(weight_norm), seed=str(seed)),
        dataset=context.manifest("dataset"),
        start=context.manifest("architecture"),
        training=context.config.training,
        kernels=context.config.kernels,
        weight_norm=weight_norm,
        seed=seed,
    )
    return summarized(run_order(context, order), "validation loss")
