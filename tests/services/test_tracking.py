"""Tracking against a real MLflow: content, true ends, outages."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from flashslm.infra.process import owners
from flashslm.infra.process.interrupts import Terminated
from flashslm.infra.settings import Settings
from flashslm.infra.stack import embedded_stack
from flashslm.infra.tracking import mlflow_runs, spool
from flashslm.infra.tracking.mlflow_client import MlflowError, TrackingClient
from tests.waiting import wait_until

pytestmark = pytest.mark.services


def run_of(settings: Settings, run_id: str) -> Any:
    return TrackingClient(settings).get_run(run_id)


def artifact(settings: Settings, run_id: str, path: str, directory: Path) -> bytes:
    directory.mkdir(exist_ok=True)
    return Path(TrackingClient(settings).download_artifacts(run_id, path, str(directory))).read_bytes()


def history(settings: Settings, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in TrackingClient(settings).get_metric_history(run_id, key))


def named(settings: Settings, name: str) -> Any:
    (run,) = TrackingClient(settings).find_runs(f"attributes.run_name = '{name}'")
    return run


class Figure:
    """Stands for a matplotlib figure."""

    def savefig(self, path: Path, **_: Any) -> None:
        path.write_bytes(b"png")


def test_everything_a_task_logs_arrives(platform_env, tmp_path):
    settings = platform_env
    parent = mlflow_runs.start_parent_run(settings, "pipeline", {"recipe": "demo"})
    settings = settings.model_copy(update={"parent_run_id": parent})
    (tmp_path / "notes.txt").write_text("hello")
    params = {"training": {"lr": 0.1, "text": "x" * 7000}}
    with mlflow_runs.open_run(settings, "pretrain", tags={"step": "pretrain"}, params=params) as run:
        for step in range(1200):
            run.log_metrics({"loss": 1 / (step + 1)}, step)
        run.log_result({"loss": 1 / 1200, "final": 3.0})
        run.log_metrics({"odd": float("nan")}, 7)
        run.log_metrics({"odd": float("inf")}, 8)
        run.log_file(tmp_path / "notes.txt", "notes")
        run.log_figure(Figure(), "figures/loss.png")
        run.log_dataset("demo", "s3://lab/cas/ab", "ab" * 32)
        with run.nested("trial 1", params={"width": 64}) as trial:
            trial.log_metrics({"proxy": 2.5}, 0)
    recipe = {"training": {f"p{i}": i for i in range(150)}}  # more than one request takes
    whole = mlflow_runs.run_of(settings, parent)
    whole.log_metrics({"perplexity": 3.5}, step=0)
    whole.set_tags({"decision": "promote"})
    whole.log_params(recipe)
    whole.log_file(tmp_path / "notes.txt")
    mlflow_runs.finish_run(settings, parent, "FINISHED")

    logged, child = run_of(settings, run.run_id), run_of(settings, trial.run_id)
    assert logged.info.status == child.info.status == "FINISHED"
    assert len(run_of(settings, parent).data.params) == 150
    assert logged.data.params == {"cfg.training.lr": "0.1", "cfg.training.text": "x" * 6000}
    assert logged.data.tags["mlflow.parentRunId"] == parent and child.data.tags["mlflow.parentRunId"] == run.run_id
    assert history(settings, run.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(1200)]
    assert history(settings, run.run_id, "final") == [(0, 3.0)], "a result without a curve"
    assert [step for step, _ in history(settings, run.run_id, "odd")] == [7, 8]
    assert child.data.params == {"cfg.width": "64"} and history(settings, trial.run_id, "proxy") == [(0, 2.5)]
    assert artifact(settings, run.run_id, "notes/notes.txt", tmp_path / "back") == b"hello"
    assert artifact(settings, run.run_id, "figures/loss.png", tmp_path / "back") == b"png"
    (data,) = (found.dataset for found in logged.inputs.dataset_inputs)
    assert data.digest == ("ab" * 32)[:36] and mlflow.data.get_source(data).uri == "s3://lab/cas/ab"
    finished = run_of(settings, parent)
    assert finished.info.status == "FINISHED" and finished.data.tags["decision"] == "promote"
    assert history(settings, parent, "perplexity") == [(0, 3.5)]
    assert artifact(settings, parent, "notes.txt", tmp_path / "back") == b"hello"
    assert not spool_files()


def test_metrics_are_visible_while_the_task_runs(platform_env):
    with mlflow_runs.open_run(platform_env, "live") as run:
        run.log_metrics({"loss": 1.0}, 1)
        wait_until(lambda: history(platform_env, run.run_id, "loss"))
        assert run_of(platform_env, run.run_id).info.status == "RUNNING"


def test_attaches_to_an_injected_run(platform_env, monkeypatch):
    injected = mlflow_runs.start_parent_run(platform_env, "made by the cluster")
    mlflow_runs.finish_run(platform_env, injected, "FAILED")  # the first attempt
    monkeypatch.setenv("MLFLOW_RUN_ID", injected)
    with mlflow_runs.open_run(platform_env, "ignored", params={"lr": 1}) as run:
        assert run.run_id == injected and os.environ["MLFLOW_RUN_ID"] == injected
        assert run_of(platform_env, injected).info.status == "RUNNING"
    attached = run_of(platform_env, injected)
    assert attached.info.status == "FINISHED" and attached.data.params == {"cfg.lr": "1"}
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(MlflowError, match="RESOURCE_DOES_NOT_EXIST"), mlflow_runs.open_run(platform_env, "x"):
        pytest.fail("a run that does not exist was attached to")


def test_what_mlflow_refuses_is_a_warning(platform_env, caplog):
    with mlflow_runs.open_run(platform_env, "refused", params={"lr": 1}) as run:
        run.log_params({"lr": 2})
        run.log_metrics({"loss": 1.0}, 0)
    assert "not logged" in caplog.text and "lr" in caplog.text
    assert history(platform_env, run.run_id, "loss") == [(0, 1.0)]


SCRIPT = """
import os, signal, sys, time
from flashslm.infra.tracking import mlflow_runs
from flashslm.infra.settings import Settings
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us with it ignored
with mlflow_runs.open_run(Settings.from_env(), sys.argv[1]) as run:
    run.log_metrics({"loss": 1.0}, 0)
    print("ready", flush=True)
    exec(sys.argv[2])
"""
ENDS = {
    "return": ("pass", 0, "FINISHED"),
    "exit 3": ("sys.exit(3)", 3, "FAILED"),
    "exception": ("raise ValueError('bad shape')", 1, "FAILED"),
    "SIGTERM": ("os.kill(os.getpid(), 15); time.sleep(30)", 143, "KILLED"),
    "SIGINT": ("os.kill(os.getpid(), 2); time.sleep(30)", 130, "KILLED"),
    "SIGTERM while flushing": (
        "end = run.end; run.end = lambda status: (os.kill(os.getpid(), 15), end(status))",
        143,
        "FINISHED",  # what it was to do is done
    ),
    "SIGKILL": ("os.kill(os.getpid(), 9)", -signal.SIGKILL, "RUNNING"),
}


def test_every_end_is_a_true_status(platform_env):
    mark = os.urandom(4).hex()
    processes = {
        end: subprocess.Popen(
            [sys.executable, "-c", SCRIPT, f"{mark} {end}", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for end, (code, _, _) in ENDS.items()
    }
    for end, process in processes.items():
        _, errors = process.communicate(timeout=300)
        assert process.returncode == ENDS[end][1], (end, errors.decode())
        status = named(platform_env, f"{mark} {end}").info.status
        assert status == ENDS[end][2], end
    assert "bad shape" in named(platform_env, f"{mark} exception").data.tags["flashslm.error"]

    killed = named(platform_env, f"{mark} SIGKILL").info.run_id
    with mlflow_runs.open_run(platform_env, "alive") as alive:
        swept = mlflow_runs.sweep(platform_env)
        assert killed in swept and alive.run_id not in swept
        assert run_of(platform_env, killed).info.status == "KILLED"
        assert killed not in mlflow_runs.sweep(platform_env)
    assert run_of(platform_env, alive.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_a_signal_meets_while_it_is_begun_is_killed(platform_env, monkeypatch, number):
    """MLflow has made it, and its answer does not come any more."""
    created, name = spool.RunRef.created, f"begun {os.urandom(4).hex()}"

    def interrupted(run: spool.RunRef, client: TrackingClient) -> str:
        created(run, client)
        signal.raise_signal(number)
        raise AssertionError("the signal ends it")

    monkeypatch.setattr(spool.RunRef, "created", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises((Terminated, KeyboardInterrupt)), mlflow_runs.open_run(platform_env, name):
        pytest.fail("the block was entered")
    signal.signal(signal.SIGINT, handler)
    assert named(platform_env, name).info.status == "KILLED"


def spool_files() -> list[Path]:
    return sorted(Path(os.environ["FLASHSLM_SPOOL"]).glob("*.jsonl"))


def test_an_outage_costs_nothing(platform_env, stack_home, tmp_path, caplog, monkeypatch):
    """MLflow dies in mid-run: the run continues, and later its curve is whole, without duplicates."""
    monkeypatch.setattr(mlflow_runs, "_SEND_EVERY_S", 3600.0)  # else an open run may send its file while it is copied
    settings, api = platform_env, TrackingClient(platform_env)
    (tmp_path / "late.txt").write_text("late")
    api.experiment_id  # noqa: B018
    through = mlflow_runs.open_run(settings, "through the outage")
    across = through.__enter__()
    with mlflow_runs.open_run(settings, "ends in the outage") as run:
        for step in range(100):
            run.log_metrics({"loss": float(step)}, step)
            across.log_metrics({"loss": float(step)}, step)
        run.flush()
        across.flush()
        kill_mlflow(stack_home)
        for step in range(100, 300):
            run.log_metrics({"loss": float(step)}, step)
            across.log_metrics({"loss": float(step)}, step)
        run.log_file(tmp_path / "late.txt", "notes")
        run.set_tags({"during": "outage"})
        across.flush()
        (tmp_path / "late.txt").write_text("changed afterwards")
    with mlflow_runs.open_run(settings, "born in the outage", params={"lr": 1}) as born:
        born.log_metrics({"loss": 5.0, "odd": float("nan")}, 5)
        assert born.run_id == ""
        with born.nested("child of the unborn") as child:
            child.log_metrics({"loss": 6.0}, 6)
    assert len(spool_files()) == 4
    assert sum("does not answer" in record.message for record in caplog.records) <= 4  # once a run
    embedded_stack.up(stack_home)

    copy = tmp_path / "copy"  # a back-fill that was cut short after its last request leaves its files behind
    shutil.copytree(os.environ["FLASHSLM_SPOOL"], copy)
    assert spool.backfill(settings) > 0
    shutil.copytree(copy, os.environ["FLASHSLM_SPOOL"], dirs_exist_ok=True)
    assert spool.backfill(settings) > 0
    assert spool.backfill(settings) == 0 and spool_files() == []

    across.log_metrics({"loss": 300.0}, 300)
    through.__exit__(None, None, None)
    for ended, steps in ((run, 300), (across, 301)):
        assert history(settings, ended.run_id, "loss") == [(step, float(step)) for step in range(steps)]
        assert run_of(settings, ended.run_id).info.status == "FINISHED"
    assert run_of(settings, run.run_id).data.tags["during"] == "outage"
    assert artifact(settings, run.run_id, "notes/late.txt", tmp_path / "back") == b"late"
    late, below = named(settings, "born in the outage"), named(settings, "child of the unborn")  # each exactly once
    assert history(settings, late.info.run_id, "loss") == [(5, 5.0)] and late.data.params == {"cfg.lr": "1"}
    assert [(step, value != value) for step, value in history(settings, late.info.run_id, "odd")] == [(5, True)]
    assert below.data.tags["mlflow.parentRunId"] == late.info.run_id
    assert late.info.status == below.info.status == "FINISHED"


def kill_mlflow(home: Path) -> None:
    """SIGKILL the server and its workers."""
    leader = next(service.pid for service in embedded_stack.status(home).services if service.name == "mlflow")
    family = [psutil.Process(leader), *psutil.Process(leader).children(recursive=True)]
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=10)


def loss_at(step: int) -> spool.Entry:
    return spool.Entry(metrics=[spool.MetricPoint("loss", 1.0, 1, step)])


def test_a_run_deleted_meanwhile_does_not_block_the_spool(platform_env, caplog):
    api = TrackingClient(platform_env)
    gone = mlflow_runs.start_parent_run(platform_env, "deleted")
    kept = mlflow_runs.start_parent_run(platform_env, "kept")
    for run_id in (gone, kept):
        spool.append(spool.RunRef.of(platform_env, run_id), loss_at(0))
    api.delete_run(gone)
    assert spool.backfill(platform_env) == 2
    assert "dropped from" in caplog.text and spool_files() == []
    assert history(platform_env, kept, "loss") == [(0, 1.0)]
    mlflow_runs.finish_run(platform_env, kept, "FINISHED")


def test_what_a_lost_process_had_finished_counts_no_more(platform_env: Settings) -> None:
    with mlflow_runs.open_run(platform_env, "search") as run:
        for name in ("lost trial 3", "lost trial 4", "lost trial 3"):
            with run.nested(name) as trial:
                owner = run_of(platform_env, trial.run_id).data.tags[mlflow_runs.OWNER_TAG]
            mlflow_runs.end_lost(platform_env, "lost trial 3", ["somebody else 1 1.0"])
        mlflow_runs.end_lost(platform_env, "lost trial 3", [owner])
    found = TrackingClient(platform_env).find_runs("attributes.run_name LIKE 'lost trial %'")
    ends = sorted((r.info.run_name, r.info.status) for r in found)
    assert ends == [("lost trial 3", "KILLED"), ("lost trial 3", "KILLED"), ("lost trial 4", "FINISHED")]


def visible(run: Any) -> set[str]:
    """The tags that MLflow's pages show."""
    return {tag for tag in run.data.tags if not tag.startswith("mlflow.")}


def test_tags_that_only_the_package_reads_are_hidden(platform_env: Settings) -> None:
    with mlflow_runs.open_run(platform_env, "step", tags={"step": "pretrain"}) as run:
        pass
    made = run_of(platform_env, run.run_id)
    assert visible(made) == {"step"} and made.data.tags[mlflow_runs.OWNER_TAG].startswith(owners.machine())


def made_by_an_earlier_version(settings: Settings, name: str, tags: dict[str, str]) -> str:
    """A run whose tags are all visible."""
    client = TrackingClient(settings)
    run = client.create_run(client.experiment_id, tags=tags, run_name=name)
    assert visible(client.get_run(run.info.run_id)) == set(tags)
    return str(run.info.run_id)


def test_runs_of_earlier_versions_are_found_by_their_visible_tags(platform_env: Settings) -> None:
    gone, now = f"{owners.machine()} 4194305 1.0", owners.owner()
    dead = made_by_an_earlier_version(platform_env, "dead", {"flashslm.owner": gone})
    alive = made_by_an_earlier_version(platform_env, "alive", {"flashslm.owner": now})
    swept = mlflow_runs.sweep(platform_env)
    assert dead in swept and alive not in swept
    mlflow_runs.finish_run(platform_env, alive, "FINISHED")
    mlflow_runs.end_lost(platform_env, "alive", [now])
    assert run_of(platform_env, alive).info.status == "KILLED"
    known = made_by_an_earlier_version(
        platform_env, "sent in part", {"flashslm.spool_key": "new-of-an-earlier-version"}
    )
    reference = spool.RunRef(key="new-of-an-earlier-version", experiment=platform_env.experiment, create={"tags": {}})
    assert reference.resolve(TrackingClient(platform_env)) == known, "it is not made twice"


def spooled_run(settings: Settings, name: str, losses: int) -> tuple[str, Path]:
    """A run of which metrics wait on disk."""
    run_id = mlflow_runs.start_parent_run(settings, name)
    for step in range(losses):
        spool.append(spool.RunRef.of(settings, run_id), loss_at(step))
    return run_id, next(file for file in spool_files() if file.stem == run_id)


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda content: content[:-20], 2),  # the last line was cut off
        (lambda content: content[:10], 0),  # the first one
        (lambda content: b"", 0),
        (lambda content: b"\xff" + content[1:], 0),
        (lambda content: content.replace(b'"loss"', b'"l\xffss"', 1), 2),
        (lambda content: content.replace(b'"metrics"', b'"metricz"', 1), 2),
    ],
)
def test_a_damaged_spool_file_is_set_aside_and_the_rest_is_sent(damage, kept, platform_env, caplog):
    broken, file = spooled_run(platform_env, "broken", 3)
    whole, _ = spooled_run(platform_env, "whole", 3)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    damaged = file.read_bytes()
    assert spool.backfill(platform_env) == kept + 3
    assert len(history(platform_env, whole, "loss")) == 3 and len(history(platform_env, broken, "loss")) == kept
    assert spool_files() == [] and spool.backfill(platform_env) == 0, "it blocks no later run"
    (aside,) = file.parent.glob("*.damaged-*")
    assert aside.read_bytes() == damaged and aside.name in caplog.text
    for run_id in (broken, whole):
        mlflow_runs.finish_run(platform_env, run_id, "FINISHED")


def test_what_is_spooled_after_a_cut_line_is_sent(platform_env):
    run_id, file = spooled_run(platform_env, "cut", 2)
    file.write_bytes(file.read_bytes()[:-20])
    spool.append(spool.RunRef.of(platform_env, run_id), loss_at(7))
    assert spool.backfill(platform_env) == 2
    assert [step for step, _ in history(platform_env, run_id, "loss")] == [0, 7]
    mlflow_runs.finish_run(platform_env, run_id, "FINISHED")


def test_a_deleted_experiment_is_restored(platform_env, caplog):
    settings = platform_env.model_copy(update={"experiment": f"experiment-{os.urandom(4).hex()}"})
    mlflow_runs.finish_run(settings, mlflow_runs.start_parent_run(settings, "before"), "FINISHED")
    api = TrackingClient(settings)
    api.delete_experiment(api.experiment_id)
    run_id = mlflow_runs.start_parent_run(settings, "after")
    mlflow_runs.finish_run(settings, run_id, "FINISHED")
    assert run_of(settings, run_id).info.status == "FINISHED" and "it is restored" in caplog.text


@pytest.mark.parametrize("name", ["team/one", "/Users/me/slm", "100 % #1?&=+", 'it\'s "it"', "ü" * 256])
def test_an_experiment_may_have_any_printable_name(name: str, settings: Settings) -> None:
    """What `Settings` accepts MLflow accepts, finds again and searches."""
    named = Settings.from_env(settings.as_env() | {"FLASHSLM_EXPERIMENT_NAME": name})
    api = TrackingClient(named)
    run_id = mlflow_runs.start_parent_run(named, "run")
    assert [run.info.run_id for run in api.find_runs("attributes.run_name = 'run'")] == [run_id]
    assert TrackingClient(named).experiment_id == api.experiment_id != TrackingClient(settings).experiment_id
    mlflow_runs.finish_run(named, run_id, "FINISHED")
