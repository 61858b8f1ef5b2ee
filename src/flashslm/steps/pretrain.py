"""pretrain: train the found architecture once, with or without weight normalisation, from one seed."""

import json
from typing import Any

import torch

from flashslm.data.loader import TokenLoader
from flashslm.hardware import pick_device
from flashslm.models.hybrid import HybridLM
from flashslm.models.serialization import load_architecture, save_model
from flashslm.steps.context import StepContext, write_json
from flashslm.training.checkpoint import CheckpointStore
from flashslm.training.trainer import train


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `checkpoint`: model.safetensors, architecture.json, training.json, metrics.jsonl.

    Checkpoints are keyed by the work itself, so a retry (or the same command after a kill) resumes where they end.
    """
    config, weight_norm = context.config.training, context.parameters["weight_norm"] == "on"
    seed = int(context.parameters["seed"])
    dataset = context.fetch("dataset")
    model = HybridLM.build(
        load_architecture(context.fetch("architecture")), device=pick_device("auto"), dtype=torch.float32, seed=seed
    )
    key = context.run_key(weight_norm=str(weight_norm), seed=str(seed))
    loader, validation = (
        TokenLoader(dataset, split, config.sequence_length, config.micro_batch_size or config.batch_size, seed)
        for split in ("train", "validation")
    )

    def on_metrics(step: int, values: dict[str, float]) -> None:
        context.task.log_metrics(values, step)
        losses = ", ".join(f"{key} {value:.3f}" for key, value in values.items() if key.endswith("loss_nats"))
        context.events.emit("progress", f"step {step} of {config.steps}: {losses}", training_step=step)

    result = train(
        model,
        loader,
        validation,
        config,
        weight_norm=weight_norm,
        seed=seed,
        checkpoints=CheckpointStore(context.store, key, config.keep_checkpoints),
        on_metrics=on_metrics,
    )
    variant = {"weight_norm": "on" if weight_norm else "off", "seed": seed}
    facts = variant | {"validation_loss_nats": result.validation_loss_nats}
    with context.scratch() as directory:
        save_model(model, directory)
        write_json(directory / "training.json", result.summary() | variant)
        lines = "".join(json.dumps(row) + "\n" for row in result.history)
        (directory / "metrics.jsonl").write_text(lines, encoding="utf-8")
        context.publish("checkpoint", directory, facts | {"architecture": model.architecture.digest, "run_key": key})
    return {
        "validation_loss_nats": result.validation_loss_nats,
        "resumed_from_step": result.resumed_from_step,
        "train_tokens_per_s": result.tokens_per_s,
        "summary": f"validation loss {result.validation_loss_nats:.3f} nats after {config.steps} steps"
        + (f" (resumed from step {result.resumed_from_step})" if result.resumed_from_step else ""),
    }
