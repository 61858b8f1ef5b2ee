"""Sizes that are equal in parameters or latency, by a table whose times are known."""

from typing import Any

import pytest

from flashslm.config.experiment import ExperimentRecipe
from flashslm.experiments import matching
from flashslm.experiments.matching import match_models
from flashslm.profiling.timing import Timing
from tests.unit.search.synthetic import make_table


@pytest.fixture(autouse=True)
def known_times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What a model takes over what the table says, by its first operator; 1 where it is not given."""
    slower: dict[str, float] = {}

    def measure(points: Any, profiling: Any) -> list[Timing]:
        times = [
            make_table().predict_ms(p.architecture, p.context, p.batch) * slower.get(p.architecture.operators[0], 1.0)
            for p in points
        ]
        return [Timing(ms, 0.9 * ms, 1.1 * ms, 3) for ms in times]

    monkeypatch.setattr(matching, "compile_ahead", lambda plan: None)
    monkeypatch.setattr(matching, "measure_latency_table", lambda plan: make_table())
    monkeypatch.setattr(matching, "measure_models", measure)
    return slower


def recipe(match: str, target_ms: float, **experiment: Any) -> ExperimentRecipe:
    table = make_table()
    models = {"deltanet": {"operators": "DF"}, "mamba2": {"operators": "MF"}, "mixed": {"operators": "DFMF"}}
    values = {"question": "Which?", "match": match, "width": 64, "models": models} | experiment
    latency = {"context": 1024, "target_ms": target_ms, "reference_operators": "MFMF", "reference_width": 64}
    profiling = {"widths": table.widths}
    return ExperimentRecipe.model_validate(
        {"name": "x", "experiment": values, "latency": latency, "profiling": profiling, "model": table.sizes}
    )


def operators(found: list[matching.MatchedModel]) -> dict[str, str]:
    return {model.name: model.architecture.operators for model in found}


def test_depth_is_that_of_the_nearest_latency() -> None:
    """At width 64: 1.5 ms per DF, 2.0 per MF, and 2.0 for the head."""
    found = match_models(recipe("latency_by_depth", 8.0), 512)
    assert operators(found) == {"deltanet": "DF" * 4, "mamba2": "MF" * 3, "mixed": "DFMFDFMF"}
    assert [model.predicted_ms for model in found] == [8.0, 8.0, 9.0] == [model.measured_ms for model in found]


def test_width_is_that_of_the_nearest_latency() -> None:
    found = match_models(recipe("latency_by_width", 14.5), 512)
    assert {model.name: model.architecture.hidden_size for model in found} == {
        "deltanet": 256,  # 3.5 ms per 64
        "mamba2": 256,  # 4.0
        "mixed": 192,  # 5.5
    }


def test_what_was_measured_corrects_the_choice(known_times: dict[str, float]) -> None:
    """Models that begin with M take half as long again as the table says: two layers, 9 ms, are nearer than three."""
    known_times["M"] = 1.5
    found = match_models(recipe("latency_by_depth", 8.0), 512)
    assert operators(found)["mamba2"] == "MFMF" and operators(found)["deltanet"] == "DF" * 4
    corrected = found[1]
    assert (corrected.predicted_ms, corrected.measured_ms) == (6.0, 9.0)
    assert corrected.predicted_over_measured == pytest.approx(2 / 3)


def test_the_budget_of_a_reference_is_its_measured_time(known_times: dict[str, float]) -> None:
    """The table says 6 ms of the reference MFMF, which takes 9: it stays itself, and DF is given the 9 ms."""
    known_times["M"] = 1.5
    found = match_models(recipe("latency_by_depth", 0.0), 512)
    assert operators(found) == {"deltanet": "DF" * 5, "mamba2": "MFMF", "mixed": "DFMFDFMF"}
    assert [model.measured_ms for model in found] == [9.5, 9.0, 9.0]


def test_parameters_are_made_equal_by_width() -> None:
    found = match_models(recipe("parameters", 1.0, parameters=2_000_000, models={"a": {"operators": "(AF)x4"}}), 512)
    assert found[0].parameters == pytest.approx(2_000_000, rel=0.25) and found[0].predicted_ms is None


def test_without_a_match_sizes_are_those_given() -> None:
    models = {"a": {"operators": "AF"}, "wide": {"operators": "DF", "width": 128}}
    found = match_models(recipe("none", 1.0, models=models, measure_latency=False), 512)
    assert [model.architecture.hidden_size for model in found] == [64, 128]
    assert all(model.measured_ms is None for model in found)
