"""Whole local runs while the services that they use are away; look whether they end well.

    python benchmarks/outages.py kills [--recipe configs/smoke.yaml] [--every-s 15 35] [--seed 0]
    python benchmarks/outages.py database [--away-s 300] [--step select_architecture]

`kills` ends S3, MLflow and the study database (a Postgres of its own) by SIGKILL, all three at moments 15 to 35 s after
they answer again, until the run ends. `database` takes the database away when a step begins, for `--away-s`. Both runs
have `platform.patience_s` 900. The last line of stdout is the record, as JSON. Exit code 1 if the run did not end well:
it failed, a tree in the store is damaged, an MLflow run stays RUNNING, or metrics wait on disk.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from flashslm.benchmarking.options import COUNT_OR_NONE, INPUT, NOT_NEGATIVE, before_work, script_parser
from flashslm.benchmarking.record import provenance
from flashslm.config.file import load
from flashslm.config.steps import DESIGN_STEPS
from flashslm.infra.settings import Settings
from flashslm.infra.stack import daemons, embedded_stack
from flashslm.infra.storage.audit import audit
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.tracking import spool
from flashslm.infra.tracking.mlflow_client import TrackingClient

ROOT = Path(__file__).parents[1]
PATIENCE_S = 900
POLL_S = 0.05
# `flashslm run`, but for the database of its stack.
RUN = """
import sys
from flashslm.cli import main
from flashslm.infra.stack.embedded_stack import StackState
of_stack, study_url = StackState.settings, sys.argv.pop(1)
StackState.settings = lambda state, home: of_stack(state, home).model_copy(update={"study_url": study_url})
main()
"""


class Database:
    """A Postgres for studies, in a directory of its own; root starts it as another user, which `postgres` asks for."""

    def __init__(self, directory: Path) -> None:
        self.data, self.port = directory / "data", daemons.free_ports(1)[0]
        self._programs = Path(shutil.which("postgres") or "/nowhere").resolve().parent
        if not (self._programs / "initdb").is_file():
            raise SystemExit("PostgreSQL is not installed: `postgres` and the programs beside it are needed")
        self._user: dict[str, Any] = {"user": "nobody"} if os.getuid() == 0 else {}
        directory.mkdir(parents=True)
        if self._user:
            shutil.chown(directory, "nobody")
        self._run("initdb", "--auth=trust", "--username=studies", "--pgdata", str(self.data))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql+psycopg2://studies@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Return when it answers."""
        options = ("-p", str(self.port), "-k", "", "-c", "listen_addresses=127.0.0.1")
        command = [str(self._programs / "postgres"), "-D", str(self.data), *options]
        with (self.data.parent / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._user)
        while subprocess.run([self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode:
            time.sleep(POLL_S)

    def kill(self) -> None:
        """By SIGKILL, with the processes of its connections, which hold its shared memory."""
        if self._process is not None:
            server = psutil.Process(self._process.pid)
            kill([server, *server.children(recursive=True)])
            self._process.wait()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([self._programs / program, *arguments], check=True, stdout=subprocess.DEVNULL, **self._user)


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


class Bench:
    """A stack and a database in one directory, and a `flashslm run` that uses them."""

    def __init__(self, directory: Path, recipe: Path) -> None:
        self.home, self.runs, self.recipe = directory / "home", directory / "runs", recipe
        self.database = Database(directory / "database")
        self.database.start()
        self.settings: Settings = embedded_stack.up(self.home)

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", RUN, self.database.url, "run", "--config", str(self.recipe)]
        command += ["--home", str(self.home), f"platform.patience_s={PATIENCE_S}"]
        return subprocess.Popen(command, cwd=self.runs.parent)

    def kill_services(self) -> None:
        marks = [f"{name}@{self.home.resolve()}" for name in ("s3", "mlflow")]
        kill([process for mark in marks for process in daemons.marked(mark)])
        self.database.kill()

    def start_services(self) -> None:
        embedded_stack.up(self.home)
        self.database.start()

    def events(self) -> list[dict[str, Any]]:
        lines = [line for file in self.runs.rglob("events.jsonl") for line in file.read_text().splitlines()]
        return [json.loads(line) for line in lines if line.endswith("}")]

    def problems(self, exit_code: int) -> list[str]:
        running = TrackingClient(self.settings).find_runs("attributes.status = 'RUNNING'")
        damages = audit(ObjectStore(self.settings)).damages
        checks = {
            f"the run ended with {exit_code}": exit_code != 0,
            f"{len(running)} runs stay RUNNING in MLflow": bool(running),
            f"{len(damages)} trees are damaged": bool(damages),
            "metrics wait in the spool": bool(spool.spooled()),
        }
        return [problem for problem, is_wrong in checks.items() if is_wrong]


def kills(bench: Bench, run: subprocess.Popen[bytes], arguments: argparse.Namespace) -> dict[str, Any]:
    """Kill all services at random moments until the run ends."""
    draw, count = random.Random(arguments.seed), 0
    while True:
        due_s = time.monotonic() + draw.uniform(*arguments.every_s)
        _wait(lambda due_s=due_s: run.poll() is not None or time.monotonic() >= due_s)
        if run.poll() is not None:
            return {"kills": count}
        bench.kill_services()
        count += 1
        bench.start_services()


def database(bench: Bench, run: subprocess.Popen[bytes], arguments: argparse.Namespace) -> dict[str, Any]:
    """Take the database away from the moment at which the step begins."""

    def has_begun() -> bool:
        return any(event["step"] == arguments.step and event["event"] == "start" for event in bench.events())

    _wait(lambda: run.poll() is not None or has_begun())
    bench.database.kill()
    time.sleep(arguments.away_s)
    was_waiting = run.poll() is None
    bench.database.start()
    run.wait()
    return {"step": arguments.step, "away_s": arguments.away_s, "was_waiting": was_waiting}


def _wait(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(POLL_S)


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("mode", choices=("kills", "database"))
    parser.add_argument("--recipe", type=INPUT, default=ROOT / "configs" / "smoke.yaml")
    parser.add_argument("--every-s", type=NOT_NEGATIVE, nargs=2, default=(15.0, 35.0))
    parser.add_argument("--seed", type=COUNT_OR_NONE, default=0)
    parser.add_argument("--away-s", type=NOT_NEGATIVE, default=300.0)
    parser.add_argument("--step", choices=sorted(DESIGN_STEPS), default="select_architecture")
    return parser


def main(given: Sequence[str] | None = None) -> None:
    parser = make_parser()
    arguments = parser.parse_args(given)
    with before_work(parser):
        load(arguments.recipe)
    with tempfile.TemporaryDirectory(prefix="flashslm-outages-") as directory:
        os.chmod(directory, 0o755)  # the database belongs to another user
        bench = Bench(Path(directory), arguments.recipe.resolve())
        run = bench.start()
        began_s = time.monotonic()
        try:
            found = {"kills": kills, "database": database}[arguments.mode](bench, run, arguments)
            took = {"duration_s": round(time.monotonic() - began_s, 1), "exit_code": run.returncode}
            said = sorted({e["summary"].split(" at ")[0] for e in bench.events() if "has been away" in e["summary"]})
            problems = bench.problems(run.returncode)
        finally:
            run.kill()
            bench.database.kill()
            embedded_stack.down(bench.home)
    facts = {name: value for name, value in provenance("cpu").items() if name != "fingerprint"}
    record = {"subject": f"outages {arguments.mode}", "recipe": arguments.recipe.name} | facts | found | took
    print(json.dumps(record | {"said": said, "problems": problems}))
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
