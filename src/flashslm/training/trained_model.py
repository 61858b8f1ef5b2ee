"""A trained model in the object store: what comparison, evaluation and export read."""

import json
import tempfile
from pathlib import Path

from flashslm.infra.storage.object_store import ObjectStore
from flashslm.models.hybrid import HybridLM
from flashslm.models.serialization import save_weights
from flashslm.training.distributed import current_world, gather_to_main
from flashslm.training.spec import TrainOutcome, TrainSpec


def store_model(spec: TrainSpec, model: HybridLM, outcome: TrainOutcome, store: ObjectStore) -> TrainOutcome:
    """The outcome with `checkpoint`: a tree of model.safetensors, architecture.json, training.json and metrics.jsonl.

    Times are in its manifest and in MLflow alone, so that the same weights have the same address.

    A collective; rank 0 alone stores, and the other ranks' outcome has no checkpoint.
    """
    tensors = gather_to_main(model.state_dict().items())
    if not current_world().is_main:
        return outcome
    variant = {"weight_norm": "on" if spec.weight_norm else "off", "seed": spec.seed}
    with tempfile.TemporaryDirectory(prefix="flashslm-pretrain-") as name:
        directory = Path(name)
        save_weights(tensors, model.architecture, directory)
        summary = json.dumps(outcome.results() | variant, indent=1, sort_keys=True)
        (directory / "training.json").write_text(summary, encoding="utf-8")
        lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in outcome.curve())
        (directory / "metrics.jsonl").write_text(lines, encoding="utf-8")
        facts = {"validation_loss_nats": outcome.validation_loss_nats, "architecture": model.architecture.digest}
        facts |= variant | outcome.measured() | {"run_key": spec.run_key}
        manifest = store.put_tree(directory, "checkpoint", facts)
    return outcome.model_copy(update={"checkpoint": manifest})
