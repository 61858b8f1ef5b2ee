"""What needs no server; the rest is in tests/services."""

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from flashslm.infra.process import owners
from flashslm.infra.process.interrupts import (
    Terminated,
    deferred_signals,
    stop_requested,
    terminable,
)
from flashslm.infra.tracking import mlflow_runs


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(None), "FINISHED"),
        (SystemExit(3), "FAILED"),
        (SystemExit("message"), "FAILED"),
        (ValueError("x"), "FAILED"),
        (MemoryError(), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (Terminated(143), "KILLED"),
    ],
)
def test_status_of_every_end(error, status):
    assert mlflow_runs._status_of(error) == status


def test_nested_params_become_dotted_names():
    params = {"lr": 0.1, "data": {"source": "files", "paths": ["a", "b"]}, "flag": True}
    assert dict(mlflow_runs._flatten(params)) == {
        "lr": "0.1",
        "data.source": "files",
        "data.paths": '["a", "b"]',
        "flag": "true",
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("hang_up_ends")
def test_a_request_to_end_unwinds_and_the_handler_is_put_back(number):
    before, cleaned = signal.getsignal(number), []
    with pytest.raises(Terminated) as caught, terminable():
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)  # a second one does not interrupt this
            cleaned.append(stop_requested())
    assert caught.value.code == 128 + number and cleaned == [True] and signal.getsignal(number) is before


@pytest.mark.usefixtures("hang_up_ends")
def test_under_nohup_the_end_of_the_terminal_is_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with terminable(), deferred_signals():
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop_requested()


def test_deferred_signals_come_after_the_block():
    done = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell starts us with it ignored
    with pytest.raises(KeyboardInterrupt), deferred_signals():
        os.kill(os.getpid(), signal.SIGINT)
        done.append(stop_requested())
    signal.signal(signal.SIGINT, before)
    assert done == [True], "what waits inside sees it"
    assert not stop_requested(), "the caller caught it and goes on"


def test_signals_are_left_alone_outside_the_main_thread():
    entered = []

    def work() -> None:
        with terminable(), deferred_signals():
            entered.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [True]


def test_owners():
    own = owners.owner()
    assert not owners.is_gone(own)
    host = owners.machine()
    started = psutil.Process().create_time()
    assert owners.is_gone(f"{host} {os.getpid()} {started - 1000}")  # a recycled pid
    assert owners.is_gone(f"{host} 4194305 {started}")  # above any pid
    assert not owners.is_gone(f"elsewhere/pid:[1] 4194305 {started}")  # nothing is known of another machine
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = f"{host} {child.pid} {psutil.Process(child.pid).create_time()}"
    assert not owners.is_gone(owner)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert owners.is_gone(owner), "a zombie is dead, though it has not been reaped yet"
    child.communicate()
    assert owners.is_gone(owner)
