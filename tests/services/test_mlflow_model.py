"""A registered model in plain MLflow: another process loads and asks it, without this project."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from flashslm.config import DataConfig, ExportConfig
from flashslm.data.prepare import prepare_dataset
from flashslm.export.huggingface import export_huggingface
from flashslm.export.mlflow_model import write_mlflow_model
from flashslm.infra.registry import model_registry
from flashslm.infra.registry.model_registry import Lineage
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore, hash_tree
from flashslm.infra.tracking import mlflow_runs
from flashslm.infra.tracking.mlflow_client import TrackingClient
from flashslm.models.architecture import Architecture
from flashslm.models.hybrid import HybridLM

pytestmark = pytest.mark.services
ASK = """
import json, sys
import mlflow
import pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
frame = pandas.DataFrame({"text": ["def main", "import os"]})
short, long = (model.predict(frame, params={"max_new_tokens": n}) for n in (2, 6))
example = model.predict(model.input_example)
project = [name for name in sys.modules if name.split(".")[0] == "flashslm"]
print(json.dumps({"short": short, "long": long, "example": example, "project": project,
                  "inputs": model.metadata.get_input_schema().input_names()}))
"""


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """What the step export_model publishes, of a small model."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-c]*.py"))
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": m.read_text(encoding="utf-8")[:6000]}) + "\n" for m in modules))
    data = DataConfig(source="files", paths=(str(text),), vocab_size=300, validation_fraction=0.2)
    prepare_dataset(data, 0, tmp_path / "data")
    values = {"operators": "DFMFAF", "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "ffn_size": 128}
    values |= {"mamba_state": 8, "mamba_head_dim": 8, "mamba_expand": 2, "vocab_size": 306, "num_meta_tokens": 4}
    architecture = Architecture.model_validate(
        values | {"max_position_embeddings": 128} | {"rope_theta": 1e4, "norm_eps": 1e-6}
    )
    tree = tmp_path / "exported"
    tree.mkdir()
    tokenizer = tmp_path / "data" / "tokenizer"
    export_huggingface(HybridLM.build(architecture, seed=0), tokenizer, tree / "huggingface", ExportConfig())
    write_mlflow_model(tree)
    return tree


@pytest.fixture
def registered(platform_env: Settings, store: ObjectStore, exported: Path) -> str:
    """Its name; version 1 is champion."""
    name = f"model-{os.urandom(4).hex()}"
    manifest: Manifest = store.put_tree(exported, "exported", {"operators": "DFMFAF"})
    run_id = mlflow_runs.start_parent_run(platform_env, name)
    mlflow_runs.finish_run(platform_env, run_id, "FINISHED")
    facts = {"perplexity": 12.5, "device": "cpu-x", "dataset_sha256": "ab" * 32, "parameters": 1234567}
    facts["full_perplexity"] = None  # nothing is known of it
    lineage = Lineage(commit="0123456789abcdef")
    model_registry.register(platform_env, name, manifest, run_id, facts, lineage=lineage)
    model_registry.promote(platform_env, name, "1", "")
    return name


def test_the_champion_loads_in_plain_mlflow(platform_env: Settings, registered: str, tmp_path: Path) -> None:
    environment = os.environ | platform_env.as_env() | {"HF_HOME": str(tmp_path / "hub"), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", ASK, f"models:/{registered}@champion"]
    asked = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stderr[-3000:]
    answer = json.loads(asked.stdout.splitlines()[-1])
    assert answer["project"] == [] and answer["inputs"] == ["text"] and len(answer["example"]) == 1
    assert len(answer["long"]) == 2 and all(isinstance(text, str) for text in answer["long"])
    assert all(long.startswith(short) for short, long in zip(answer["short"], answer["long"], strict=True))
    assert max(map(len, answer["long"])) > max(map(len, answer["short"]))


def test_a_version_describes_itself_and_its_tags_are_plain(platform_env: Settings, registered: str) -> None:
    client = TrackingClient(platform_env)
    version = client.get_model_version(registered, "1")
    for part in (
        "12.5 perplexity",
        "1,234,567",
        "operators DFMFAF",
        "on cpu-x",
        "data abababababab",
        "commit 01234567",
    ):
        assert part in version.description, part
    assert "continues texts" in client.get_registered_model(registered).description
    assert (version.tags["fact.device"], version.tags["fact.perplexity"]) == ("cpu-x", "12.5")


def test_it_is_a_logged_model_of_its_run(platform_env: Settings, registered: str) -> None:
    client = TrackingClient(platform_env)
    version = client.get_model_version(registered, "1")
    (output,) = client.get_run(version.run_id).outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert (logged.name, logged.status, logged.source_run_id) == (registered, "READY", version.run_id)
    assert {m.key: m.value for m in logged.metrics} == {"perplexity": 12.5, "parameters": 1234567.0}
    assert logged.params == {"device": "cpu-x", "dataset_sha256": "ab" * 32}
    assert logged.tags["source"] == version.source
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": registered, "version": 1}]


def test_a_model_of_a_run_that_is_gone_is_registered_all_the_same(
    platform_env: Settings, store: ObjectStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "weights").write_text("w")
    manifest, name = store.put_tree(tmp_path, "exported"), f"team.{os.urandom(4).hex()}"
    assert model_registry.register(platform_env, name, manifest, "0" * 32, {"perplexity": 3.0}) == "1"
    assert "without a logged model" in caplog.text


def test_the_files_are_the_same_for_the_same_model(exported: Path, tmp_path: Path) -> None:
    added = {path: entry for path, entry in hash_tree(exported).items() if not path.startswith("huggingface/")}
    (tmp_path / "again").mkdir()
    write_mlflow_model(tmp_path / "again")
    assert hash_tree(tmp_path / "again") == added and "MLmodel" in added
