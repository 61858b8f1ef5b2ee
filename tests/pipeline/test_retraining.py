"""retraining against the real embedded S3 and MLflow: held for its quality (the steps alone), then the whole pipeline
three times: diverging, promoting, and on schedule with nothing new.
"""

import contextlib
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
import yaml

from flashslm.config import ModelConfig, RunConfig
from flashslm.config.file import load
from flashslm.data.prepare import DIGESTS_FILE
from flashslm.infra.registry import model_registry
from flashslm.infra.registry.model_registry import ModelVersion
from flashslm.infra.settings import Settings
from flashslm.infra.stack import embedded_stack
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.launch.schedule import kept_hook
from flashslm.launch.schedule.records import Schedule, Schedules
from flashslm.launch.schedule.scheduler import Scheduler, launch_in
from flashslm.models.architecture import build_architecture
from flashslm.steps.run import run_step

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "retraining-demo.yaml"
NAME = "flashslm-demo"
SECRET = "a key of the test"
TOKEN = "t0ken-of-the-webhook"
DESIGN = (
    "data.vocab_size=512",
    "data.tokenizer_bytes=200000",
    "training.steps=80",
    "training.learning_rate=1.0e-2",
    "training.warmup_steps=5",
)
SIZES = ModelConfig(head_dim=16, kv_group=2, mamba_state=8, mamba_head_dim=8, num_meta_tokens=4)

pytestmark = pytest.mark.services


class Receiver(BaseHTTPRequestHandler):
    """Refuses the first message with 503; keeps what came."""

    received: ClassVar[list[tuple[dict[str, str], bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((dict(self.headers), body))
        self.send_response(503 if len(self.received) == 1 else 204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Project:
    """One user's directory: a home for the stack, text that grows, and runs."""

    def __init__(self, directory: Path, hook_port: int) -> None:
        self.directory, self.home, self.text = directory, directory / ".flashslm", directory / "text"
        self.text.mkdir()
        self.started: subprocess.Popen[str] | None = None
        self.seen_commands: set[str] = set()
        self.overrides = [
            "data.source=files",
            f"data.paths=[{self.text}/*.jsonl]",
            "data.max_bytes=0",
            "data.validation_fraction=0.15",
            "data.test_fraction=0.15",  # documents enough for an interval
            "training.sequence_length=64",
            "training.validate_every_steps=50",
            "retraining.min_new_bytes=50000",
            "retraining.steps=50",
            "evaluation.sequence_length=64",
            "evaluation.max_tokens=20000",
            "evaluation.needle_lengths=[48]",
            "evaluation.needle_samples=4",
            "export.parity_tokens=32",
            "profiling.repeats=5",
            "latency.context=64",
            "gate.max_accuracy_drop=0.3",  # one of four needles
            "gate.cannot_tell.gain=measured",  # six documents of new data leave 189 against 216 unproven
        ]
        hook = {"url": f"http://127.0.0.1:{hook_port}/promoted?token={TOKEN}"}
        values = yaml.safe_load(RECIPE.read_text())
        values["gate"] = values.get("gate", {}) | {"promotion_hook": hook}
        self.file = directory / "recipe.yaml"
        self.file.write_text(yaml.safe_dump(values))

    def recipe(self, *overrides: str) -> RunConfig:
        return load(self.file, [*self.overrides, *overrides])

    def start(self, *overrides: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flashslm", "run", "--pipeline", "retraining", "--config", str(self.file)]
        command += ["--json", "--home", str(self.home), *self.overrides, *overrides]
        log = (self.directory / "run.log").open("a")
        env = os.environ | {"FLASHSLM_HOOK_SECRET": SECRET}
        self.started = subprocess.Popen(
            command, cwd=self.directory, stdout=subprocess.PIPE, stderr=log, text=True, env=env
        )
        threading.Thread(target=self.watch_commands, args=(self.started,), daemon=True).start()
        return self.started

    def watch_commands(self, process: subprocess.Popen[str]) -> None:
        """Note the arguments of the run and of every process below it, as any user of the machine sees them."""
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(process.pid)
                for each in (root, *root.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        self.seen_commands.add(" ".join(each.cmdline()))
            time.sleep(0.1)

    def finish(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, (self.directory / "run.log").read_text()[-4000:]
        facts = dict(json.loads(output.splitlines()[-1]))
        return facts | {"events": self.events(), "directory": self.directory / facts["run_dir"]}

    def events(self) -> list[dict[str, Any]]:
        newest = max((self.directory / "runs").glob("2*/events.jsonl"), default=None)
        return [json.loads(line) for line in newest.read_text().splitlines()] if newest else []

    def kill_step(self, process: subprocess.Popen[str], step: str, training_step: int) -> None:
        """SIGKILL the step's process once it has trained that far."""
        deadline_s = time.monotonic() + 120
        while not any(e["step"] == step and e.get("training_step", 0) >= training_step for e in self.events()):
            assert process.poll() is None and time.monotonic() < deadline_s, "the awaited step never came"
            time.sleep(0.02)
        for child in psutil.Process(process.pid).children(recursive=True):
            if "executor_main" in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)


def write_text(project: Project, name: str, letters: str) -> None:
    """Modules of the standard library by their first letter: real text of one kind."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in root.glob("*.py") if p.name[0] in letters)
    lines = [json.dumps({"text": p.read_text(encoding="utf-8")[:8_000]}) + "\n" for p in files]
    (project.text / name).write_text("".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    project = Project(tmp_path_factory.mktemp("project"), server.server_port)
    try:
        yield project
    finally:
        if project.started and project.started.poll() is None:  # a test failed: its run must not outlive the stack
            project.started.terminate()
            project.started.communicate(timeout=60)
        server.shutdown()
        embedded_stack.down(project.home)


@pytest.fixture(scope="module")
def settings(project: Project) -> Settings:
    return embedded_stack.up(project.home)


@dataclass
class Steps:
    """Steps in this process; manifests are files in one directory, one per name."""

    directory: Path

    def path(self, name: str) -> str:
        return str(self.directory / f"{name}.json")

    def run(
        self, step: str, config: RunConfig, inputs: dict[str, str], outputs: tuple[str, ...] = (), **parameters: str
    ) -> dict[str, Any]:
        return run_step(
            step,
            config=config.for_step(step),
            inputs={name: self.path(file) for name, file in inputs.items()},
            outputs={name: self.path(name) for name in outputs},
            parameters=parameters,
        )

    def read(self, artifact: str, file: str) -> Any:
        manifest = Manifest.read(self.path(artifact))
        return json.loads((Path(os.environ["FLASHSLM_CACHE"]) / manifest.sha256 / file).read_text())


def same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


@pytest.fixture(scope="module")
def steps(project: Project, settings: Settings) -> Iterator[Steps]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (settings.as_env() | {"FLASHSLM_CACHE": str(project.home / "trees")}).items():
            patch.setenv(name, value)
        patch.delenv("FLASHSLM_HOOK_SECRET", raising=False)
        (project.directory / "made").mkdir()
        yield Steps(project.directory / "made")


@pytest.fixture(scope="module")
def champion(project: Project, settings: Settings, steps: Steps) -> ModelVersion:
    """A small model that the design pipeline's own steps made, trained for seconds."""
    write_text(project, "first.jsonl", "abcd")
    drawn = project.directory / "architecture"
    drawn.mkdir()
    (drawn / "architecture.json").write_text(build_architecture("DMAF", 64, SIZES, 512).model_dump_json())
    ObjectStore(settings).put_tree(drawn, "architecture").write(steps.path("architecture"))
    recipe, exported = project.recipe(*DESIGN), same("evaluation", "exported")
    chosen = {"dataset": "dataset", "chosen": "checkpoint"}
    steps.run("prepare_data", recipe, {}, ("dataset",))
    steps.run("pretrain", recipe, same("dataset", "architecture"), ("checkpoint",), weight_norm="on", seed="0")
    steps.run("evaluate", recipe, chosen, ("evaluation",))
    steps.run("export_model", recipe, chosen, ("exported",))
    steps.run("gate", recipe, exported, ("verdict",))
    origin = {"code_digest": "code", "config_digest": "recipe", "image": "image@sha256:1"}
    steps.run("register_model", recipe, exported | same("verdict", "dataset"), **origin)
    found = model_registry.champion(settings, NAME)
    assert found is not None
    write_text(project, "second.jsonl", "ijlmnopqrst")
    return found


@pytest.fixture(scope="module")
def worse(project: Project, champion: ModelVersion, steps: Steps) -> Steps:
    """The pipeline's steps up to the gate and the report, with a learning rate that ruins the model."""
    recipe = project.recipe("retraining.learning_rate=0.5", "retraining.min_learning_rate_ratio=1")
    steps.run("fetch_champion", recipe, {}, ("champion", "deployed"))
    found = steps.run("prepare_new_data", recipe, same("champion"), ("dataset",))
    assert found["decision"] == "retrain"
    known = same("champion", "deployed", "dataset")
    steps.run("continue_pretraining", recipe, known, ("checkpoint",))
    chosen = {"chosen": "checkpoint"}
    steps.run("export_model", recipe, same("dataset") | chosen, ("exported",))
    steps.run("compare_with_champion", recipe, known | same("exported"), ("evaluation",))
    judged = same("champion", "exported", "evaluation")
    assert steps.run("gate_challenger", recipe, judged, ("verdict",))["decision"] == "hold"
    steps.run("report_retraining", recipe, judged | same("dataset", "verdict") | chosen, ("report",))
    return steps


@pytest.fixture(scope="module")
def runs(project: Project, settings: Settings, champion: ModelVersion) -> dict[str, dict[str, Any]]:
    """By the command, with a rate that no model survives; then one of its steps killed once; then, with nothing new, by
    the local scheduler."""
    diverged = project.finish(project.start("retraining.learning_rate=1e38", "retraining.warmup_steps=0"))
    diverged["champion"] = model_registry.champion(settings, NAME)
    process = project.start()
    project.kill_step(process, "continue_pretraining", training_step=30)
    return {"diverged": diverged, "promoted": project.finish(process), "nothing": scheduled(project, settings)}


def scheduled(project: Project, settings: Settings) -> dict[str, Any]:
    """One run of the schedule that was due at the last full minute."""
    schedules = Schedules(ObjectStore(settings))
    due = Schedule(
        name="nightly",
        pipeline="retraining",
        cron="* * * * *",
        time_zone="UTC",
        settled_s=time.time() - 59.9,
        **kept_hook.apart(project.home, "nightly", project.recipe()),
    )
    schedules.create(due)
    scheduler = Scheduler(schedules, launch_in(project.home), print)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.directory)
        scheduler.tick()
        while scheduler.busy:
            time.sleep(0.1)
            scheduler.look_after_runs()
    outcome, directory = schedules.all()[0].last, (project.directory / "runs" / "latest").resolve()
    assert outcome is not None
    decision = Manifest.read(directory / "artifacts" / "report.json").metadata["decision"]
    return {"state": outcome.state, "decision": decision, "events": project.events(), "directory": directory}


def ended(run: dict[str, Any]) -> dict[str, str]:
    return {e["step"]: e["summary"] for e in run["events"] if e["event"] == "end"}


def document(run: dict[str, Any], project: Project, artifact: str, file: str) -> Any:
    manifest = Manifest.read(run["directory"] / "artifacts" / f"{artifact}.json")
    return json.loads((project.home / "trees" / manifest.sha256 / file).read_text())


def test_the_first_champion_says_what_it_was_made_of(champion: ModelVersion) -> None:
    (data,) = champion.lineage.data
    assert data.kind == "dataset" and data.sha256 == champion.facts["dataset_sha256"]
    assert (champion.lineage.config_digest, champion.lineage.code_digest) == ("recipe", "code")
    assert champion.lineage.image == "image@sha256:1" and champion.lineage.parent == ""
    assert champion.lineage.metrics["test/perplexity"] == champion.facts["perplexity"]
    assert champion.lineage.latency_ms == {champion.facts["device"]: champion.facts["latency_ms"]}
    assert (
        champion.hook
        == "failed in attempt 1 of 3: $FLASHSLM_HOOK_SECRET is empty: it must hold the key that signs the message"
    )


def test_a_worse_challenger_is_held_and_the_report_says_why(settings: Settings, worse: Steps) -> None:
    verdict = worse.read("verdict", "verdict.json")
    assert verdict["decision"] == "hold" and verdict["parent"] == verdict["champion_version"] == "1"
    for data in ("new data", "first data"):
        assert any(reason.startswith(f"test/perplexity on {data}") for reason in verdict["reasons"])
    manifest = Manifest.read(worse.path("report"))
    assert manifest.metadata["decision"] == "hold" and manifest.metadata["reasons"] == verdict["reasons"]
    page = ObjectStore(settings).get_tree(manifest, worse.directory / "report") / "report.html"
    assert "Decision: hold" in page.read_text() and verdict["reasons"][0] in page.read_text()


def test_a_challenger_that_diverges_is_held_and_the_champion_stays(
    settings: Settings, champion: ModelVersion, runs: dict[str, Any]
) -> None:
    diverged = runs["diverged"]
    assert diverged["state"] == "SUCCESS" and diverged["decision"] == "hold"
    steps = ["continue_pretraining", "fetch_champion", "prepare_new_data", "report_retraining"]
    assert sorted(ended(diverged)) == ["check_recipe", *steps], "nothing is exported, compared or registered"
    (reason,) = Manifest.read(diverged["directory"] / "artifacts" / "report.json").metadata["reasons"]
    assert reason.startswith("the challenger diverged: the")
    page = (diverged["directory"] / "report.html").read_text()
    assert "Decision: hold" in page and "the challenger diverged" in page and "new train tokens" in page
    assert (diverged["champion"].version, diverged["champion"].manifest) == (champion.version, champion.manifest)


def test_a_killed_step_resumes_and_the_better_challenger_is_promoted(
    project: Project, settings: Settings, champion: ModelVersion, runs: dict[str, Any]
) -> None:
    promoted = runs["promoted"]
    assert promoted["decision"] == "promote" and "(resumed from step " in ended(promoted)["continue_pretraining"]
    current = model_registry.champion(settings, NAME)
    assert current is not None and (current.version, current.lineage.parent) == ("2", champion.version)
    aliases = {alias: v.version for v in model_registry.list_versions(settings, NAME) for alias in v.aliases}
    assert aliases == {"champion": "2", "previous": champion.version}
    results = document(promoted, project, "evaluation", "evaluation.json")["results"]
    before, after = (results["new data"][side]["test/perplexity"] for side in ("champion", "challenger"))
    assert after < 0.9 * before
    assert current.facts["perplexity"] == results["first data"]["challenger"]["test/perplexity"]
    assert current.facts["dataset_sha256"] == champion.facts["dataset_sha256"]
    assert current.lineage.latency_ms.keys() == champion.lineage.latency_ms.keys()
    report = (promoted["directory"] / "report.html").read_text()
    assert "Promoted: " in report and f"{before:.4f}" in report and f"{after:.4f}" in report


def test_champions_numbers_are_those_it_was_registered_with(
    project: Project, champion: ModelVersion, runs: dict[str, Any]
) -> None:
    """An fp32 export holds the checkpoint's weights: the same model, data and code give the same perplexity."""
    results = document(runs["promoted"], project, "evaluation", "evaluation.json")["results"]
    assert results["first data"]["champion"]["test/perplexity"] == pytest.approx(champion.facts["perplexity"], rel=1e-6)


def test_only_unseen_documents_were_trained_on(project: Project, champion: ModelVersion, runs: dict[str, Any]) -> None:
    def digests(manifest: Manifest) -> set[bytes]:
        content = (project.home / "trees" / manifest.sha256 / DIGESTS_FILE).read_bytes()
        return {content[i : i + 16] for i in range(0, len(content), 16)}

    new = Manifest.read(runs["promoted"]["directory"] / "artifacts" / "dataset.json")
    old = digests(champion.lineage.data[0])
    assert old and digests(new) and not old & digests(new)
    assert new.metadata["seen_documents"] == len(old)
    assert new.metadata["read_documents"] == len(old) + len(digests(new))


def test_nothing_new_is_held_without_training(project: Project, runs: dict[str, Any]) -> None:
    nothing = runs["nothing"]
    assert nothing["state"] == "SUCCESS" and nothing["decision"] == "hold"
    assert sorted(ended(nothing)) == ["fetch_champion", "prepare_new_data", "report_retraining"], "the recipe is known"
    seen = Manifest.read(nothing["directory"] / "artifacts" / "dataset.json").metadata["seen_documents"]
    assert ended(nothing)["prepare_new_data"] == f"nothing new: all {seen} documents were seen before"
    assert "nothing new: all" in (nothing["directory"] / "report.html").read_text()


def test_the_hooks_token_is_in_no_file_and_no_argument(project: Project, runs: dict[str, Any]) -> None:
    assert runs["promoted"]["decision"] == "promote"
    kept = list((project.home / "schedules").rglob("hook-*.json"))
    files = {p for root in (project.home, project.directory / "runs") for p in root.rglob("*") if p.is_file()}
    assert len(files) > 100 and len(kept) == 1 and TOKEN in kept[0].read_text()
    assert [path for path in files - set(kept) if TOKEN.encode() in path.read_bytes()] == []
    assert TOKEN not in (project.directory / "run.log").read_text() + json.dumps(runs, default=str)
    assert any("register_model" in command for command in project.seen_commands)
    assert not any(TOKEN in command for command in project.seen_commands)


def test_the_hook_hears_of_every_promotion_in_order(settings: Settings, runs: dict[str, Any]) -> None:
    """That of version 1 failed, without a key to sign it: it is delivered before that of version 2."""
    (refused, _), (repeated, first), (headers, body) = Receiver.received
    assert refused["X-Flashslm-Delivery"] == repeated["X-Flashslm-Delivery"] != headers["X-Flashslm-Delivery"]
    for received, text in ((repeated, first), (headers, body)):
        wanted = "sha256=" + hmac.new(SECRET.encode(), text, hashlib.sha256).hexdigest()
        assert hmac.compare_digest(received["X-Flashslm-Signature"], wanted)
    messages = [json.loads(text) for text in (first, body)]
    assert [(m["event"], m["model"], m["version"]) for m in messages] == [("promotion", NAME, v) for v in ("1", "2")]
    assert all(abs(time.time() - message["sent_s"]) < 600 for message in messages)
    current = model_registry.champion(settings, NAME)
    assert current is not None and current.hook == "delivered in attempt 1: 127.0.0.1 answered 204"
    assert current.hook in ended(runs["promoted"])["register_model"]
