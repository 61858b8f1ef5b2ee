"""A user who retrains: a directory with text that grows, the receiver of the hook, and steps run one by one."""

import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import psutil
import yaml

from flashslm.config import ModelConfig, RunConfig
from flashslm.config.file import load
from flashslm.infra.storage.object_store import Manifest
from flashslm.steps.run import run_step
from tests.holding import held_at
from tests.waiting import wait_until, whole_lines

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

    def start(self, *overrides: str, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flashslm", "run", "--pipeline", "retraining", "--config", str(self.file)]
        command += ["--json", "--home", str(self.home), *self.overrides, *overrides]
        log = (self.directory / "run.log").open("a")
        env = os.environ | variables | {"FLASHSLM_HOOK_SECRET": SECRET}
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
        return [json.loads(line) for line in whole_lines(newest)] if newest else []

    def start_and_kill_step(self, step: str, training_step: int) -> subprocess.Popen[str]:
        """Start a run and SIGKILL the step's process when it has trained that far, where it waits (`held_at`)."""
        hold = self.directory / "hold"
        process = self.start(**held_at(step, training_step, hold))

        def has_come() -> bool:
            assert process.poll() is None, (self.directory / "run.log").read_text()[-4000:]
            return any(e["step"] == step and e.get("training_step", 0) >= training_step for e in self.events())

        wait_until(has_come)
        below = psutil.Process(process.pid).children(recursive=True)
        steps = [child for child in below if "executor_main" in " ".join(child.cmdline())]
        for child in steps:
            child.suspend()
        hold.unlink()  # the next attempt does not wait
        for child in steps:
            child.kill()
        return process


def write_text(project: Project, name: str, letters: str) -> None:
    """Modules of the standard library by their first letter: real text of one kind."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in root.glob("*.py") if p.name[0] in letters)
    lines = [json.dumps({"text": p.read_text(encoding="utf-8")[:8_000]}) + "\n" for p in files]
    (project.text / name).write_text("".join(lines), encoding="utf-8")


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
