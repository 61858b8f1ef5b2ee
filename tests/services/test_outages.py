"""Outages of the object store while a step trains: it keeps training, waits, and ends well or when it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from flashslm.infra.settings import Settings
from flashslm.infra.stack import embedded_stack
from flashslm.infra.storage.errors import StoreUnavailable
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.storage.tree import hash_tree, index_key_of, tree_digest, tree_prefix
from flashslm.infra.tracking.mlflow_client import TrackingClient
from flashslm.steps import attempts
from tests.services.pretraining import call, metric_steps, write_inputs
from tests.waiting import wait_until, whole_lines

pytestmark = pytest.mark.services
ROOT = Path(__file__).parents[2]
STEPS, EVERY = 90, 20
SCRIPT = """
import json, sys, time
from pathlib import Path
from flashslm.infra import outages
from flashslm.steps.run import run_step
from flashslm.training import checkpoint
outages._FIRST_SAID_AFTER_S, outages._SAID_EVERY_S, checkpoint._TRAINING_WAITS_S = 0.3, 1.0, 0.5
save, reached, may_save = checkpoint.CheckpointStore.save, Path(sys.argv[2], "reached"), Path(sys.argv[2], "may_save")

def save_once_allowed(self, step, *state):
    if step == int(sys.argv[3]):
        self.finish()  # the checkpoint before this one is in the store
        reached.touch()
        while not may_save.exists():
            time.sleep(0.01)
    save(self, step, *state)

checkpoint.CheckpointStore.save = save_once_allowed
run_step('pretrain', **json.loads(sys.argv[1]))
"""


@contextmanager
def without_store(home: Path) -> Iterator[None]:
    """SeaweedFS is killed, and started again with the same data after the block."""
    pid = next(service.pid for service in embedded_stack.status(home).services if service.name == "s3")
    psutil.Process(pid).kill()
    try:
        yield
    finally:
        embedded_stack.up(home)


class Step:
    """A pretraining in a process of its own, and what it has said. Its second checkpoint waits for `may_save`."""

    started: ClassVar[list[psutil.Popen]] = []

    def __init__(self, arguments: dict[str, Any], directory: Path, patience_s: int, **variables: str) -> None:
        self.events, self.log = directory / "events.jsonl", directory / "step.log"
        self.reached, self.may_save = directory / "reached", directory / "may_save"
        variables |= {"FLASHSLM_EVENTS": str(self.events), "FLASHSLM_PATIENCE_S": str(patience_s)}
        variables["FLASHSLM_CACHE"] = str(directory / "cache")
        with self.log.open("wb") as log:
            command = [sys.executable, "-c", SCRIPT, json.dumps(arguments), str(directory), str(2 * EVERY)]
            self.process = psutil.Popen(command, env=os.environ | variables, cwd=ROOT, stderr=log)
        self.started.append(self.process)

    def said(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in whole_lines(self.events)]

    def trained_steps(self) -> int:
        return max((event.get("training_step", 0) for event in self.said()), default=0)

    def sentences(self, part: str) -> list[str]:
        return [event["summary"] for event in self.said() if part in event["summary"]]

    def wait_until(self, condition: Any) -> None:
        limit_s = time.monotonic() + 300.0
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < limit_s, self.said()[-5:]
            time.sleep(0.05)


@pytest.fixture(autouse=True)
def no_step_is_left() -> Iterator[None]:
    yield
    while Step.started:
        if (process := Step.started.pop()).is_running():  # the test has failed
            for each in [*process.children(recursive=True), process]:
                each.kill()


def arguments_for(steps: int, store: ObjectStore, directory: Path) -> dict[str, Any]:
    inputs = write_inputs(store, directory)
    made = call(inputs, directory / "out.json", processes=1, steps=steps, checkpoint_every_steps=EVERY)
    made["parameters"]["code_digest"] = str(directory)  # this test's own checkpoints
    return made


@pytest.fixture
def arguments(store: ObjectStore, tmp_path: Path) -> dict[str, Any]:
    return arguments_for(STEPS, store, tmp_path)


def tags(settings: Settings) -> dict[str, str]:
    api = TrackingClient(settings)
    run = api.find_runs("attributes.run_name = 'pretrain · wnorm on · seed 0'")[0]
    return {"status": run.info.status} | run.data.tags


def test_training_goes_on_while_one_checkpoint_waits_for_the_store(
    platform_env: Settings, stack_home: Path, store: ObjectStore, arguments: dict[str, Any], tmp_path: Path
) -> None:
    step = Step(arguments, tmp_path, patience_s=120)
    step.wait_until(step.reached.exists)
    with without_store(stack_home):
        step.may_save.touch()
        step.wait_until(lambda: step.trained_steps() == 3 * EVERY)  # the second checkpoint waits for the first one
        step.wait_until(lambda: len(step.sentences("has been away for")) >= 2)
        time.sleep(1.0)
        assert step.trained_steps() == 3 * EVERY
    assert step.process.wait(300) == 0, step.log.read_text()
    assert step.sentences("answers again at")
    assert f"object store at {platform_env.endpoint_url} has been away for" in step.log.read_text()
    found = tags(platform_env)
    assert found["status"] == "FINISHED" and "answers again at" in found["outage.object_store"]
    assert store.get_tree(Manifest.read(tmp_path / "out.json"), tmp_path / "result")
    assert metric_steps(platform_env, "pretrain · wnorm on · seed 0") == list(range(1, STEPS + 1))


def test_sigterm_ends_a_step_that_waits_and_the_next_attempt_says_where_it_resumes(
    platform_env: Settings, stack_home: Path, store: ObjectStore, arguments: dict[str, Any], tmp_path: Path
) -> None:
    step = Step(arguments, tmp_path, patience_s=900)
    step.wait_until(step.reached.exists)
    with without_store(stack_home):
        step.may_save.touch()
        step.wait_until(lambda: step.trained_steps() == 3 * EVERY)
        time.sleep(1.0)
        step.process.send_signal(signal.SIGTERM)
        assert step.process.wait(300) == 128 + signal.SIGTERM
        assert "was not stored" in step.log.read_text()
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "may_save").touch()
    again = Step(arguments, tmp_path / "again", patience_s=120)
    assert again.process.wait(300) == 0, again.log.read_text()
    (said,) = again.sentences("resumes from step")
    assert said.startswith(f"resumes from step {EVERY} of {STEPS} (checkpoint checkpoints/")
    assert said in again.log.read_text()
    assert metric_steps(platform_env, "pretrain · wnorm on · seed 0") == list(range(EVERY + 1, STEPS + 1))
    assert tags(platform_env)["resumed_from"].startswith(f"step {EVERY}, checkpoints/")


def test_a_steps_timeout_ends_the_wait_for_a_store_that_is_away(
    platform_env: Settings, stack_home: Path, store: ObjectStore, tmp_path: Path
) -> None:
    """Kubernetes sends SIGTERM to a pod at its deadline, and SIGKILL 30 s later; the step's own retries end too."""
    step = Step(arguments_for(100_000, store, tmp_path), tmp_path, 900, **{attempts.RETRIES: "2"})
    step.wait_until(lambda: step.trained_steps() > 0)  # in a process below this one, which saves when it comes to it
    with without_store(stack_home):
        step.wait_until(lambda: step.sentences("has been away for"))
        step.process.send_signal(signal.SIGTERM)
        assert step.process.wait(300) == 128 + signal.SIGTERM
    assert "the next attempt" not in step.log.read_text()
    assert [event["event"] for event in step.said()].count("start") == 1


def test_patience_for_the_store_ends(settings: Settings, stack_home: Path, store: ObjectStore) -> None:
    impatient = ObjectStore(settings.model_copy(update={"patience_s": 2}))
    with without_store(stack_home):
        for use in (lambda: impatient.put_json("k", 1), lambda: impatient.get_json("k"), lambda: impatient.list("k")):
            started_s = time.monotonic()
            with pytest.raises(StoreUnavailable):
                use()
            assert 1.5 < time.monotonic() - started_s < 60.0  # and not the 60 s of the settings
    store.put_json("k", 1)


def test_a_tree_that_is_being_sent_when_the_store_goes_arrives_whole(
    settings: Settings, stack_home: Path, tmp_path: Path
) -> None:
    source, patient = tmp_path / "source", ObjectStore(settings.model_copy(update={"patience_s": 120}))
    source.mkdir()
    for n in range(8):
        (source / f"{n}.bin").write_bytes(os.urandom(24 * 2**20))
    go_on, environment = tmp_path / "go-on", os.environ | patient_env(settings)
    sending = subprocess.Popen(
        [sys.executable, "-c", SEND, str(source), str(go_on)], env=environment, stdout=subprocess.PIPE
    )
    tree, process = tree_prefix(tree_digest(hash_tree(source))), psutil.Process(sending.pid)
    wait_until(lambda: patient.list(tree))
    process.suspend()
    assert index_key_of(tree) not in patient.list(tree)  # some of the bytes are there, not all
    with without_store(stack_home):
        go_on.touch()
        process.resume()
        time.sleep(3.0)
        assert sending.poll() is None
    manifest = Manifest.model_validate_json(sending.communicate(timeout=300)[0])
    assert hash_tree(patient.get_tree(manifest, tmp_path / "copy")) == hash_tree(source)


SEND = """
import sys, time
from pathlib import Path
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import ObjectStore
store = ObjectStore(Settings.from_env())
upload = store.client.upload_file

def upload_held(file, *rest, **options):
    while file.endswith("7.bin") and not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    upload(file, *rest, **options)

store.client.upload_file = upload_held
print(store.put_tree(sys.argv[1], "x").model_dump_json())
"""


def patient_env(settings: Settings) -> dict[str, str]:
    return settings.model_copy(update={"patience_s": 120}).as_env()
