"""Content-addressed trees and small JSON objects in S3.

A tree is a directory's files under `cas/ab/<sha256>/<path>`, where <sha256> is over the sorted lines "sha256  path" of
its files. Its index, `cas/ab/<sha256>.index.json`, is written last, so a reader sees a whole tree or none. A `Manifest`
names a tree and is what steps hand to each other.
"""

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from flashslm.infra.outages import Wait
from flashslm.infra.settings import Settings
from flashslm.infra.storage.errors import ObjectCorrupt, ObjectMissing, PreconditionFailed, StoreError, StoreUnavailable
from flashslm.infra.storage.s3 import SERVICE, http_status, mismatch, s3_client, translated
from flashslm.infra.storage.tree import (
    MARKER,
    FileEntry,
    HashingSink,
    Manifest,
    ObjectEntry,
    TreeIndex,
    disk_errors,
    hash_tree,
    holds_verified,
    in_parallel,
    index_key_of,
    index_of,
    locked,
    mark_verified,
    read_index,
    tree_digest,
    tree_prefix,
)

__all__ = [
    "Manifest",
    "ObjectEntry",
    "ObjectStore",
    "hash_tree",
    "tree_digest",
]

_TRANSFER = TransferConfig(
    multipart_threshold=64 * 2**20, multipart_chunksize=16 * 2**20, max_concurrency=4, io_chunksize=2**20
)
_RENEWED_AFTER_S = 86_400.0
_PAUSE_S = 5.0  # before an object that the server failed to read is asked for again
Read = TypeVar("Read")


class ObjectStore:
    """Trees and JSON objects of one bucket. Safe to share between threads."""

    def __init__(self, settings: Settings, patience_s: float | None = None):
        """`patience_s` is how long a call waits for a server that is away, the settings' own unless given."""
        self.bucket = settings.bucket
        self._patience_s = settings.patience_s if patience_s is None else patience_s
        self.client = s3_client(settings, self._patience_s)
        self._impatient = s3_client(settings, patience_s=0)
        self._endpoint_url = settings.endpoint_url
        self._where = f"S3 at {settings.endpoint_url}, bucket '{settings.bucket}'"

    def ensure_bucket(self) -> None:
        """Make the bucket unless it is there."""
        with translated(self._where, self.bucket):
            try:
                self.client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if http_status(error) != 404:
                    raise
                with suppress(self.client.exceptions.BucketAlreadyOwnedByYou):
                    self.client.create_bucket(Bucket=self.bucket)

    def put_tree(
        self,
        directory: str | Path,
        kind: str,
        metadata: dict[str, Any] | None = None,
        borrowed: Mapping[str, tuple[Manifest, str]] | None = None,
    ) -> Manifest:
        """Store a directory's files; a tree that is already complete is not sent again.

        Files are streamed. Empty sub-directories are not kept. `borrowed` are further files, which the server copies:
        path -> a stored tree and the path in it. Raises ValueError if there is no file, or a link or a special file.
        """
        root, sources = Path(directory), self._borrow(borrowed or {})
        files = hash_tree(root) | {path: entry for path, (_, entry) in sources.items()}
        if not files:
            raise ValueError(f"directory '{root}' holds no files: a tree needs at least one")
        digest = tree_digest(files)
        prefix = tree_prefix(digest)
        if not self._is_complete(prefix, files):
            self._upload(root, prefix, files, {path: key for path, (key, _) in sources.items()})
        size = sum(entry.bytes for entry in files.values())
        uri = f"s3://{self.bucket}/{prefix}"
        return Manifest(kind=kind, uri=uri, sha256=digest, bytes=size, metadata=metadata or {})

    def get_tree(self, manifest: Manifest, directory: str | Path) -> Path:
        """Fill a directory with a tree, or leave it as it was; a directory that already holds it is reused.

        Every file's sha256 and the tree's digest are verified, those of a directory that is reused only where a file
        has changed since. Raises ObjectMissing, ObjectCorrupt, StoreUnavailable, or StoreError when the disk is full or
        the directory holds other files.
        """
        target = Path(directory)
        if not holds_verified(target, manifest.sha256):
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target.parent):  # another process may have filled it meanwhile, and be reading it
                if not holds_verified(target, manifest.sha256):
                    self._fill(manifest, target)
        return target

    def get_part(
        self, manifest: Manifest, beginnings: tuple[str, ...], directory: str | Path, index: TreeIndex | None = None
    ) -> Path:
        """Copy the files of a tree whose path has one of the `beginnings` into a directory; raises as `get_tree` does.

        Every one of them is verified. It is not an error if there is none. The `index` is read unless it is given.
        """
        target = Path(directory)
        target.mkdir(parents=True, exist_ok=True)
        with disk_errors(target):
            self._download(manifest, target, beginnings, index)
        return target

    def index(self, manifest: Manifest) -> TreeIndex:
        """The files of a tree by their paths. It is read a second time where it is damaged; raises as `get_tree`."""
        try:
            files = self._read_index(manifest, self._prefix(manifest))
        except ObjectCorrupt:
            files = self._read_index(manifest, self._prefix(manifest))
        if files is None:
            where = f"{manifest.uri} ({manifest.kind}) is not in {self._where}"
            raise ObjectMissing(f"{where}: run the step that makes it")
        return files

    def index_key(self, manifest: Manifest) -> str:
        """The object whose presence makes a tree readable."""
        return index_key_of(self._prefix(manifest))

    def verify_tree(self, manifest: Manifest) -> None:
        """Read a whole tree and check every digest, keeping nothing; raises as `get_tree` does."""
        self._download(manifest, None)

    def delete_tree(self, manifest: Manifest) -> None:
        """Remove a tree, its index first so that no reader starts on it."""
        prefix = self._prefix(manifest)
        self.delete([index_key_of(prefix)])
        self.delete(self.list(prefix + "/"))

    def put_json(self, key: str, value: Any, *, if_absent: bool = False, if_match: str | None = None) -> str:
        """Store a JSON value and return its etag.

        With `if_absent` or an etag in `if_match` the put is conditional: PreconditionFailed if it lost.
        """
        condition = {"IfNoneMatch": "*"} if if_absent else {"IfMatch": if_match} if if_match else {}
        body = json.dumps(value, sort_keys=True).encode()
        try:
            with translated(self._where, key):
                answer = self.client.put_object(
                    Bucket=self.bucket, Key=key, Body=body, ContentType="application/json", **condition
                )
        except ObjectMissing as error:  # some servers answer 404 to If-Match on an absent object
            raise PreconditionFailed(str(error)) from error
        return str(answer["ETag"])

    def get_json(self, key: str) -> tuple[Any, str] | None:
        """A JSON value and its etag, or None if the object is absent."""
        found = self.get_bytes(key)
        if found is None:
            return None
        try:
            return json.loads(found[0]), found[1]
        except ValueError as error:
            raise ObjectCorrupt(f"s3://{self.bucket}/{key} is not JSON: {error}") from error

    def get_bytes(self, key: str) -> tuple[bytes, str] | None:
        """A small object's content and its etag, or None if the object is absent."""

        def read(client: Any) -> tuple[bytes, str]:
            answer = client.get_object(Bucket=self.bucket, Key=key)
            return answer["Body"].read(), str(answer["ETag"])

        try:
            return self._read(key, read)
        except ObjectMissing:
            return None

    def list(self, prefix: str) -> list[str]:
        """All keys with a prefix, sorted."""
        return sorted(self.entries(prefix))

    def entries(self, prefix: str) -> dict[str, ObjectEntry]:
        """Size and age of every object with a prefix, by key."""
        with translated(self._where, prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            found = [entry for page in pages for entry in page.get("Contents", [])]
        return {entry["Key"]: ObjectEntry(entry["Size"], entry["LastModified"].timestamp()) for entry in found}

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; absent ones are not an error."""
        wanted = sorted(set(keys))
        for start in range(0, len(wanted), 1000):  # the protocol's limit
            objects = [{"Key": key} for key in wanted[start : start + 1000]]
            with translated(self._where, wanted[start]):
                answer = self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})
            if failed := answer.get("Errors"):
                raise StoreError(f"{self._where}: could not delete {failed[0]['Key']}: {failed[0].get('Message')}")

    def _is_complete(self, prefix: str, files: TreeIndex) -> bool:
        try:
            index = self.get_json(index_key_of(prefix))
        except ObjectCorrupt:
            index = ({}, "")
        if index is None:
            return False
        if index[0] != index_of(files):  # damaged: the put of a right one is conditional
            self.delete([index_key_of(prefix)])
            return False
        there = self.entries(prefix)
        modified_s = there.pop(index_key_of(prefix), ObjectEntry(0, 0.0)).modified_s
        if {key: found.bytes for key, found in there.items()} != {
            f"{prefix}/{path}": entry.bytes for path, entry in files.items()
        }:
            return False
        if time.time() - modified_s > _RENEWED_AFTER_S:  # it is needed again: `store gc` goes by the index's age
            with suppress(PreconditionFailed):
                self.put_json(index_key_of(prefix), index_of(files), if_match=index[1])
        return True

    def _fill(self, manifest: Manifest, target: Path) -> None:
        if target.is_dir() and any(target.iterdir()) and not (target / MARKER).is_file():
            raise StoreError(f"directory '{target}' holds other files: give an empty or a new one for {manifest.uri}")
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
            tree = Path(temporary) / "tree"
            with disk_errors(target):
                self._download(manifest, tree)
                mark_verified(tree, manifest.sha256)
            if (target / MARKER).is_file():  # a damaged copy, or another tree
                target.rename(Path(temporary) / "replaced")
            tree.rename(target)

    def _borrow(self, borrowed: Mapping[str, tuple[Manifest, str]]) -> dict[str, tuple[str, FileEntry]]:
        """The object and the entry of each file of another tree."""
        trees = {manifest.sha256: manifest for manifest, _ in borrowed.values()}
        indices = {sha256: self.index(manifest) for sha256, manifest in trees.items()}
        return {
            path: (f"{self._prefix(manifest)}/{source}", indices[manifest.sha256][source])
            for path, (manifest, source) in borrowed.items()
        }

    def _upload(self, root: Path, prefix: str, files: TreeIndex, borrowed: dict[str, str]) -> None:
        def send(path: str) -> None:
            key = f"{prefix}/{path}"
            with translated(self._where, key):
                if path in borrowed:
                    source = {"Bucket": self.bucket, "Key": borrowed[path]}
                    self.client.copy(source, self.bucket, key, Config=_TRANSFER)
                else:
                    self.client.upload_file(str(root / path), self.bucket, key, Config=_TRANSFER)

        in_parallel(send, files)
        with suppress(PreconditionFailed):  # the same tree, put by another process meanwhile
            self.put_json(index_key_of(prefix), index_of(files), if_absent=True)

    def _download(
        self, manifest: Manifest, tree: Path | None, beginnings: tuple[str, ...] = ("",), index: TreeIndex | None = None
    ) -> None:
        """Read and verify a tree, or a part of it, into a directory or into nothing.

        What is damaged is read once more, which distinguishes a bad transfer from a bad object. A tree that stays
        damaged or incomplete is taken out of the store: its index goes, so that the step that makes the tree stores it
        again.
        """
        prefix = self._prefix(manifest)
        try:
            files = index or self.index(manifest)
            in_parallel(
                lambda path: self._fetch_verified(prefix, tree, path, files[path].sha256),
                [path for path in files if path.startswith(beginnings)],
            )
        except (ObjectCorrupt, ObjectMissing) as error:
            if not self._index_exists(prefix):
                raise
            self.delete([index_key_of(prefix)])
            raise type(error)(f"{error}; the tree was taken out, and the step that makes it stores it again") from error

    def _index_exists(self, prefix: str) -> bool:
        return index_key_of(prefix) in self.entries(index_key_of(prefix))

    def _read_index(self, manifest: Manifest, prefix: str) -> TreeIndex | None:
        """The files of a tree, or None if it has no index."""
        found = self.get_json(index_key_of(prefix))
        if found is None:
            return None
        try:
            files = read_index(found[0])
        except ValueError as error:  # never written by put_tree: nothing of it is fetched
            key = f"s3://{self.bucket}/{index_key_of(prefix)}"
            raise ObjectCorrupt(f"{key} is not the index of a tree: {' '.join(str(error).split())}") from error
        if tree_digest(files) != manifest.sha256:
            raise mismatch(f"the index of {manifest.uri}", manifest.sha256, tree_digest(files))
        return files

    def _fetch_verified(self, prefix: str, tree: Path | None, path: str, sha256: str) -> None:
        """Fetch one file, a second time if its bytes are not those that were stored."""
        if self._fetch(prefix, tree, path) == sha256:
            return
        actual = self._fetch(prefix, tree, path)
        if actual != sha256:
            raise mismatch(f"s3://{self.bucket}/{prefix}/{path}", sha256, actual)

    def _fetch(self, prefix: str, tree: Path | None, path: str) -> str:
        """Stream one file of a tree; returns the sha256 of what came."""
        key = f"{prefix}/{path}"

        def stream(client: Any, file: IO[bytes] | None = None) -> str:
            sink = HashingSink(file)
            client.download_fileobj(self.bucket, key, sink, Config=_TRANSFER)
            return sink.hash.hexdigest()

        def to_file(client: Any) -> str:
            assert tree is not None
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            with (tree / path).open("wb") as opened:
                return stream(client, opened)

        return self._read(key, stream if tree is None else to_file)

    def _read(self, key: str, read: Callable[[Any], Read]) -> Read:
        """Read an object; ObjectCorrupt if the server cannot, though it serves others.

        A server that checks its own blocks answers 500 for a damaged one, for ever: waiting as for one that is away
        would take minutes and end in the wrong error.
        """
        client, failures = self._impatient, 0
        with Wait(SERVICE, self._endpoint_url, self._patience_s) as wait:
            while True:
                try:
                    with translated(self._where, key):
                        return read(client)
                except StoreUnavailable as error:
                    client = self.client
                    if error.status == HTTPStatus.INTERNAL_SERVER_ERROR and self._serves():
                        failures += 1
                        if failures > 1:
                            reason = "though it reads others: its bytes are damaged"
                            raise ObjectCorrupt(f"{self._where} cannot read '{key}' {reason}") from error
                        time.sleep(_PAUSE_S)
                    elif not wait.pause(str(error)):
                        raise

    def _serves(self) -> bool:
        """Whether the server stores an object now and gives it back."""
        key = f"probe/read-{uuid.uuid4().hex}"
        try:
            with translated(self._where, key):
                self._impatient.put_object(Bucket=self.bucket, Key=key, Body=key.encode())
                found = self._impatient.get_object(Bucket=self.bucket, Key=key)["Body"].read()
                self._impatient.delete_object(Bucket=self.bucket, Key=key)
        except StoreError:
            return False
        return bool(found == key.encode())

    def _prefix(self, manifest: Manifest) -> str:
        parts = urlsplit(manifest.uri)
        if parts.netloc != self.bucket:
            raise StoreError(f"{manifest.uri} is in another bucket than '{self.bucket}' (FLASHSLM_BUCKET)")
        if parts.path != f"/{tree_prefix(manifest.sha256)}":
            raise ObjectCorrupt(f"{manifest.uri} is not the address of a tree with the sha256 {manifest.sha256}")
        return parts.path.strip("/")
