"""Where compiled kernels are kept, also on a machine that does not let them be."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashslm.infra.state_files import write_whole
from flashslm.ops import kernel_cache
from flashslm.ops.kernel_cache import VARIABLE, cache_directory, cache_key


@pytest.fixture(autouse=True)
def found_again() -> Iterator[None]:
    kernel_cache._writable.cache_clear()
    yield
    kernel_cache._writable.cache_clear()


@pytest.mark.parametrize("given", [True, False])
def test_a_directory_that_can_be_written_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine") if given else "")
    root = tmp_path / ("mine" if given else ".cache/flashslm/kernels")
    assert cache_directory() == root / cache_key()
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("given", [True, False])
def test_another_is_taken_where_none_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, given: bool
) -> None:
    (tmp_path / "file").touch()  # below it no directory can be made, also not by root
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "cache") if given else "")
    first = cache_directory()
    first.mkdir()
    write_whole(first / "winner.json", "{}")
    assert os.environ[VARIABLE] == str(first.parent) and tmp_path not in first.parents
    assert cache_directory() == first and first.parent.stat().st_mode & 0o077 == 0
    (warning,) = caplog.messages
    assert f"cannot be kept in '{tmp_path / 'file'}" in warning and "(Not a directory)" in warning
    assert f"set {VARIABLE} to a directory that can be written" in warning


def test_a_directory_that_is_there_and_read_only_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "/proc/self")  # where the kernel lets no user make a file
    assert Path("/proc") not in cache_directory().parents
    assert "compiled kernels cannot be kept in '/proc/self'" in caplog.text
