"""Ctrl-C as a request to end in order, and a second one as the end."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashslm.infra.process.interrupts import (
    Terminated,
    asking_signals,
    deferred_signals,
    keeping,
    stop_requested,
    terminable,
)
from flashslm.training.runtime import end_as_request


@pytest.fixture(autouse=True)
def ctrl_c_is_heard() -> Iterator[None]:
    """Also where a shell has started the tests in its background, with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_block_as_sigterm_does_and_has_its_old_meaning_then() -> None:
    cleaned = []
    with pytest.raises(Terminated) as caught, terminable():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)  # does not cut this short
            cleaned.append(stop_requested())
    assert caught.value.code == 130 and str(caught.value) == "ended by SIGINT" and cleaned == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and not stop_requested()


def test_the_first_signal_says_how_a_training_ended() -> None:
    with pytest.raises(Terminated) as caught, terminable(), end_as_request() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_kept_is_said_by_the_block_that_knows_it_first() -> None:
    inner, outer = "two models are trained", "one more"
    with pytest.raises(Terminated, match=inner), keeping(lambda: outer), keeping(lambda: inner):
        raise Terminated(143)


def test_a_deferred_ctrl_c_comes_after_the_block_and_a_further_one_is_not_held_back() -> None:
    with pytest.raises(Terminated) as caught, terminable(), deferred_signals():
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL and signal.SIGINT not in asking_signals()
    assert caught.value.code == 130


PRESSED_TWICE = """
import signal, time
from contextlib import nullcontext
from flashslm.infra.process.interrupts import deferred_signals, terminable
from flashslm.training.runtime import end_as_request
signal.signal(signal.SIGINT, signal.default_int_handler)
with terminable():
    try:
        with {block}():
            print("ready", flush=True)
            while True:
                time.sleep(0.01)
                if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
                    {then}
    finally:
        print("cleaning up", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("block", ["nullcontext", "end_as_request", "deferred_signals"])
@pytest.mark.parametrize("then", ["print('asked', flush=True); time.sleep(60)", "break"])
def test_a_second_ctrl_c_ends_the_process_at_once(block: str, then: str) -> None:
    """In the block, and while what encloses it cleans up."""
    code = PRESSED_TWICE.format(block=block, then=then)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() in ("asked\n", "cleaning up\n")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT, errors
    assert "Traceback" not in errors and errors.count("stopping in order") <= 1


CHILDREN = """
import signal, time
from flashslm.infra.process.interrupts import terminable
from flashslm.training.side_by_side import side_by_side

def work(number):
    pass

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with terminable():
        list(side_by_side(work, [1, 2], 2))
else:
    print("imports", flush=True)
    time.sleep(60)
"""


def test_workers_hear_of_ctrl_c_in_a_terminal_by_the_process_that_started_them(tmp_path: Path) -> None:
    """Also while they import: else each would print where that was interrupted."""
    script = tmp_path / "script.py"
    script.write_text(CHILDREN)
    command = [sys.executable, str(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    assert process.stdout and [process.stdout.readline() for _ in range(2)] == ["imports\n"] * 2
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors, errors
