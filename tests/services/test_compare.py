"""`flashslm compare` of runs and registry versions: their stored evaluations, item by item, and nothing run again."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.evaluation import items
from flashslm.evaluation.items import ITEMS_FILE, accuracy_items
from flashslm.infra.registry import model_registry
from flashslm.infra.registry.model_registry import Lineage
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.tracking import mlflow_runs

pytestmark = pytest.mark.services
JUDGED = {"device": "d", "parameters": 5, "latency_ms": 1.0}  # what a gate compares, which versions are registered with
FACTS = JUDGED | {"context": 8, "batch": 1}


def evaluation(store: ObjectStore, directory: Path, right: int) -> Manifest:
    tree = directory / f"evaluation-{right}"
    tree.mkdir()
    found = {"arc/acc": accuracy_items([i < right for i in range(20)], "questions")}
    (tree / ITEMS_FILE).write_text(json.dumps(items.dump(found)))
    return store.put_tree(tree, "evaluation")


@pytest.fixture
def name(platform_env: Settings, store: ObjectStore, tmp_path: Path) -> str:
    """A model with two versions of 5 and 18 right answers; the first is also a run."""
    made = f"model-{os.urandom(4).hex()}"
    run_id = mlflow_runs.start_parent_run(platform_env, made)
    for right in (5, 18):
        tree = tmp_path / f"tree-{right}"
        tree.mkdir()
        (tree / "weights").write_text(f"{made} {right}")
        exported, judged = store.put_tree(tree, "exported", FACTS), evaluation(store, tmp_path, right)
        lineage = Lineage(evaluation=judged)
        model_registry.register(platform_env, made, exported, run_id, JUDGED | {"perplexity": 3.0}, lineage=lineage)
        artifacts = tmp_path / "runs" / f"run-{right}" / "artifacts"
        artifacts.mkdir(parents=True)
        exported.write(artifacts / "exported.json")
        judged.write(artifacts / "evaluation.json")
    mlflow_runs.finish_run(platform_env, run_id, "FINISHED")
    return made


def compared(tmp_path: Path, first: str, second: str) -> dict:
    options = ["--runs", str(tmp_path / "runs"), "--home", str(tmp_path / "home"), "--json"]
    done = CliRunner().invoke(app, ["compare", first, second, *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


def test_runs_versions_and_evaluations_are_compared_by_what_is_stored(name: str, tmp_path: Path) -> None:
    forms = ("run-5", f"{name}@1", str(tmp_path / "runs/run-5/artifacts/evaluation.json"))
    for first in forms:
        for second in ("run-18", f"{name}@challenger"):
            row, *sizes = compared(tmp_path, first, second)["rows"]
            assert (row["metric"], row["champion"], row["challenger"]) == ("arc/acc", 0.25, 0.9)
            assert row["method"] == "McNemar" and row["low"] > 0.25
            shown = [] if first.endswith(".json") else ["latency_ms", "parameters"]
            assert [size["metric"] for size in sizes] == shown


def test_a_version_that_is_not_there_names_those_that_are(name: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", f"{name}@7", f"{name}@1", "--home", str(tmp_path)])
    assert f"has no '{name}@7'; it has {name}@2, {name}@1" in str(done.exception)
