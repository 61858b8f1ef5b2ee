"""The whole pipeline against the real embedded S3 and MLflow: killed twice, then promoting, then holding."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from html import unescape
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from flashslm.config.file import load
from flashslm.infra.registry import model_registry
from flashslm.infra.settings import Settings
from flashslm.infra.stack import embedded_stack
from flashslm.infra.storage.object_store import Manifest, ObjectStore, hash_tree
from flashslm.steps.run import run_step
from tests.browser import CHROMIUM, rendered, rendered_with
from tests.holding import held_at
from tests.waiting import modes, wait_until, whole_lines

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "smoke.yaml"
FLASHSLM = [sys.executable, "-m", "flashslm"]

pytestmark = pytest.mark.services


class Project:
    """One user's directory: a home for the stack, and runs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = directory / ".flashslm"

    def command(self) -> list[str]:
        return [*FLASHSLM, "run", "--config", str(RECIPE), "--json", "--home", str(self.home)]

    def start(self, **variables: str) -> subprocess.Popen[str]:
        log = (self.directory / "run.log").open("a")
        return subprocess.Popen(
            self.command(),
            cwd=self.directory,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            umask=0,  # of a user whose files everybody may write
        )

    def finish(self) -> dict[str, Any]:
        process = self.start()
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, (self.directory / "run.log").read_text()[-4000:]
        return dict(json.loads(output.splitlines()[-1]))

    def events(self) -> list[dict[str, Any]]:
        """Events of the newest run."""
        newest = max((self.directory / "runs").glob("2*/events.jsonl"), default=None)
        return [json.loads(line) for line in whole_lines(newest)] if newest else []

    def kill_when(self, reached: Callable[[list[dict[str, Any]]], bool], step: str, at: int) -> None:
        """Start a run and SIGKILL its whole process group once its events say so; the step waits there (`held_at`)."""
        process = self.start(**held_at(step, at, self.directory / "hold"))
        deadline = time.monotonic() + 400
        while not reached(self.events()):
            assert process.poll() is None, f"ended early: {(self.directory / 'run.log').read_text()[-4000:]}"
            assert time.monotonic() < deadline, "the awaited event never came"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def progress(events: list[dict[str, Any]], step: str) -> list[dict[str, Any]]:
    return [e for e in events if e["step"] == step and e["event"] == "progress"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("project"))
    try:
        yield project
    finally:
        embedded_stack.down(project.home)


@pytest.fixture(scope="module")
def runs(project: Project) -> dict[str, Any]:
    """Four times the same command: killed in the search, killed in pretraining, promoting, holding."""
    project.kill_when(lambda events: len(progress(events, "search_architecture")) >= 3, "search_architecture", 2)
    orphans_after_kill = descendants(project)
    project.kill_when(lambda found: any(e["training_step"] >= 50 for e in progress(found, "pretrain")), "pretrain", 50)
    promoted = project.finish()
    promoted_events = project.events()
    held = project.finish()
    return {
        "orphans_after_kill": orphans_after_kill,
        "promoted": promoted,
        "promoted_events": promoted_events,
        "held": held,
        "held_events": project.events(),
    }


def descendants(project: Project) -> list[str]:
    """Step processes of this project that do not end (the stack is meant to live on)."""
    with suppress(AssertionError):
        wait_until(lambda: not living(project))
    return living(project)


def living(project: Project) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if process.info["cwd"] == str(project.directory) and "executor_main" in command:
            found.append(command)
    return found


@pytest.fixture(scope="module")
def settings(project: Project, runs: dict[str, Any]) -> Settings:
    return embedded_stack.up(project.home)


def ended(events: list[dict[str, Any]]) -> list[str]:
    return [e["step"] for e in events if e["event"] == "end"]


def test_kill_of_the_group_leaves_no_orphan(runs: dict[str, Any]) -> None:
    assert runs["orphans_after_kill"] == []


def test_first_finished_run_promotes(runs: dict[str, Any], settings: Settings) -> None:
    assert runs["promoted"]["state"] == "SUCCESS" and runs["promoted"]["decision"] == "promote"
    assert "register_model" in ended(runs["promoted_events"])
    champion = model_registry.champion(settings, "flashslm-smoke")
    assert champion is not None and champion.version == "1"


def test_killed_search_goes_on_and_trains_no_duplicate(project: Project, runs: dict[str, Any]) -> None:
    ends = {e["step"]: e for e in runs["promoted_events"] if e["event"] == "end"}
    assert "prepare_data" not in ends, "finished steps come from the cache"
    report = runs["promoted"]
    manifest = json.loads(
        (project.directory / "runs" / report["run_id"] / "artifacts" / "architecture.json").read_text()
    )
    tree = project.home / "trees" / manifest["sha256"]
    history = json.loads((tree / "history.json").read_text())
    assert len(history) == 16
    assert len({t["operators"] for t in history}) == 16
    best = json.loads((tree / "best.json").read_text())
    assert best["loss_nats"] == min(t["loss_nats"] for t in history)


def test_killed_pretraining_resumes_from_its_checkpoint(runs: dict[str, Any]) -> None:
    summaries = [e["summary"] for e in runs["promoted_events"] if e["step"] == "pretrain" and e["event"] == "end"]
    assert any("resumed from step" in summary for summary in summaries), summaries


def test_resumed_curve_equals_an_unkilled_one(
    project: Project, runs: dict[str, Any], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupted variant, trained once more from nothing and left alone: same weights, same curve, bit for bit."""
    ends = [e for e in runs["promoted_events"] if e["step"] == "pretrain" and e["event"] == "end"]
    resumed = next(e for e in ends if "resumed from step" in e["summary"])
    variant = dict(part.split("=") for part in resumed["label"].split()[1:])
    for name, value in settings.as_env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FLASHSLM_CACHE", str(project.home / "trees"))
    artifacts = project.directory / "runs" / runs["promoted"]["run_id"] / "artifacts"
    result = run_step(
        "pretrain",
        config=load(RECIPE).for_step("pretrain"),
        inputs={name: str(artifacts / f"{name}.json") for name in ("dataset", "architecture")},
        outputs={"checkpoint": str(tmp_path / "checkpoint.json")},
        parameters=variant | {"code_digest": "another key, so other checkpoints"},
    )
    assert result["resumed_from_step"] == 0
    store = ObjectStore(settings)
    unkilled = store.get_tree(Manifest.read(tmp_path / "checkpoint.json"), tmp_path / "unkilled")
    joined = store.get_tree(Manifest.model_validate(resumed["outputs"]["checkpoint"]), tmp_path / "joined")
    assert (joined / "model.safetensors").read_bytes() == (unkilled / "model.safetensors").read_bytes()
    assert (joined / "metrics.jsonl").read_bytes() == (unkilled / "metrics.jsonl").read_bytes()
    assert hash_tree(joined) == hash_tree(unkilled), "the same weights have the same address, whenever they were made"


def test_model_has_learned(runs: dict[str, Any]) -> None:
    assert runs["promoted"]["test/loss_nats"] < 0.9 * runs["promoted"]["unigram_entropy_nats"]


def test_second_run_is_cached_and_holds(runs: dict[str, Any]) -> None:
    assert runs["held"]["decision"] == "hold"
    assert sorted(ended(runs["held_events"])) == ["gate", "report"]
    assert runs["held"]["cached_steps"] == runs["held"]["steps"] - 2
    assert runs["held"]["test/perplexity"] == runs["promoted"]["test/perplexity"]


def test_run_directory_holds_what_a_person_looks_for(project: Project, runs: dict[str, Any]) -> None:
    latest = project.directory / "runs" / "latest"
    assert latest.resolve().name == runs["held"]["run_id"]
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "report.html", "events.jsonl"):
        assert (latest / name).stat().st_size > 100, name
    assert (latest / "export" / "huggingface" / "config.json").is_file()
    assert (latest / "export" / "tensorrt_llm" / "config.json").is_file()
    report = (latest / "report.html").read_text()
    assert "Decision: hold" in report and report.count("<figure") == 10 and runs["held"]["run_id"] in report
    assert '<h2 id="samples">' in report and '<table class="heat">' in report and runs["held"]["mlflow_url"] in report
    assert report.count('class="state-cached"') == runs["held"]["cached_steps"] and len(report) < 3_000_000
    assert json.loads((latest / "environment.json").read_text())["packages"]["torch"]


def test_home_and_runs_are_the_owners_alone(project: Project, runs: dict[str, Any]) -> None:
    found = modes(project.home) | modes(project.directory / "runs")
    assert len(found) > 100 and project.home / "s3" in found
    # SeaweedFS sets the mode of .vif files itself, below s3/ (0700).
    assert [path for path, mode in found.items() if path.suffix != ".vif" and mode & 0o077] == []


def test_mlflow_shows_parent_steps_and_trials(settings: Settings, runs: dict[str, Any]) -> None:
    client = MlflowClient(settings.tracking_uri)
    experiment = client.get_experiment_by_name("smoke")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    assert {r.info.status for r in found} <= {"FINISHED", "KILLED"}, "no run stays RUNNING"
    parents = {r.data.tags["flashslm.run_id"]: r for r in found if "mlflow.parentRunId" not in r.data.tags}
    parent = parents[runs["promoted"]["run_id"]]
    assert parent.info.status == "FINISHED" and re.fullmatch(r"smoke \d\d:\d\d · \w+( w64)?", parent.info.run_name)
    assert "cfg.training.steps" in parent.data.params and len(parent.data.params) < 100, (
        "what differs from the defaults"
    )
    note = parent.data.tags["mlflow.note.content"]
    assert "promote" in note and "[curves of all variants on one chart](#/metric?" in note
    assert {"config.yaml", "report.html"} <= {file.path for file in client.list_artifacts(parent.info.run_id)}
    cached = [r for r in found if r.data.tags.get("cached") == "true"]
    by_id = {r.info.run_id: r for r in found}
    assert cached and all(by_id[r.data.tags["cached.origin"]].info.run_name == r.info.run_name for r in cached)
    assert parent.data.metrics["test/perplexity"] == pytest.approx(runs["promoted"]["test/perplexity"])
    finished = [r for r in found if r.info.status == "FINISHED"]
    trials = [r for r in finished if re.fullmatch(r"trial \d+ · \w+ w\d+", r.info.run_name)]
    assert len(trials) == 16 and all("proxy_loss_nats" in r.data.metrics for r in trials)
    pretrain = [r for r in found if r.data.tags.get("step") == "pretrain" and r.info.status == "FINISHED"]
    pretrain = [r for r in pretrain if r not in cached]
    assert pretrain[0].data.tags["kernel.cross_entropy/cpu/float32"] == "chunked", "which kernels ran is recorded"
    history = client.get_metric_history(pretrain[0].info.run_id, "train/loss_nats")
    assert len(history) >= 3 and len({m.step for m in history}) == len(history)


def test_generate_talks_to_the_result(project: Project, runs: dict[str, Any]) -> None:
    model = project.directory / "runs" / "latest" / "export" / "huggingface"
    command = [
        *FLASHSLM,
        "generate",
        "--model",
        str(model),
        "--prompt",
        "def main():",
        "--max-new-tokens",
        "8",
        "--json",
    ]
    answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert answer["new_tokens"] == 8 and isinstance(answer["text"], str)


def words(html: str) -> str:
    """The text of a page."""
    return " ".join(unescape(re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", html, flags=re.DOTALL)).split())


def columns_of(page: str) -> list[str]:
    """The chosen columns of MLflow's table from left to right, which is not always their order in the document."""
    header = r'<div class="ag-header-cell [^>]*aria-colindex="(\d+)" col-id="(?:tags|metrics)\.`([^`]+)`"'
    return [name for _, name in sorted((int(position), name) for position, name in re.findall(header, page))]


def test_a_new_users_questions_have_answers_in_the_shell(project: Project, runs: dict[str, Any]) -> None:
    """What ran when, what came out, why it was promoted, how it differs from an earlier one, where the model is."""

    def asked(*arguments: str) -> str:
        command = [*FLASHSLM, *arguments]
        done = subprocess.run(command, cwd=project.directory, capture_output=True, text=True, check=True)
        return done.stdout

    promoted, held = (runs[name]["run_id"] for name in ("promoted", "held"))
    listed = {line.split()[0]: line for line in asked("runs", "list").splitlines()}
    assert "promote" in listed[promoted] and "hold" in listed[held]
    assert re.match(r"20\d{6}-\d{6}-smoke", promoted), "an id says when"
    shown = asked("runs", "show", promoted)
    assert f"{runs['promoted']['test/perplexity']:.5g}" in shown
    assert re.search(r"gate +success .*promote: all checks pass", shown) and "version 1 is" in shown
    compared = asked("runs", "compare", promoted, "latest")
    assert re.search(r"decision +promote +hold", compared)
    asked("models", "pull", "flashslm-smoke@champion", "-o", "champion")
    assert (project.directory / "champion/huggingface/model.safetensors").is_file()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_new_users_questions_have_answers_in_the_browser(
    project: Project, runs: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    """The report says why and what the model says; MLflow what ran, what came out, and how two runs differ."""
    report = project.directory / "runs" / runs["promoted"]["run_id"] / "report.html"
    page = rendered(report.as_uri(), tmp_path)
    assert "Promoted: flashslm-smoke version 1 is champion pass: perplexity" in words(page)
    assert page.count('<span class="given">') == 3, "three continuations"
    held = runs["held"]["mlflow_url"]
    opened = rendered_with("hold · test/perplexity", held, tmp_path)
    text = words(opened)
    assert (
        "Model training" in text and re.search(r"smoke \d\d:\d\d · \w+ w64", text) and "hold · test/perplexity" in text
    )
    links = {name: unescape(target) for target, name in re.findall(r'<a [^>]*href="([^"]+)"[^>]*>([^<]+)</a>', opened)}
    server = held.partition("#")[0]
    compared = words(rendered_with("cfg.training.steps", server + links["beside the run before it"], tmp_path))
    assert "Comparing 2 Runs" in compared and "cfg.training.steps" in compared
    chart = server + links["curves of all variants on one chart"]
    curves = words(rendered_with("pretrain · wnorm off · seed 0", chart, tmp_path))
    assert "pretrain · wnorm on · seed 0" in curves and "pretrain · wnorm off · seed 0" in curves
    every = rendered_with("tags.`decision`.*promote", server + links["all runs, results first"], tmp_path)
    assert columns_of(every)[:3] == ["decision", "test/perplexity", "test/bits_per_byte"] and "promote" in words(every)


def flip_a_bit(store: ObjectStore, key: str) -> bytes:
    """Damage a stored object; returns what it held."""
    content = bytes(store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read())
    middle = len(content) // 2
    damaged = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    store.client.put_object(Bucket=store.bucket, Key=key, Body=damaged)
    return content


def objects_of(store: ObjectStore, manifest: Manifest) -> list[str]:
    return store.list(manifest.uri.removeprefix(f"s3://{store.bucket}/"))


def artifacts_of(project: Project, run: dict[str, Any]) -> dict[str, Manifest]:
    directory = project.directory / "runs" / run["run_id"] / "artifacts"
    return {file.stem: Manifest.read(file) for file in directory.glob("*.json")}


def test_flipped_bits_in_objects_of_all_kinds_are_healed_by_the_next_run(
    project: Project, runs: dict[str, Any], settings: Settings
) -> None:
    """In the largest file of each tree, and in an index; what a step of this run makes again is damaged as well.

    Of the data set the next run reads the test split alone; what other steps stream is damaged in test_streaming.py.
    """
    store = ObjectStore(settings)
    artifacts = artifacts_of(project, runs["held"])
    assert {"dataset", "architecture", "chosen", "evaluation", "exported", "verdict", "report"} <= set(artifacts)
    for kind, manifest in artifacts.items():
        files = store.entries(manifest.uri.removeprefix(f"s3://{store.bucket}/") + "/")
        read = [key for key in files if kind != "dataset" or "/test/" in key]
        flip_a_bit(store, max(read, key=lambda key: files[key].bytes))
        shutil.rmtree(project.home / "trees" / manifest.sha256, ignore_errors=True)
        if kind == "evaluation":
            flip_a_bit(store, store.index_key(manifest))
    shutil.rmtree(project.home / "trees" / "files")
    for key in store.list("checkpoints/"):
        flip_a_bit(store, key)
    healed = project.finish()
    assert healed["state"] == "SUCCESS", "latencies are measured again, so that the result may be another"
    for kind, manifest in artifacts_of(project, healed).items():
        assert objects_of(store, manifest), kind
        store.verify_tree(manifest)
    assert project.finish()["cached_steps"] == runs["held"]["cached_steps"]
