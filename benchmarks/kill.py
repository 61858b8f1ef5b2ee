"""SIGKILL the step that promotes a model at random moments, in half of the rounds the services too; look what is left.

    python benchmarks/kill.py [--kills 200] [--seed 0] [--max-minutes M] [--output FILE]

Each round registers a new candidate by the step `register_model`, as a pipeline does, with a hook that notes what it
hears. The step's process is killed at a moment drawn over its whole duration; in half of the rounds S3, MLflow or both
are killed too and started again. Then the state must be the old one or the new one, and after the same step has run
once more the new one: one version, champion and previous right in the record and in MLflow, the hook called at least
once. Writes benchmarks/results/kill_<device>_<date>.json; the last line of stdout is that record. Exit code 1 if
anything was lost.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from flashslm.benchmarking.record import provenance, result_name
from flashslm.config import GateConfig, PromotionHook, RunConfig
from flashslm.infra.registry import champion_record, model_registry
from flashslm.infra.registry.gate import MeasuredModel, Verdict
from flashslm.infra.settings import Settings
from flashslm.infra.stack import daemons, embedded_stack
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.tracking import mlflow_runs
from flashslm.infra.tracking.mlflow_api import MlflowApi
from flashslm.steps import register_model  # noqa: F401 - loaded here, so that a forked step begins at once
from flashslm.steps.run import run_step

ROOT = Path(__file__).parents[1]
MODEL = "kill"
SERVICES = (("s3",), ("mlflow",), ("s3", "mlflow"))
CALIBRATION_RUNS = 3


class Bench:
    """One stack in a directory of its own, and the recipe whose hook writes into it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.home = directory, directory / "home"
        self.heard_file = directory / "heard.jsonl"
        self.heard_file.touch()
        hook = PromotionHook(command=("sh", "-c", f"cat >> '{self.heard_file}' && echo >> '{self.heard_file}'"))
        self.config = RunConfig(name="kill", gate=GateConfig(model_name=MODEL, promotion_hook=hook))
        self.settings: Settings = embedded_stack.up(self.home)
        self.run_id = ""  # of the pipeline whose step is killed and tried again

    def heard(self) -> list[str]:
        """The versions of which the hook has heard; a line that a kill cut off is not one."""
        versions = []
        for line in self.heard_file.read_text().splitlines():
            with suppress(ValueError):
                versions.append(json.loads(line)["version"])
        return versions

    def candidate(self, number: int, champion: str) -> dict[str, str]:
        """Manifests of a model that is to replace `champion`, as files."""
        store = ObjectStore(self.settings)
        facts = {"latency_ms": 1.0, "parameters": 1000, "device": "cpu", "operators": "DF"}
        quality = {"perplexity": 100.0 - number / 1000, "dataset_sha256": "0" * 64}
        exported = self._tree(store, "exported", {"weights": f"{number} {os.urandom(8).hex()}"}, facts)
        measured = {name: facts[name] for name in ("latency_ms", "parameters", "device")} | quality
        verdict = Verdict(
            decision="promote",
            reasons=[],
            checks=[],
            candidate=MeasuredModel.model_validate(measured | {"sha256": exported.sha256}),
            champion=None,
            champion_version=champion,
        )
        manifests = {
            "exported": exported,
            "evaluation": self._tree(store, "evaluation", {"x": str(number)}, quality),
            "dataset": self._tree(store, "dataset", {"x": "data"}, {}),
            "verdict": self._tree(store, "verdict", {"verdict.json": verdict.model_dump_json()}, {}),
        }
        self.run_id = mlflow_runs.start_parent_run(self.settings, f"round {number}")
        inputs = self.directory / "inputs" / str(number)
        return {name: str(manifest.write(inputs / name)) for name, manifest in manifests.items()}

    def _tree(self, store: ObjectStore, kind: str, files: dict[str, str], metadata: dict[str, Any]) -> Manifest:
        with tempfile.TemporaryDirectory(dir=self.directory) as directory:
            for name, content in files.items():
                (Path(directory) / name).write_text(content)
            return store.put_tree(directory, kind, metadata)

    def start_step(self, inputs: dict[str, str]) -> int:
        """Fork a process that runs the step; its pid."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            output = os.open(self.directory / "steps.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ.update(self.settings.as_env() | {"FLASHSLM_PARENT_RUN_ID": self.run_id})
            run_step("register_model", config=self.config.for_step("register_model"), inputs=inputs)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def finish_step(self, inputs: dict[str, str]) -> float:
        """Run the step to its end; how long it took."""
        began_s = time.monotonic()
        _, status = os.waitpid(self.start_step(inputs), 0)
        if os.waitstatus_to_exitcode(status):
            raise RuntimeError("the step failed:\n" + (self.directory / "steps.log").read_text()[-3000:])
        return time.monotonic() - began_s

    def kill_services(self, names: tuple[str, ...]) -> None:
        for name in names:
            for process in daemons.marked(f"{name}@{self.home.resolve()}"):
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def state(self) -> tuple[str, str]:
        """Champion and previous of the record."""
        record, _ = champion_record.read(ObjectStore(self.settings), MODEL)
        return (record.champion, record.previous) if record else ("", "")

    def aliases(self) -> dict[str, str]:
        """Of MLflow itself, after the registry has been read."""
        model_registry.list_versions(self.settings, MODEL)
        model = MlflowApi(self.settings).get("registered-models/get", name=MODEL)["registered_model"]
        return {entry["alias"]: str(entry["version"]) for entry in model.get("aliases", [])}


def one_round(bench: Bench, number: int, duration_s: float, draw: random.Random, counts: Counter[str]) -> list[str]:
    """Kill one promotion, look, finish it, look again; what is wrong."""
    old = bench.state()
    versions_before = len(model_registry.list_versions(bench.settings, MODEL))
    inputs = bench.candidate(number, old[0])
    killed = draw.choice(SERVICES) if number % 2 else ()
    step_at_s, services_at_s = draw.uniform(0, duration_s), draw.uniform(0, duration_s)
    pid, began_s = bench.start_step(inputs), time.monotonic()
    if killed and services_at_s < step_at_s:
        time.sleep(services_at_s)
        bench.kill_services(killed)
    time.sleep(max(0.0, began_s + step_at_s - time.monotonic()))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if killed and services_at_s >= step_at_s:
        bench.kill_services(killed)
    bench.settings = embedded_stack.up(bench.home)
    problems = _after_kill(bench, old, counts)
    counts["killed before its end" if os.waitstatus_to_exitcode(status) else "ended before the kill"] += 1
    counts[f"services killed: {' and '.join(killed) or 'none'}"] += 1
    bench.finish_step(inputs)
    return problems + _after_end(bench, old, versions_before)


def _after_kill(bench: Bench, old: tuple[str, str], counts: Counter[str]) -> list[str]:
    now, aliases = bench.state(), bench.aliases()
    heard = now[0] in bench.heard()
    counts["old state" if now == old else "new state, hook heard" if heard else "new state, hook not yet heard"] += 1
    problems = [] if now == old or now[1] == old[0] else [f"neither the old state {old} nor a new one: {now}"]
    if (aliases.get("champion", ""), aliases.get("previous", "")) != now:
        problems.append(f"aliases {aliases} do not follow the record {now}")
    return problems


def _after_end(bench: Bench, old: tuple[str, str], versions_before: int) -> list[str]:
    champion, previous = bench.state()
    versions = model_registry.list_versions(bench.settings, MODEL)
    problems = []
    if previous != old[0] or champion == old[0]:
        problems.append(f"after {old} the state is {(champion, previous)}")
    if len(versions) != versions_before + 1:
        problems.append(f"{len(versions) - versions_before} versions were registered")
    if champion not in bench.heard():
        problems.append(f"the hook never heard of version {champion}")
    aliases = bench.aliases()
    if (aliases.get("champion"), aliases.get("previous")) != (champion, previous):
        problems.append(f"aliases {aliases} do not follow the record {(champion, previous)}")
    return problems


def measure(directory: Path, kills: int, seed: int, until_s: float) -> dict[str, Any]:
    """All rounds in a stack below `directory`, or as many as begin before the monotonic time `until_s`."""
    bench, draw, counts = Bench(directory), random.Random(seed), Counter[str]()
    try:
        durations_s = []
        for number in range(-CALIBRATION_RUNS, 0):
            durations_s.append(bench.finish_step(bench.candidate(number, bench.state()[0])))
        duration_s = sorted(durations_s)[len(durations_s) // 2] * 1.05
        problems: dict[int, list[str]] = {}
        done = 0
        while done < kills and time.monotonic() < until_s:
            number, done = done, done + 1
            if found := one_round(bench, number, duration_s, draw, counts):
                problems[number] = found
                print(f"round {number}: {'; '.join(found)}", file=sys.stderr)
            elif number % 10 == 9:
                print(f"{number + 1} of {kills} rounds", file=sys.stderr)
        heard = Counter(bench.heard())
        return {
            "kills": done,
            "seed": seed,
            "step_duration_s": round(duration_s, 3),
            "outcomes": dict(sorted(counts.items())),
            "promotions_heard_of": len(heard),
            "heard_twice": sum(times > 1 for times in heard.values()),
            "problems": problems,
        }
    finally:
        embedded_stack.down(bench.home)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-minutes", type=float, default=float("inf"), help="no round begins later")
    parser.add_argument("--output", type=Path, default=None, help="default: benchmarks/results/kill_….json")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="flashslm-kill-") as directory:
        embedded_stack.use_home(Path(directory) / "home")
        found = measure(Path(directory), arguments.kills, arguments.seed, began_s + 60 * arguments.max_minutes)
    facts = {name: value for name, value in provenance("cpu").items() if name != "fingerprint"}
    record = {"subject": "kill"} | facts | {"duration_s": round(time.monotonic() - began_s, 1)} | found
    output = arguments.output or ROOT / "benchmarks" / "results" / f"{result_name('kill', 'cpu')}.json"
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))
    sys.exit(1 if found["problems"] else 0)


if __name__ == "__main__":
    main()
