"""The demo pipeline's steps in the CPU image, as a restricted pod runs them, against the embedded S3 and MLflow."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from flashslm.config.file import load
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.launch.compiling import arguments_for, compile_pipeline, pipeline_arguments
from flashslm.launch.labels import step_of
from flashslm.launch.local.runner import Job
from tests.containers.build import ROOT, call
from tests.containers.container import hardened
from tests.containers.engine import Engine

pytestmark = [pytest.mark.containers, pytest.mark.services]

PYTHON_PROBE = """
import json, os, pathlib, shutil, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
def refused(path):
    try:
        pathlib.Path(path).write_text("x")
    except OSError as error:
        return error.strerror
print(json.dumps({
    "user": [os.getuid(), os.getgid()], "capabilities": int(status["CapEff"], 16), "home": os.environ["HOME"],
    "no_new_privileges": int(status["NoNewPrivs"]), "prefix": sys.prefix, "commit": os.environ["FLASHSLM_COMMIT"],
    "refused": [refused(path) for path in ("/x", sys.prefix + "/x", "/usr/x")], "tmp": refused("/tmp/x"),
    "compilers": [name for name in ("gcc", "cc", "clang", "g++", "nvcc", "ld", "make", "pip") if shutil.which(name)],
}))
"""

VERSION = "from importlib.metadata import version; print(version('flashslm'))"


def test_a_step_beyond_its_memory_is_killed(containers: Engine, runtime: str) -> None:
    done = containers.call("run", *hardened(memory="64m"), runtime, "python3", "-c", "import torch", check=False)
    assert done.returncode == 137


CRASHES_ONCE = """
import json, pathlib, sys
from flashslm.steps.attempts import run_attempts
child = '''
import json, os, pathlib, signal, sys
call = json.loads(pathlib.Path(sys.argv[1]).read_text())
mark = pathlib.Path("/tmp/crashed")
if not mark.exists():
    mark.touch()
    os.kill(os.getpid(), getattr(signal, call["signal"]))
pathlib.Path(sys.argv[2]).write_text(json.dumps({"loss_nats": 1.5}))
'''
print(json.dumps(run_attempts({"signal": sys.argv[1]}, 1, (sys.executable, "-c", child))))
"""


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSEGV"])
def test_a_worker_that_crashes_in_its_pod_is_tried_again(containers: Engine, runtime: str, signal: str) -> None:
    printed = containers.output("run", *hardened(), runtime, "python3", "-c", CRASHES_ONCE, signal)
    assert json.loads(printed.splitlines()[-1]) == {"loss_nats": 1.5}


def test_the_container_is_restricted(containers: Engine, runtime: str) -> None:
    probe = json.loads(containers.output("run", *hardened(), runtime, "python3", "-c", PYTHON_PROBE))
    commit = call("git", "rev-parse", "HEAD").strip()
    assert probe == {
        "user": [65532, 65532],
        "capabilities": 0,
        "no_new_privileges": 1,
        "home": "/tmp",
        "prefix": "/opt/flashslm",
        "commit": commit,
        "refused": ["Read-only file system"] * 3,
        "tmp": None,
        "compilers": [],
    }


def test_without_a_read_only_root_the_user_still_writes_nothing(containers: Engine, runtime: str) -> None:
    code = "import os; print([p for p in ('/opt/flashslm', '/usr', '/etc', '/') if os.access(p, os.W_OK)])"
    assert containers.output("run", "--rm", runtime, "python3", "-c", code) == "[]"


def test_the_image_is_what_the_docs_say(containers: Engine, runtime: str) -> None:
    (image,) = json.loads(containers.output("image", "inspect", runtime))
    labels = image["Config"]["Labels"]
    assert labels["org.opencontainers.image.revision"] == call("git", "rev-parse", "HEAD").strip()
    installed = containers.output("run", "--rm", runtime, "python3", "-c", VERSION)
    assert labels["org.opencontainers.image.version"] == installed
    assert image["Config"]["User"] == "65532:65532" and not image["Config"]["Entrypoint"]
    assert image["Size"] < 2.6e9


def test_the_last_layer_is_the_project_alone(containers: Engine, runtime: str) -> None:
    """So a new version of the project is a download of about a megabyte: unpacked 6 MB, of which 3.5 are bytecode."""
    sizes = containers.output("history", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}", "--human=false", runtime)
    layers = [line for line in sizes.splitlines() if not line.startswith("0 ")]
    size_bytes = int(layers[0].split()[0])
    assert "/opt/flashslm/" in layers[0] and 100_000 < size_bytes < 10_000_000


@dataclass
class Run:
    """A run of design_and_train whose steps were containers."""

    exit_code: int
    steps: set[str]
    directory: Path
    log: str

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = (self.directory / "run" / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]


@pytest.fixture(scope="module")
def pipeline(containers: Engine, runtime: str, settings: Settings, directory: Path) -> Callable[..., Run]:
    """Run the smoke recipe's pipeline with `overrides`; `env` replaces variables of the contract."""

    def run(*overrides: str, **env: str) -> Run:
        shared = Path(tempfile.mkdtemp(prefix="run-", dir=directory))
        config = load(ROOT / "configs" / "smoke.yaml", list(overrides))
        compiled = compile_pipeline("design_and_train", shared / "run" / "pipeline.yaml", root=ROOT, retries=0)
        spec = next(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
        arguments = arguments_for(spec, pipeline_arguments(config, "code", "source", "device"))
        steps = {step_of(executor["container"]) for executor in spec["deploymentSpec"]["executors"].values()}
        (shared / "run" / "logs").mkdir()
        Job(compiled, arguments, shared / "run", shared / "home").write(shared / "job.json")
        for path in (shared, *shared.rglob("*")):
            path.chmod(0o777)  # steps are another user
        contract = settings.as_env() | {
            "FLASHSLM_STUDY_URL": f"sqlite:///{shared}/study.db",
            "FLASHSLM_EVENTS": str(shared / "run" / "events.jsonl"),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", "tests.containers.run_job", str(shared / "job.json"), runtime, str(shared)],
            cwd=ROOT,
            env=containers.env | contract | env,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        return Run(done.returncode, steps, shared, done.stdout + done.stderr)

    return run


@pytest.fixture(scope="module")
def finished(pipeline: Callable[..., Run]) -> Run:
    return pipeline()


def test_every_step_succeeds(finished: Run) -> None:
    assert finished.exit_code == 0, finished.log[-4000:]
    ends = finished.events("task_end")
    assert {end["step"] for end in ends} == finished.steps and {end["state"] for end in ends} == {"SUCCESS"}
    assert len(finished.events("task_attempt")) == len(ends) == 17  # two search workers, two trainings
    assert not finished.events("task_exit")


def test_results_are_in_mlflow_and_name_the_commit(finished: Run, settings: Settings) -> None:
    client = MlflowClient(settings.tracking_uri)
    version = client.get_model_version_by_alias("flashslm-smoke", "champion")
    assert version.version == "1"
    experiment = client.get_experiment_by_name(settings.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.step != ''")
    assert {run.data.tags["step"] for run in runs} == finished.steps
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_failing_step_fails_with_its_code(pipeline: Callable[..., Run]) -> None:
    run = pipeline(FLASHSLM_BUCKET="no-such-bucket")
    assert run.exit_code == 1
    (exit_,) = run.events("task_exit")
    assert (exit_["step"], exit_["summary"]) == ("plan_data", "exit code 1")
    assert [end["state"] for end in run.events("task_end")] == ["SUCCESS", "FAILURE"]  # the recipe is valid
    (fail,) = run.events("fail")
    assert "no-such-bucket" in fail["summary"]


def test_the_serving_image_accepts_the_export(
    finished: Run, containers: Engine, tensorrt_llm: str, settings: Settings, directory: Path
) -> None:
    """`verify-export` in its environment without torch."""
    (end,) = [event for event in finished.events("task_end") if event["step"] == "export_model"]
    tree = ObjectStore(settings).get_tree(Manifest.read(Path(end["artifacts"]["exported"])), directory / "export")
    call("chmod", "-R", "a+rX", str(tree))
    options = [*hardened(), "--volume", f"{tree}:/export:ro"]
    done = containers.output(
        "run", *options, tensorrt_llm, "flashslm", "verify-export", "/export/tensorrt_llm", "--json"
    )
    assert json.loads(done.splitlines()[-1])["problems"] == []
