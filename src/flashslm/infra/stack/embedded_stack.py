"""The embedded stack of one person's machine: SeaweedFS (S3) and MLflow on loopback, as two background processes."""

import logging
import os
import secrets
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, computed_field

from flashslm.infra.process.private import PRIVATE_UMASK, private_directory, private_files
from flashslm.infra.settings import LOOPBACK_ADDRESS, Settings, experiment_name
from flashslm.infra.stack import daemons, seaweedfs
from flashslm.infra.stack.daemons import Daemon, StackError
from flashslm.infra.state_files import check_sqlite, locked_file, read_state, sqlite_problem, write_whole
from flashslm.infra.storage.errors import StoreError
from flashslm.infra.storage.s3 import s3_client, translated

__all__ = [
    "DEFAULT_HOME",
    "ServiceStatus",
    "StackError",
    "StackStatus",
    "down",
    "settings_of",
    "status",
    "up",
    "use_home",
]

_log_of_module = logging.getLogger(__name__)
DEFAULT_HOME = Path(".flashslm")
BUCKET = "flashslm"
STUDIES = "study.db"  # trials of searches, below the home
STATE = "stack.json"
RUNS = "mlflow.db"
Service = Literal["s3", "mlflow"]
SERVICES: tuple[Service, ...] = ("s3", "mlflow")
_START_TIMEOUT_S = {"s3": 60.0, "mlflow": 180.0}
_PROBE_KEY = "probe/stack"


class StackState(BaseModel):
    """What `stack.json` holds (mode 0600): data written with these credentials and ports stays reachable."""

    access_key: str
    secret_key: str
    ports: dict[str, int]
    daemons: dict[Service, Daemon] = {}

    def settings(self, home: Path) -> Settings:
        return Settings(
            access_key=self.access_key,
            secret_key=self.secret_key,
            endpoint_url=LOOPBACK_ADDRESS.format(self.ports["s3"]),
            bucket=BUCKET,
            tracking_uri=LOOPBACK_ADDRESS.format(self.ports["mlflow"]),
            experiment=experiment_name(),
            study_url=_sqlite_url(home / STUDIES),
            stack_file=str(home / STATE),
        )


class ServiceStatus(BaseModel):
    """One half of the stack."""

    name: Service
    address: str
    pid: int
    running: bool
    healthy: bool
    log: Path


class StackStatus(BaseModel):
    """The whole stack; no services when it was never started here."""

    home: Path
    services: list[ServiceStatus]

    @computed_field
    def healthy(self) -> bool:
        return bool(self.services) and all(service.healthy for service in self.services)


def _sqlite_url(file: Path) -> str:
    """SQLAlchemy's address of a file, whatever characters its name has."""
    from sqlalchemy import URL

    return URL.create("sqlite", database=str(file)).render_as_string()


def up(home: str | Path = DEFAULT_HOME) -> Settings:
    """Start what does not run and wait until S3 accepts a put and MLflow answers; safe to call at any time.

    Data, credentials and (unless another process took them) ports are those of the last time. Raises StackError with
    the end of the log of what failed.
    """
    experiment_name()  # a wrong one is an error before anything is made
    home = Path(home).resolve()
    private_directory(home)
    with private_files(), _lock(home):
        state = _load(home) or _new_state()
        for service in SERVICES:
            if not _is_usable(service, state, home):
                _start(service, state, home)
        for service in SERVICES:  # both were started above and come up side by side
            _wait_until_healthy(service, state, home)
        return state.settings(home)


def _wait_until_healthy(service: Service, state: StackState, home: Path) -> None:
    """One that ends while it starts, because it was killed or its port was taken just then, is started once more."""
    try:
        _wait(service, state, home)
    except StackError:
        if state.daemons[service].is_alive():
            raise
        _start(service, state, home)
        _wait(service, state, home)


def _wait(service: Service, state: StackState, home: Path) -> None:
    settings, timeout_s = state.settings(home), _START_TIMEOUT_S[service]
    daemons.wait_until(lambda: _is_healthy(service, settings), state.daemons[service], service, timeout_s)


def use_home(home: str | Path) -> None:
    """Have this process and its children keep fetched trees and spooled metrics under `home`, unless the environment
    says otherwise, and make files of the owner alone.
    """
    os.umask(PRIVATE_UMASK)
    os.environ.setdefault("FLASHSLM_CACHE", str(Path(home).resolve() / "trees"))
    os.environ.setdefault("FLASHSLM_SPOOL", str(Path(home).resolve() / "spool"))


def down(home: str | Path = DEFAULT_HOME) -> None:
    """Stop both processes and whatever they left behind; data and credentials stay."""
    home = Path(home).resolve()
    if not home.is_dir():
        return
    with _lock(home):
        for service in reversed(SERVICES):
            daemons.stop(_mark(home, service))
        if state := _load(home):
            seaweedfs.remove_sockets(state.ports)
            state.daemons.clear()
            _save(home, state)


def status(home: str | Path = DEFAULT_HOME) -> StackStatus:
    """What runs and answers; starts nothing."""
    home = Path(home).resolve()
    state = _load(home)
    if state is None:
        return StackStatus(home=home, services=[])
    settings = state.settings(home)
    return StackStatus(home=home, services=[_service_status(s, state, settings, home) for s in SERVICES])


def settings_of(home: str | Path = DEFAULT_HOME) -> Settings | None:
    """The settings of a stack that was started here, running or not."""
    home = Path(home).resolve()
    state = _load(home)
    return state.settings(home) if state else None


def _service_status(service: Service, state: StackState, settings: Settings, home: Path) -> ServiceStatus:
    daemon = state.daemons.get(service)
    running = daemon is not None and daemon.is_alive()
    return ServiceStatus(
        name=service,
        address=settings.endpoint_url if service == "s3" else settings.tracking_uri,
        pid=daemon.pid if daemon and running else 0,
        running=running,
        healthy=running and _is_healthy(service, settings),
        log=_log(home, service),
    )


def _start(service: Service, state: StackState, home: Path) -> None:
    """Start one service and record it at once, so that an interrupted `up` leaves nothing unknown."""
    daemons.stop(_mark(home, service))  # workers of a killed daemon still hold its port
    names = seaweedfs.PARTS if service == "s3" else ("mlflow",)
    if service == "mlflow":
        check_sqlite(home / RUNS)
    if taken := daemons.not_freed(state.ports[name] for name in names):
        text = "port %s of %s is another process's: %s gets new ports, and running steps follow it"
        _log_of_module.warning(text, taken[0], service, service)
        state.ports |= dict(zip(names, daemons.free_ports(len(names)), strict=True))
        state.daemons.pop("mlflow", None)  # a running one does not know S3's new address
    command, env = _weed(state, home) if service == "s3" else _mlflow(state, home)
    state.daemons[service] = daemons.start(command, env, _mark(home, service), _log(home, service), home)
    _save(home, state)


def _weed(state: StackState, home: Path) -> tuple[list[str], dict[str, str]]:
    data = private_directory(home / "s3")
    (data / "mini.options").unlink(missing_ok=True)  # SeaweedFS would read the last start's options from it
    env = seaweedfs.environment(state.access_key, state.secret_key, home / seaweedfs.CERTIFICATES)
    return seaweedfs.command(data, BUCKET, state.ports), env


def _is_usable(service: Service, state: StackState, home: Path) -> bool:
    """Whether it runs, and not on a damaged database or without the certificates of this version."""
    if service not in state.daemons or not state.daemons[service].is_alive():
        return False
    return not sqlite_problem(home / RUNS) if service == "mlflow" else (home / seaweedfs.CERTIFICATES).is_dir()


def _mlflow(state: StackState, home: Path) -> tuple[list[str], dict[str, str]]:
    options = {
        "host": "127.0.0.1",
        "port": state.ports["mlflow"],
        "workers": 1,
        "backend-store-uri": f"sqlite:///{RUNS}",  # in the home, where it is started: an address may not hold a '%'
        "artifacts-destination": f"s3://{BUCKET}/mlflow",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--serve-artifacts"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    # its job queue takes another gigabyte and eight processes, and nothing here uses it
    return command, state.settings(home).as_env() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def _is_healthy(service: Service, settings: Settings) -> bool:
    return _accepts_put(settings) if service == "s3" else _answers_health(settings.tracking_uri)


def _accepts_put(settings: Settings) -> bool:
    try:
        with translated("S3", _PROBE_KEY):
            s3_client(settings, patience_s=0).put_object(Bucket=settings.bucket, Key=_PROBE_KEY, Body=b"up")
    except StoreError:
        return False
    return True


def _answers_health(tracking_uri: str) -> bool:
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback: never by a proxy
        with opener.open(f"{tracking_uri}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _new_state() -> StackState:
    names = (*seaweedfs.PARTS, "mlflow")
    ports = dict(zip(names, daemons.free_ports(len(names)), strict=True))
    return StackState(access_key=secrets.token_hex(10), secret_key=secrets.token_hex(20), ports=ports)


def _load(home: Path) -> StackState | None:
    """What the file says; without it, or when it is damaged, the next `up` chooses new credentials and ports: the data
    are not bound to the old ones.
    """
    return read_state(home / STATE, _parse)


def _parse(content: bytes) -> StackState:
    state = StackState.model_validate_json(content)
    if missing := {*seaweedfs.PARTS, "mlflow"} - set(state.ports):
        raise ValueError(f"it lacks the ports of {', '.join(sorted(missing))}")
    return state


def _save(home: Path, state: StackState) -> None:
    """It holds the secret: only its owner may read the file."""
    write_whole(home / STATE, state.model_dump_json(indent=1))


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """One `up` or `down` at a time; the kernel frees it if its holder dies."""
    with locked_file(home / "stack.lock"):
        yield


def _mark(home: Path, service: Service) -> str:
    return f"{service}@{home}"


def _log(home: Path, service: Service) -> Path:
    return home / "logs" / f"{service}.log"
