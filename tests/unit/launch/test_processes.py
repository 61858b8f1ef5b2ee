"""Ends of processes: trees that are stopped, children that notice a parent's death."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flashslm.infra.process.interrupts import stop_requested, terminable
from flashslm.infra.process.owners import machine
from flashslm.infra.process.parent import PARENT_PID
from flashslm.launch.processes import LaunchError, StopSignals, exclusive, stop_tree
from tests.waiting import has_ended

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


def start_tree(child: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A parent that waits for a child; the child has printed its first line when this returns."""
    code = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {child!r}]))"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    parent.stdout.readline()
    (below,) = psutil.Process(parent.pid).children(recursive=True)
    return parent, below


def test_stubborn_tree_is_killed_after_the_grace() -> None:
    parent, below = start_tree(STUBBORN)
    started_s = time.monotonic()
    stop_tree(parent.pid, grace_s=0.5)
    assert parent.wait(timeout=300) == -signal.SIGKILL
    assert time.monotonic() - started_s >= 0.5
    assert has_ended(below)


def test_second_request_ends_the_grace() -> None:
    parent, below = start_tree(STUBBORN)
    started_s = time.monotonic()
    stop_tree(parent.pid, grace_s=30.0, hurry=lambda: True)
    parent.wait(timeout=300)
    assert time.monotonic() - started_s < 20
    assert has_ended(below)


def test_tree_that_ended_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    stop_tree(process.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is noticed on Linux only")
def test_child_whose_parent_ended_before_it_asked_dies() -> None:
    child = call_die_with_parent(parent_pid=1)
    assert child.returncode == -signal.SIGKILL and child.stdout == ""


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is noticed on Linux only")
def test_child_of_its_own_parent_lives_and_forgets_the_variable() -> None:
    child = call_die_with_parent(parent_pid=os.getpid())
    assert child.returncode == 0 and child.stdout.split() == ["False"]


def call_die_with_parent(parent_pid: int) -> subprocess.CompletedProcess[str]:
    code = "import os, flashslm.infra.process.parent as p; p.die_with_parent(); print(p.PARENT_PID in os.environ)"
    env = os.environ | {PARENT_PID: str(parent_pid)}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_signals_are_noted_and_then_have_their_old_meaning() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop_requested()
    assert stop.received == [signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is before and not stop_requested()


def test_what_an_enclosing_block_ends_with_stays_requested() -> None:
    with terminable():
        with StopSignals():
            signal.raise_signal(signal.SIGTERM)
        assert stop_requested()
    assert not stop_requested()


@pytest.mark.parametrize(("handler", "noted"), [(signal.SIG_DFL, [signal.SIGHUP]), (signal.SIG_IGN, [])])
def test_under_nohup_the_end_of_the_terminal_is_not_noted(handler: signal.Handlers, noted: list[int]) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.received == noted and signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_lock_names_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "kfp" / "lock"
    with exclusive(lock), pytest.raises(LaunchError, match=rf"\(pid {os.getpid()}\)"), exclusive(lock):
        pass
    assert lock.read_text() == f"{os.getpid()} {machine()}"


def test_a_lock_that_another_machine_holds_names_it(tmp_path: Path) -> None:
    """On a disk of both: `kill` would end another process here."""
    lock = tmp_path / "lock"
    with exclusive(lock):
        lock.write_text("7 trainer-0/pid:[4026531836]")
        there = r"\(pid 7 on trainer-0\): wait for it, stop it there with `kill 7`, or give another --home"
        with pytest.raises(LaunchError, match=there), exclusive(lock):
            pass
