"""The values of a training run: what a worker on another node reads, and what is refused."""

import json

import pytest
from pydantic import ValidationError

from flashslm.config import KernelsConfig, TrainingConfig
from flashslm.training.spec import FromArchitecture, FromExport, Replay, TrainOutcome, TrainSpec
from tests.unit.training import tiny

STARTS = {
    "architecture": FromArchitecture(architecture=tiny.architecture()),
    "exported_model": FromExport(exported=tiny.manifest(weight_norm="on")),
}


@pytest.mark.parametrize("kind", STARTS)
def test_a_spec_is_the_same_after_json(kind: str) -> None:
    replay = Replay(dataset=tiny.manifest(), fraction=0.3)
    spec = tiny.spec(start=STARTS[kind], replay=replay, kernels=KernelsConfig(default="torch"), validate_at=(1, 8))
    text = json.dumps(spec.model_dump(mode="json"))
    assert json.loads(text)["start"]["kind"] == kind
    assert TrainSpec.model_validate_json(text) == spec


def test_a_spec_of_before_there_was_a_choice_of_initial_outputs_has_the_drawn_ones() -> None:
    values = tiny.spec().model_dump(mode="json")
    del values["start"]["output_init"]
    assert TrainSpec.model_validate(values) == tiny.spec()


def test_only_runs_with_weight_normalisation_have_its_learning_rate() -> None:
    training = TrainingConfig(learning_rate=1e-3, weight_norm_rate_factor=4.0)
    rates = {on: tiny.spec(training, weight_norm=on).run_training.learning_rate for on in (True, False)}
    assert rates == {True: 4e-3, False: 1e-3}


def test_a_training_section_without_the_factor_is_written_as_before_there_was_one() -> None:
    assert "weight_norm_rate_factor" not in TrainingConfig().model_dump(mode="json")


def test_a_start_of_another_kind_is_refused_with_the_kinds_there_are() -> None:
    values = tiny.spec().model_dump(mode="json") | {"start": {"kind": "checkpoint", "uri": "s3://x"}}
    with pytest.raises(ValidationError, match=r"'checkpoint' .* expected tags: 'architecture', 'exported_model'"):
        TrainSpec.model_validate(values)


def test_validation_beyond_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"validate_at is \(3, 13\): step counts from 1 to steps \(8\)"):
        tiny.spec(validate_at=(3, 13))


def test_ranks_must_divide_the_micro_batch() -> None:
    tiny.spec(TrainingConfig(batch_size=8)).check_ranks(4)
    halved = tiny.spec(TrainingConfig(batch_size=8, micro_batch_size=4))
    halved.check_ranks(4)
    with pytest.raises(ValueError, match=r"training.micro_batch_size is 4 and 8 processes .* multiple of 8"):
        halved.check_ranks(8)
    staged = tiny.spec(TrainingConfig(batch_size=8, stages=[{"from_step": 9, "batch_size": 6}]))
    with pytest.raises(ValueError, match=r"training.batch_size is 6 and 4 processes"):
        staged.check_ranks(4)


def test_the_objects_of_one_run_lie_together() -> None:
    spec = tiny.spec(run_key="k")
    keys = [spec.object_key(name) for name in ("heartbeat", "outcome")]
    assert keys == ["pretraining/k/heartbeat.json", "pretraining/k/outcome.json"]
    assert spec.object_key("spec").startswith("pretraining/k/spec-")


def test_two_steps_that_execute_one_run_in_other_ways_do_not_overwrite_each_others_spec() -> None:
    """A worker that is started again would train with the micro-batch and the processes of the other step."""
    two, four = (tiny.spec(TrainingConfig(processes=processes), run_key="k") for processes in (2, 4))
    assert two.object_key("spec") != four.object_key("spec")
    assert two.object_key("spec") == two.model_copy().object_key("spec"), "a retry finds its own"
    assert two.object_key("outcome") == four.object_key("outcome")


def test_an_outcome_keeps_its_rows_through_json() -> None:
    rows = [{"step": 2, "train/loss_nats": 2.5}, {"step": 4, "train/loss_nats": 2.0, "validation/loss_nats": 2.25}]
    rows = [row | {"step_time_ms": 3.0, "tokens_per_s": 1e3} for row in rows]
    outcome = tiny.outcome(2.25, history=rows)
    assert TrainOutcome.model_validate_json(outcome.model_dump_json()) == outcome
    assert [type(row["step"]) for row in outcome.history] == [int, int]
    assert outcome.validation_losses_nats() == {4: 2.25}
    every = set(TrainOutcome.model_fields) - {"history", "kernels", "checkpoint"}
    assert set(outcome.results()) | set(outcome.measured()) == every | {"step_time_ms"}
    assert outcome.measured()["step_time_ms"] == 3.0
    assert outcome.curve()[0] == {"step": 2, "train/loss_nats": 2.5}
