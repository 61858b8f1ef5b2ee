"""Run a pipeline's compiled YAML on this machine: the launcher above the runner process and its steps."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from rich.console import Console
from rich.text import Text

from flashslm.config import RunConfig, digest
from flashslm.data.source_paths import reads_s3
from flashslm.data.sources import source_digest, with_revisions
from flashslm.evaluation.task_files import with_digests
from flashslm.infra.process.parent import PARENT_PID
from flashslm.infra.settings import FOREIGN_VARIABLES, FROM_PLATFORM, VARIABLES, Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.storage.s3 import s3_client
from flashslm.launch.compiling import (
    arguments_for,
    code_digest,
    compile_pipeline,
    pipeline_arguments,
    with_short_sections,
)
from flashslm.launch.display import Display
from flashslm.launch.local.runner import Job
from flashslm.launch.processes import StopSignals, exclusive, stop_tree
from flashslm.launch.progress import Progress, StepRecord

_POLL_S = 0.1
GRACE_S = 600.0  # what a step has to end in an orderly way: workers that train have as long to save


@dataclass
class LocalResult:
    """How a local run ended. `state`: SUCCESS, FAILURE or CANCELLED (by the signal `signal_number`)."""

    state: str
    steps: list[StepRecord]
    log: Path
    signal_number: int = 0
    outputs: dict[str, Manifest] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """What the command returns: 128 + signal for a cancelled run, as a shell does."""
        return {"SUCCESS": 0, "FAILURE": 1, "CANCELLED": 128 + self.signal_number}[self.state]


def run_local(
    config: RunConfig,
    run_dir: Path,
    env: Mapping[str, str],
    home: Path,
    *,
    pipeline: str = "design_and_train",
    quiet: bool = False,
) -> LocalResult:
    """Compile the pipeline into `run_dir`, run it there with the recipe's arguments, wait for its end.

    Steps get this environment plus `env`. What they leave is cached under `home`; a second run does only what changed.
    Raises LaunchError if another run uses `home`.
    """
    run_dir, home = run_dir.resolve(), home.resolve()
    compiled = compile_pipeline(pipeline, run_dir / "pipeline.yaml", retries=config.platform.retries)
    pinned = {"data": with_revisions(config.data), "evaluation": with_digests(config.evaluation)}
    config = config.model_copy(update=pinned)
    source = source_digest(config.data, s3_client(Settings.from_env(env)) if reads_s3(config.data) else None)
    spec = next(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
    arguments = arguments_for(spec, pipeline_arguments(config, code_digest(), source))
    arguments = with_short_sections(arguments, lambda: ObjectStore(Settings.from_env(env)))
    job = Job(compiled, arguments, run_dir, home, config.platform.variants_at_once)
    env = {**env, **{VARIABLES[field]: str(getattr(config.platform, field)) for field in FROM_PLATFORM}}
    return run_job(job, env, Console(stderr=True, quiet=quiet))


def run_job(job: Job, env: Mapping[str, str], console: Console) -> LocalResult:
    """Start the runner, show its progress, and end it with all its steps when this process is asked to stop."""
    log = job.run_dir / "logs" / "kfp.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    progress = Progress(job.run_dir / "events.jsonl")
    with exclusive(job.home / "kfp" / "lock"), _scratch(job.home) as scratch, StopSignals() as stop:
        runner = _start_runner(job, env, scratch, log)
        try:
            with Display(console) as display:
                _watch(runner, progress, display, stop, console)
        finally:
            if runner.poll() is None:
                stop_tree(runner.pid, grace_s=0.0)
    if stop.received:
        return LocalResult("CANCELLED", progress.steps, log, stop.received[0])
    result = LocalResult("FAILURE" if runner.returncode else "SUCCESS", progress.steps, log)
    result.outputs = {name: Manifest.read(path) for step in result.steps for name, path in step.artifacts.items()}
    if result.state == "FAILURE":
        explain(result, console)
    return result


def _watch(
    runner: subprocess.Popen[bytes], progress: Progress, display: Display, stop: StopSignals, console: Console
) -> None:
    """Until the runner ends, or until it had to be stopped."""
    while runner.poll() is None and not stop.received:
        changes = progress.update()
        display.show(progress.steps, changes)
        time.sleep(_POLL_S)
    if stop.received:
        console.print("stopping: steps that train save a checkpoint first (a second Ctrl-C kills them now)")
        stop_tree(runner.pid, GRACE_S, hurry=lambda: len(stop.received) > 1)
    runner.wait()
    changes = progress.update()
    progress.close("CANCELLED" if stop.received else "FAILURE")
    display.show(progress.steps, changes)


def _start_runner(job: Job, env: Mapping[str, str], scratch: Path, log: Path) -> subprocess.Popen[bytes]:
    """In this process group, so that a signal to the group ends the run."""
    job.write(job.run_dir / "job.json")
    extra = {
        "FLASHSLM_EVENTS": str(job.run_dir / "events.jsonl"),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(scratch),  # kfp leaves one directory per task there, and a killed step its own files
        PARENT_PID: str(os.getpid()),
    }
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "flashslm.launch.local.runner", str(job.run_dir / "job.json")],
            env={k: v for k, v in os.environ.items() if k not in FOREIGN_VARIABLES} | dict(env) | extra,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    """A directory for temporary files, gone after the run; whoever holds the home's lock owns its name.

    So what a killed run left there goes with the next one. It is not below the home because paths of sockets are
    limited to 108 bytes.
    """
    directory = Path(tempfile.gettempdir()) / f"flashslm-{os.getuid()}-{digest(str(home))[:12]}"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def explain(result: LocalResult, console: Console) -> None:
    """Print why a run failed: the step's message, the end of its log, and where the rest is."""
    failed = [step for step in result.steps if step.state == "FAILURE"]
    for step in failed:
        console.print(Text(f"{step.label} failed: {step.summary}", style="bold red"), soft_wrap=True)
        _print_log(console, log_of(step, result))
    if not failed:
        console.print(Text("the pipeline failed outside its steps", style="bold red"))
        _print_log(console, result.log)


def log_of(step: StepRecord, result: LocalResult) -> Path:
    """Where to look for why a step failed: the runner's own log if the step's process did not come to write one."""
    return step.log if step.log and step.log.is_file() and step.log.stat().st_size else result.log


def _print_log(console: Console, log: Path, lines: int = 12) -> None:
    written = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    for line in [line for line in written if line.strip()][-lines:]:
        console.print(Text(f"  | {line}"), soft_wrap=True)
    console.print(Text(f"  log: {log}"), soft_wrap=True)
