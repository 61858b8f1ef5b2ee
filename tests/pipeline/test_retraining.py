"""retraining against the real embedded S3 and MLflow: held for its quality (the steps alone), then the whole pipeline
three times: diverging, promoting, and on schedule with nothing new.
"""

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flashslm.data.duplicates import DIGESTS_FILE
from flashslm.infra.registry import model_registry
from flashslm.infra.registry.model_registry import ModelVersion
from flashslm.infra.settings import Settings
from flashslm.infra.stack import embedded_stack
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.launch.schedule import kept_hook
from flashslm.launch.schedule.records import Schedule, Schedules
from flashslm.launch.schedule.scheduler import Scheduler, launch_in
from flashslm.models.architecture import build_architecture
from tests.pipeline.retraining_project import (
    DESIGN,
    NAME,
    SECRET,
    SIZES,
    TOKEN,
    Project,
    Receiver,
    Steps,
    same,
    write_text,
)

pytestmark = pytest.mark.services


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
    steps.run("plan_data", recipe, {}, ("plan",))
    steps.run("prepare_data", recipe, same("plan"), ("pieces",), worker="0")
    steps.run("merge_data", recipe, same("plan", "pieces"), ("dataset",))
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
    process = project.start_and_kill_step("continue_pretraining", training_step=30)
    return {"diverged": diverged, "promoted": project.finish(process), "nothing": scheduled(project, settings)}


def scheduled(project: Project, settings: Settings) -> dict[str, Any]:
    """One run of the schedule that was due at the last full minute."""
    schedules, minute_s = Schedules(ObjectStore(settings)), time.time() // 60 * 60
    due = Schedule(
        name="nightly",
        pipeline="retraining",
        cron="* * * * *",
        time_zone="UTC",
        settled_s=minute_s - 1,
        **kept_hook.apart(project.home, "nightly", project.recipe()),
    )
    schedules.create(due)
    scheduler = Scheduler(schedules, launch_in(project.home), print, now=lambda: minute_s + 1)
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


def test_a_perplexity_that_was_read_with_another_stride_promotes_nothing(
    project: Project, champion: ModelVersion, steps: Steps
) -> None:
    del champion  # the gate asks the registry for it
    chosen = {"dataset": "dataset", "chosen": "checkpoint"}
    again = project.recipe(*DESIGN, "evaluation.stride=8", "export.dtype=bfloat16")
    steps.run("evaluate", again, chosen, ("evaluation",))
    steps.run("export_model", again, chosen, ("exported",))
    held = steps.run("gate", again, same("evaluation", "exported"), ("verdict",))
    assert held["decision"] == "hold" and "with the same context and stride" in held["summary"]


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


def test_only_unseen_documents_were_trained_on(
    champion: ModelVersion, runs: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    def digests(manifest: Manifest) -> set[bytes]:
        content = (ObjectStore(settings).get_tree(manifest, tmp_path / manifest.sha256) / DIGESTS_FILE).read_bytes()
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


def holds_token(path: Path) -> bool:
    """Whether it does; the services at work may have removed a file since it was listed."""
    with suppress(FileNotFoundError):
        return TOKEN.encode() in path.read_bytes()
    return False


def test_the_hooks_token_is_in_no_file_and_no_argument(project: Project, runs: dict[str, Any]) -> None:
    assert runs["promoted"]["decision"] == "promote"
    kept = list((project.home / "schedules").rglob("hook-*.json"))
    files = {p for root in (project.home, project.directory / "runs") for p in root.rglob("*") if p.is_file()}
    assert len(files) > 100 and len(kept) == 1 and TOKEN in kept[0].read_text()
    assert [path for path in files - set(kept) if holds_token(path)] == []
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
    assert all(0 <= time.time() - message["sent_s"] < 86_400 for message in messages)
    current = model_registry.champion(settings, NAME)
    assert current is not None and current.hook == "delivered in attempt 1: 127.0.0.1 answered 204"
    assert current.hook in ended(runs["promoted"])["register_model"]
