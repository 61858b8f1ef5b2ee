"""The embedded stack itself, in a home of its own."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from flashslm.infra.stack import daemons, embedded_stack
from flashslm.infra.stack.doctor import diagnose
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.tracking.mlflow_client import TrackingClient
from tests.waiting import has_ended, wait_until

pytestmark = pytest.mark.services

UP = "import sys; from flashslm.infra.stack.embedded_stack import up; print(up(sys.argv[1]).model_dump_json())"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home brought up by two processes at once; the tests of this module run in order on it."""
    directory = tmp_path_factory.mktemp("own %2Fstack?#ü")
    both = [subprocess.Popen([sys.executable, "-c", UP, str(directory)], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        printed = {process.communicate(timeout=600)[0] for process in both}
        assert [process.returncode for process in both] == [0, 0]
        assert len(printed) == 1  # both got the same settings
        yield directory
    finally:
        embedded_stack.down(directory)


def pids(home) -> dict[str, int]:
    return {service.name: service.pid for service in embedded_stack.status(home).services}


def leaders(home, service: str) -> list[int]:
    return [p.pid for p in daemons.marked(f"{service}@{home.resolve()}") if os.getsid(p.pid) == p.pid]


@contextmanager
def taken(address: str) -> Iterator[None]:
    """Another process listens where a service did, and hangs up on those who call."""
    with socket.create_server(("127.0.0.1", int(address.rsplit(":", 1)[1]))) as listener:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_two_ups_at_once_start_one_of_each(home):
    status = embedded_stack.status(home)
    assert status.healthy and [service.name for service in status.services] == ["s3", "mlflow"]
    for service in ("s3", "mlflow"):
        assert leaders(home, service) == [pids(home)[service]]


def test_up_again_changes_nothing(home):
    before = pids(home)
    assert embedded_stack.up(home) == embedded_stack.settings_of(home) and pids(home) == before


def test_secrets_are_the_owners_and_everything_listens_on_loopback(home):
    assert stat.S_IMODE((home / "stack.json").stat().st_mode) == 0o600
    secret = json.loads((home / "stack.json").read_text())["secret_key"]
    for service in ("s3", "mlflow"):
        for process in daemons.marked(f"{service}@{home.resolve()}"):
            assert secret not in " ".join(process.cmdline())
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    assert connection.laddr.ip == "127.0.0.1"
    anonymous = embedded_stack.settings_of(home).model_copy(update={"access_key": "nobody", "secret_key": "x"})
    with pytest.raises(Exception, match="refused access"):
        ObjectStore(anonymous).list("")


def test_a_killed_daemon_comes_back_with_its_data_even_on_another_port(home):
    settings, before = embedded_stack.settings_of(home), pids(home)
    ObjectStore(settings).put_json("kept", {"n": 1})
    experiment = TrackingClient(settings).experiment_id
    killed = psutil.Process(before["s3"])
    killed.kill()
    wait_until(lambda: has_ended(killed))
    assert {s.name: s.running for s in embedded_stack.status(home).services} == {"s3": False, "mlflow": True}
    with taken(settings.endpoint_url):
        moved = embedded_stack.up(home)
    assert moved.endpoint_url != settings.endpoint_url
    assert moved == settings.model_copy(update={"endpoint_url": moved.endpoint_url})
    assert ObjectStore(moved).get_json("kept")[0] == {"n": 1}
    assert (
        embedded_stack.status(home).healthy and pids(home)["mlflow"] != before["mlflow"]
    )  # it had to learn the new address
    assert len(leaders(home, "mlflow")) == 1 and TrackingClient(moved).experiment_id == experiment
    assert [check.detail for check in diagnose(moved, home) if check.name == "MLflow artifact" and not check.ok] == []


STEP = """
import sys, time
from pathlib import Path
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.tracking import mlflow_runs
store, go_on = ObjectStore(Settings.from_env()), Path(sys.argv[1])
with mlflow_runs.open_run(Settings.from_env(), "a step") as run:
    store.put_json("step/before", {"n": 1})
    print("begun", flush=True)
    while not go_on.exists():
        time.sleep(0.05)
    print(store.get_json("step/before")[0]["n"], flush=True)
    run.log_metrics({"after": 2.0}, step=1)
"""


def test_a_running_step_follows_services_that_got_new_ports(home, tmp_path):
    """Both are killed, and other processes take their ports before they come back."""
    settings = embedded_stack.up(home)
    environment = os.environ | settings.as_env() | {"FLASHSLM_SPOOL": str(tmp_path / "spool")}
    command = [sys.executable, "-c", STEP, str(tmp_path / "go-on")]
    step = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert step.stdout.readline() == "begun\n"
    for service in ("s3", "mlflow"):
        daemons.stop(f"{service}@{home.resolve()}")
    with taken(settings.endpoint_url), taken(settings.tracking_uri):
        moved = embedded_stack.up(home)
        assert settings.present() == moved.present() and moved.endpoint_url != settings.endpoint_url
        assert moved.tracking_uri != settings.tracking_uri
        (tmp_path / "go-on").touch()
        assert step.communicate(timeout=300)[0] == "1\n" and step.returncode == 0
    (run,) = TrackingClient(settings).find_runs("attributes.run_name = 'a step'")
    logged = [value for name, value in run.data.metrics.items() if not name.startswith("system/")]
    assert run.info.status == "FINISHED" and logged == [2.0]
    assert not list((tmp_path / "spool").glob("*.jsonl"))


@pytest.mark.parametrize("is_running", [True, False])
def test_a_damaged_database_of_runs_is_set_aside_and_mlflow_starts_on_a_new_one(is_running, home):
    settings = embedded_stack.up(home)
    ObjectStore(settings).put_json("kept/value.json", {"n": 1})
    TrackingClient(settings).create_registered_model(f"lost-{is_running}")
    if not is_running:
        embedded_stack.down(home)
    with (home / "mlflow.db").open("r+b") as file:
        file.write(b"not a database " * 500)
    again = embedded_stack.up(home)
    assert TrackingClient(again).all_pages("search_registered_models") == []
    assert TrackingClient(again).experiment_id and ObjectStore(again).get_json("kept/value.json")[0] == {"n": 1}
    (aside,) = home.glob("mlflow.db.damaged-????????")
    assert aside.read_bytes().startswith(b"not a database")
    for file in home.glob("mlflow.db.damaged-*"):
        file.unlink()
    before = pids(home)
    embedded_stack.up(home)
    assert pids(home) == before, "a good one is left alone"


def test_down_leaves_no_process_and_keeps_the_data(home):
    embedded_stack.down(home)
    assert [p for s in ("s3", "mlflow") for p in daemons.marked(f"{s}@{home.resolve()}")] == []
    ports = json.loads((home / "stack.json").read_text())["ports"].values()
    assert [s for port in ports for s in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")] == []
    status = embedded_stack.status(home)
    assert not status.healthy and [service.running for service in status.services] == [False, False]
    assert (home / "mlflow.db").stat().st_size > 0 and (home / "s3").is_dir()
    embedded_stack.down(home)


def test_a_home_never_used(tmp_path):
    assert (
        embedded_stack.status(tmp_path / "none").services == []
        and embedded_stack.settings_of(tmp_path / "none") is None
    )
    embedded_stack.down(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_failing_start_shows_its_log(tmp_path, monkeypatch):
    broken = [sys.executable, "-c", "print('no space on device'); raise SystemExit(1)"], {}
    monkeypatch.setattr(embedded_stack, "_weed", lambda state, home: broken)
    monkeypatch.setattr(embedded_stack, "_mlflow", lambda state, home: broken)
    with pytest.raises(embedded_stack.StackError, match=r"s3 ended while starting[\s\S]*\| no space on device"):
        embedded_stack.up(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"access_key": "a', b"\xff\xfe", b"[]", b'{"access_key": "", "ports": {}}'])
def test_a_damaged_state_is_set_aside(content, tmp_path):
    (tmp_path / "stack.json").write_bytes(content)
    assert embedded_stack.status(tmp_path).services == []
    (aside,) = tmp_path.glob("stack.json.damaged-*")
    assert aside.read_bytes() == content and embedded_stack.settings_of(tmp_path) is None


def test_nothing_stored_is_lost_with_the_state(home):
    """Credentials and ports are new ones then, and the services are started again with them."""
    settings = embedded_stack.up(home)
    ObjectStore(settings).put_json("kept/value.json", {"n": 1})
    (home / "stack.json").write_bytes(b'{"access_key": "a')
    again = embedded_stack.up(home)
    assert embedded_stack.status(home).healthy and again.secret_key != settings.secret_key
    assert ObjectStore(again).get_json("kept/value.json")[0] == {"n": 1}
    (aside,) = home.glob("stack.json.damaged-*")
    aside.unlink()
