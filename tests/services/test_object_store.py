"""The object store against a real S3 server, faults included."""

import errno
import hashlib
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from botocore.exceptions import ClientError

from flashslm.infra.stack import embedded_stack
from flashslm.infra.storage import object_store, s3
from flashslm.infra.storage.errors import ObjectCorrupt, ObjectMissing, PreconditionFailed, StoreError, StoreUnavailable
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.storage.tree import MARKER, FileEntry, HashingSink, hash_tree, tree_digest

pytestmark = pytest.mark.services


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree no other test has: two levels, an empty file, odd names."""
    root = tmp_path / "tree"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "unique").write_text(os.urandom(8).hex())
    (root / "empty").touch()
    (root / "deep" / "er" / "weights 1+2 é.bin").write_bytes(os.urandom(200_000))
    return root


def puts_of(store: ObjectStore) -> list[str]:
    """Records every object the store's client writes from now on."""
    sent: list[str] = []
    for operation in ("PutObject", "UploadPart", "CompleteMultipartUpload"):
        store.client.meta.events.register(
            f"before-call.s3.{operation}", lambda params, **_: sent.append(params["url_path"])
        )
    return sent


def key_of(manifest: Manifest, path: str) -> str:
    return manifest.uri.split("/", 3)[3] + "/" + path


def test_round_trip(store, tree, tmp_path):
    manifest = store.put_tree(tree, "model", {"loss": 0.5})
    assert manifest.uri == f"s3://{store.bucket}/cas/{manifest.sha256[:2]}/{manifest.sha256}"
    assert manifest.bytes == sum(f.stat().st_size for f in tree.rglob("*") if f.is_file())
    assert manifest.metadata == {"loss": 0.5}
    target = store.get_tree(manifest, tmp_path / "a" / "b")
    assert hash_tree(target) == hash_tree(tree)
    assert [p.name for p in target.parent.iterdir()] == ["b"]  # no temporary left
    assert store.put_tree(target, "model").sha256 == manifest.sha256  # the marker is not content


def test_a_part_of_a_tree_is_verified_and_the_rest_is_not_read(store, tree, tmp_path):
    manifest = store.put_tree(tree, "model")
    store.client.put_object(Bucket=store.bucket, Key=key_of(manifest, "unique"), Body=b"damaged")
    part = store.get_part(manifest, ("deep/", "empty"), tmp_path / "part")
    assert hash_tree(part) == {path: entry for path, entry in hash_tree(tree).items() if path != "unique"}
    assert list(store.get_part(manifest, ("absent",), tmp_path / "nothing").iterdir()) == []
    with pytest.raises(ObjectCorrupt, match="unique"):
        store.get_part(manifest, ("uni",), tmp_path / "other")
    store.delete_tree(manifest)
    with pytest.raises(ObjectMissing):
        store.get_part(manifest, ("empty",), tmp_path / "gone")


def test_a_big_file_goes_in_parts(store, tmp_path, monkeypatch):
    small_parts = object_store.TransferConfig(multipart_threshold=6 * 2**20, multipart_chunksize=5 * 2**20)
    monkeypatch.setattr(object_store, "_TRANSFER", small_parts)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "big").write_bytes(os.urandom(13 * 2**20))
    manifest = store.put_tree(tmp_path / "in", "model")
    head = store.client.head_object(Bucket=store.bucket, Key=key_of(manifest, "big"))
    assert head["ETag"].strip('"').endswith("-3")  # three parts
    store.get_tree(manifest, tmp_path / "out")
    assert (tmp_path / "out" / "big").read_bytes() == (tmp_path / "in" / "big").read_bytes()


def test_a_complete_tree_is_not_sent_again(settings, tree):
    store = ObjectStore(settings)
    sent = puts_of(store)
    first = store.put_tree(tree, "model")
    assert len(sent) == 4  # three files, one index
    assert store.put_tree(tree, "other kind").sha256 == first.sha256
    assert len(sent) == 4


def test_the_index_is_written_last(settings, tree):
    store = ObjectStore(settings)
    sent = puts_of(store)
    store.put_tree(tree, "model")
    assert sent[-1].endswith(".index.json") and not any(s.endswith(".index.json") for s in sent[:-1])


def test_a_tree_that_lost_an_object_is_repaired_by_storing_it_again(store, tree, tmp_path):
    manifest = store.put_tree(tree, "model")
    store.delete([key_of(manifest, "unique")])
    with pytest.raises(ObjectMissing, match="unique"):
        store.get_tree(manifest, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    store.put_tree(tree, "model")
    store.get_tree(manifest, tmp_path / "out")


def test_an_empty_directory_is_refused(store, tmp_path):
    with pytest.raises(ValueError, match="holds no files"):
        store.put_tree(tmp_path, "model")


def test_a_missing_tree_says_what_to_do(store, tree, tmp_path):
    manifest = store.put_tree(tree, "checkpoint")
    store.delete_tree(manifest)
    assert store.list(key_of(manifest, "")) == []
    with pytest.raises(ObjectMissing, match=r"\(checkpoint\) is not in S3 at .*run the step"):
        store.get_tree(manifest, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_flipped_byte_is_named_and_nothing_is_kept(store, tree, tmp_path):
    manifest = store.put_tree(tree, "model")
    key = key_of(manifest, "unique")
    good = (tree / "unique").read_bytes()
    bad = bytes([good[0] ^ 1]) + good[1:]
    store.client.put_object(Bucket=store.bucket, Key=key, Body=bad)
    expected, actual = (hash_tree(tree)["unique"].sha256, hashlib.sha256(bad).hexdigest())
    reads = (
        lambda: store.get_tree(manifest, tmp_path / "out"),
        lambda: store.get_part(manifest, ("uni",), tmp_path / "tree" / "part"),
        lambda: store.verify_tree(manifest),
    )
    for read in reads:
        store.client.put_object(Bucket=store.bucket, Key=key, Body=bad)
        with pytest.raises(ObjectCorrupt, match=f"unique.*expected sha256 {expected}, got {actual}.*was taken out"):
            read()
        with pytest.raises(ObjectMissing):
            store.verify_tree(manifest)
        shutil.rmtree(tree / "part", ignore_errors=True)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["tree"]
        assert store.put_tree(tree, "model") == manifest
        store.verify_tree(manifest)


def test_bytes_that_were_damaged_on_the_way_are_read_again(settings, tree, tmp_path, monkeypatch):
    store = ObjectStore(settings)
    manifest = store.put_tree(tree, "model")
    write, damaged = HashingSink.write, []

    def damage_once(self, data: bytes) -> int:
        if not damaged and len(data) > 1:
            damaged.append(data)
            data = bytes([data[0] ^ 1]) + data[1:]
        return write(self, data)

    monkeypatch.setattr(HashingSink, "write", damage_once)
    assert hash_tree(store.get_tree(manifest, tmp_path / "out")) == hash_tree(tree) and damaged
    store.verify_tree(manifest)


@pytest.mark.parametrize("content", [b"[]", b"7", b"null", b"{", b'"a text"', b'{"files": 3}', b"\xff{}", b""])
def test_an_index_of_wrong_json_is_corrupt_and_stored_again(content, store, tree, tmp_path):
    manifest = store.put_tree(tree, "model")
    store.client.put_object(Bucket=store.bucket, Key=store.index_key(manifest), Body=content)
    with pytest.raises(ObjectCorrupt, match=r"index\.json .*was taken out"):
        store.get_tree(manifest, tmp_path / "out")
    store.client.put_object(Bucket=store.bucket, Key=store.index_key(manifest), Body=content)
    assert store.put_tree(tree, "model") == manifest, "storing it does not stop at a damaged index"
    assert hash_tree(store.get_tree(manifest, tmp_path / "out")) == hash_tree(tree)


def test_a_bit_that_flips_on_the_servers_disk_is_found_and_healed(settings, stack_home, tmp_path, monkeypatch):
    """The server notices it itself, and answers 500 for this object whenever it is asked."""
    monkeypatch.setattr(object_store, "_PAUSE_S", 0.0)
    store = ObjectStore(settings)
    (tmp_path / "tree").mkdir()
    body = os.urandom(50_000)
    (tmp_path / "tree" / "weights").write_bytes(body)
    manifest = store.put_tree(tmp_path / "tree", "model")
    assert sum(flip_bit(volume, body[2000:2100]) for volume in (stack_home / "s3").rglob("*.dat")) == 1
    with pytest.raises(ObjectCorrupt, match=r"cannot read 'cas/.*/weights' though it reads others.*was taken out"):
        store.verify_tree(manifest)
    store.put_tree(tmp_path / "tree", "model")
    store.verify_tree(manifest)


def flip_bit(file: Path, found_at: bytes) -> bool:
    """Flip one bit where these bytes are in a file; False if they are not."""
    place = file.read_bytes().find(found_at)
    if place >= 0:
        with file.open("r+b") as opened:
            opened.seek(place)
            opened.write(bytes([found_at[0] ^ 1]))
    return place >= 0


def test_a_forged_index_is_refused(store, tree, tmp_path):
    manifest = store.put_tree(tree, "model")
    key = manifest.uri.split("/", 3)[3] + ".index.json"
    index, etag = store.get_json(key)
    index["files"]["unique"]["sha256"] = "0" * 64
    store.put_json(key, index, if_match=etag)
    with pytest.raises(ObjectCorrupt, match=r"the index of s3://.*expected sha256"):
        store.get_tree(manifest, tmp_path / "out")


@pytest.mark.parametrize("path", ["../escaped", "/ESCAPED", "deep/../../escaped", MARKER])
def test_an_index_whose_paths_leave_the_tree_writes_nothing(path, store, tmp_path):
    """Its digest is right: who may write to the bucket can make one."""
    content = os.urandom(8)
    entry = FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    path = path.replace("/ESCAPED", str(tmp_path / "escaped"))
    digest = tree_digest({path: entry})
    prefix = f"cas/{digest[:2]}/{digest}"
    with suppress(ClientError):  # this server refuses some of these keys, others take them all
        store.client.put_object(Bucket=store.bucket, Key=f"{prefix}/{path}", Body=content)
    manifest = Manifest(kind="model", uri=f"s3://{store.bucket}/{prefix}", sha256=digest, bytes=len(content))
    target = tmp_path / "in" / "out"
    for attempt in (store.get_tree, lambda m, d: store.get_part(m, ("",), d), lambda m, _: store.verify_tree(m)):
        store.put_json(f"{prefix}.index.json", {"files": {path: entry.model_dump()}})
        with pytest.raises(ObjectCorrupt, match="not the index of a tree: a tree cannot hold the path"):
            attempt(manifest, target)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_manifest_with_another_address_than_its_digest_is_refused(store, tree):
    manifest = store.put_tree(tree, "model")
    for uri in (f"s3://{store.bucket}/schedules", manifest.uri + "/../..", manifest.uri[:-1]):
        with pytest.raises(ObjectCorrupt, match="is not the address of a tree"):
            store.delete_tree(manifest.model_copy(update={"uri": uri}))
    store.verify_tree(manifest)


def test_a_link_is_not_stored(store, tree):
    (tree / "link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="link' is a link: a tree holds regular files only"):
        store.put_tree(tree, "model")


def test_a_directory_that_holds_the_tree_is_reused_and_a_changed_one_replaced(store, tree, tmp_path):
    manifest = store.put_tree(tree, "model")
    target = store.get_tree(manifest, tmp_path / "out")
    before = (target / "unique").stat().st_ino
    store.get_tree(manifest, target)
    assert (target / "unique").stat().st_ino == before
    (target / "unique").write_text("scribble")
    store.get_tree(manifest, target)
    assert hash_tree(target) == hash_tree(tree)


def test_files_of_another_owner_are_not_overwritten(store, tree, tmp_path):
    manifest = store.put_tree(tree, "model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="holds other files"):
        store.get_tree(manifest, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x" and not (tmp_path / "mine" / MARKER).exists()


def test_a_full_disk_leaves_nothing(store, tree, tmp_path, monkeypatch):
    manifest = store.put_tree(tree, "model")
    write = HashingSink.write

    def full(self, data: bytes) -> int:
        if len(data) > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(HashingSink, "write", full)
    with pytest.raises(StoreError, match=r"disk full while writing .*out"):
        store.get_tree(manifest, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tree"]


def test_many_put_and_get_the_same_tree_at_once(settings, tree, tmp_path):
    stores = [ObjectStore(settings) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        manifests = list(pool.map(lambda s: s.put_tree(tree, "model"), stores))
        assert all(m == manifests[0] for m in manifests)
        inodes = list(pool.map(lambda s: s.get_tree(manifests[0], tmp_path / "shared").stat().st_ino, stores))
    assert len(set(inodes)) == 1, "a directory must not be swapped under those who read it"
    assert hash_tree(tmp_path / "shared") == hash_tree(tree)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shared", "tree"]


def test_conditional_puts(store):
    key = f"test/{os.urandom(8).hex()}.json"
    assert store.get_json(key) is None
    etag = store.put_json(key, {"n": 1}, if_absent=True)
    with pytest.raises(PreconditionFailed):
        store.put_json(key, {"n": 2}, if_absent=True)
    newer = store.put_json(key, {"n": 2}, if_match=etag)
    with pytest.raises(PreconditionFailed):
        store.put_json(key, {"n": 3}, if_match=etag)
    assert store.get_json(key) == ({"n": 2}, newer)
    with pytest.raises(PreconditionFailed):
        store.put_json(key + ".absent", {}, if_match=etag)
    assert store.list(key) == [key]
    store.delete([key, key + ".absent"])
    assert store.get_json(key) is None and store.list(key) == []


def test_sixteen_writers_have_one_winner(store):
    key = f"test/{os.urandom(8).hex()}.json"

    def put(writer: int) -> bool:
        try:
            store.put_json(key, writer, if_absent=True)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(put, range(16)))
    assert sum(won) == 1 and store.get_json(key)[0] == won.index(True)


def test_more_keys_than_a_page_are_listed_and_deleted(store):
    prefix = f"test/{os.urandom(8).hex()}/"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.put_json(f"{prefix}{n:04}", n), range(1001)))
    assert store.list(prefix) == [f"{prefix}{n:04}" for n in range(1001)]
    store.delete(store.list(prefix))
    assert store.list(prefix) == []


def test_wrong_keys_and_a_missing_bucket_are_told_apart(settings):
    with pytest.raises(StoreError, match="refused access"):
        ObjectStore(settings.model_copy(update={"secret_key": "wrong"})).put_json("k", 1)
    other = ObjectStore(settings.model_copy(update={"bucket": "not-made-yet"}))
    with pytest.raises(StoreError, match="no such bucket"):
        other.get_json("k")
    other.ensure_bucket()
    other.ensure_bucket()
    assert other.get_json("k") is None


def test_an_unreachable_server_is_named(settings):
    store = ObjectStore(
        settings.model_copy(update={"endpoint_url": "http://127.0.0.1:1", "stack_file": ""}), patience_s=1
    )
    with pytest.raises(StoreUnavailable, match=r"http://127\.0\.0\.1:1.*flashslm stack status"):
        store.get_json("k")


def test_a_server_restarted_in_mid_use_is_waited_for(settings, stack_home, store, tree, tmp_path):
    manifest = store.put_tree(tree, "model")
    psutil.Process(service_pid(stack_home, "s3")).kill()
    restart = threading.Thread(target=lambda: (time.sleep(0.5), embedded_stack.up(stack_home)))
    restart.start()
    try:
        store.get_tree(manifest, tmp_path / "out")  # begins while the port has no listener
    finally:
        restart.join()
    assert hash_tree(tmp_path / "out") == hash_tree(tree)


def service_pid(home: Path, name: str) -> int:
    return next(service.pid for service in embedded_stack.status(home).services if service.name == name)


def test_the_users_own_cloud_and_proxy_do_not_interfere(settings, monkeypatch):
    for name, value in {"AWS_PROFILE": "nonsense", "http_proxy": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    s3._session.cache_clear()
    store = ObjectStore(settings, patience_s=0)
    key = f"test/{os.urandom(8).hex()}.json"
    store.put_json(key, {"n": 1})
    assert store.get_json(key)[0] == {"n": 1}
    s3._session.cache_clear()


def test_files_of_other_trees_are_copied_by_the_server(store, tree, tmp_path):
    lender = store.put_tree(tree, "lender")
    own = tmp_path / "own"
    own.mkdir()
    (own / "index.json").write_text(os.urandom(8).hex())
    borrowed = {"deep/copy.bin": (lender, "deep/er/weights 1+2 é.bin"), "unique": (lender, "unique")}
    made = store.put_tree(own, "borrower", borrowed=borrowed)
    found = store.get_tree(made, tmp_path / "found")
    assert (found / "deep/copy.bin").read_bytes() == (tree / "deep/er/weights 1+2 é.bin").read_bytes()
    assert made.sha256 == store.put_tree(found, "borrower").sha256, "the same tree as that of the files themselves"
    store.delete_tree(lender)
    store.verify_tree(made)
    with pytest.raises(ObjectMissing, match="run the step that makes it"):
        store.put_tree(own, "borrower", borrowed={"other": (lender, "unique")})
