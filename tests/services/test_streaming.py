"""Training that reads its data set out of the real object store, through a cache that is smaller than the data set."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flashslm.data import order
from flashslm.data.loader import TokenLoader
from flashslm.infra.settings import Settings
from flashslm.infra.storage import streamed_tree
from flashslm.infra.storage import tree as trees
from flashslm.infra.storage.errors import ObjectCorrupt, ObjectMissing, StoreError
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.storage.streamed_tree import StreamedTree
from flashslm.infra.storage.tree import MARKER
from flashslm.training.trainer import train
from tests.unit.training import tiny
from tests.waiting import wait_until

pytestmark = pytest.mark.services
ROOT = Path(__file__).parents[2]
CACHE_BYTES = 150_000  # of 250,000 that training and validation read
BLOCK_TOKENS, HEADS = 4096, 4
RUN = f"""
import json, sys, time
from pathlib import Path
from flashslm.data import order
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.storage.streamed_tree import StreamedTree
from flashslm.training.trainer import train
from tests.unit.training import tiny

order.BLOCK_TOKENS, order.HEADS = {BLOCK_TOKENS}, {HEADS}
settings, manifest = Settings.from_env(), Manifest.read(sys.argv[1])
store = ObjectStore(settings)
spec = tiny.spec(tiny.config(**json.loads(sys.argv[3])), dataset=manifest, run_key=sys.argv[2])
opened = StreamedTree(store, manifest, Path(sys.argv[4]), settings.data_cache_bytes)

def report(step, _metrics):
    print(step, flush=True)
    if step == int(sys.argv[5]):
        time.sleep(600)  # it is killed here

outcome = train(spec, tiny.model(), lambda _: opened, store, on_metrics=report)
print(json.dumps(outcome.results() | {{"resumed": outcome.resumed_from_step}}))
"""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "BLOCK_TOKENS", BLOCK_TOKENS)
    monkeypatch.setattr(order, "HEADS", HEADS)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose training split has 20 shards."""
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "set", tokens=80_000)


@pytest.fixture(scope="module")
def manifest(store: ObjectStore, directory: Path) -> Manifest:
    return store.put_tree(directory, "dataset")


@pytest.fixture
def opened(store: ObjectStore, manifest: Manifest, tmp_path: Path) -> Callable[..., StreamedTree]:
    """The data set as a new process of a machine sees it."""

    def make(cache: str = "cache", max_bytes: int = CACHE_BYTES) -> StreamedTree:
        return StreamedTree(store, manifest, tmp_path / cache, max_bytes)

    return make


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that were read from the store."""
    names: list[str] = []
    get_part = ObjectStore.get_part

    def noted(self: ObjectStore, manifest: Manifest, beginnings: tuple[str, ...], *rest: Any) -> Path:
        names.extend(beginnings)
        return get_part(self, manifest, beginnings, *rest)

    monkeypatch.setattr(ObjectStore, "get_part", noted)
    return names


def cached_bytes(cache: Path) -> int:
    return sum(file.stat().st_size for file in cache.rglob("*") if file.is_file() and file.name != MARKER)


def test_the_cache_stays_within_its_bound_while_a_model_trains_and_changes_no_bit(
    opened: Callable[..., StreamedTree], directory: Path, manifest: Manifest, fetched: list[str], tmp_path: Path
) -> None:
    spec = tiny.spec(tiny.config(steps=160, batch_size=32, validate_every_steps=40), dataset=manifest)
    sizes: list[int] = []

    def look(_step: int, _metrics: dict[str, float]) -> None:
        with trees.locked(tmp_path / "cache"):  # what is removed or fetched meanwhile would be counted in part
            sizes.append(cached_bytes(tmp_path / "cache"))

    streamed = opened()
    outcome = train(spec, tiny.model(), lambda _: streamed, on_metrics=look)
    whole = train(spec, tiny.model(), lambda _: directory)
    assert outcome.curve() == whole.curve()
    assert len(sizes) == 160 and max(sizes) <= CACHE_BYTES
    assert not [name for name in fetched if name.startswith("test/")], "what training does not read is not fetched"
    assert len({name for name in fetched if name.startswith("train/shard")}) == 20
    assert sum(streamed.size(name) for name in set(fetched)) > 1.2 * CACHE_BYTES, "it could not have held all"
    assert sum(streamed.size(name) for name in fetched) < 3 * CACHE_BYTES, "few files are fetched twice in an epoch"


def test_a_run_that_is_killed_and_goes_on_with_an_empty_cache_is_the_unkilled_one(
    platform_env: Settings, manifest: Manifest, tmp_path: Path
) -> None:
    manifest.write(tmp_path / "dataset.json")
    changes = json.dumps({"steps": 60, "batch_size": 8, "checkpoint_every_steps": 5})
    environment = os.environ | {"FLASHSLM_DATA_CACHE_BYTES": str(CACHE_BYTES), "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}

    def start(key: str, cache: str, held_at: int = 0) -> "subprocess.Popen[str]":
        arguments = [str(tmp_path / "dataset.json"), f"{tmp_path.name}-{key}", changes, str(tmp_path / cache)]
        command = [sys.executable, "-c", RUN, *arguments, str(held_at)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)

    def result(process: "subprocess.Popen[str]") -> dict[str, Any]:
        output = process.communicate()[0]
        assert process.returncode == 0
        return dict(json.loads(output.splitlines()[-1]))

    expected = result(start("whole", "one"))
    process = start("killed", "two", held_at=23)
    assert process.stdout is not None
    assert any(line.strip() == "23" for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = result(start("killed", "three"))
    assert 0 < again.pop("resumed") <= 20 and expected.pop("resumed") == 0
    assert again == expected


def test_two_ranks_read_parts_of_their_own(
    opened: Callable[..., StreamedTree], directory: Path, fetched: list[str], tmp_path: Path
) -> None:
    read, batches = [], []
    for rank in range(2):
        fetched.clear()
        loader = TokenLoader(opened(f"node-{rank}"), "train", 16, 4, 0, rank, 2)
        batches.append([loader.batch(step).tokens_BT for step in range(loader.batches_per_epoch)])
        read.append({name for name in fetched if "shard" in name})
    assert len(read[0] & read[1]) <= HEADS, "they meet where one head begins and the other ends"
    assert len(read[0] | read[1]) == 20 and min(map(len, read)) >= 8
    alone = TokenLoader(directory, "train", 16, 4, 0)
    for step in (0, 100, alone.batches_per_epoch - 1):
        both = torch.stack([rank[step] for rank in batches], dim=1).flatten(0, 1)
        assert torch.equal(both, alone.batch(step).tokens_BT)


def test_processes_of_a_machine_share_what_one_of_them_fetched(
    opened: Callable[..., StreamedTree], fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one neither fetches nor hashes; a file that has changed is hashed, and fetched if it is another."""
    first = read_all(opened(max_bytes=10**6))
    count, hashed = len(fetched), []
    hash_file = trees._hash_file
    monkeypatch.setattr(trees, "_hash_file", lambda path: hashed.append(path.name) or hash_file(path))
    assert read_all(opened(max_bytes=10**6)) == first
    assert len(fetched) == count and hashed == []


def read_all(files: StreamedTree) -> list[bytes]:
    names = [f"train/shard-{number:05d}.bin" for number in range(20)]
    contents = []
    for name in names:
        with files.open(name) as opened:
            contents.append(opened.read())
    return contents


@pytest.mark.parametrize("content", [b"torn", b""])
def test_a_file_that_is_torn_in_the_cache_is_fetched_again(
    opened: Callable[..., StreamedTree], fetched: list[str], tmp_path: Path, content: bytes
) -> None:
    first, files = read_all(opened()), opened()
    torn = next((tmp_path / "cache").rglob("shard-00019.bin"))
    torn.write_bytes(content)
    left = tmp_path / "cache" / f".{torn.parents[1].name}"  # by a process that was killed while it removed this file
    left.mkdir()
    (left / "part").write_bytes(b"x" * CACHE_BYTES)
    fetched.clear()
    with files.open("train/shard-00019.bin") as again:
        assert again.read() == first[19]
    assert fetched == ["train/shard-00019.bin"]
    assert not left.exists(), "what a killed process left does not fill the cache"


def test_a_download_that_is_torn_is_repeated(
    opened: Callable[..., StreamedTree], store: ObjectStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, downloads, download = opened(), [], store.client.download_fileobj

    def torn(bucket: str, key: str, sink: Any, **options: Any) -> None:
        downloads.append(key)
        if len(downloads) == 1:
            sink.write(b"half of a fi")
        else:
            download(bucket, key, sink, **options)

    for client in (store.client, store._impatient):
        monkeypatch.setattr(client, "download_fileobj", torn)
    with files.open("train/shard-00003.bin") as opened_file:
        assert opened_file.read() == (directory / "train/shard-00003.bin").read_bytes()
    assert len(downloads) == 2


def test_what_is_open_stays_readable_and_what_is_used_stays_in_the_cache(
    opened: Callable[..., StreamedTree], directory: Path, fetched: list[str]
) -> None:
    files = opened(max_bytes=3 * 8192)
    kept = files.open("train/shard-00000.bin")
    for number in range(1, 12):
        files.open(f"train/shard-{number:05d}.bin").close()
        files.open("train/shard-00001.bin").close()
    assert kept.read() == (directory / "train/shard-00000.bin").read_bytes()
    assert fetched.count("train/shard-00001.bin") == 1
    with pytest.raises(StoreError, match=r"has 8,192 bytes, and the cache of data sets may hold 8,000: raise platform"):
        opened("other", max_bytes=8000).open("train/shard-00000.bin")


def test_a_file_that_another_process_removes_while_it_is_looked_at_is_fetched(
    opened: Callable[..., StreamedTree], fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().open("train/shard-00000.bin").close()
    look = trees._marked
    removed: list[Path] = []

    def removed_meanwhile(directory: Path) -> list[str]:
        marked = look(directory)
        if not removed:
            removed.append(directory)
            shutil.rmtree(directory)
        return marked

    monkeypatch.setattr(trees, "_marked", removed_meanwhile)
    with opened().open("train/shard-00000.bin") as again:
        assert len(again.read()) == 8192
    assert removed and fetched == ["train/shard-00000.bin"] * 2


def test_a_file_that_was_removed_after_its_use_is_fetched_ahead_too(
    opened: Callable[..., StreamedTree], fetched: list[str]
) -> None:
    files = opened(max_bytes=2 * 8192)
    for number in range(3):
        files.open(f"train/shard-{number:05d}.bin").close()
    fetched.clear()
    files.fetch_ahead("train/shard-00000.bin")
    wait_until(lambda: "train/shard-00000.bin" in fetched)
    assert fetched == ["train/shard-00000.bin"]


def test_a_file_that_is_opened_before_its_turn_comes_is_not_fetched_ahead(
    opened: Callable[..., StreamedTree], fetched: list[str], tmp_path: Path
) -> None:
    first, late, last = (f"train/shard-{number:05d}.bin" for number in range(3))
    opened().open(late).close()
    files = opened()
    with trees.locked(tmp_path / "cache"):  # another process fetches something
        files.fetch_ahead(first)
        files.fetch_ahead(late)
        files.open(late).close()
        shutil.rmtree(next((tmp_path / "cache").rglob("shard-00001.bin")).parents[1])
        files.fetch_ahead(last)
        fetched.clear()
    wait_until(lambda: last in fetched)
    assert fetched == [first, last]


@pytest.mark.parametrize(("pod", "files"), [("", 5), ("a-uid", 4)])
def test_the_cache_leaves_a_small_disk_the_room_that_a_file_needs(
    opened: Callable[..., StreamedTree], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pod: str, files: int
) -> None:
    """In a pod a fifth of the disk more: kubelet would remove the pod."""
    cache, disk_bytes = tmp_path / "cache", 5 * 8192
    free = lambda _: SimpleNamespace(free=disk_bytes - cached_bytes(cache), total=disk_bytes)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", free)
    monkeypatch.setenv("KFP_POD_UID", pod)
    assert len(read_all(opened())) == 20
    assert (files - 1) * 8192 < cached_bytes(cache) <= files * 8192


def test_a_full_disk_and_a_cache_that_may_only_be_read(
    opened: Callable[..., StreamedTree], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_with(code: int) -> Callable[..., None]:
        def fail(*_arguments: Any) -> None:
            raise OSError(code, os.strerror(code))

        return fail

    with monkeypatch.context() as patched:
        patched.setattr(streamed_tree, "mark_verified", fails_with(errno.ENOSPC))
        with pytest.raises(StoreError, match="disk full while writing"):
            opened().open("train/shard-00000.bin")
    opened().open("train/shard-00000.bin").close()
    monkeypatch.setattr(os, "utime", fails_with(errno.EACCES))
    with opened().open("train/shard-00000.bin") as found:
        assert len(found.read()) == 8192


def test_a_shard_that_is_damaged_in_the_store_is_named(store: ObjectStore, tmp_path: Path) -> None:
    stored = store.put_tree(tiny.write_dataset(tmp_path / "own", tokens=20_001), "dataset")
    files = StreamedTree(store, stored, tmp_path / "cache", CACHE_BYTES)
    key = f"{store.index_key(stored).removesuffix('.index.json')}/train/shard-00002.bin"
    store.client.put_object(Bucket=store.bucket, Key=key, Body=b"x" * 8192)
    with pytest.raises(ObjectCorrupt, match=r"shard-00002\.bin is corrupt.*the step that makes it stores it again"):
        files.open("train/shard-00002.bin")
    with pytest.raises(ObjectMissing, match="run the step that makes it"):
        StreamedTree(store, stored, tmp_path / "cache", CACHE_BYTES)
