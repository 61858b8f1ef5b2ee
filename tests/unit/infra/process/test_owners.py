"""Who owns a run or a trial: two processes are distinguished wherever they run."""

import os
import socket
import subprocess
import sys

import pytest

from flashslm.infra.process import owners

SAME_HOST = "design-and-train-qlv6j-metadata-1-2-retry-system-container-impl"  # 63 characters, where Kubernetes cuts


@pytest.fixture(autouse=True)
def one_host_and_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: SAME_HOST)
    monkeypatch.setattr(os, "readlink", lambda _: "pid:[4026532281]")
    for name in ("KFP_POD_NAME", "KFP_POD_UID", owners.POD_UID):
        monkeypatch.delenv(name, raising=False)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("variable", ["KFP_POD_UID", owners.POD_UID])
def test_a_pod_is_known_by_its_uid(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "0a1b")
    first = f"{owners.machine()} {dead_pid()} 1.0"
    assert owners.is_local(first) and owners.is_gone(first)
    monkeypatch.setenv(variable, "2c3d")  # another pod with the same host name, namespace number and pid
    assert not owners.is_local(first) and not owners.is_gone(first)


def test_the_name_of_a_kfp_pod_is_in_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_POD_UID", "0a1b")
    monkeypatch.setenv("KFP_POD_NAME", f"{SAME_HOST}-39434997")
    assert owners.owner().startswith(f"{SAME_HOST}-39434997/0a1b {os.getpid()} ")
    assert owners.is_local(owners.owner()) and not owners.is_gone(owners.owner())


def test_without_a_pod_host_and_namespace_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = owners.owner()
    assert before.startswith(f"{SAME_HOST}/pid:[4026532281] ")
    monkeypatch.setattr(os, "readlink", lambda _: "pid:[4026532282]")
    assert not owners.is_local(before)
