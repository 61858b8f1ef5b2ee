import errno
import hashlib
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from flashslm.infra.storage import tree
from flashslm.infra.storage.errors import StoreError
from flashslm.infra.storage.tree import (
    MARKER,
    FileEntry,
    Manifest,
    UnsafeTree,
    check_path,
    disk_errors,
    hash_tree,
    holds,
    holds_verified,
    in_parallel,
    mark_verified,
    read_index,
    tree_digest,
)


def test_digest_is_sha256_over_sorted_lines(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("hello")
    (tmp_path / "a").write_bytes(b"")
    hello, empty = hashlib.sha256(b"hello").hexdigest(), hashlib.sha256(b"").hexdigest()
    assert hello.startswith("2cf24dba") and empty.startswith("e3b0c442")
    files = hash_tree(tmp_path)
    assert files == {"a": FileEntry(sha256=empty, bytes=0), "b/x.txt": FileEntry(sha256=hello, bytes=5)}
    assert tree_digest(files) == hashlib.sha256(f"{hello}  b/x.txt\n{empty}  a\n".encode()).hexdigest()


def test_digest_depends_on_names_and_contents_only(tmp_path):
    first = {"a": FileEntry(sha256="1" * 64, bytes=1), "b": FileEntry(sha256="2" * 64, bytes=1)}
    assert tree_digest(first) == tree_digest(dict(reversed(first.items())))
    assert tree_digest(first) != tree_digest({"a": first["b"], "b": first["a"]})


def test_the_marker_is_no_part_of_the_tree_and_a_changed_file_is_noticed(tmp_path):
    (tmp_path / "a").write_text("1")
    digest = tree_digest(hash_tree(tmp_path))
    assert not holds(tmp_path, digest)
    (tmp_path / MARKER).write_text(digest)
    assert holds(tmp_path, digest)
    (tmp_path / "a").write_text("2")
    assert not holds(tmp_path, digest)


@pytest.fixture
def counted(monkeypatch):
    """Paths whose bytes were read."""
    read, hash_file = [], tree._hash_file
    monkeypatch.setattr(tree, "_hash_file", lambda path: read.append(path.name) or hash_file(path))
    return read


def filled(directory: Path) -> str:
    (directory / "deep").mkdir(parents=True)
    for name, size in (("a", 0), ("deep/b", 1), ("deep/c", 70_001)):
        (directory / name).write_bytes(b"x" * size)
    digest = tree_digest(hash_tree(directory))
    mark_verified(directory, digest)
    return digest


def test_a_verified_copy_is_read_again_only_after_a_change(tmp_path, counted):
    copy = tmp_path / "copy"
    digest = filled(copy)
    counted.clear()
    assert holds_verified(copy, digest) and counted == []
    assert not holds_verified(copy, "0" * 64)
    copy.rename(tmp_path / "moved")
    assert holds_verified(tmp_path / "moved", digest) and counted == []
    assert holds(tmp_path / "moved", digest) and sorted(counted) == ["a", "b", "c"], "an audit reads all the same"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["moved"]


def test_a_copy_that_only_says_its_digest_is_read_once(tmp_path, counted):
    copy = tmp_path / "copy"
    digest = filled(copy)
    (copy / MARKER).write_text(digest)  # as earlier versions wrote it
    counted.clear()
    assert holds_verified(copy, digest) and len(counted) == 3
    assert holds_verified(copy, digest) and len(counted) == 3


def same_size_and_time(copy: Path) -> None:
    before = (copy / "deep/c").stat()
    (copy / "deep/c").write_bytes(b"y" * 70_001)
    os.utime(copy / "deep/c", ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        same_size_and_time,
        lambda copy: (copy / "a").unlink(),
        lambda copy: (copy / "deep/b").write_bytes(b""),
        lambda copy: (copy / "new").touch(),
        lambda copy: (copy / "a").rename(copy / "d"),
        lambda copy: (copy / "link").symlink_to("a"),
    ],
    ids=["same size and time", "lost", "cut", "new", "renamed", "link"],
)
def test_any_change_of_a_verified_copy_is_noticed(change, tmp_path):
    copy = tmp_path / "copy"
    digest = filled(copy)
    time.sleep(0.02)  # the clock of file systems ticks every few ms
    change(copy)
    assert not holds_verified(copy, digest)


def test_manifest_round_trip(tmp_path):
    manifest = Manifest(
        kind="model", uri="s3://lab/cas/ab/x", sha256="ab" * 32, bytes=3, metadata={"loss": 0.5, "n": [1]}
    )
    assert Manifest.read(manifest.write(tmp_path / "deep" / "manifest.json")) == manifest


@pytest.mark.parametrize("wrong", [{"sha256": "ab"}, {"uri": "/tmp/x"}, {"bytes": -1}, {"extra": 1}])
def test_manifest_refuses_nonsense(wrong):
    with pytest.raises(ValidationError):
        Manifest.model_validate({"kind": "m", "uri": "s3://b/k", "sha256": "0" * 64, "bytes": 0} | wrong)


def test_full_disk_is_said_clearly(tmp_path):
    with pytest.raises(StoreError, match=r"disk full while writing .*nothing was kept"), disk_errors(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), disk_errors(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "no")


def test_parallel_keeps_order_and_drops_the_rest_after_a_failure(monkeypatch):
    assert in_parallel(lambda n: n * n, range(20)) == [n * n for n in range(20)]
    begun, gate, shutdown = [], threading.Event(), ThreadPoolExecutor.shutdown
    threads = tree._FILES_AT_ONCE

    def shutdown_and_open(pool: ThreadPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
        shutdown(pool, wait=False, cancel_futures=cancel_futures)
        gate.set()
        shutdown(pool, wait=wait)

    def work(n: int) -> None:
        begun.append(n)
        if n == 0:
            raise ValueError("first")
        gate.wait(300)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown_and_open)
    with pytest.raises(ValueError, match="first"):
        in_parallel(work, range(1000))
    assert len(begun) <= 1 + threads, "what had begun before the failure was seen"


OUTSIDE = ["/etc/x", "../x", "a/../../x", "a/..", "..", "", ".", "a//b", "a/", "./a", "a/./b", "..\\x", "a\0b", MARKER]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_that_leaves_the_tree_is_refused_where_an_index_is_read(path):
    with pytest.raises(UnsafeTree, match="a tree cannot hold the path"):
        check_path(path)
    with pytest.raises(UnsafeTree):
        read_index({"files": {"good": {"sha256": "0" * 64, "bytes": 1}, path: {"sha256": "0" * 64, "bytes": 1}}})


def test_odd_names_inside_the_tree_are_allowed():
    for path in ("a", "..a", "a..", "...", "a/.hidden", "weights 1+2 é.bin", "a:b", "~", "-rf"):
        check_path(path)


def test_a_file_inside_a_file_is_no_tree():
    entry = {"sha256": "0" * 64, "bytes": 1}
    with pytest.raises(UnsafeTree, match="'a/b/c' inside the file 'a'"):
        read_index({"files": {"a/b/c": entry, "a": entry}})


@pytest.mark.parametrize(
    "value",
    [
        *(None, [], "x", 3, {}, {"files": None}, {"files": []}, {"files": {}}, {"files": {"a": 1}}),
        *({"files": {"a": {}}}, {"files": {"a": {"sha256": "../..", "bytes": 1}}}),
        {"files": {"a": {"sha256": "0" * 64, "bytes": -1}}},
    ],
)
def test_what_is_no_index_is_a_value_error(value):
    with pytest.raises(ValueError):
        read_index(value)


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: path.symlink_to("/etc/passwd"), "a link"),
        (lambda path: path.symlink_to("file"), "a link"),
        (lambda path: path.symlink_to("/nowhere"), "a link"),
        (lambda path: path.symlink_to("/etc", target_is_directory=True), "a link"),
        (os.mkfifo, "neither a file nor a directory"),
        (unix_socket, "neither a file nor a directory"),
    ],
    ids=["link", "inner link", "dangling link", "directory link", "fifo", "socket"],
)
def test_a_tree_is_made_of_regular_files_only(make, kind, tmp_path):
    (tmp_path / "file").write_text("x")
    digest = tree_digest(hash_tree(tmp_path))
    (tmp_path / "deep").mkdir()
    make(tmp_path / "deep" / "odd")
    with pytest.raises(UnsafeTree, match=f"odd' is {kind}"):
        hash_tree(tmp_path)
    (tmp_path / MARKER).write_text(digest)
    assert not holds(tmp_path, digest)
