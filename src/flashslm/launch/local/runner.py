"""The process that runs a compiled pipeline with kfp.local, and says in the run's events what each task does.

Started by the launcher as `python -m flashslm.launch.local.runner <job.json>`. kfp's local runner prints to one
stream what parallel tasks write, does not say which iteration of a loop a task is, replaces every "python3" in a
task's arguments, and runs two iterations of a loop at a time; what it is extended with here (kfp >=2.17,<2.18) cures
that.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flashslm.hardware import SIDE_BY_SIDE, changed_environment
from flashslm.infra.events import Events
from flashslm.infra.process.parent import PARENT_PID, die_with_parent
from flashslm.infra.state_files import write_whole
from flashslm.launch.labels import step_label, step_of
from flashslm.launch.local import kept_summaries

_EXECUTOR = "kfp.dsl.executor_main"
SEARCH_LOOP, VARIANTS_LOOP = "search-workers", "weight-norm-variants"  # the pipeline's names of them
KFPS_AT_ONCE = 2  # iterations of a loop


@dataclass
class Job:
    """What to run; the launcher writes it, the runner reads it."""

    pipeline: Path
    arguments: dict[str, Any]
    run_dir: Path
    home: Path
    variants_at_once: int = KFPS_AT_ONCE  # that pretrain at the same time

    def write(self, path: Path) -> None:
        values = {"pipeline": str(self.pipeline), "run_dir": str(self.run_dir), "home": str(self.home)}
        write_whole(path, json.dumps(values | {"arguments": self.arguments, "variants_at_once": self.variants_at_once}))

    @classmethod
    def read(cls, path: Path) -> "Job":
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values | {name: Path(values[name]) for name in ("pipeline", "run_dir", "home")})


@dataclass
class Task:
    """One task of the DAG, or one iteration of it in a loop."""

    step: str
    label: str
    log: Path
    key: str = ""  # equal for the same task of another run
    attempts: int = 0
    is_hopeless: bool = False  # the last attempt failed in a way that would come again
    events: Events = field(init=False)

    def __post_init__(self) -> None:
        self.events = Events.from_env(self.step, self.label)

    def emit(self, event: str, summary: str = "", **fields: Any) -> None:
        self.events.emit(event, summary, task=self.log.stem, **fields)


def main() -> None:
    """Run the job named on the command line; exit code 1 if the pipeline fails."""
    die_with_parent()
    # The launcher turns Ctrl-C and hang-up into one TERM a step. "Ignore" is inherited by the steps, a handler is not;
    # a TERM to the whole process group must reach the steps but leave the end of this process to the launcher.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    run(Job.read(Path(sys.argv[1])))


def run(job: Job) -> None:
    from kfp import components, local

    warnings.filterwarnings("ignore", message=r"Task .* have no effect in the current local runner")
    observe_tasks(job.run_dir / "logs", job.home)
    run_together(job.variants_at_once)
    cache = job.home / "kfp" / "cache"
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(job.home / "kfp" / "artifacts"),
        enable_caching=True,
        cache_root=str(cache),
    )
    try:
        components.load_component_from_file(str(job.pipeline))(**job.arguments)
    except RuntimeError as error:
        sys.exit(str(error))


def observe_tasks(logs: Path, home: Path) -> None:
    """Extend kfp.local: every task has a label, its own log, and events for its attempts and its end.

    What a step came to is kept before kfp caches it: whenever this process is killed, a cached step has a result.
    """
    from kfp import dsl
    from kfp.local import status, subprocess_task_handler
    from kfp.local.orchestrator import orchestrator_utils, task_executor

    current = threading.local()
    execute = task_executor.execute_single_task

    def execute_observed(**call: Any) -> Any:
        arguments = orchestrator_utils.OrchestratorUtils.make_task_arguments(call["task_spec"].inputs, call["io_store"])
        component = call["components"][call["task_spec"].component_ref.name]
        executor = call["executors"][component.executor_label]
        task = current.task = make_task(step_of({"args": list(executor.container.args)}), arguments, logs)
        task.emit("task_start", log=str(task.log), key=task.key)
        outputs, state = execute(**call)
        artifacts = {k: v for k, v in outputs.items() if isinstance(v, dsl.Artifact)}
        made = {k: v.uri for k, v in artifacts.items() if not isinstance(v, dsl.Metrics | dsl.HTML)}
        result = "" if task.attempts else kept_summaries.read(home).get(task.key, "")
        task.emit("task_end", result, state=state.name, cached=not task.attempts, artifacts=made)
        return outputs, state

    class Handler(subprocess_task_handler.SubprocessTaskHandler):
        def validate_image(self, image: str) -> None:
            """Every image runs in this interpreter."""

        def run(self) -> Any:
            task: Task = current.task
            if task.is_hopeless:  # kfp retries whatever failed, without a wait (below)
                return status.Status.FAILURE
            events_before = _size(task.events.path)
            failed = run_attempt(task, self.full_command, self.env_vars) != 0
            said = last_event(task, "fail" if failed else "end", events_before)
            task.is_hopeless = said.get("may_pass") is False
            if not failed and said.get("summary"):
                kept_summaries.add(home, task.key, said["summary"])
            return status.Status.FAILURE if failed else status.Status.SUCCESS

    def wait_to_retry(seconds: float) -> None:
        if not current.task.is_hopeless:
            time.sleep(seconds)

    task_executor.execute_single_task = execute_observed
    task_executor.time = SimpleNamespace(sleep=wait_to_retry)
    subprocess_task_handler.SubprocessTaskHandler = Handler


def run_together(variants: int) -> None:
    """Extend kfp.local: a search has as many workers at once as its recipe says, and so many variants pretrain at once.

    Of other loops two iterations run at a time, as KFP has it. Steps beside each other share the cores.
    """
    from kfp.local.orchestrator import enhanced_dag_orchestrator as dag

    class Executor(dag.ParallelExecutor):
        def execute_parallel_tasks(self, tasks: Any, **call: Any) -> Any:
            at_once = {SEARCH_LOOP: len(tasks), VARIANTS_LOOP: variants}
            self.conservative_max = self.max_workers = at_once.get(tasks[0][1].task_info.name, KFPS_AT_ONCE)
            with changed_environment({SIDE_BY_SIDE: str(min(self.max_workers, len(tasks)))}):
                return super().execute_parallel_tasks(tasks=tasks, **call)

    dag.ParallelExecutor = Executor


_names = threading.Lock()
_taken: set[str] = set()


def make_task(step: str, arguments: dict[str, Any], logs: Path) -> Task:
    """Name a task after its step and the short text arguments that tell iterations of a loop apart."""
    label = step_label(step, arguments)
    name = re.sub(r"[^\w.=-]+", "-", label)
    with _names:
        unique = name
        while unique in _taken:
            unique = f"{name}-{sum(taken.startswith(name) for taken in _taken) + 1}"
        _taken.add(unique)
    return Task(step, label, logs / f"{unique}.log", kept_summaries.task_key(step, arguments))


def run_attempt(task: Task, command: list[str], env: dict[str, str]) -> int:
    """Run the task's command once, its output into the task's log; return the exit code."""
    task.attempts += 1
    task.emit("task_attempt", attempt=task.attempts)
    with task.log.open("ab") as log:
        exit_code = subprocess.call(
            [_in_this_interpreter(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | env | {PARENT_PID: str(os.getpid())},
        )
    if exit_code:
        task.emit("task_exit", describe_exit(exit_code), attempt=task.attempts)
    return exit_code


def last_event(task: Task, kind: str, offset: int) -> dict[str, Any]:
    """What the step itself said of its result (`end`) or its error (`fail`); a process that was killed says nothing."""
    if task.events.path is None or not task.events.path.is_file():
        return {}
    with task.events.path.open("rb") as stream:
        stream.seek(offset)
        lines = stream.read().splitlines()
    for line in reversed(lines):
        with suppress(ValueError):  # half a line of another step
            event = json.loads(line)
            if event.get("event") == kind and event.get("label") == task.label:
                return dict(event)
    return {}


def _size(path: Path | None) -> int:
    return path.stat().st_size if path and path.is_file() else 0


def _in_this_interpreter(part: str) -> str:
    """The shell becomes the interpreter (exec), so that the step is this process's own child and can watch it."""
    if _EXECUTOR not in part:
        return part
    return part.replace("_KFP_RUNTIME=true python3", f"export _KFP_RUNTIME=true; exec {shlex.quote(sys.executable)}")


def describe_exit(code: int) -> str:
    number = -code if code < 0 else code - 128
    if number not in set(signal.Signals):
        return f"exit code {code}"
    name = signal.Signals(number).name
    return f"killed by {name}" + (" (out of memory?)" if number == signal.SIGKILL else "")


if __name__ == "__main__":
    main()
