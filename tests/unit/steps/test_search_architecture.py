"""The identity of a search's study: what two workers must share to work on the same trials."""

import json
from dataclasses import replace
from typing import Any

import pytest

from flashslm.config import RunConfig, from_step_json
from flashslm.infra.events import Events
from flashslm.infra.storage.object_store import Manifest
from flashslm.search.halving import CandidatePruned
from flashslm.search.trial import Candidate, TrialFailed
from flashslm.steps.context import StepContext
from flashslm.steps.search_architecture import open_study, saying_what_ended, study_name
from flashslm.training.spec import TrainOutcome
from tests.unit.search.synthetic import make_proposer

CODE = {"code_digest": "code"}
INPUTS = ("dataset", "latency_table", "scaling_law")


def manifest(content: str, **changes: Any) -> Manifest:
    sha256 = content * 64
    return Manifest(kind="tree", uri=f"s3://bucket/cas/{sha256}", sha256=sha256, bytes=1).model_copy(update=changes)


def make_context(recipe: dict[str, Any] | None = None, step: str = "search_architecture") -> StepContext:
    config = RunConfig.model_validate({"name": "x"} | (recipe or {}))
    nothing: Any = None
    return StepContext(
        step=step,
        config=from_step_json(step, config.for_step(step)),
        settings=nothing,
        store=nothing,
        mlflow_run=nothing,
        events=Events(step, step, None),
        inputs={name: manifest(content) for name, content in zip(INPUTS, "abc", strict=True)},
        parameters=CODE,
    )


@pytest.mark.parametrize(
    "recipe",
    [
        {"seed": 1},
        {"model": {"head_dim": 32}},
        {"kernels": {"default": "torch"}},
        {"profiling": {"threads": 2}},
        {"latency": {"context": 4096}},
        {"scaling": {"block": "AF"}},
        {"search": {"sizes": {"ffn_ratio": [2, 3]}}},
        *({"search": {name: value}} for name, value in {"trials": 7, "steps": 7, "widths": [1024]}.items()),
    ],
    ids=json.dumps,
)
def test_each_section_that_the_search_reads_makes_another_study(recipe: dict[str, Any]) -> None:
    assert study_name(make_context(recipe)) != study_name(make_context())


@pytest.mark.parametrize("name", INPUTS)
def test_another_input_makes_another_study(name: str) -> None:
    context = make_context()
    assert study_name(replace(context, inputs=context.inputs | {name: manifest("d")})) != study_name(context)


def test_other_code_makes_another_study() -> None:
    context = make_context()
    assert study_name(replace(context, parameters={"code_digest": "other"})) != study_name(context)


@pytest.mark.parametrize(
    "recipe",
    [
        {"name": "y"},
        {"training": {"steps": 7}},
        {"gate": {"max_perplexity": 3}},
        {"platform": {"retries": 0}},
        {"search": {"workers": 9}},
        {"scaling": {"workers": 3}},
        {"search": {"finalists": 3, "finalist_seeds": 4, "finalist_steps": 5}},
    ],
    ids=json.dumps,
)
def test_what_decides_no_trial_keeps_the_study(recipe: dict[str, Any]) -> None:
    assert study_name(make_context(recipe)) == study_name(make_context())


def test_every_worker_and_the_selection_share_the_study() -> None:
    context = make_context()
    workers = [replace(context, parameters=CODE | {"worker": str(i), "image": "any"}) for i in range(2)]
    moved = {name: manifest(content, uri="s3://other/x") for name, content in zip(INPUTS, "abc", strict=True)}
    selection = make_context(step="select_architecture")
    others = [*workers, replace(context, inputs=dict(reversed(moved.items()))), selection]
    assert {study_name(other) for other in others} == {study_name(context)}


def test_a_study_needs_its_database() -> None:
    settings: Any = type("Settings", (), {"study_url": ""})()
    with pytest.raises(ValueError, match="FLASHSLM_STUDY_URL is not set"):
        open_study(replace(make_context(), settings=settings))


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (CandidatePruned({60: 6.0, 120: 5.5}), "pruned after 120 steps"),
        (CandidatePruned({}), "rejected by its recall"),
        (TrialFailed("no memory"), "no memory"),
    ],
)
def test_a_candidate_that_is_not_trained_to_the_end_is_said_to_be(
    ended: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    (candidate, *_) = make_proposer().propose([])

    def train(_: Candidate) -> TrainOutcome:
        raise ended

    caplog.set_level("INFO", "flashslm")
    with pytest.raises(type(ended)):
        saying_what_ended(make_context().events, train)(candidate)
    design = f"trial 0: {candidate.operators} at width {candidate.architecture.hidden_size}"
    assert caplog.messages == [f"{design}, {candidate.latency_ms:.4g} ms: {said}"]
