"""What a worker's output says to the step that reads it, and how torchrun ends workers."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flashslm import hardware
from flashslm.infra import outages
from flashslm.infra.process.interrupts import Terminated
from flashslm.training.workers import (
    WorkerOutput,
    print_failure,
    print_metrics,
    print_outage,
    print_resumed,
    run_workers,
)
from tests.waiting import wait_until


class Read:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.log: list[str] = []
        self.resumed: list[tuple[int, str]] = []
        self.output = WorkerOutput(
            lambda step, values: self.rows.append((step, values)),
            lambda step, checkpoint: self.resumed.append((step, checkpoint)),
            self.log.append,
        )

    def lines(self, text: str) -> None:
        for line in text.splitlines():
            self.output.line(line)


def test_metrics_come_through_once_each(capfd: pytest.CaptureFixture[str]) -> None:
    read = Read()
    for step in (1, 2, 2, 1, 3):  # a log that was cut off comes again
        print_metrics(step, {"loss_nats": step / 2})
    read.lines(capfd.readouterr().out)
    read.output.row({"step": 3.0, "loss_nats": 9.0})
    read.output.row({"step": 4.0, "loss_nats": 2.0})
    assert read.rows == [(step, {"loss_nats": step / 2}) for step in (1, 2, 3, 4)]
    assert read.log == []


def test_rows_begin_where_workers_resume(capfd: pytest.CaptureFixture[str]) -> None:
    read = Read()
    print_resumed(141, "checkpoints/x/00000141.json")
    print_metrics(142, {"loss_nats": 1.0})
    print_resumed(141, "checkpoints/x/00000141.json")  # the workers restarted under the same attempt
    for step in (142, 143):
        print_metrics(step, {"loss_nats": 1.0})
    read.lines(capfd.readouterr().out)
    for step in range(1, 144):
        read.output.row({"step": step, "loss_nats": 1.0})  # the outcome's whole history
    assert [step for step, _ in read.rows] == [142, 143]
    assert read.resumed == [(141, "checkpoints/x/00000141.json")] * 2 and read.log == []


def test_an_outage_that_a_worker_waits_for_is_heard_by_who_listens(capfd: pytest.CaptureFixture[str]) -> None:
    read, heard = Read(), []
    print_outage("object store", "object store at X has been away for 60 s")
    line = capfd.readouterr().out
    with outages.heard_by(lambda kind, sentence: heard.append((kind, sentence))):
        read.lines(line)
    assert heard == [("object store", "object store at X has been away for 60 s")] and read.log == []


def test_log_lines_are_passed_on_and_half_a_row_is_one() -> None:
    read = Read()
    read.lines('a warning\n@metrics {"step": 1, "loss')
    assert read.log == ["a warning", '@metrics {"step": 1, "loss'] and read.rows == []


def test_the_first_failure_is_kept_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    read = Read()
    with pytest.raises(ValueError), print_failure():
        raise ValueError("two\n  lines")
    with pytest.raises(SystemExit), print_failure():
        raise Terminated(143, "stopped after step 3")  # a worker that was asked to stop has not failed
    read.lines(capfd.readouterr().out)
    read.lines("@failure RuntimeError: connection closed by peer")
    assert read.output.failure == "ValueError: two lines"
    assert read.output.kept == "stopped after step 3"


@pytest.mark.parametrize(
    ("failure", "again"),
    [
        ("NonFiniteLoss: the validation loss is not finite at step 3", True),
        ("OutOfMemoryError: CUDA out of memory", True),
        ("DistBackendError: NCCL error: remote process exited", False),
        ("", False),
    ],
)
def test_a_failure_that_a_restart_repeats_is_known(failure: str, again: bool) -> None:
    read = Read()
    read.lines(f"@failure {failure}" if failure else "a line")
    assert read.output.fails_again() is again


def test_workers_that_were_restarted_have_their_own_failure() -> None:
    """A lost peer, and then the loss is not finite: the run has diverged."""
    read = Read()
    read.lines("@failure DistBackendError: NCCL error: remote process exited")
    read.output.restarted()
    read.lines("@failure NonFiniteLoss: the loss is nan")
    assert read.output.failure == "NonFiniteLoss: the loss is nan"


def test_workers_that_write_into_one_pipe_do_not_mix_their_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun stdout has no buffer: each write goes out by itself, and another worker's may come between."""
    writes: list[str] = []
    monkeypatch.setattr("sys.stdout", SimpleNamespace(write=writes.append, flush=lambda: None))
    print_metrics(1, {"loss_nats": 1.0})
    print_resumed(141, "checkpoints/x/00000141.json")
    print_outage("object store", "it has been away for 60 s")
    with pytest.raises(ValueError), print_failure():
        raise ValueError("x" * 100_000)
    assert len(writes) == 4 and all(text.endswith("\n") and len(text) < 4096 for text in writes)
    read = Read()
    read.lines("half a line of another" + "".join(writes))
    assert read.output.failure.startswith("ValueError: xxx")


@pytest.mark.parametrize(
    ("environ", "is_the_users"),
    [
        ({}, False),
        ({"OMP_NUM_THREADS": "7"}, True),
        ({"OMP_NUM_THREADS": "7", hardware._OWN: "OMP_NUM_THREADS"}, False),  # of the quota, for the parent alone
    ],
)
def test_ranks_share_the_cores_unless_the_user_gives_a_number(
    environ: dict[str, str], is_the_users: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", hardware._OWN):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    read = Read()
    run_workers("tests.unit.training.said_threads", "", 2, read.output)
    threads = 7 if is_the_users else max(1, hardware.usable_cores() // 2)
    assert [line for line in read.log if line.startswith("threads ")] == [f"threads {threads}"] * 2


SAVING = """
import signal, sys, time
from pathlib import Path
from flashslm.infra.process.parent import die_with_parent

def save(number, frame):
    place("asked").touch()
    while not place("may end").exists():
        time.sleep(0.01)
    place("saved").touch()
    sys.exit(143)

place = Path(sys.argv[1]).joinpath
die_with_parent()
signal.signal(signal.SIGTERM, save)
place("ready").touch()
time.sleep(120)
"""


def ignores(pid: int, number: int) -> bool:
    (ignored,) = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(ignored, 16) >> (number - 1) & 1)


def test_more_sigterms_let_workers_save_too(tmp_path: Path) -> None:
    """As they come where a service manager and the launcher send all processes one, and the step hands its own on."""
    (tmp_path / "saving.py").write_text(SAVING)
    command = [sys.executable, "-m", "flashslm.training.workers", "--standalone", "--local-addr=127.0.0.1"]
    variables = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    torchrun = subprocess.Popen([*command, "-m", "saving", str(tmp_path)], env=os.environ | variables)
    try:
        wait_until((tmp_path / "ready").exists)
        assert ignores(torchrun.pid, signal.SIGINT), "Ctrl-C is the step's"
        torchrun.terminate()
        wait_until((tmp_path / "asked").exists)
        assert ignores(torchrun.pid, signal.SIGTERM)
        for _ in range(2):
            torchrun.terminate()
        (tmp_path / "may end").touch()
        assert torchrun.wait(timeout=60) == 143 and (tmp_path / "saved").exists()
    finally:
        torchrun.kill()
