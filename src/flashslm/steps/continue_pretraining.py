"""continue_pretraining: train the champion's weights on the new data, with some of its first data among it."""

import json
from pathlib import Path
from typing import Any

import torch

from flashslm.config import RetrainingConfig, TrainingConfig
from flashslm.data.loader import TokenLoader
from flashslm.data.replay import ReplayLoader
from flashslm.export.importing import load_export
from flashslm.hardware import pick_device
from flashslm.models.serialization import save_model
from flashslm.steps.context import StepContext, write_json
from flashslm.steps.fetch_champion import champions_data
from flashslm.training.checkpoint import CheckpointStore
from flashslm.training.trainer import train


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `checkpoint`: model.safetensors, architecture.json, training.json, metrics.jsonl.

    A retry, or the same command after a kill, resumes from the last checkpoint.
    """
    config = retraining_config(context.config.training, context.config.retraining)
    seed = context.config.seed
    weight_norm = context.manifest("deployed").metadata.get("weight_norm", "off")
    new, old = context.fetch("dataset"), context.fetch_manifest(champions_data(context)[0])
    model = load_export(context.fetch("deployed") / "huggingface", pick_device("auto")).to(torch.float32)
    rows = config.micro_batch_size or config.batch_size

    def on_metrics(step: int, values: dict[str, float]) -> None:
        context.task.log_metrics(values, step)
        losses = ", ".join(f"{key} {value:.3f}" for key, value in values.items() if key.endswith("loss_nats"))
        context.events.emit("progress", f"step {step} of {config.steps}: {losses}", training_step=step)

    key = context.run_key()
    result = train(
        model.train(),
        training_rows(new, old, config, round(rows * context.config.retraining.replay_fraction), seed),
        TokenLoader(new, "validation", config.sequence_length, rows, seed),
        config,
        weight_norm=weight_norm == "on",
        seed=seed,
        checkpoints=CheckpointStore(context.store, key, config.keep_checkpoints),
        on_metrics=on_metrics,
    )
    variant = {"weight_norm": weight_norm, "seed": seed}
    facts = variant | {"validation_loss_nats": result.validation_loss_nats, "run_key": key}
    with context.scratch() as directory:
        save_model(model, directory)
        write_json(directory / "training.json", result.summary() | variant)
        lines = "".join(json.dumps(row) + "\n" for row in result.history)
        (directory / "metrics.jsonl").write_text(lines, encoding="utf-8")
        context.publish("checkpoint", directory, facts | {"architecture": model.architecture.digest})
    resumed = f" (resumed from step {result.resumed_from_step})" if result.resumed_from_step else ""
    return {
        "validation_loss_nats": result.validation_loss_nats,
        "resumed_from_step": result.resumed_from_step,
        "train_tokens_per_s": result.tokens_per_s,
        "summary": f"validation loss on new data {result.validation_loss_nats:.3f} nats after {config.steps} "
        f"steps{resumed}",
    }


def retraining_config(training: TrainingConfig, retraining: RetrainingConfig) -> TrainingConfig:
    """The training section with what retraining has of its own."""
    own = ("steps", "learning_rate", "min_learning_rate_ratio", "warmup_steps")
    return training.model_copy(update={name: getattr(retraining, name) for name in own})


def training_rows(new: Path, old: Path, config: TrainingConfig, replayed_rows: int, seed: int) -> TokenLoader:
    """The loader of new data, with `replayed_rows` of each micro-batch's rows from the old."""
    rows, length = config.micro_batch_size or config.batch_size, config.sequence_length
    if not replayed_rows:
        return TokenLoader(new, "train", length, rows, seed)
    return ReplayLoader(new, old, length, rows, seed, min(replayed_rows, rows - 1))
