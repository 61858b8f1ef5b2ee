"""The pretrain step on two processes of one node, through the real object store and MLflow."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from flashslm.config import RunConfig
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.steps.run import run_step
from tests.holding import workers_held_at
from tests.services.pretraining import call, metric_steps, write_inputs
from tests.unit.training import tiny
from tests.waiting import has_ended, wait_until

pytestmark = pytest.mark.services
ROOT = Path(__file__).parents[2]
STEPS = 24


@pytest.fixture
def inputs(store: ObjectStore, tmp_path: Path) -> dict[str, str]:
    return write_inputs(store, tmp_path)


def weights(store: ObjectStore, output: Path) -> dict[str, torch.Tensor]:
    tree = store.get_tree(Manifest.read(output), output.with_suffix(".tree"))
    assert {f.name for f in tree.iterdir()} >= {"architecture.json", "metrics.jsonl", "training.json"}
    return load_file(tree / "model.safetensors")


def start_and_terminate(arguments: dict[str, Any], events: Path) -> None:
    """Run the step in a process of its own and send it SIGTERM while it trains, after step 3."""
    script = (
        "import json, sys; from flashslm.steps.run import run_step; run_step('pretrain', **json.loads(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(arguments)],
        env=os.environ | workers_held_at(3) | {"FLASHSLM_EVENTS": str(events)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: events.exists() and '"training_step": 3' in events.read_text())
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3  # torchrun and two workers
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 143
    assert "death signal" in said and "SignalException" not in said, said  # torchrun's warning, without its traceback
    assert all(map(has_ended, children))


def test_two_processes_that_are_stopped_and_resumed_give_the_run_of_one(
    platform_env: Settings, store: ObjectStore, inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHSLM_CACHE", str(tmp_path / "cache"))
    alone, together = tmp_path / "alone.json", tmp_path / "together.json"
    single = run_step("pretrain", **call(inputs, alone, processes=1, steps=STEPS))
    arguments = call(inputs, together, processes=2, steps=STEPS)
    arguments["parameters"]["code_digest"] = "its own checkpoints"
    start_and_terminate(arguments, tmp_path / "events.jsonl")
    double = run_step("pretrain", **arguments)
    assert double["resumed_from_step"] == 3 and single["resumed_from_step"] == 0
    assert double["validation/loss_nats"] == pytest.approx(single["validation/loss_nats"], abs=1e-4)
    assert "on 2 processes" in double["summary"] and "processes" not in single["summary"]
    expected, found = weights(store, alone), weights(store, together)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-3, rtol=0, msg=name)
    assert metric_steps(platform_env, "pretrain · wnorm on · seed 0") == list(
        range(double["resumed_from_step"] + 1, STEPS + 1)
    )
    arguments |= {"config": call(inputs, together, processes=1, seeds=[0, 1], steps=STEPS)["config"]}
    assert run_step("pretrain", **arguments)["resumed_from_step"] == STEPS, "the same run, whoever computes it"


def test_the_same_weights_have_the_same_address_however_long_they_took(
    platform_env: Settings, store: ObjectStore, inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are in the manifest; a resumed run has other ones."""
    monkeypatch.setenv("FLASHSLM_CACHE", str(tmp_path / "cache"))
    made = []
    for number in (1, 2):
        arguments = call(inputs, tmp_path / f"{number}.json", steps=6, log_every_steps=2)
        arguments["parameters"]["code_digest"] = f"other checkpoints {number}"
        run_step("pretrain", **arguments)
        made.append(Manifest.read(tmp_path / f"{number}.json"))
    assert made[0].sha256 == made[1].sha256
    assert made[0].metadata["train_time_s"] != made[1].metadata["train_time_s"]
    assert {"tokens_per_s", "step_time_ms", "device", "resumed_from_step"} <= set(made[0].metadata)
    rows = (store.get_tree(made[0], tmp_path / "tree") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4, 6] and "train/loss_nats" in rows[0]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.usefixtures("platform_env")
def test_a_variant_that_diverges_is_a_result_of_the_ablation(
    store: ObjectStore, inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setenv("FLASHSLM_CACHE", str(tmp_path / "cache"))
    ruined = call(inputs, tmp_path / "ruined.json", processes=processes, steps=STEPS, learning_rate=1e30)
    ruined["parameters"] |= {"weight_norm": "off"}
    summary = run_step("pretrain", **ruined)["summary"]
    assert summary.startswith("this variant diverged: ") and "Lower learning_rate (1e+30)" in summary
    run_step("pretrain", **call(inputs, tmp_path / "sound.json", processes=1, steps=STEPS))
    outputs = {name: str(tmp_path / f"{name}.json") for name in ("ablation", "chosen")}
    recipe = RunConfig.model_validate({"name": "x", "training": {"deploy": "best"}}).for_step("compare_weight_norm")
    checkpoints = [str(tmp_path / "ruined.json"), str(tmp_path / "sound.json")]
    given = inputs | {"checkpoints": checkpoints}
    result = run_step("compare_weight_norm", config=recipe, inputs=given, outputs=outputs, parameters={})
    assert result["chosen_weight_norm"] == "on" and "weight_norm=off, seed 0 diverged" in result["summary"]
    assert Manifest.read(Path(outputs["chosen"])).sha256 == Manifest.read(tmp_path / "sound.json").sha256
    tree = store.get_tree(Manifest.read(Path(outputs["ablation"])), tmp_path / "ablation")
    assert [run["reason"] for run in json.loads((tree / "ablation.json").read_text())["diverged"]] == [summary]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.usefixtures("platform_env")
def test_a_model_begins_with_the_outputs_that_the_recipe_says(
    store: ObjectStore, inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """One step at a rate that moves nothing: what is stored is what the model began with."""
    monkeypatch.setenv("FLASHSLM_CACHE", str(tmp_path / "cache"))
    arguments = call(inputs, tmp_path / "zero.json", processes=processes, steps=1, warmup_steps=0, learning_rate=1e-30)
    arguments["parameters"] |= {"weight_norm": "off"}
    arguments["config"] = json.dumps(json.loads(arguments["config"]) | {"model": {"output_init": "zero"}})
    run_step("pretrain", **arguments)
    found = weights(store, tmp_path / "zero.json")
    outputs = {name for name in found if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight"))}
    assert len(outputs) == len(tiny.architecture().operators)
    assert {name for name, tensor in found.items() if tensor.ndim == 2 and tensor.abs().max() < 1e-20} == outputs


def test_processes_must_divide_the_batch(platform_env: Settings, inputs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training.batch_size is 4 and 3 processes .* multiple of 3"):
        run_step("pretrain", **call(inputs, tmp_path / "x.json", processes=3, steps=STEPS))
