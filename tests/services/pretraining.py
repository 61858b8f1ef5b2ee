"""The pretrain step on a tiny data set: its inputs, its arguments, and what it logged."""

import json
from pathlib import Path
from typing import Any

from flashslm.config import RunConfig
from flashslm.platform.mlflow_api import MlflowApi
from flashslm.platform.object_store import ObjectStore
from flashslm.platform.settings import Settings
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


def metric_steps(settings: Settings, name: str) -> list[int]:
    """Steps of the training loss in the newest MLflow run of that name."""
    api = MlflowApi(settings)
    run = api.search_runs(f"attributes.run_name = '{name}'")[0]["info"]["run_id"]
    history = api.get("metrics/get-history", run_id=run, metric_key="loss_nats")["metrics"]
    return sorted({int(point["step"]) for point in history})
