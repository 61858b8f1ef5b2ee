"""A TrainJob's node ends at once after SIGTERM until a worker has trained a step, and waits for those that save."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flashslm.infra.stack import daemons
from flashslm.steps.pretrain import WATCHED, WORKER
from flashslm.training.node import TRAINED, node_command
from tests.waiting import wait_until

ENDS_WITHIN_S = 60.0  # it takes one on an idle machine; torchrun alone takes all of its grace of minutes
AS_PROCESS_ONE = ["unshare", "-Urpf", "--mount-proc", "--kill-child"]


def command(*arguments: str) -> list[str]:
    return [sys.executable if part == "python" else part for part in node_command(*arguments)]


def first_of_two_nodes() -> dict[str, str]:
    """What Trainer sets; the other node never comes."""
    (port,) = daemons.free_ports(1)
    cluster = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_NODE_RANK": "0"}
    return os.environ | cluster | {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}


def terminate(process: "subprocess.Popen[bytes]", within_s: float) -> None:
    """Send SIGTERM; the process ends in that time, and all below it."""
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=within_s)
    _, alive = psutil.wait_procs(below, timeout=within_s)
    assert alive == []


def test_a_node_that_starts_or_waits_for_the_others_ends_at_once() -> None:
    moments_s = (0.1, 0.5, 2.0, 6.0, 20.0)
    nodes = {
        moment_s: subprocess.Popen(command("-m", WORKER, "no-key", WATCHED), env=first_of_two_nodes())
        for moment_s in moments_s
    }
    begun_s = time.monotonic()
    for moment_s, node in nodes.items():
        time.sleep(max(0.0, begun_s + moment_s - time.monotonic()))
        assert node.poll() is None, "it still starts, or waits for the other node"
        terminate(node, ENDS_WITHIN_S)
        assert node.returncode in (143, -signal.SIGTERM)


def can_be_process_one() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*AS_PROCESS_ONE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("moment_s", [0.0, 4.0])
def test_so_does_process_one_of_a_container(moment_s: float, tmp_path: Path) -> None:
    """Which the kernel sends no signal that it has no handler for."""
    if not can_be_process_one():
        pytest.skip("needs user and process namespaces")
    container = subprocess.Popen([*AS_PROCESS_ONE, *command("-m", WORKER, "no-key", WATCHED)], env=first_of_two_nodes())
    outside = psutil.Process(container.pid)
    wait_until(lambda: len(outside.children(recursive=True)) > 1)  # process one hears signals before it has a child
    time.sleep(moment_s)
    (process_one,) = outside.children()
    process_one.send_signal(signal.SIGTERM)
    container.wait(timeout=ENDS_WITHIN_S)


WORKER_MODULE = """
import os, signal, sys, time
from pathlib import Path
from flashslm.training.node import note_trained

def save(number, frame):
    time.sleep(1.0 if sys.argv[2] == "trained" else 600.0)  # no time is enough for what may not save
    Path(sys.argv[1], "saved").touch()
    sys.exit(143)

signal.signal(signal.SIGTERM, save)
if sys.argv[2] == "trained":
    note_trained()
Path(sys.argv[1], "ready").touch()
time.sleep(600)
"""


@pytest.mark.parametrize("state", ["trained", "first-step"])
def test_only_what_has_trained_may_save(tmp_path: Path, state: str) -> None:
    (tmp_path / "some_worker.py").write_text(WORKER_MODULE)
    variables = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}
    arguments = ("--standalone", "--local-addr=127.0.0.1", "-m", "some_worker", str(tmp_path), state)
    node = subprocess.Popen(command(*arguments), env=os.environ | variables)
    while not (tmp_path / "ready").exists():
        assert node.poll() is None
        time.sleep(0.05)
    terminate(node, 300.0 if state == "trained" else ENDS_WITHIN_S)
    assert (tmp_path / "saved").exists() == (state == "trained")


def test_the_exit_code_is_torchruns(tmp_path: Path) -> None:
    (tmp_path / "some_worker.py").write_text(f"import os; assert os.environ['{TRAINED}']; os._exit(3)")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    arguments = ("--standalone", "--local-addr=127.0.0.1", "-m", "some_worker")
    assert subprocess.run(command(*arguments), env=environment, check=False).returncode == 1
