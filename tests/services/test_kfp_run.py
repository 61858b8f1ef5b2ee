"""A KFP run is one run in MLflow, whichever of its pods comes first and however it ends."""

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.end_run.component import end_run
from flashslm.config import STEP_SECTIONS, RunConfig
from flashslm.config.file import load
from flashslm.infra import kfp_facts
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.tracking import kfp_run, mlflow_runs
from flashslm.infra.tracking.mlflow_client import TrackingClient
from flashslm.infra.tracking.spool import NOTE_TAG, PARENT_TAG
from flashslm.launch.kfp import run_end
from flashslm.steps.context import StepContext
from flashslm.steps.headline import record_headline
from flashslm.steps.report import record_on_cluster
from flashslm.steps.run import run_step
from tests.pipeline.fake_kfp import FakeKfp, read
from tests.pipeline.recorded_kfp import add_recorded_run

pytestmark = pytest.mark.services
KFP_URL = "https://kfp.example"
RECIPE = RunConfig.model_validate({"name": "any", "seed": 3, "training": {"steps": 20}})


class Cluster:
    """What the pods of one KFP run see: its id, KFP's API, the object store and MLflow."""

    def __init__(self, fake: FakeKfp, settings: Settings, recorded: str = "succeeded_cached") -> None:
        add_recorded_run(fake, recorded)
        self.run, self.recipe = fake.runs[-1], f"recipe-{uuid.uuid4().hex[:8]}"
        self.run.run_id = self.run_id = str(uuid.uuid4())
        for workflow in list(fake.workflows.values()):
            fake.workflows[self.run_id] = workflow
        self.run.runtime_config.parameters |= RECIPE.as_parameters() | {"name": self.recipe, "seed": 3.0}
        reference = self.run.pipeline_version_reference
        named = {"pipeline_id": reference.pipeline_id, "display_name": "design-and-train"}
        fake.pipelines.append(read("V2beta1Pipeline", named))
        version = {"pipeline_version_id": reference.pipeline_version_id, "display_name": "design-and-train-0123"}
        fake.versions.append(read("V2beta1PipelineVersion", version))
        if schedule := self.run.recurring_run_id:
            weekly = {"recurring_run_id": schedule, "display_name": "weekly"}
            fake.recurring_runs.append(read("V2beta1RecurringRun", weekly))
        self.settings = settings.model_copy(update={"kfp_run_id": self.run_id})

    def parent(self) -> Any:
        (found,) = self.runs(f"tags.{kfp_facts.RUN_TAG} = '{self.run_id}'")
        return found

    def children(self, run_id: str = "") -> dict[str, Any]:
        found = self.runs(f"tags.{PARENT_TAG} = '{run_id or self.parent().info.run_id}'")
        return {run.info.run_name: run for run in found}

    def runs(self, condition: str) -> list[Any]:
        api = TrackingClient(self.settings)
        return api.find_runs(condition, [e.experiment_id for e in api.all_pages("search_experiments")])

    def page_of(self, run: Any) -> str:
        page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"
        return f"{self.settings.tracking_uri}/{page}"

    def experiment_of(self, run: Any) -> str:
        found = TrackingClient(self.settings).get_experiment(run.info.experiment_id)
        return str(found.name)


def tags(run: Any) -> dict[str, str]:
    found: dict[str, str] = run.data.tags
    return found


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKfp]:
    with FakeKfp() as server:
        monkeypatch.setenv(kfp_facts.KFP_API, server.url)
        monkeypatch.setenv(kfp_facts.KFP_URL, KFP_URL)
        yield server


@pytest.fixture
def cluster(fake: FakeKfp, platform_env: Settings, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(fake, platform_env)
    monkeypatch.setenv("FLASHSLM_KFP_RUN_ID", made.run_id)
    return made


def check_recipe() -> dict[str, Any]:
    """Run a step that needs no inputs, as a pod does."""
    given = RECIPE.as_parameters()
    config = {section: given[section] for section in STEP_SECTIONS["check_recipe"]}
    return run_step("check_recipe", config=json.dumps(config), parameters={"code_digest": "c"})


def test_pods_that_start_together_make_one_parent(cluster: Cluster) -> None:
    with ThreadPoolExecutor(8) as pool:
        joined = list(pool.map(lambda _: kfp_run.joined(cluster.settings, ObjectStore(cluster.settings)), range(8)))
    assert len({settings.parent_run_id for settings in joined}) == 1
    assert {settings.experiment for settings in joined} == {cluster.recipe}
    assert cluster.parent().info.run_id == joined[0].parent_run_id  # the only one


def test_a_run_is_one_run_named_and_tagged_as_a_local_one(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    check_recipe()
    parent, reference = cluster.parent(), cluster.run.pipeline_version_reference
    info = parent.info
    assert (info.run_name, info.status) == (cluster.run.display_name, "RUNNING")
    assert cluster.experiment_of(parent) == cluster.recipe
    assert info.start_time == int(cluster.run.created_at.timestamp() * 1000)
    expected = {
        "recipe": cluster.recipe,
        "pipeline": "design_and_train",
        "kfp.pipeline_run_id": cluster.run_id,
        "kfp.pipeline_run_url": f"{KFP_URL}/#/runs/details/{cluster.run_id}",
        "kfp.pipeline_id": reference.pipeline_id,
        "kfp.pipeline_version_id": reference.pipeline_version_id,
        "kfp.pipeline_version": "design-and-train-0123",
    }
    assert expected.items() <= tags(parent).items() and mlflow_runs.OWNER_TAG not in tags(parent)
    assert parent.data.params == {"cfg.seed": "3", "cfg.training.steps": "20"}, "what differs from the defaults"
    file = TrackingClient(cluster.settings).download_artifacts(info.run_id, "config.yaml", str(tmp_path))
    recipe = load(file)
    assert recipe == RECIPE.model_copy(update={"name": cluster.recipe}), "the whole recipe but its platform"
    page = f"{KFP_URL}/#/runs/details/{cluster.run_id}"
    assert tags(parent)[NOTE_TAG] == f"KFP run [`{info.run_name}`]({page}) of recipe `{cluster.recipe}`"
    (step,) = cluster.children().values()
    assert step.info.run_name == "check_recipe" and step.info.status == "FINISHED"
    assert cluster.experiment_of(step) == cluster.recipe
    assert f"MLflow: {cluster.page_of(parent)}" in caplog.text


def test_a_scheduled_run_names_its_schedule(fake: FakeKfp, platform_env: Settings) -> None:
    cluster = Cluster(fake, platform_env, "succeeded_retraining")
    kfp_run.joined(cluster.settings, ObjectStore(cluster.settings))
    assert tags(cluster.parent())["schedule"] == "weekly"


def test_without_kfps_api_the_id_is_what_is_known(cluster: Cluster, fake: FakeKfp) -> None:
    fake.fail("GET", "/runs/", 403, times=1)
    check_recipe()
    parent = cluster.parent()
    assert parent.info.run_name == f"kfp-{cluster.run_id[:8]}"
    assert cluster.experiment_of(parent) == cluster.settings.experiment and len(cluster.children()) == 1


def test_the_parent_of_kfps_plug_in_is_used(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    own = cluster.settings.model_copy(update={"experiment": "kfp"})
    plug_in = mlflow_runs.start_parent_run(own, "named by KFP", {kfp_facts.RUN_TAG: cluster.run_id})
    nested = own.model_copy(update={"parent_run_id": plug_in})
    with mlflow_runs.open_run(nested, "check-recipe", tags={kfp_facts.RUN_TAG: cluster.run_id}) as child:
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", child.run_id)
    check_recipe()
    monkeypatch.delenv("MLFLOW_RUN_ID")
    with mlflow_runs.open_run(kfp_run.joined(cluster.settings, ObjectStore(cluster.settings)), "without injection"):
        pass
    found = cluster.children(plug_in)
    assert set(found) == {"check-recipe", "without injection"}
    assert tags(found["check-recipe"])["step"] == "check_recipe"
    assert {cluster.experiment_of(run) for run in found.values()} == {"kfp"}
    run_end.end_run("COMPLETE")
    assert set(cluster.children(plug_in)) == set(found), "the plug-in lists cached tasks itself"
    ended = TrackingClient(cluster.settings).get_run(plug_in)
    assert ended.info.status == "FINISHED" and tags(ended)["recipe"] == cluster.recipe


def test_cached_steps_are_nested_too(cluster: Cluster) -> None:
    check_recipe()
    line = run_end.end_run("COMPLETE")
    parent = cluster.parent()
    url = cluster.page_of(parent)
    assert line == f"MLflow: [{url}]({url})" and parent.info.status == "FINISHED"
    found = cluster.children()
    cached = {name for name, run in found.items() if tags(run).get("cached") == "true"}
    assert len(cached) == 11 and cached == set(found) - {"check_recipe"}  # two loops of two among nine tasks
    assert {"prepare_data", "search_architecture · worker 1", "pretrain · wnorm on · seed 0"} <= cached
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    run_end.end_run("COMPLETE")  # a retry of the exit task
    assert cluster.children().keys() == found.keys()


def test_a_run_whose_steps_were_all_cached_has_its_parent(cluster: Cluster) -> None:
    run_end.end_run("COMPLETE")
    assert cluster.parent().info.status == "FINISHED" and len(cluster.children()) == 11


@pytest.mark.parametrize(("state", "expected"), [("FAILED", "FAILED"), ("RUNNING", "KILLED"), ("COMPLETE", "FINISHED")])
def test_pods_that_were_killed_do_not_stay_running(cluster: Cluster, state: str, expected: str) -> None:
    settings = kfp_run.joined(cluster.settings, ObjectStore(cluster.settings))
    mark = {kfp_run.STEP_TAG: cluster.run_id}
    api = TrackingClient(settings)
    lost = mlflow_runs.start_parent_run(settings, "lost", mark | {PARENT_TAG: settings.parent_run_id})
    trial = mlflow_runs.start_parent_run(settings, "trial 3", {PARENT_TAG: lost})
    elsewhere = settings.model_copy(update={"experiment": "flashslm", "parent_run_id": ""})
    with mlflow_runs.open_run(elsewhere, "begun without MLflow", tags=mark):
        pass
    other = mlflow_runs.start_parent_run(settings, "of another run", {kfp_run.STEP_TAG: "other"})
    run_end.end_run(state)
    status = {run: api.get_run(run).info.status for run in (lost, trial, other)}
    assert status == {lost: "KILLED", trial: "KILLED", other: "RUNNING"}
    assert cluster.parent().info.status == expected
    assert cluster.children()["begun without MLflow"].info.status == "FINISHED"
    mlflow_runs.finish_run(settings, other, "KILLED")


def test_runs_that_ended_without_their_exit_task_are_ended_by_the_next(
    fake: FakeKfp, cluster: Cluster, platform_env: Settings
) -> None:
    ids = {}
    for state in ("FAILED", "RUNNING"):
        other = Cluster(fake, platform_env, "succeeded_compressed")
        other.run.state = state
        ids[kfp_run.joined(other.settings, ObjectStore(other.settings)).parent_run_id] = state
    deleted = platform_env.model_copy(update={"kfp_run_id": str(uuid.uuid4())})
    ids[kfp_run.parent_run(deleted, ObjectStore(deleted)).run_id] = "KILLED"
    ids[made_by_an_earlier_version(platform_env, "flashslm.pipeline_run")] = "KILLED"
    run_end.end_run("COMPLETE")
    api = TrackingClient(platform_env)
    assert {run: api.get_run(run).info.status for run in ids} == ids


def made_by_an_earlier_version(settings: Settings, ours: str) -> str:
    """The parent of a KFP run that is deleted meanwhile, whose mark is a visible tag."""
    api = TrackingClient(settings)
    tags = {kfp_facts.RUN_TAG: str(uuid.uuid4()), ours: "true"}
    return str(api.create_run(api.experiment_id, tags=tags, run_name="earlier").info.run_id)


def test_the_component_leaves_the_address_for_kfps_page(cluster: Cluster, tmp_path: Path) -> None:
    page = tmp_path / "mlflow.md"
    end_run.python_func(status=SimpleNamespace(state="FAILED"), mlflow=SimpleNamespace(path=str(page)))
    parent = cluster.parent().info
    assert parent.status == "FAILED" and f"/runs/{parent.run_id}?" in page.read_text()


def test_the_report_step_puts_the_figures_on_the_parent(cluster: Cluster, store: ObjectStore, tmp_path: Path) -> None:
    settings = kfp_run.joined(cluster.settings, store)
    page, nothing = tmp_path / "report.html", Any
    page.write_text("<p>report</p>")
    context = StepContext(
        step="report",
        config=nothing,
        settings=settings,
        store=store,
        mlflow_run=nothing,
        events=nothing,
        inputs={"dataset": manifest(source="python-stdlib"), "evaluation": manifest(**{"test/perplexity": 12.5})},
        parameters={},
    )
    record_on_cluster(context, "hold", page)
    assert tags(cluster.parent())["decision"] == "hold"
    assert list(cluster.parent().data.metrics) == ["test/perplexity"]


def test_a_step_goes_on_while_mlflow_is_away(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    away = cluster.settings.model_copy(update={"tracking_uri": "http://127.0.0.1:1", "stack_file": ""})
    settings = kfp_run.joined(away, ObjectStore(away))
    assert (settings.parent_run_id, settings.experiment) == ("", cluster.recipe)
    monkeypatch.setenv("FLASHSLM_TRACKING_URI", away.tracking_uri)
    monkeypatch.delenv("FLASHSLM_STACK")
    monkeypatch.setattr(run_end, "MLFLOW_PATIENCE_S", 0.5)
    assert "did not answer" in run_end.end_run("COMPLETE")
    assert kfp_run.joined(cluster.settings, ObjectStore(cluster.settings)).parent_run_id


def test_headline_and_decision_are_on_the_parent(cluster: Cluster, store: ObjectStore, tmp_path: Path) -> None:
    settings = kfp_run.joined(cluster.settings, store)
    (tmp_path / "report.html").write_text("<p>report</p>")
    artifacts = {
        "dataset": manifest(unigram_entropy_nats=5.0),
        "evaluation": manifest(**{"test/perplexity": 12.5}),
        "exported": manifest(latency_ms=3.0, operators="DFAF"),
    }
    page = tmp_path / "report.html"
    (tmp_path / "back").mkdir()
    record_headline(settings, settings.parent_run_id, artifacts, "promote", "stdlib", page)
    run_end.end_run("COMPLETE")
    parent = cluster.parent()
    assert parent.data.metrics == {"unigram_entropy_nats": 5.0, "test/perplexity": 12.5, "latency_ms": 3.0}
    assert tags(parent)["operators"] == "DFAF"
    decision = "promote, but the model was not registered"  # that task was skipped
    note = tags(parent)[NOTE_TAG]
    assert tags(parent)["decision"] == decision and note.startswith(f"**{decision}** · test/perplexity 12.5 · ")
    assert "operators DFAF\n" in note and f"KFP run [`{parent.info.run_name}`]({KFP_URL}" in note
    back = TrackingClient(settings).download_artifacts(settings.parent_run_id, "report.html", str(tmp_path / "back"))
    assert Path(back).read_bytes() == b"<p>report</p>"


def manifest(**metadata: Any) -> Manifest:
    digest = "a" * 64
    return Manifest(kind="x", uri=f"s3://flashslm/cas/{digest}", sha256=digest, bytes=1, metadata=metadata)
