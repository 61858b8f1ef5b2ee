import errno
import hashlib
import os
import socket
import threading

import pytest
from pydantic import ValidationError

from flashslm.infra.storage.s3 import StoreError
from flashslm.infra.storage.tree import (
    MARKER,
    FileEntry,
    Manifest,
    UnsafeTree,
    check_path,
    disk_errors,
    hash_tree,
    holds,
    in_parallel,
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


def test_parallel_keeps_order_and_drops_the_rest_after_a_failure():
    assert in_parallel(lambda n: n * n, range(20)) == [n * n for n in range(20)]
    begun, gate = [], threading.Event()

    def work(n: int) -> None:
        begun.append(n)
        if n == 0:
            raise ValueError("first")
        gate.wait(0.2)

    with pytest.raises(ValueError, match="first"):
        in_parallel(work, range(1000))
    assert len(begun) < 20


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
