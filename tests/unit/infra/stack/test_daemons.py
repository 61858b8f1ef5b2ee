import os
import socket
import sys
import threading
from pathlib import Path

import psutil
import pytest

from flashslm.infra.stack import daemons
from flashslm.infra.stack.daemons import StackError
from tests.waiting import wait_until


@pytest.fixture
def mark(tmp_path):
    name = f"test@{tmp_path}"
    yield name
    daemons.stop(name, timeout_s=2)


def start(code: str, mark: str, directory: Path) -> daemons.Daemon:
    return daemons.start([sys.executable, "-c", code], {}, mark, directory / "log")


def test_a_daemon_lives_in_a_session_of_its_own_and_is_stopped(tmp_path, mark):
    daemon = start("import time; time.sleep(60)", mark, tmp_path)
    assert daemon.is_alive() and os.getsid(daemon.pid) == daemon.pid != os.getsid(0)
    daemons.stop(mark, timeout_s=5)
    assert not daemon.is_alive() and daemons.marked(mark) == []


def test_a_recycled_pid_is_not_believed(tmp_path, mark):
    daemon = start("import time; time.sleep(60)", mark, tmp_path)
    ours = psutil.Process()
    assert not daemon.model_copy(update={"started_s": daemon.started_s - 100}).is_alive()
    assert not daemon.model_copy(update={"pid": os.getpid(), "started_s": ours.create_time()}).is_alive()  # no mark
    assert not daemon.model_copy(update={"mark": "other"}).is_alive()


def test_a_port_of_a_process_that_is_just_ending_counts_as_free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert daemons.not_freed([port], wait_s=0.2) == [port]
        threading.Timer(0.3, server.close).start()
        assert daemons.not_freed([port], wait_s=10.0) == []


def test_orphaned_workers_of_a_killed_daemon_are_found(tmp_path, mark):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    daemon = start(code, mark, tmp_path)
    wait_until(lambda: len(daemons.marked(mark)) == 2)
    psutil.Process(daemon.pid).kill()
    wait_until(lambda: not daemon.is_alive())
    assert [p.pid for p in daemons.marked(mark) if p.status() != psutil.STATUS_ZOMBIE] != []
    daemons.stop(mark, timeout_s=5)
    assert daemons.marked(mark) == []


def test_one_that_ignores_term_is_killed(tmp_path, mark):
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    daemon = start(code, mark, tmp_path)
    wait_until(lambda: "on" in daemon.log_tail())
    daemons.stop(mark, timeout_s=0.3)
    assert not daemon.is_alive()


def test_an_early_end_shows_the_log(tmp_path, mark):
    daemon = start("print('port already in use'); raise SystemExit(1)", mark, tmp_path)
    with pytest.raises(StackError, match=r"ended while starting[\s\S]*\| port already in use"):
        daemons.wait_until(lambda: False, daemon, "s3", timeout_s=300)


def test_a_hanging_start_shows_the_log(tmp_path, mark):
    daemon = start("import time; print('thinking', flush=True); time.sleep(60)", mark, tmp_path)
    wait_until(lambda: "thinking" in daemon.log_tail())
    with pytest.raises(StackError, match=r"not healthy after 0 s[\s\S]*thinking"):
        daemons.wait_until(lambda: False, daemon, "s3", timeout_s=0.2)


def test_free_ports_and_those_of_grpc_are_outside_the_range_of_outgoing_connections():
    """The kernel may give a port of that range to any connection between its choice and the daemon's start."""
    ports = daemons.free_ports(5_000)
    grpc = {port + daemons.GRPC_OFFSET for port in ports}
    assert len(set(ports)) == 5_000 and not grpc & set(ports) and max(grpc) < 32_768


def test_free_ports_have_no_listener():
    with socket.socket() as listener:
        (port,) = daemons.free_ports(1)
        listener.bind(("127.0.0.1", port + daemons.GRPC_OFFSET))
        listener.listen()
        assert not daemons.is_free(port + daemons.GRPC_OFFSET)
        assert port not in daemons.free_ports(9_000)


def test_a_missing_program_names_its_extra():
    with pytest.raises(StackError, match=r"flashslm\[local\]"):
        daemons.executable("no-such-program", "local")
