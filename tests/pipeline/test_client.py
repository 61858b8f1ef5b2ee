"""Submitting to KFP and what may go wrong on the way, against tests/pipeline/fake_kfp.py."""

import re
from pathlib import Path
from typing import Any

import pytest

from flashslm.config import PlatformConfig, RunConfig
from flashslm.launch.compiling import code_digest
from flashslm.launch.kfp import submit as submit_module
from flashslm.launch.kfp.api import Connection, KfpError, NotFound, Unavailable, token_from
from flashslm.launch.kfp.client import KfpClient
from flashslm.launch.kfp.submit import cluster_source_digest, device_digest, submit
from flashslm.launch.processes import LaunchError
from tests.pipeline.fake_kfp import FakeKfp
from tests.pipeline.tiny import enter_checkout

RECIPE = RunConfig.model_validate({"name": "toy", "platform": {"service_account": "runner", "namespace": "team"}})


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter_checkout(tmp_path / "checkout", monkeypatch)


def connect(server: FakeKfp, waits: list[float] | None = None, **options: Any) -> KfpClient:
    sleep = (waits if waits is not None else []).append
    return KfpClient(Connection(server.url, **{"environ": {}, "sleep": sleep} | options), "team")


def send(server: FakeKfp, **options: Any) -> Any:
    return submit(connect(server, **options), RECIPE, "retraining")


def test_a_recipe_becomes_pipeline_version_experiment_and_run(fake: FakeKfp) -> None:
    submission = send(fake)
    (pipeline,), (version,), (experiment,), (run,) = fake.pipelines, fake.versions, fake.experiments, fake.runs
    assert (pipeline.name, pipeline.namespace) == ("retraining", None)
    assert version.display_name == submission.version and submission.version.startswith("retraining-")
    assert experiment.display_name == submission.experiment == "toy"
    assert (run.display_name, run.service_account) == (submission.name, "runner")
    assert run.pipeline_version_reference.pipeline_version_id == version.pipeline_version_id
    assert run.runtime_config.parameters == {
        **{section: {} for section in ("data", "kernels", "profiling", "training", "evaluation", "export")},
        "seed": 0,
        "source_digest": cluster_source_digest(RECIPE.data),
    }
    declared = fake.specs[version.pipeline_version_id]["root"]["inputDefinitions"]["parameters"]
    assert declared["code_digest"]["defaultValue"] == code_digest(), "the version says what code it runs"
    assert submission.url == f"{fake.url}/#/runs/details/{run.run_id}"


def test_the_same_definition_is_uploaded_once(fake: FakeKfp) -> None:
    first, second = send(fake), send(fake)
    assert first.version == second.version and first.name != second.name
    assert (len(fake.pipelines), len(fake.versions), len(fake.experiments), len(fake.runs)) == (1, 1, 1, 2)
    other = RECIPE.model_copy(update={"platform": RECIPE.platform.model_copy(update={"image": "other@sha256:1"})})
    assert submit(connect(fake), other, "retraining", "ours").version != first.version
    assert [v.display_name for v in fake.versions].count(first.version) == 1 and len(fake.versions) == 2
    assert fake.experiments[-1].display_name == "ours"


def test_several_users_have_a_namespace() -> None:
    with FakeKfp(multi_user=True) as server:
        send(server)
        assert server.pipelines[0].namespace == server.experiments[0].namespace == "team"


CREATIONS = [
    ("/pipelines$", "pipelines"),
    ("/upload_version$", "versions"),
    ("/experiments$", "experiments"),
    ("/runs$", "runs"),
]


@pytest.mark.parametrize("kind", ["cut_after", "cut", 500, 503, 429])
@pytest.mark.parametrize(("path", "made"), CREATIONS, ids=[made for _, made in CREATIONS])
def test_a_creation_that_lost_its_answer_is_made_once(fake: FakeKfp, path: str, made: str, kind: int | str) -> None:
    fake.fail("POST", path, kind, times=2 if isinstance(kind, int) else 1)
    waits: list[float] = []
    submission = send(fake, waits=waits)
    assert len(getattr(fake, made)) == 1 and waits
    assert submission.run_id == fake.runs[0].run_id


def test_what_another_process_created_is_adopted(fake: FakeKfp, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(fake)
    theirs: list[Any] = []
    method = client.experiments.experiment_service_create_experiment

    def just_too_late(**options: Any) -> Any:
        theirs.append(method(**options))
        return method(**options)

    monkeypatch.setattr(client.experiments, "experiment_service_create_experiment", just_too_late)
    assert client.experiment("ours").experiment_id == theirs[0].experiment_id
    assert len(fake.experiments) == 1


def test_a_conflict_over_something_invisible_is_an_error(fake: FakeKfp) -> None:
    fake.fail("POST", "/experiments$", 409)
    with pytest.raises(KfpError, match="answers 409: set to fail"):
        connect(fake).experiment("ours")


def test_waiting_grows_and_obeys_the_server(fake: FakeKfp) -> None:
    fake.fail("GET", "/runs$", 429, times=1, Retry_After="7")
    fake.fail("GET", "/runs$", 502, times=3)
    waits: list[float] = []
    assert connect(fake, waits=waits).latest_runs(5) == []
    assert waits[0] == 7.0
    assert [0.75 * 0.5 * 2**n <= wait <= 1.25 * 0.5 * 2**n for n, wait in enumerate(waits)][1:] == [True] * 3


def test_patience_ends_with_what_the_server_said(fake: FakeKfp) -> None:
    fake.fail("GET", "/runs$", 500, times=99)
    waits: list[float] = []
    with pytest.raises(Unavailable, match=f"KFP at {fake.url} answers 500: set to fail"):
        connect(fake, waits=waits, attempts=3).latest_runs(5)
    assert len(waits) == 2 and fake.count("GET", "/runs") == 3


def test_a_slow_answer_is_given_up_and_asked_for_again(fake: FakeKfp) -> None:
    fake.fail("GET", "/runs$", "slow")
    waits: list[float] = []

    def give_up(wait_s: float) -> None:
        waits.append(wait_s)
        connection._timeout_s = (300.0, 300.0)  # a busy machine may need longer for the second answer

    connection = Connection(fake.url, environ={}, sleep=give_up, timeout_s=0.3)
    assert KfpClient(connection, "team").latest_runs(5) == []
    fake.slow.set()
    assert len(waits) == 1


def test_an_address_that_nothing_listens_on_is_named(fake: FakeKfp) -> None:
    closed = FakeKfp()
    closed._http.server_close()
    with pytest.raises(Unavailable, match=r"did not answer: .*: check the address, and a port-forward"):
        connect(closed, attempts=2).latest_runs(5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (401, r"wants a token \(401\): put a token into \$FLASHSLM_KFP_TOKEN"),
        ("login", r"asks for a login \(302\): put a token into"),
        ("html", "answers with text/html instead of JSON: it is not the address of a KFP API, or it wants a login"),
        (403, r"does not allow this \(403\): set to fail"),
        (400, "answers 400: set to fail"),
    ],
)
def test_refusals_say_what_to_do_and_are_not_repeated(fake: FakeKfp, kind: int | str, expected: str) -> None:
    fake.fail("GET", "/healthz$", kind, times=99)
    with pytest.raises(KfpError, match=expected):
        send(fake)
    assert fake.count("GET", "/healthz") == 1 and fake.runs == []


def test_the_token_is_read_for_every_call(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    with FakeKfp(token="first") as server:
        client = connect(server, environ={"FLASHSLM_KFP_TOKEN_FILE": str(file)})
        client.experiment("ours")
        server.token = "second"
        with pytest.raises(KfpError, match="does not accept the token"):
            client.experiment("ours")
        file.write_text("second")
        client.experiment("ours")


def test_where_a_token_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("projected\n")
    assert token_from({"KF_PIPELINES_SA_TOKEN_PATH": str(file)}) == "projected"
    assert token_from({"KF_PIPELINES_SA_TOKEN_PATH": str(file), "FLASHSLM_KFP_TOKEN": "mine"}) == "mine"
    assert token_from({"KF_PIPELINES_SA_TOKEN_PATH": "/nowhere"}) == ""
    with pytest.raises(KfpError, match=r"\$FLASHSLM_KFP_TOKEN_FILE: .*give a readable file"):
        token_from({"FLASHSLM_KFP_TOKEN_FILE": "/nowhere"})


@pytest.mark.parametrize("token", ["hunter2", "hunter2\nX-Other: value", "hunter2é"])
def test_a_token_is_never_shown(fake: FakeKfp, token: str) -> None:
    fake.token = "right"
    with pytest.raises(KfpError, match=r"does not accept the token|has characters that no token has") as caught:
        send(fake, environ={"FLASHSLM_KFP_TOKEN": token})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("kfp.example", "https://kfp.example"),
        ("http://localhost:8080/", "http://localhost:8080"),
        ("https://kfp.example/pipeline/#/runs/details/1", "https://kfp.example/pipeline"),
        ("[::1]:8080", "https://[::1]:8080"),
    ],
)
def test_a_host_is_what_a_browser_shows(host: str, expected: str) -> None:
    assert Connection(host, environ={}).host == expected


@pytest.mark.parametrize(
    "host", ["", "https://", "not a host", "ftp://x", "http://x:port", "[::1", "https://me:hunter2@x"]
)
def test_what_is_no_host_is_refused_at_once(host: str) -> None:
    with pytest.raises(KfpError, match="is not the address of a KFP API: give it as a browser shows it") as caught:
        Connection(host, environ={}, sleep=lambda _: pytest.fail("it waits"))
    assert "hunter2" not in str(caught.value)


def test_absent_runs_and_doubled_names(fake: FakeKfp) -> None:
    client = connect(fake)
    with pytest.raises(NotFound, match="run_id nothing not found"):
        client.run("nothing")
    send(fake)
    client.cancel(fake.runs[0].run_id)
    assert client.run(fake.runs[0].run_id).state == "CANCELING"
    fake.experiments.append(fake.experiments[0])
    with pytest.raises(KfpError, match=re.escape("has 2 objects 'toy' (experiment): delete all but one")):
        send(fake)


def test_files_of_this_machine_are_refused(fake: FakeKfp, tmp_path: Path) -> None:
    own = RunConfig.model_validate({"name": "toy", "data": {"source": "files", "paths": ["s3://b/x", "/home/me/*.md"]}})
    with pytest.raises(LaunchError, match=r"data\.paths: /home/me/\*\.md is on this machine"):
        submit(connect(fake), own, "retraining")
    assert fake.requests == []


def test_arguments_that_a_recipe_does_not_give(fake: FakeKfp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_module, "pipeline_arguments", lambda *_: {"code_digest": "x"})
    with pytest.raises(
        LaunchError, match="pipeline 'retraining' needs data, evaluation, export, kernels, profiling, seed, source_d"
    ):
        send(fake)


def test_the_device_is_the_clusters_and_not_this_machine() -> None:
    def of(**platform: Any) -> str:
        return device_digest(PlatformConfig.model_validate(platform))

    types = {"gpu_types": {"h200": {"node_selector": {"gpu": "h200"}}, "l4": {"node_selector": {"gpu": "l4"}}}}
    h200, l4 = (of(gpu_steps={"gpu_type": name}, **types) for name in ("h200", "l4"))
    assert len({of(), h200, l4, of(gpu_steps={"gpus": 0})}) == 4
    assert of(gpu_steps={"gpu_type": "l4"}, image="other", **types) == l4
