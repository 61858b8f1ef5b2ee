"""The steps that train, on a tiny data set: their inputs, their arguments, and what they logged."""

import json
from pathlib import Path
from typing import Any

import torch

from flashslm.config import RunConfig
from flashslm.export.hf_config import config_from_architecture
from flashslm.export.weights import write_weights
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.tracking.mlflow_client import TrackingClient
from tests.unit.training import tiny


def write_inputs(store: ObjectStore, directory: Path) -> dict[str, str]:
    """Manifest files of a data set and an architecture."""
    design = directory / "architecture"
    design.mkdir()
    (design / "architecture.json").write_text(json.dumps(tiny.architecture().model_dump(mode="json")))
    trees = {"dataset": tiny.write_dataset(directory / "data"), "architecture": design}
    for name, tree in trees.items():
        store.put_tree(tree, name).write(directory / f"{name}.json")
    return {name: str(directory / f"{name}.json") for name in trees}


def call(inputs: dict[str, str], output: Path, **changes: Any) -> dict[str, Any]:
    """Arguments of run_step; `changes` are of the training section."""
    training = tiny.config(**{"learning_rate": 1e-3, "checkpoint_every_steps": 1000} | changes).model_dump(mode="json")
    return {
        "config": RunConfig.model_validate({"name": "x", "training": training}).for_step("pretrain"),
        "inputs": inputs,
        "outputs": {"checkpoint": str(output)},
        "parameters": {"weight_norm": "on", "seed": "0"},
    }


def write_champion(store: ObjectStore, directory: Path) -> dict[str, str]:
    """Manifest files of a champion (its exported model and what it has seen) and of a new data set."""
    model, exported = tiny.model(width=32), directory / "exported"  # the export format wants eight Mamba heads
    (exported / "huggingface").mkdir(parents=True)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    config = config_from_architecture(model.architecture, "float32", ids)
    (exported / "huggingface" / "config.json").write_text(json.dumps(config))
    write_weights(model, exported / "huggingface", torch.float32, 10**9)
    seen = store.put_tree(tiny.write_dataset(directory / "seen"), "dataset")
    champion = directory / "champion"
    champion.mkdir()
    (champion / "champion.json").write_text(json.dumps({"data": [seen.model_dump(mode="json")]}))
    trees = {"deployed": exported, "champion": champion, "dataset": tiny.write_dataset(directory / "new", tokens=4000)}
    for name, tree in trees.items():
        store.put_tree(tree, name, {"weight_norm": "off"}).write(directory / f"{name}.json")
    return {name: str(directory / f"{name}.json") for name in trees}


def continue_call(inputs: dict[str, str], output: Path, processes: int, **changes: Any) -> dict[str, Any]:
    """Arguments of run_step; `changes` are of the section retraining."""
    training = tiny.config(processes=processes, checkpoint_every_steps=1000).model_dump(mode="json")
    retraining = {"steps": 6, "learning_rate": 1e-3, "warmup_steps": 2, "replay_fraction": 0.3} | changes
    recipe = RunConfig.model_validate({"name": "x", "training": training, "retraining": retraining})
    return {
        "config": recipe.for_step("continue_pretraining"),
        "inputs": inputs,
        "outputs": {"checkpoint": str(output)},
        "parameters": {"code_digest": f"{processes} processes"},
    }


def metric_steps(settings: Settings, name: str) -> list[int]:
    """Steps of the training loss in the newest MLflow run of that name."""
    api = TrackingClient(settings)
    run = api.find_runs(f"attributes.run_name = '{name}'")[0].info.run_id
    history = api.get_metric_history(run, "train/loss_nats")
    return sorted({int(point.step) for point in history})
