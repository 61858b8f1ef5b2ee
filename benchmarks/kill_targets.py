"""What benchmarks/kill.py kills: the step that promotes a model, whole local runs, and the stack that they use."""

import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

from flashslm.config import PromotionHook
from flashslm.config import file as config_file
from flashslm.infra.registry import champion_record, model_registry
from flashslm.infra.registry.gate import MeasuredModel, Verdict
from flashslm.infra.settings import Settings
from flashslm.infra.stack import embedded_stack
from flashslm.infra.state_files import write_whole
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.tracking import mlflow_runs
from flashslm.infra.tracking.mlflow_client import TrackingClient
from flashslm.steps import register_model
from flashslm.steps.run import run_step

ROOT = Path(__file__).parents[1]
MODEL = "kill"
HOOK = "sleep 0.1; { echo; cat; echo; } >> "  # blank lines keep apart what a kill cut off
CALIBRATIONS = 3
KEPT_DURATIONS = 9  # of which the median counts: promotions take longer as versions accumulate
PATIENCE_S = 60.0
State = tuple[str, str]  # champion and previous, "" = none


class Target(Protocol):
    """A process that is to be killed, or to end by itself."""

    def wait_for(self, moment: str) -> None: ...

    def kill(self) -> bool: ...

    def finish(self) -> None: ...


class Step:
    """The step `register_model` in a process of its own, forked so that it begins at once."""

    def __init__(self, bench: "Bench", inputs: dict[str, str]) -> None:
        self.log, self.durations = bench.directory / "steps.log", bench.durations
        self.marks, write_end = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._run(bench, inputs, write_end)
        os.close(write_end)
        self.began_s = time.monotonic()

    def _run(self, bench: "Bench", inputs: dict[str, str], marks: int) -> None:
        code = 1
        try:
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ.update(bench.settings.as_env() | {"FLASHSLM_PARENT_RUN_ID": bench.run_id})
            with (
                marked(model_registry, "promote", marks),
                marked(register_model, "deliver_pending", marks),
            ):
                run_step("register_model", config=bench.config.for_step("register_model"), inputs=inputs)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def wait_for(self, moment: str) -> None:
        """Until `promote` begins, or the step has ended."""
        if moment == "promotion":
            select.select([self.marks], [], [], PATIENCE_S)

    def kill(self) -> bool:
        os.kill(self.pid, signal.SIGKILL)
        return self._exit_code() != 0

    def finish(self) -> None:
        seen = []
        while os.read(self.marks, 1):
            seen.append(time.monotonic())
        if self._exit_code():
            raise RuntimeError("the step failed:\n" + self.log.read_text()[-3000:])
        self.durations["step"].append(time.monotonic() - self.began_s)
        if len(seen) == 4:  # both functions began and ended: nothing had been done before
            self.durations["promotion"].append(seen[-1] - seen[0])

    def _exit_code(self) -> int:
        os.close(self.marks)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def marked(module: Any, name: str, marks: int) -> Iterator[None]:
    """Write a byte when a function of a module begins and when it ends."""
    original: Callable[..., Any] = getattr(module, name)

    def observed(*arguments: Any, **named: Any) -> Any:
        os.write(marks, b".")
        try:
            return original(*arguments, **named)
        finally:
            os.write(marks, b".")

    with patch.object(module, name, observed):
        yield


class Run:
    """`flashslm run` and all of its processes."""

    def __init__(self, bench: "Bench") -> None:
        self.log, self.durations, self.runs = bench.directory / "runs.log", bench.durations, bench.directory / "runs"
        before = set(self.runs.glob("2*"))
        command = [sys.executable, "-m", "flashslm", "run", "--config", str(bench.recipe), "--home", str(bench.home)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--json"],
                cwd=bench.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.began_s, self.known = time.monotonic(), before

    def wait_for(self, moment: str) -> None:
        """Until the step `register_model` begins, or the run has ended."""
        while moment == "registration" and self.process.poll() is None and not self._times("register_model"):
            time.sleep(0.01)

    def _times(self, step: str) -> dict[str, float]:
        """When the events of a step came, by their kind."""
        files = [run / "events.jsonl" for run in set(self.runs.glob("2*")) - self.known]
        lines = [line for file in files if file.is_file() for line in file.read_text().splitlines()]
        events = [json.loads(line) for line in lines if line.endswith("}")]
        return {event["event"]: event["time_s"] for event in events if event["step"] == step and "task" not in event}

    def kill(self) -> bool:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()
        return self.process.returncode != 0

    def finish(self) -> None:
        output, _ = self.process.communicate()
        facts = json.loads(output.splitlines()[-1]) if self.process.returncode == 0 else {}
        if facts.get("state") != "SUCCESS":
            raise RuntimeError("the run failed:\n" + self.log.read_text()[-3000:])
        times = self._times("register_model")
        if "end" in times:
            self.durations["run"].append(time.monotonic() - self.began_s)
            self.durations["registration"].append(times["end"] - times["start"])


class Bench:
    """One stack in a directory, the recipe whose hook writes there, and how long what is killed takes."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.home, self.recipe = directory, directory / "home", directory / "recipe.yaml"
        self.heard_file = directory / "heard.jsonl"
        self.heard_file.touch()
        smoke = config_file.load(ROOT / "configs" / "smoke.yaml")
        hook = PromotionHook(command=("sh", "-c", f"{HOOK} '{self.heard_file}'"))
        gate = smoke.gate.model_copy(update={"model_name": MODEL, "promotion_hook": hook})
        self.config = smoke.model_copy(update={"name": MODEL, "gate": gate})
        write_whole(self.recipe, config_file.dump(self.config))
        embedded_stack.use_home(self.home)
        self.settings: Settings = embedded_stack.up(self.home)
        self.run_id = ""  # of the pipeline whose step is killed and tried again
        self.durations: dict[str, deque[float]] = {
            name: deque(maxlen=KEPT_DURATIONS) for name in ("promotion", "step", "run", "registration")
        }

    def calibrate(self, kinds: Sequence[str]) -> None:
        """See how long promotions take, and whole runs if they are wanted; the first one fills the cache."""
        for _ in range(CALIBRATIONS):
            Step(self, self.candidate()).finish()
            self.end_parent()
        if "run" in kinds:
            Run(self).finish()
            self.durations["run"].clear()
            self.make_room()
            Run(self).finish()

    def end_parent(self) -> None:
        """End the run in MLflow to which a round's steps belonged."""
        if self.run_id:
            mlflow_runs.finish_run(self.settings, self.run_id, "FINISHED")

    def duration_s(self, name: str) -> float:
        return statistics.median(self.durations[name])

    def heard(self) -> list[str]:
        """The versions of which the hook has heard; a line that a kill cut off is not one."""
        versions = []
        for line in self.heard_file.read_text().splitlines():
            with suppress(ValueError):
                versions.append(json.loads(line)["version"])
        return versions

    def candidate(self) -> dict[str, str]:
        """Manifests of a model that is to replace the champion, as files."""
        store = ObjectStore(self.settings)
        facts = {"latency_ms": 1.0, "parameters": 1000, "device": "cpu", "operators": "DF"}
        quality = {"perplexity": 100.0, "dataset_sha256": "0" * 64}
        exported = self._tree(store, "exported", {"weights": os.urandom(8).hex()}, facts)
        measured = {name: facts[name] for name in ("latency_ms", "parameters", "device")} | quality
        verdict = Verdict(
            decision="promote",
            reasons=[],
            checks=[],
            candidate=MeasuredModel.model_validate(measured | {"sha256": exported.sha256}),
            champion=None,
            champion_version=self.state()[0],
        )
        manifests = {
            "exported": exported,
            "evaluation": self._tree(store, "evaluation", {"x": "loss"}, quality),
            "dataset": self._tree(store, "dataset", {"x": "data"}, {}),
            "verdict": self._tree(store, "verdict", {"verdict.json": verdict.model_dump_json()}, {}),
        }
        self.run_id = mlflow_runs.start_parent_run(self.settings, "round")
        inputs = self.directory / "inputs"
        return {name: str(manifest.write(inputs / name)) for name, manifest in manifests.items()}

    def make_room(self) -> None:
        """Have a worse model as champion, so that the gate promotes what the pipeline makes."""
        artifacts = self.directory / "runs" / "latest" / "artifacts"
        made = {name: Manifest.read(artifacts / f"{name}.json") for name in ("exported", "evaluation")}
        worse = self._tree(ObjectStore(self.settings), "exported", {"weights": "worse"}, made["exported"].metadata)
        measured = MeasuredModel.of(**made)
        facts = measured.model_copy(update={"sha256": worse.sha256, "perplexity": 2 * measured.perplexity})
        version = model_registry.register(self.settings, MODEL, worse, "worse", facts.model_dump())
        model_registry.promote(self.settings, MODEL, version, expected_champion=self.state()[0])

    def _tree(self, store: ObjectStore, kind: str, files: dict[str, str], metadata: dict[str, Any]) -> Manifest:
        with tempfile.TemporaryDirectory(dir=self.directory) as directory:
            for name, content in files.items():
                (Path(directory) / name).write_text(content)
            return store.put_tree(directory, kind, metadata)

    def state(self) -> State:
        """Champion and previous of the record."""
        record, _ = champion_record.read(ObjectStore(self.settings), MODEL)
        return (record.champion, record.previous) if record else ("", "")

    def versions(self) -> set[str]:
        return {version.version for version in model_registry.list_versions(self.settings, MODEL)}

    def aliases(self) -> State:
        """Champion and previous in MLflow, after the registry has been read."""
        model_registry.list_versions(self.settings, MODEL)
        aliases = TrackingClient(self.settings).get_registered_model(MODEL).aliases
        return str(aliases.get("champion", "")), str(aliases.get("previous", ""))
