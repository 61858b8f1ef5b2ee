"""The local runner on the shipped, compiled pipeline with stand-ins for the steps (conftest.FakeRuns)."""

import io
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from flashslm.config import DESIGN_STEPS, STEP_SECTIONS, RunConfig
from flashslm.config.steps import STEP_INPUTS
from flashslm.launch.local import launcher
from flashslm.launch.local.launcher import LocalResult
from flashslm.launch.processes import LaunchError
from flashslm.launch.progress import StepRecord
from tests.waiting import has_ended, wait_until

FakeRuns = Callable[..., Any]

FIRST_STEPS = ["check_recipe", "plan_data", "prepare_data"]


def by_label(result: Any) -> dict[str, Any]:
    return {step.label: step for step in result.steps}


def test_whole_pipeline_promotes_then_is_cached_and_holds(fake_runs: FakeRuns) -> None:
    runs = fake_runs()
    first = runs.run(decision="promote")
    assert first.state == "SUCCESS" and first.exit_code == 0
    assert sorted(runs.ran()) == sorted([*DESIGN_STEPS, "search_architecture", "pretrain"])
    assert not any(step.cached for step in first.steps)
    assert by_label(first)["evaluate"].summary == "evaluate is done"
    assert first.outputs["report"].metadata == {"made_by": "report"}
    assert "evaluate: done after" in runs.printed and "evaluate is done" in runs.printed

    second = runs.run(decision="hold")
    assert second.state == "SUCCESS"
    assert runs.ran()[len(first.steps) :] == ["gate", "report"], "cached steps do not run; held models do not register"
    assert {step.name for step in second.steps if not step.cached} == {"gate", "report"}
    assert by_label(second)["pretrain seed=0 weight_norm=off"].cached
    assert second.outputs["chosen"] == first.outputs["chosen"], "artifacts of cached steps are known too"
    assert "pretrain seed=0 weight_norm=off: cached" in runs.printed


def test_steps_get_their_configuration_inputs_and_variants(fake_runs: FakeRuns) -> None:
    runs = fake_runs()
    runs.run()
    calls = {call["label"]: call for call in runs.calls()}
    assert calls["prepare_data worker=0"]["config"]["data"]["paths"] == ["/usr/lib/python3/*.py"], (
        "arguments arrive unchanged"
    )
    assert calls["search_architecture worker=1"]["inputs"] == {
        "dataset": "merge_data",
        "latency_table": "profile_latency",
        "scaling_law": "fit_scaling_law",
    }
    assert all(set(call["inputs"]) == set(STEP_INPUTS[call["step"]]) for call in calls.values())
    assert all(set(call["config"]) == set(STEP_SECTIONS[call["step"]]) for call in calls.values())
    variants = ["pretrain seed=0 weight_norm=on", "pretrain seed=0 weight_norm=off"]
    assert calls["compare_weight_norm"]["inputs"]["checkpoints"] == variants
    assert calls["compare_weight_norm"]["outputs"] == ["ablation", "chosen"]
    assert calls["gate"]["inputs"] == {"evaluation": "evaluate", "exported": "export_model"}
    assert calls["register_model"]["inputs"]["verdict"] == "gate"
    assert all(call["parameters"]["code_digest"] == "code" for call in calls.values())


def test_changed_code_misses_the_cache_and_a_changed_section_only_where_it_is_read(fake_runs: FakeRuns) -> None:
    runs = fake_runs()
    runs.run(fail={"select_architecture": "no trial"})
    before = len(runs.ran())
    runs.digest = "other code"
    assert not any(step.cached for step in runs.run(fail={"select_architecture": "no trial"}).steps)
    assert len(runs.ran()) == 2 * before
    runs.config = RunConfig.model_validate(runs.config.model_dump() | {"search": {"trials": 3}})
    runs.run(fail={"select_architecture": "no trial"})
    read = ["search_architecture", "search_architecture", "select_architecture"]
    assert runs.ran()[2 * before :] == ["check_recipe", *read]


def test_failing_step_is_reported_with_its_message_and_its_log(fake_runs: FakeRuns) -> None:
    runs = fake_runs()
    result = runs.run(fail={"fit_scaling_law": "budget of 0.1 ms is below every measured model"})
    assert result.state == "FAILURE" and result.exit_code == 1
    step = by_label(result)["fit_scaling_law"]
    assert step.state == "FAILURE"
    assert step.summary == "ValueError: budget of 0.1 ms is below every measured model"
    assert "fit_scaling_law failed: ValueError: budget of 0.1 ms is below every measured model" in runs.printed
    assert f"log: {step.log}" in runs.printed
    assert "in work" in runs.printed, "the end of the step's traceback"
    assert runs.ran() == [*FIRST_STEPS, "merge_data", "profile_latency", "fit_scaling_law"]


def test_an_error_that_would_come_again_is_not_retried(fake_runs: FakeRuns) -> None:
    runs = fake_runs(retries=2, retry_wait_s=3_000)
    result = runs.run(fail={"prepare_data": "no text"})
    assert (by_label(result)["prepare_data worker=0"].attempt, runs.ran()) == (1, FIRST_STEPS), "nor waited for"
    assert "prepare_data worker=0 failed: ValueError: no text" in runs.printed
    runs.retry_wait_s = 0
    assert by_label(runs.run(fail={"prepare_data": "busy"}, may_pass=True))["prepare_data worker=0"].attempt == 3


def test_a_step_without_a_log_shows_the_runners_own(tmp_path: Path) -> None:
    log = tmp_path / "kfp.log"
    log.write_text("OSError: [Errno 7] Argument list too long\n")
    step = StepRecord("prepare_data", "prepare_data", started_s=0.0, log=tmp_path / "prepare_data.log")
    step.state = "FAILURE"
    printed = io.StringIO()
    for empty in (False, True):
        if empty:
            step.log.touch()
        launcher.explain(LocalResult("FAILURE", [step], log), Console(file=printed, width=200))
    assert printed.getvalue().count("Argument list too long") == 2
    step.log.write_text("its own\n")
    assert launcher.log_of(step, LocalResult("FAILURE", [step], log)) == step.log


def test_step_killed_by_the_kernel_is_retried(fake_runs: FakeRuns) -> None:
    runs = fake_runs(retries=1)
    result = runs.run(kill_once=["evaluate"])
    assert result.state == "SUCCESS"
    assert by_label(result)["evaluate"].attempt == 2
    assert runs.ran().count("evaluate") == 2
    assert "evaluate: attempt 1 failed: killed by SIGKILL (out of memory?)" in runs.printed
    assert "evaluate: started (attempt 2)" in runs.printed


def sleepers(runs: Any, launcher: subprocess.Popen[str], count: int) -> list[psutil.Process]:
    """Wait until that many steps sleep; everything below the launcher."""
    wait_until(lambda: sum("sleeping" in call for call in runs.calls()) == count)
    found = psutil.Process(launcher.pid).children(recursive=True)
    pids = {call["sleeping"] for call in runs.calls() if "sleeping" in call}
    assert pids <= {process.pid for process in found}
    return found


def living(processes: list[psutil.Process]) -> list[str]:
    return [str(process) for process in processes if not has_ended(process)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.usefixtures("hang_up_ends")
def test_stopped_launcher_ends_every_step_in_order(fake_runs: FakeRuns, number: signal.Signals) -> None:
    runs = fake_runs(retries=2)
    launcher = runs.start(sleep={"search_architecture": 600}, linger={"search_architecture worker=1": 1.0})
    below = sleepers(runs, launcher, count=2)
    launcher.send_signal(number)
    output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 128 + number
    assert living(below) == []
    assert sorted(call["label"] for call in runs.calls() if call.get("signal") == "TERM") == [
        "search_architecture worker=0",
        "search_architecture worker=1",
    ]
    assert runs.ran().count("search_architecture") == 2, "no retry is started"
    assert "stopping" in output


@pytest.mark.parametrize(
    ("step", "recipe", "labels"),
    [
        ("search_architecture", {"search": {"workers": 4}}, [f"search_architecture worker={n}" for n in range(4)]),
        (
            "pretrain",
            {"platform": {"variants_at_once": 3}, "training": {"seeds": [0, 1, 2], "weight_norm": ["on"]}},
            [f"pretrain seed={n} weight_norm=on" for n in range(3)],
        ),
    ],
)
def test_as_many_iterations_run_at_once_as_the_recipe_says(
    fake_runs: FakeRuns, step: str, recipe: dict[str, Any], labels: list[str]
) -> None:
    runs = fake_runs()
    runs.config = RunConfig.model_validate(runs.config.model_dump() | recipe)
    launcher = runs.start(sleep={step: 600})
    sleepers(runs, launcher, count=len(labels))
    launcher.terminate()
    launcher.communicate(timeout=300)
    begun = [call for call in runs.calls() if "sleeping" in call]
    assert sorted(call["label"] for call in begun) == labels
    assert {call["side_by_side"] for call in begun} == {str(len(labels))}  # by which each takes its share of the cores


def test_ctrl_c_in_a_terminal_reaches_steps_as_one_term(fake_runs: FakeRuns) -> None:
    runs = fake_runs()
    launcher = runs.start(own_group=True, sleep={"prepare_data": 600})
    below = sleepers(runs, launcher, count=1)
    os.killpg(launcher.pid, signal.SIGINT)
    launcher.communicate(timeout=300)
    assert launcher.returncode == 128 + signal.SIGINT
    assert living(below) == []
    assert [call["signal"] for call in runs.calls() if "signal" in call] == ["TERM"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="the parent's death is noticed on Linux only")
def test_killed_launcher_leaves_no_orphan(fake_runs: FakeRuns) -> None:
    runs = fake_runs()
    launcher = runs.start(sleep={"search_architecture": 600})
    below = sleepers(runs, launcher, count=2)
    launcher.kill()
    launcher.communicate(timeout=300)
    wait_until(lambda: living(below) == [])
    (scratch,) = runs.directory.glob("flashslm-*")
    (scratch / "half-made").touch()
    launcher = runs.start(fail={"search_architecture": "no trial"})
    printed, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 1
    assert runs.ran().count("fit_scaling_law") == 1, "what the killed run finished is cached"
    assert "fit_scaling_law: cached: fit_scaling_law is done" in printed, "and so is what it came to"
    assert not scratch.exists(), "the next run removes what the killed one left"


def test_run_local_compiles_with_the_recipes_retries_and_passes_the_codes_digest(
    fake_runs: FakeRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "code_digest", lambda: "digest of the code")
    runs = fake_runs()
    config = RunConfig.model_validate({"name": "toy", "platform": {"retries": 0}})
    env = runs.env(fail={"prepare_data": "no text"})
    result = launcher.run_local(config, tmp_path / "run", env, tmp_path / "home", quiet=True)
    assert (result.state, result.exit_code, result.log) == ("FAILURE", 1, tmp_path / "run" / "logs" / "kfp.log")
    call = runs.calls()[-1]
    assert call["parameters"]["code_digest"] == "digest of the code"
    assert "retryPolicy" not in (tmp_path / "run" / "pipeline.yaml").read_text()


def test_second_run_in_one_home_is_refused_with_the_pid(fake_runs: FakeRuns) -> None:
    runs = fake_runs()
    launcher = runs.start(sleep={"prepare_data": 600})
    sleepers(runs, launcher, count=1)
    try:
        with pytest.raises(LaunchError, match=f"another run uses .* \\(pid {launcher.pid}\\)"):
            runs.run()
    finally:
        launcher.terminate()
        launcher.communicate(timeout=300)
    assert runs.run(fail={"prepare_data": "no text"}).state == "FAILURE", "the lock ends with its holder"


def test_scratch_of_the_run_is_removed(fake_runs: FakeRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert fake_runs().run(fail={"prepare_data": "no text"}).state == "FAILURE"
    assert list(tmp_path.glob("flashslm-*")) == []
