"""`runs show` and `runs logs` on what a real KFP answered: the pipeline's tasks, their states and reasons."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.launch.kfp.run_steps import _one_of_each
from flashslm.launch.progress import StepRecord
from tests.pipeline.fake_kfp import FakeKfp, read
from tests.pipeline.recorded_kfp import add_recorded_run, recorded

TASKS = [
    "prepare_data",
    "profile_latency",
    "fit_scaling_law",
    "search_architecture worker=0",
    "search_architecture worker=1",
    "select_architecture",
    "pretrain seed=0 weight_norm=on",
    "pretrain seed=0 weight_norm=off",
    "compare_weight_norm",
    "evaluate",
    "export_model",
    "gate",
    "register_model",
    "report",
]
OUT_OF_MEMORY_POD = "design-and-train-rl4cb-metadata-1-2-retry-system-container-impl-39434997"


def shown(fake: FakeKfp, name: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["runs", "show", add_recorded_run(fake, name), "--host", fake.url, "--json"])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def states(facts: dict[str, Any]) -> dict[str, str]:
    return {step["step"]: step["state"] for step in facts["steps"]}


def test_a_cached_run_has_nine_cached_tasks_and_no_others(fake: FakeKfp) -> None:
    facts = shown(fake, "succeeded_cached")
    assert list(states(facts)) == TASKS
    assert (facts["state"], facts["cached_steps"], facts["failed_steps"]) == ("SUCCEEDED", 9, [])
    cached = {step["step"]: (step["cached"], step["attempts"]) for step in facts["steps"]}
    assert all(cached[name] == (True, 0) for name in TASKS[:11])
    assert cached["gate"] == cached["report"] == (False, 1)
    assert states(facts)["register_model"] == "SKIPPED"  # the gate held the model


def test_a_run_with_compressed_nodes_is_complete(fake: FakeKfp) -> None:
    facts = shown(fake, "succeeded_compressed")
    assert states(facts) == dict.fromkeys(TASKS, "SUCCESS")
    assert facts["cached_steps"] == 0 and {step["attempts"] for step in facts["steps"]} == {1}
    durations_s = {step["step"]: step["duration_s"] for step in facts["steps"]}
    assert durations_s["profile_latency"] == 76 and durations_s["report"] == 20


def test_without_the_workflow_the_details_serve_as_far_as_they_go(fake: FakeKfp) -> None:
    run_id = add_recorded_run(fake, "succeeded_compressed")
    fake.workflows.clear()
    result = CliRunner().invoke(app, ["runs", "show", run_id, "--host", fake.url, "--json"])
    found = states(json.loads(result.stdout))
    assert list(found) == TASKS
    assert [name for name in TASKS if found[name] == "SUCCESS"] == TASKS[:9]


def test_out_of_memory_is_the_reason_with_limit_and_setting(fake: FakeKfp) -> None:
    facts = shown(fake, "failed_out_of_memory")
    failed = {step["step"]: step["result"] for step in facts["steps"] if step["state"] == "FAILURE"}
    assert failed == {"profile_latency": "OOMKilled (exit code 1): raise platform.gpu_steps.memory"}
    assert set(states(facts).values()) == {"SUCCESS", "FAILURE", "SKIPPED"}
    assert facts["failed_steps"] == ["profile_latency"]


def test_the_limit_stands_in_the_reason_where_the_definition_has_one(fake: FakeKfp) -> None:
    run_id = add_recorded_run(fake, "failed_out_of_memory")
    executors = fake.runs[0].pipeline_spec["pipeline_spec"]["deploymentSpec"]["executors"]
    executors["exec-profile-latency"]["container"]["resources"] = {"resourceMemoryLimit": "350Mi"}
    result = CliRunner().invoke(app, ["runs", "show", run_id, "--host", fake.url, "--json"])
    (failed,) = [s for s in json.loads(result.stdout)["steps"] if s["state"] == "FAILURE"]
    assert failed["result"] == "OOMKilled (exit code 1) with 350Mi: raise platform.gpu_steps.memory"


def test_a_failed_worker_is_named_by_its_iteration(fake: FakeKfp) -> None:
    facts = shown(fake, "failed_worker")
    assert facts["failed_steps"] == ["search_architecture worker=0"]
    assert states(facts)["search_architecture worker=1"] == "SUCCESS"


def test_a_cancelled_run_says_so(fake: FakeKfp) -> None:
    facts = shown(fake, "cancelled")
    assert facts["state"] == "CANCELED" and facts["failed_steps"] == []
    assert states(facts)["pretrain seed=0 weight_norm=on"] == "CANCELLED"
    assert facts["cached_steps"] == 5  # four single tasks and the search, whose two workers count once
    listed = CliRunner().invoke(app, ["runs", "list", "--host", fake.url, "--json"])
    assert [run["state"] for run in json.loads(listed.stdout)["runs"]] == ["CANCELED"]


def test_a_scheduled_retraining_is_complete(fake: FakeKfp) -> None:
    facts = shown(fake, "succeeded_retraining")
    done = [step for step, state in states(facts).items() if state == "SUCCESS"]
    assert done[:3] == ["fetch_champion", "prepare_new_data", "continue_pretraining"] and len(done) == 8
    listed = [step["step"] for step in facts["steps"]]
    assert listed == done and done[-1].startswith("report_retraining "), "one row for its three branches"


@pytest.mark.parametrize(
    ("states", "shown"),
    [
        (["SKIPPED", "SUCCESS", "SKIPPED"], ["SUCCESS"]),
        (["SKIPPED", "WAITING", "RUNNING"], ["RUNNING"]),
        (["WAITING", "WAITING", "SKIPPED"], ["WAITING"]),
        (["SUCCESS", "SUCCESS", "FAILURE"], ["SUCCESS", "SUCCESS", "FAILURE"]),
    ],
)
def test_a_step_of_several_branches_is_one_row(states: list[str], shown: list[str]) -> None:
    steps = [StepRecord("report", "report", state=state) for state in states]
    other = StepRecord("gate", "gate", state="SKIPPED")
    assert [step.state for step in _one_of_each([*steps, other])] == [*shown, "SKIPPED"]


def test_logs_are_those_of_the_step_without_the_launcher(fake: FakeKfp) -> None:
    run_id = add_recorded_run(fake, "failed_out_of_memory")
    fake.logs[OUT_OF_MEMORY_POD] = "I1127 03:51:30.1 1 launcher_v2.go:90] starting\nmeasuring\nKilled\n"
    result = CliRunner().invoke(app, ["runs", "logs", run_id, "profile_latency", "--host", fake.url])
    assert result.exit_code == 0 and result.stdout == "measuring\nKilled\n"
    missing = CliRunner().invoke(app, ["runs", "logs", run_id, "evaluate", "--host", fake.url])
    assert missing.stdout == "no log of evaluate (skipped) is there\n"
    unknown = CliRunner().invoke(app, ["runs", "logs", run_id, "pretraining", "--host", fake.url])
    assert unknown.exit_code != 0 and "it has: prepare_data, profile_latency" in str(unknown.exception)


def test_a_result_is_read_from_the_log(fake: FakeKfp) -> None:
    run_id = add_recorded_run(fake, "succeeded_compressed")
    pod = "design-and-train-qlv6j-metadata-1-2-retry-system-container-impl-2361323639"
    fake.logs[pod] = "2026-11-27 03:11:30,000 INFO flashslm.steps.run: result: 512 tokens, 300 documents\nbye\n"
    result = CliRunner().invoke(app, ["runs", "show", run_id, "--host", fake.url, "--json"])
    assert json.loads(result.stdout)["steps"][0]["result"] == "512 tokens, 300 documents"


def test_a_schedule_shows_its_next_time_and_its_last_run(fake: FakeKfp) -> None:
    run_id = add_recorded_run(fake, "succeeded_retraining")
    (schedule,) = recorded("recurring_runs")["recurringRuns"]
    fake.recurring_runs.append(read("V2beta1RecurringRun", schedule))
    (row,) = json.loads(listed(fake, "--json"))["schedules"]
    assert (row["state"], row["next"]) == ("paused", "")
    assert "succeeded" in row["last"] and row["last"].endswith(f"/#/runs/details/{run_id}")
    fake.recurring_runs[0].status = "ENABLED"
    (row,) = json.loads(listed(fake, "--json"))["schedules"]
    assert row["next"].endswith(":00+00:00") and int(row["next"][14:16]) % 2 == 0  # each second minute, in UTC
    assert row["next"][:10] in (shown := listed(fake)) and "succeeded" in shown


def listed(fake: FakeKfp, *options: str) -> str:
    result = CliRunner(env={"COLUMNS": "250"}).invoke(app, ["schedule", "list", "--host", fake.url, *options])
    assert result.exit_code == 0, result.output
    return result.stdout
