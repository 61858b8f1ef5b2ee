"""Experiments that really train: every kind of comparison, and one that is killed and goes on."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.config.experiment import ExperimentRecipe
from flashslm.data.prepare import prepare_once
from flashslm.experiments import cells
from flashslm.experiments import experiment as experiments
from flashslm.experiments.cells import CellRunner, plan_cells
from flashslm.experiments.experiment import RECORD_FILE, TABLE_FILE, Experiment, manifest_of
from flashslm.experiments.matching import match_models
from flashslm.launch.processes import exclusive
from flashslm.training import trainer
from tests.unit.experiments.tiny import recipe, write


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_once(recipe().data, recipe().seed, tmp_path_factory.mktemp("data"))


def run(of: ExperimentRecipe, directory: Path, dataset: Path, workers: int = 1) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    record = Experiment(of, directory, workers, say=said.append).run(dataset)
    return record, said


def test_models_and_variants_are_trained_judged_and_compared(tmp_path: Path, dataset: Path) -> None:
    """Two models, weight norm on and off, meta tokens or none, two seeds."""
    of = recipe(training={"weight_norm": ["on", "off"]}, experiment={"meta_tokens": [0, 4]})
    record, said = run(of, tmp_path, dataset)
    assert record["cells_planned"] == len(record["cells"]) == 16 and said[-1].startswith("16 of 16: ")
    losses = {
        (c["model"], c["weight_norm"], c["meta_tokens"], c["seed"]): c["metrics"]["loss_nats"] for c in record["cells"]
    }
    assert len(set(losses.values())) == 16, "every factor changes the result"
    assert {d["factor"] for d in record["differences"]} == {"model", "weight_norm", "meta_tokens"}
    (found,) = [
        d
        for d in record["differences"]
        if (d["factor"], d["metric"], d["model"], d["meta_tokens"]) == ("weight_norm", "loss_nats", "deltanet", 4)
    ]
    by_seed = {str(s): losses["deltanet", "on", 4, s] - losses["deltanet", "off", 4, s] for s in (0, 1)}
    assert found["by_seed"] == pytest.approx(by_seed) and found["low"] < found["difference"] < found["high"]
    table = (tmp_path / TABLE_FILE).read_text(encoding="utf-8")
    assert "| deltanet, weight norm on, meta tokens 4 | weight norm off | perplexity |" in table


def test_budgets_are_ranked_and_models_timed(tmp_path: Path, dataset: Path) -> None:
    models = {name: {"operators": name.upper()} for name in ("af", "df", "mf", "dfmf")}
    experiment = {
        "models": models,
        "steps": [2, 6],
        "measure_latency": True,
        "baseline": "",
        "match": "latency_by_depth",
    }
    latency = {"reference_operators": "AFAF", "reference_width": 16}
    asked = {"needle_lengths": [48], "needle_samples": 4}
    of = recipe(experiment=experiment, training={"seeds": [0]}, latency=latency, evaluation=asked)
    record, _ = run(of, tmp_path, dataset)
    assert all(0 <= cell["metrics"]["needle_48"] <= 1 for cell in record["cells"])
    assert [cell["steps"] for cell in record["cells"]] == [2] * 4 + [6] * 4, "the short budget comes first"
    (found,) = [r for r in record["rankings"] if r["metric"] == "perplexity"]
    assert (found["steps"], found["longer"], found["items"]) == (2, 6, 4) and -1 <= found["value"] <= 1
    for model in record["models"]:
        assert model["measured_ms"] > 0 and abs(model["prediction_error"]) < 5
    assert record["fingerprint"]["kind"] == "cpu" and record["versions"]["torch"]


def test_a_run_that_diverges_is_recorded_and_the_others_go_on(tmp_path: Path, dataset: Path) -> None:
    """Steps of 1e38 make weights infinite; none may be skipped."""
    training = {"learning_rate": 1e38, "seeds": [0], "warmup_steps": 0, "steps": 8, "max_skipped_steps": 0}
    record, _ = run(recipe(training=training), tmp_path, dataset)
    assert len(record["cells"]) == 2 and all("not finite" in cell["failed"] for cell in record["cells"])
    assert record["means"] == [] and "Failed: attention, seed 0" in (tmp_path / TABLE_FILE).read_text(encoding="utf-8")


def test_workers_side_by_side_give_the_same_numbers(tmp_path: Path, dataset: Path) -> None:
    alone, _ = run(recipe(), tmp_path / "alone", dataset)
    together, _ = run(recipe(), tmp_path / "together", dataset, workers=2)
    assert together["means"] == alone["means"] and together["differences"] == alone["differences"]


def test_what_is_finished_is_not_trained_again_and_what_changed_is(tmp_path: Path, dataset: Path) -> None:
    manifest, of = manifest_of(dataset), recipe()
    runner = CellRunner(recipe=of, dataset=manifest, dataset_directory=dataset, directory=tmp_path)
    first, *_ = plan_cells(of, match_models(of, manifest.metadata["vocab_size"]))
    result = runner.run(first)
    assert runner.finished(first) == result == runner.run(first)
    longer = runner.model_copy(update={"recipe": recipe(training={"learning_rate": 1e-2})})
    assert longer.finished(first) is None
    assert runner.finished(first.model_copy(update={"seed": 5})) is None


@pytest.mark.parametrize("changed", [{"profiling": {"weights": "int8"}}, {"export": {"dtype": "float32"}}])
def test_what_was_judged_with_other_weights_is_judged_again(
    tmp_path: Path, dataset: Path, changed: dict[str, Any]
) -> None:
    manifest, of = manifest_of(dataset), recipe()
    runner = CellRunner(recipe=of, dataset=manifest, dataset_directory=dataset, directory=tmp_path)
    first, *_ = plan_cells(of, match_models(of, manifest.metadata["vocab_size"]))
    result = runner.run(first)
    other = runner.model_copy(update={"recipe": recipe(**changed)})
    assert other.finished(first) is None and runner.finished(first) == result
    slower = runner.model_copy(update={"recipe": recipe(profiling={"repeats": 4}, export={"license": "mit"})})
    assert slower.finished(first) == result, "how latency is measured changes no metric"


def test_models_begin_with_the_outputs_that_the_recipe_says(tmp_path: Path, dataset: Path) -> None:
    """Of the same sizes, beside those that began otherwise."""
    drawn, _ = run(recipe(), tmp_path, dataset)
    zero, _ = run(recipe(model={"output_init": "zero"}), tmp_path, dataset)
    for one, other in zip(drawn["cells"], zero["cells"], strict=True):
        assert one["seed"] == other["seed"] and one["metrics"]["loss_nats"] != other["metrics"]["loss_nats"]
    assert len(list(tmp_path.glob("models-*.json"))) == 1
    assert len(list((tmp_path / "cells").iterdir())) == 8


def test_the_same_model_under_two_names_is_trained_once_and_recorded_twice(tmp_path: Path, dataset: Path) -> None:
    models = {"attention": {"operators": "AF"}, "renamed": {"operators": "(AF)x1"}}
    record, said = run(recipe(experiment={"models": models}, training={"seeds": [0]}), tmp_path, dataset)
    assert [cell["model"] for cell in record["cells"]] == list(models) and said[-1].startswith("2 of 2: renamed")
    assert len(list((tmp_path / "cells").iterdir())) == 1
    assert len({cell["metrics"]["loss_nats"] for cell in record["cells"]}) == 1


@pytest.mark.parametrize("lacks", [1, 2])
def test_lack_of_memory_beside_others_is_no_result(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, lacks: int
) -> None:
    """The second try is alone: what runs out of memory there too has failed."""
    tries = []

    def train(*arguments: Any, **options: Any) -> Any:
        tries.append(arguments)
        if len(tries) <= lacks:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return trainer.train(*arguments, **options)

    monkeypatch.setattr(cells, "train", train)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # locks of its own
    of, manifest = recipe(), manifest_of(dataset)
    runner = CellRunner(recipe=of, dataset=manifest, dataset_directory=dataset, directory=tmp_path)
    found = runner.run(plan_cells(of, match_models(of, manifest.metadata["vocab_size"]))[0])
    assert len(tries) == 2 and ("without neighbours" in found.failed) == (lacks == 2)
    assert bool(found.metrics) == (lacks == 1)


def test_models_are_matched_again_only_where_their_sizes_may_change(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matched = []
    monkeypatch.setattr(experiments, "match_models", lambda of, size: matched.append(of) or match_models(of, size))

    def match(**experiment: Any) -> int:
        of = recipe(experiment=experiment, training={"seeds": [0]})
        Experiment(of, tmp_path, say=lambda _: None).models(manifest_of(dataset))
        return len(matched)

    assert match() == 1
    assert match(question="Another?", steps=[2, 4], meta_tokens=[0, 4], baseline="") == 1
    assert match(width=32) == 2


def test_a_shorter_budget_warms_up_for_a_tenth_of_it_at_most(tmp_path: Path, dataset: Path) -> None:
    of = recipe(training={"steps": 100, "warmup_steps": 50}, experiment={"steps": [20, 100, 400]})
    runner = CellRunner(recipe=of, dataset=manifest_of(dataset), dataset_directory=dataset, directory=tmp_path)
    cells = plan_cells(of, match_models(of, 512))
    assert {c.steps: runner.training(c).warmup_steps for c in cells} == {20: 2, 100: 50, 400: 50}


# The command, which waits with its second cell until it is killed.
HELD = """
import time
from flashslm.cli import experiment, main
say = experiment._say

def say_and_wait(sentence):
    say(sentence)
    if sentence.startswith("2 of 6"):
        time.sleep(600)

experiment._say = say_and_wait
main()
"""


def test_a_killed_experiment_goes_on_and_ends_the_same(tmp_path: Path, dataset: Path) -> None:
    """SIGKILL after the second cell; the next start reads what is finished and trains the rest."""
    of = recipe(training={"seeds": [0, 1, 2]})
    expected, _ = run(of, tmp_path / "whole", dataset)
    directory = tmp_path / "killed"
    command = ["experiment", str(write(tmp_path, of)), "--output", str(directory)]
    command += ["--dataset", str(dataset), "--home", str(tmp_path / "none")]
    held = [sys.executable, "-c", HELD, *command]
    process = subprocess.Popen(held, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None and any(line.startswith("2 of 6") for line in process.stderr)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = json.loads((directory / RECORD_FILE).read_text(encoding="utf-8"))
    assert len(before["cells"]) in (1, 2)
    kept = {file.name: file.stat().st_mtime_ns for file in (directory / "cells").glob("*.json")}
    time.sleep(0.01)
    done = subprocess.run([sys.executable, "-m", "flashslm", *command], capture_output=True, text=True, check=True)
    assert "not tracked in MLflow: no stack" in done.stderr and "6 of 6" in done.stderr
    after = json.loads((directory / RECORD_FILE).read_text(encoding="utf-8"))
    assert after["means"] == expected["means"] and after["differences"] == expected["differences"]
    assert all((directory / "cells" / name).stat().st_mtime_ns == at for name, at in kept.items())


def test_of_two_starts_in_one_directory_the_second_is_refused(tmp_path: Path) -> None:
    file, place = write(tmp_path, recipe()), tmp_path / "out"
    with exclusive(place / "lock"):
        arguments = ["experiment", str(file), "--output", str(place), "--home", str(tmp_path)]
        done = CliRunner().invoke(app, arguments)
    assert f"another run uses {place} (pid {os.getpid()})" in str(done.exception)
    assert "or give another --output" in str(done.exception) and [p.name for p in place.iterdir()] == ["lock"]


def test_a_directory_without_a_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a prepared data set: it has no dataset\.json"):
        Experiment(recipe(), tmp_path, say=lambda _: None).run(tmp_path)
