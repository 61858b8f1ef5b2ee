"""What is missing is said, and what a killed run left is removed; no engine is needed to see either."""

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from tests.containers import build, engine
from tests.containers.engine import NoEngine
from tests.containers.workshop import name_of, workshop


def test_another_user_than_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoEngine, match=r"need root: .* run this with sudo"):
        engine.check_machine()


def test_packages_that_lack_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ip").touch(mode=0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(engine, "_PATH", str(tmp_path))
    with pytest.raises(NoEngine, match=r"packages: debootstrap docker\.io$"):
        engine.check_machine()


def test_a_full_disk_is_told_before_it_is_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine, "DISK_BYTES", 1e18)
    with pytest.raises(NoEngine, match=f"{tmp_path} has .* of the 1000000000 GB .* set TMPDIR"):
        engine.check_disk(tmp_path)


def test_the_images_python_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PYTHON", "3.9")
    with pytest.raises(NoEngine, match=r"have Python 3\.9, this is 3\..* make setup PYTHON=python3\.9"):
        build.check_python()


def test_a_download_is_tried_twice_and_not_more() -> None:
    tries: list[int] = []

    def stumble(times: int) -> None:
        tries.append(times)
        if len(tries) <= times:
            raise RuntimeError("the mirror is away")

    build.twice(lambda: stumble(1))
    assert tries == [1, 1]
    tries.clear()
    with pytest.raises(RuntimeError, match="away"):
        build.twice(lambda: stumble(5))
    assert tries == [5, 5]


def test_what_was_killed_is_not_tried_again() -> None:
    with pytest.raises(InterruptedError, match="ended with -9"):
        build.twice(lambda: build.call("sh", "-c", "kill -9 $$"))


def test_a_killed_runs_directory_is_removed_and_a_living_ones_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed, living = tmp_path / "flashslm-containers-killed", tmp_path / "flashslm-containers-living"
    for directory in (killed, living):
        (directory / "engine").mkdir(parents=True)
    with (living / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with workshop() as own:
            assert not killed.exists() and living.exists() and own.is_dir()
            assert len(name_of(own)) <= 15  # what a network interface's name may have
    assert not own.exists() and (living / "engine").is_dir()
