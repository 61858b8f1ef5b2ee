"""The shipped experiments load, and what is wrong with one is said before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.config.experiment import ExperimentRecipe
from flashslm.config.file import ConfigError, load, load_as
from flashslm.config.no_effect import without_effect
from flashslm.experiments.checks import problems
from flashslm.experiments.warming import experiment_warm_ups
from flashslm.models.accounting import parameters
from flashslm.models.architecture import build_architecture
from tests.unit.experiments.tiny import recipe

WIDE = {"attention": {"operators": "AF", "width": 16}}
SHIPPED = sorted((Path(__file__).parents[3] / "configs" / "experiments").glob("*.yaml"))


def load_experiment(path: Path) -> ExperimentRecipe:
    return load_as(ExperimentRecipe, path, None, problems)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_experiments_load_and_are_of_proxy_size(path: Path) -> None:
    found = load_experiment(path)
    assert found.name == path.stem and without_effect(found) == []
    if found.experiment.match == "none":
        for model in found.experiment.models.values():
            width = model.width or found.experiment.width
            built = build_architecture(model.operators, width, found.model, found.data.vocab_size)
            smallest = 8e6 if path.stem == "search-proxies" else 30e6
            assert smallest < parameters(built)["total"] < 150e6


def test_the_seeds_experiments_are_there() -> None:
    names = {path.stem for path in SHIPPED}
    assert {"latency-sweep", "operator-ablation", "weight-norm-validation", "verdict", "proxy-quality"} <= names
    proxy = load_experiment(next(path for path in SHIPPED if path.stem == "proxy-quality"))
    assert len(proxy.experiment.models) >= 12
    assert max(proxy.experiment.steps) >= 4 * sorted(proxy.experiment.steps)[-2]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            {"experiment": {"models": {"x": {"operators": "AFZ"}}, "baseline": ""}},
            "models.x.operators: operators 'AFZ'",
        ),
        (
            {"experiment": {"match": "latency_by_depth", "models": {"x": {"operators": "GF"}}, "baseline": ""}},
            "experiment.models.x.operators: G not in profiling.operators",
        ),
        (
            {
                "experiment": {"match": "latency_by_depth"},
                "latency": {"reference_operators": "GF", "reference_width": 16},
            },
            "latency.reference_operators: G not in profiling.operators",
        ),
        (
            {
                "experiment": {"match": "latency_by_width"},
                "latency": {"reference_width": 32, "reference_operators": "AF"},
            },
            "latency.reference_width: 32 not in profiling.widths [16]: the table must measure it",
        ),
        (
            {"experiment": {"meta_tokens": [0, 220]}, "training": {"sequence_length": 40}},
            "training.sequence_length: 40 and 220 meta tokens exceed",
        ),
        (
            {"training": {"mixture": [{"name": "web", "weight": 1, "dataset": f"s3://b/cas/ab/{'0' * 64}"}]}},
            "training.mixture[0]: 'web' is another data set (s3://b/cas/ab/0",
        ),
        ({"evaluation": {"needle_lengths": [300]}}, "evaluation.needle_lengths: 300 and 0 meta tokens exceed"),
    ],
)
def test_problems_name_place_and_remedy(sections: dict[str, Any], expected: str) -> None:
    (found,) = problems(recipe(**sections))
    assert expected in found


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        ("baseline: b", "baseline is 'b': allowed are a"),
        ("match: parameters", "parameters is 0: match 'parameters' needs the number"),
        ("width: 0", "models a have no width: give experiment.width"),
        ("meta_tokens: [-1]", "meta_tokens is [-1]: each at least 0"),
        ("operators: AF", "experiment.operators: unknown key"),
    ],
)
def test_a_wrong_recipe_is_named_with_its_line(tmp_path: Path, experiment: str, expected: str) -> None:
    width = "" if experiment.startswith("width") else "  width: 64\n"
    text = f"name: x\nexperiment:\n  question: Which?\n{width}  models: {{a: {{operators: AF}}}}\n  {experiment}\n"
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_experiment(tmp_path / "x.yaml")
    assert expected in str(caught.value) and "x.yaml:" in str(caught.value)


def test_budgets_want_one_schedule() -> None:
    with pytest.raises(ValueError, match=r"training.stages must be empty"):
        recipe(experiment={"steps": [2, 4]}, training={"stages": [{"from_step": 2, "sequence_length": 16}]})


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"search": {"sizes": {"ffn_ratio": [2, 3]}}}, "search"),
        ({"scaling": {"steps": 10}}, "scaling"),
        ({"platform": {"retries": 0}}, "platform"),
        ({"profiling": {"sizes": {"ffn_ratio": [2]}}}, "profiling.sizes"),
        ({"profiling": {"contexts": [64]}}, "profiling.contexts"),
        ({"training": {"keep_checkpoints": 3}}, "training.keep_checkpoints"),
        ({"evaluation": {"lm_eval_tasks": ["piqa"]}}, "evaluation.lm_eval_tasks"),
        ({"export": {"parity_tokens": 16}}, "export.parity_tokens"),
        ({"experiment": {"parameters": 9}}, "experiment.parameters"),
        (
            {"experiment": {"match": "latency_by_width", "models": WIDE}},
            "experiment.models.attention.width",
        ),
        ({"experiment": {"models": WIDE, "width": 32}}, "experiment.width"),
        ({"experiment": {"measure_latency": True}, "latency": {"reference_width": 16}}, "latency.reference_width"),
    ],
)
def test_what_an_experiment_does_not_read_is_named(sections: dict[str, Any], where: str) -> None:
    usual = {text.partition(":")[0] for text in without_effect(recipe())}
    named = {text.partition(":")[0] for text in without_effect(recipe(**sections))}
    assert where in named - usual


def test_what_it_reads_is_not_named(tmp_path: Path) -> None:
    read = {"match": "latency_by_width", "measure_latency": True}
    found = recipe(
        experiment=read, latency={"reference_width": 16, "reference_operators": "AF"}, export={"dtype": "float32"}
    )
    assert [text.partition(":")[0] for text in without_effect(found)] == ["experiment.width"]


def test_an_experiment_is_checked_as_one_and_not_run_as_a_pipeline() -> None:
    file = next(path for path in SHIPPED if path.stem == "verdict")
    checked = CliRunner().invoke(app, ["config", "check", str(file), "search.trials=4"])
    assert checked.exit_code == 0 and "can run" in checked.stdout
    assert "search: no effect: an experiment does not read it" in checked.output
    shown = CliRunner().invoke(app, ["config", "show", str(file)])
    assert "question: Which design has the lowest perplexity" in shown.stdout
    with pytest.raises(ConfigError, match=r"is that of an experiment: `flashslm experiment .*verdict.yaml` runs it"):
        load(file)


def test_each_model_of_an_experiment_is_compiled_ahead() -> None:
    planned = experiment_warm_ups(recipe(experiment={"meta_tokens": [0, 4]}))
    made = {(w.architecture.operators, w.architecture.hidden_size, w.architecture.num_meta_tokens) for w in planned}
    assert made == {("AF", 16, 0), ("AF", 16, 4), ("DF", 16, 0), ("DF", 16, 4)} and len(planned) == 4
    assert {(w.batch, w.sequence_length) for w in planned} == {(2, 32)}
    by_width = recipe(experiment={"match": "latency_by_width", "width": 0}, profiling={"widths": [16, 24]})
    assert {w.architecture.hidden_size for w in experiment_warm_ups(by_width)} == {16, 24}
    equal = {"match": "parameters", "parameters": 36_000, "models": {"x": {"operators": "(AF)x4"}}, "baseline": ""}
    (one,) = experiment_warm_ups(recipe(experiment=equal))
    assert (one.architecture.operators, one.architecture.hidden_size) == ("AF", 16)


def test_the_command_that_warms_kernels_takes_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[int] = []
    monkeypatch.setattr("flashslm.hardware.pick_device", lambda _: "cuda")
    monkeypatch.setattr("flashslm.infra.stack.services.resolve_settings", lambda _: None)
    monkeypatch.setattr("flashslm.infra.storage.object_store.ObjectStore", lambda _: None)
    monkeypatch.setattr("flashslm.cli.kernels._warm_all", lambda _, planned, *__: warmed.append(len(planned)))
    file = next(path for path in SHIPPED if path.stem == "weight-norm-validation")
    assert CliRunner().invoke(app, ["kernels", "warm", str(file)], catch_exceptions=False).exit_code == 0
    assert warmed == [2], "the hybrid has the layers of all families; with meta tokens and without"
