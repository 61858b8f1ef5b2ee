"""Schedules on a cluster, by the commands, against tests/pipeline/fake_kfp.py."""

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.config import RunConfig
from flashslm.launch.kfp import recurring_runs
from flashslm.launch.kfp.api import Connection
from flashslm.launch.kfp.client import KfpClient
from flashslm.launch.processes import LaunchError
from flashslm.launch.schedule.cron import Cron
from flashslm.launch.schedule.records import Schedules
from tests.pipeline.fake_kfp import FakeKfp
from tests.pipeline.tiny import enter_checkout
from tests.unit.launch.schedule.memory_store import MemoryStore

RECIPE = RunConfig.model_validate(
    {"name": "toy", "evaluation": {"batch_size": 4}, "platform": {"service_account": "runner"}}
)
NIGHTLY = Cron.parse("0 2 * * *", "UTC")


@pytest.fixture
def fake() -> Iterator[FakeKfp]:
    with FakeKfp(page_limit=1) as server:
        yield server


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_checkout(tmp_path / "checkout", monkeypatch)


def connect(server: FakeKfp) -> KfpClient:
    return KfpClient(Connection(server.url, environ={}, sleep=lambda _: None), "team")


def create(server: FakeKfp, name: str = "nightly", cron: Cron = NIGHTLY, recipe: RunConfig = RECIPE) -> Any:
    return recurring_runs.create(connect(server), name, recipe, "retraining", cron)


def command(server: FakeKfp, *arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["schedule", *arguments, "--host", server.url])


def test_a_schedule_runs_the_latest_version_alone_and_does_not_catch_up(fake: FakeKfp) -> None:
    create(fake)
    (made,) = fake.recurring_runs
    assert made.trigger.cron_schedule.cron == "0 0 2 * * *", "five fields would mean something else to KFP"
    assert (made.max_concurrency, made.no_catchup, made.service_account) == ("1", True, "runner")
    assert made.pipeline_version_reference.pipeline_id == fake.pipelines[0].pipeline_id
    assert made.pipeline_version_reference.pipeline_version_id is None
    assert made.runtime_config.parameters["evaluation"] == {"batch_size": 4}
    assert fake.experiments[0].display_name == "toy" and fake.runs == []


def test_creating_again_publishes_the_new_version_and_keeps_the_schedule(
    fake: FakeKfp, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = create(fake)
    monkeypatch.setattr("flashslm.launch.kfp.cluster_pass.code_digest", lambda: "newer code")
    platform = RECIPE.platform.model_copy(update={"image": "newer@sha256:1"})
    again = create(fake, recipe=RECIPE.model_copy(update={"platform": platform}))
    assert again.recurring_run_id == first.recurring_run_id
    assert len(fake.recurring_runs) == 1 and len(fake.versions) == 2
    newest = fake.specs[fake.versions[-1].pipeline_version_id]["root"]["inputDefinitions"]["parameters"]
    assert newest["code_digest"]["defaultValue"] == "newer code"
    assert "code_digest" not in again.runtime_config.parameters, "a run takes the one of the version that it runs"
    other = RECIPE.platform.model_copy(update={"service_account": "somebody-else"})
    with pytest.raises(LaunchError, match="exists with other settings"):
        create(fake, recipe=RECIPE.model_copy(update={"platform": other}))
    with pytest.raises(LaunchError, match="schedule 'nightly' exists with other settings: delete it first"):
        create(fake, cron=Cron.parse("0 3 * * *", "UTC"))


@pytest.mark.parametrize("kind", ["cut_after", 503])
def test_a_lost_answer_makes_one_schedule(fake: FakeKfp, kind: int | str) -> None:
    fake.fail("POST", "/recurringruns$", kind)
    create(fake)
    assert len(fake.recurring_runs) == 1
    fake.fail("DELETE", "/recurringruns/", kind)
    connect(fake).delete_schedule(fake.recurring_runs[0].recurring_run_id)
    assert fake.recurring_runs == []


def test_another_zone_than_the_installations_is_refused(fake: FakeKfp) -> None:
    berlin = Cron.parse("0 2 * * *", "Europe/Berlin")
    with pytest.raises(LaunchError, match=r"this installation reads cron in 'UTC' \(platform.cron_time_zone\)"):
        create(fake, cron=berlin)
    platform = RECIPE.platform.model_copy(update={"cron_time_zone": "Europe/Berlin"})
    made = create(fake, cron=berlin, recipe=RECIPE.model_copy(update={"platform": platform}))
    assert made.description.endswith("0 0 2 * * * in Europe/Berlin")


def test_a_pipeline_that_would_never_see_new_data_is_refused(
    fake: FakeKfp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter_checkout(tmp_path / "cached", monkeypatch, cached=True)
    with pytest.raises(LaunchError, match="/prepare-data reads the data source and is cached"):
        create(fake)
    assert fake.requests == []


def test_commands_create_list_pause_resume_and_delete(fake: FakeKfp) -> None:
    for name in ("nightly", "weekly"):
        made = command(fake, "create", name, "--config", "toy.yaml", "--cron", "0 2 * * 1", "--json")
        assert made.exit_code == 0, made.output
    facts = json.loads(made.stdout)
    assert facts["schedule_id"] == fake.recurring_runs[1].recurring_run_id and facts["next"].endswith("02:00:00+00:00")

    assert command(fake, "pause", "weekly").exit_code == 0
    listed = json.loads(command(fake, "list", "--json").stdout)["schedules"]
    assert [(s["name"], s["state"], s["cron"]) for s in listed] == [
        ("nightly", "on", "0 0 2 * * 1"),
        ("weekly", "paused", "0 0 2 * * 1"),
    ]
    assert command(fake, "resume", "weekly").exit_code == 0
    assert {s.status for s in fake.recurring_runs} == {"ENABLED"}
    assert "nightly" in command(fake, "list").stdout
    assert command(fake, "delete", "nightly").exit_code == 0
    assert [s.display_name for s in fake.recurring_runs] == ["weekly"]

    missing = command(fake, "delete", "nightly")
    assert missing.exit_code == 1 and "schedule 'nightly' does not exist; there are: weekly" in str(missing.exception)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--cron", "2 * *"], "has 3 fields"),
        (["--cron", "0 2 * * *", "--time-zone", "Mars"], "time zone 'Mars' is unknown"),
        (["--cron", "0 2 * * *", "--pipeline", "nothing"], "pipeline 'nothing' is not in"),
    ],
)
def test_mistakes_are_found_before_anything_is_made(fake: FakeKfp, arguments: list[str], expected: str) -> None:
    result = command(fake, "create", "nightly", "--config", "toy.yaml", *arguments)
    assert result.exit_code == 1 and expected in str(result.exception) and fake.requests == []


@pytest.mark.parametrize("name", ["Night ly", "a/b", "-a", "a" * 64])
def test_a_name_that_is_none_is_refused(fake: FakeKfp, name: str) -> None:
    result = command(fake, "create", "--config", "toy.yaml", "--cron", "0 2 * * *", "--", name)
    assert f"schedule '{name}': a name has up to 63 small letters" in str(result.exception) and fake.requests == []


def test_commands_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    schedules = Schedules(MemoryStore())  # type: ignore[arg-type]
    monkeypatch.setattr("flashslm.cli.schedule.local_schedules", lambda _: schedules)

    def run(*arguments: str) -> Any:
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["schedule", *arguments])

    options = ["--config", "toy.yaml", "--cron", "0 2 * * 1", "--time-zone", "Europe/Berlin"]
    own = ["data.source=files", "data.paths=[texts/*.md,s3://b/x]"]
    made = run("create", "weekly", *options, "--json", "training.steps=7", *own)
    facts = json.loads(made.stdout)
    assert datetime.fromisoformat(facts["next"]).strftime("%a %H:%M") == "Mon 02:00"
    (schedule,) = schedules.all()
    assert schedule.config.training.steps == 7 and schedule.pipeline == "retraining"
    assert schedule.config.data.paths == (f"{Path.cwd()}/texts/*.md", "s3://b/x"), "wherever a scheduler watches from"
    lonely = run("create", "other", *options, "--experiment", "ours")
    assert "--experiment is KFP's: it needs --host" in str(lonely.exception)
    assert schedule.settled_s == pytest.approx(time.time(), abs=60), "what was due before it was made is not done"

    assert run("pause", "weekly").exit_code == 0
    (listed,) = json.loads(run("list", "--json").stdout)["schedules"]
    assert (listed["state"], listed["next"], listed["cron"]) == ("paused", "", "0 2 * * 1 Europe/Berlin")
    assert run("resume", "weekly").exit_code == 0
    shown = run("list").stdout
    assert "weekly" in shown and facts["next"] in shown and "paused" not in shown
    assert run("delete", "weekly").exit_code == 0 and schedules.all() == []
    assert "schedule 'weekly' does not exist; there are: none" in str(run("pause", "weekly").exception)
