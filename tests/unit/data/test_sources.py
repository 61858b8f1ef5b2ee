import json
import os
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from flashslm.config import DataConfig
from flashslm.data import file_formats
from flashslm.data.file_formats import Document
from flashslm.data.sources import describe_source, limit_bytes, read_documents, source_digest, with_revisions
from flashslm.infra.storage.errors import StoreError, StoreUnavailable


def files(*paths: Path | str, **fields: Any) -> DataConfig:
    return DataConfig(source="files", paths=tuple(str(p) for p in paths), **fields)


def texts(config: DataConfig, seed: int = 0, s3_client: Any = None) -> list[str]:
    return [d.text for d in read_documents(config, seed, s3_client)]


class FakeS3:
    """What `read_files` uses of a boto3 client, over a dict of objects; pages of two keys."""

    def __init__(self, objects: dict[str, bytes]):
        self.objects = objects

    def get_paginator(self, operation: str) -> "FakeS3":
        assert operation == "list_objects_v2"
        return self

    def paginate(self, Bucket: str, Prefix: str) -> list[dict[str, Any]]:
        keys = [k for k in self.objects if k.startswith(f"{Bucket}/{Prefix}")]
        entries = [{"Key": k.removeprefix(f"{Bucket}/")} for k in keys]
        return [{"Contents": entries[i : i + 2]} for i in range(0, len(entries), 2)] or [{}]

    def download_fileobj(self, bucket: str, key: str, file: BinaryIO) -> None:
        file.write(self.objects[f"{bucket}/{key}"])


def test_limit_cuts_the_last_document_at_a_whole_character() -> None:
    documents = [Document("abc", "1"), Document("dé€f", "2"), Document("never", "3")]
    cut = list(limit_bytes(documents, 8))  # é takes 2 bytes, € takes 3: 3 + 1 + 2 leaves 2, too few for €
    assert [d.text for d in cut] == ["abc", "dé"]
    assert [d.text for d in limit_bytes(documents, 9)] == ["abc", "dé€"]


def test_standard_library_is_sorted_source_only() -> None:
    names = [d.name for d in read_documents(DataConfig(), seed=0)]
    assert names == sorted(names)
    assert {"json/decoder.py", "ast.py"} <= set(names)
    assert not [n for n in names if "site-packages" in n or "__pycache__" in n or not n.endswith(".py")]


def test_standard_library_cut_is_a_seeded_sample() -> None:
    first, again = (list(read_documents(DataConfig(max_bytes=300_000), seed=1)) for _ in range(2))
    other = list(read_documents(DataConfig(max_bytes=300_000), seed=2))
    assert first == again
    assert {d.name for d in first} != {d.name for d in other}
    assert [d.name for d in first] != sorted(d.name for d in first)
    assert 299_997 <= sum(len(d.text.encode()) for d in first) <= 300_000
    whole = (Path(sysconfig.get_path("stdlib")) / first[0].name).read_text(encoding="utf-8")
    assert first[0].text == whole


def test_every_file_format_gives_its_texts(tmp_path: Path) -> None:
    rows = [{"text": "eins", "n": 1}, {"text": None, "n": 2}, {"text": "zwei\nzeilen", "n": 3}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=1)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "b.jsonl").write_text(lines)
    with pa.output_stream(str(tmp_path / "c.jsonl.zst"), compression="zstd") as stream:
        stream.write(lines.encode())
    (tmp_path / "d.md").write_text("# drei\n")
    for name in ("a.parquet", "b.jsonl", "c.jsonl.zst"):
        assert texts(files(tmp_path / name)) == ["eins", "zwei\nzeilen"]
    assert texts(files(tmp_path / "*")) == ["eins", "zwei\nzeilen"] * 3 + ["# drei\n"]
    named = list(read_documents(files(tmp_path / "b.jsonl"), 0))
    assert [d.name for d in named] == [f"{tmp_path}/b.jsonl:1", f"{tmp_path}/b.jsonl:3"]


def test_a_lone_surrogate_becomes_a_question_mark(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x\\ud800y"}\n')
    assert texts(files(tmp_path / "a.jsonl")) == ["x?y"]


def test_objects_of_s3_are_matched_and_read_in_order() -> None:
    rows = [json.dumps({"body": t}).encode() + b"\n" for t in ("one", "two", "three")]
    client = FakeS3(
        {
            "lake/web/b.jsonl": rows[1],
            "lake/web/a.jsonl": rows[0],
            "lake/web/deep/c.jsonl": rows[2],
            "lake/web/skip.bin": b"\0",
            "lake/other/d.jsonl": rows[0],
        }
    )
    assert texts(files("s3://lake/web/*.jsonl", text_field="body"), s3_client=client) == ["one", "two", "three"]
    with pytest.raises(ValueError, match="matches no file"):
        texts(files("s3://lake/none/*.jsonl"), s3_client=client)
    with pytest.raises(ValueError, match="needs an S3 client"):
        texts(files("s3://lake/web/*.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"content": "x"}\n', "has no field 'text'; set data.text_field to one of: content"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl:2' is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": "n\xe9"}\n', "a.jsonl:3': byte 0xe9 is not UTF-8"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1' is not JSON of text: .* nested too deeply"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "a.jsonl:1' is not JSON: Exceeds the limit"),
        ("a.jsonl.zst", b'{"text": "x"}\n', "a.jsonl.zst:1' cannot be read as zstd data"),
        ("a.jsonl.gz", b'{"text": "x"}\n', "a.jsonl.gz:1' cannot be read as gzip data"),
        ("a.parquet", b"PAR1", "a.parquet' cannot be read as Parquet"),
        ("a.parquet", b"", "a.parquet' cannot be read as Parquet"),
        ("a.jsonl", b'{"text": 3}\n', "field 'text' is int"),
        ("a.txt", "one\nné".encode("latin-1"), "a.txt:2': byte 0xe9 is not UTF-8"),
        ("a.csv", b"x", "allowed endings are .parquet .jsonl"),
    ],
)
def test_unreadable_files_say_what_to_change(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        texts(files(tmp_path / name))


def test_compressed_data_that_ends_early_says_where(tmp_path: Path) -> None:
    lines = b"".join(json.dumps({"text": f"{i} {i * 7919}"}).encode() + b"\n" for i in range(20_000))
    for suffix, compression in ((".gz", "gzip"), (".zst", "zstd")):
        path = tmp_path / f"a.jsonl{suffix}"
        with pa.output_stream(str(path), compression=compression) as stream:
            stream.write(lines)
        assert len(texts(files(path))) == 20_000
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(ValueError, match=rf"a\.jsonl\{suffix}:\d+' (cannot be read as|is not JSON)"):
            texts(files(path))


def test_a_damaged_parquet_row_group_says_after_which_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [f"{i} {i * 7919} " * 20 for i in range(2000)]
    pq.write_table(pa.table({"text": rows}), path, row_group_size=1000, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    at = content.index(b"1500 ")
    content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet' after row 1,\d+ cannot be read as Parquet"):
        texts(files(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.parquet"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": ["\ufeffeins"]}), path)
    else:
        content = b"\xef\xbb\xbf" + (b"eins" if name.endswith("txt") else b'{"text": "eins"}\n')
        with pa.output_stream(str(path), compression="gzip" if name.endswith("gz") else None) as stream:
            stream.write(content)
    assert texts(files(path)) == ["eins"]


def test_what_decompresses_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_formats, "FREE_BYTES", 100_000)
    line = json.dumps({"text": "x" * 1000}).encode() + b"\n"
    with pa.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as stream:
        stream.write(line * 100_000)
    pq.write_table(pa.table({"text": ["x" * 1000] * 1_000_000}), tmp_path / "b.parquet", compression="zstd")
    with pa.output_stream(str(tmp_path / "c.jsonl.gz"), compression="gzip") as stream:
        stream.write(b"\n" * 100_000_000)
    for name in ("a.jsonl.zst", "b.parquet", "c.jsonl.gz"):
        with pytest.raises(ValueError, match=rf"{name}' decompresses to more than 1,000 times its size"):
            for _ in read_documents(files(tmp_path / name), 0):
                pass


def test_long_lines_cells_and_texts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_formats, "MAX_DOCUMENT_BYTES", 1000)
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + json.dumps({"text": "x" * 2000}))
    (tmp_path / "b.txt").write_text("x" * 1001)
    pq.write_table(pa.table({"text": ["x", "x" * 1001]}), tmp_path / "c.parquet")
    for name, place in (
        ("a.jsonl", "a.jsonl:2': a line"),
        ("b.txt", "b.txt': a text"),
        ("c.parquet", "c.parquet:2': a"),
    ):
        with pytest.raises(ValueError, match=f"{place}.* of more than 1,000 bytes: part it into documents"):
            texts(files(tmp_path / name))


def test_a_path_that_exists_is_no_glob(tmp_path: Path) -> None:
    directory = tmp_path / "data [v2]"
    directory.mkdir()
    (directory / "a.txt").write_text("eins")
    assert texts(files(directory / "a.txt")) == ["eins"]
    client = FakeS3({"lake/data [v2]/a.txt": b"eins", "lake/data v/a.txt": b"zwei"})
    assert texts(files("s3://lake/data [v2]/a.txt"), s3_client=client) == ["eins"]
    with pytest.raises(ValueError, match=r"matches no file.*for a directory's files .*/\*\*/\*"):
        texts(files(directory))


def test_errors_of_s3_are_those_of_the_store() -> None:
    class NoBucket(FakeS3):
        def paginate(self, Bucket: str, Prefix: str) -> list[dict[str, Any]]:
            reply = {"Error": {"Code": "NoSuchBucket"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
            raise ClientError(reply, "ListObjectsV2")

    class Refused(FakeS3):
        def download_fileobj(self, bucket: str, key: str, file: BinaryIO) -> None:
            raise ClientError({"Error": {}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "GetObject")

        def head_object(self, Bucket: str, Key: str) -> None:
            raise EndpointConnectionError(endpoint_url="http://nowhere")

    with pytest.raises(StoreError, match="bucket 'lake': there is no such bucket"):
        texts(files("s3://lake/*.txt"), s3_client=NoBucket({}))
    with pytest.raises(StoreError, match=r"bucket 'lake' refused access to 'a\.txt'"):
        texts(files("s3://lake/a.txt"), s3_client=Refused({"lake/a.txt": b""}))
    with pytest.raises(StoreUnavailable, match="bucket 'lake' does not answer"):
        source_digest(files("s3://lake/a.txt"), Refused({"lake/a.txt": b""}))


def test_parquet_without_the_field_names_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "url": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="one of: body, url"):
        texts(files(tmp_path / "a.parquet"))


def test_huggingface_streams_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "eins"}\n{"text": "zwei"}\n')
    config = DataConfig(source="huggingface", dataset=str(tmp_path))
    assert texts(config) == ["eins", "zwei"]
    assert describe_source(config) == f"huggingface {tmp_path}/train"


def test_huggingface_out_of_reach_says_what_it_needs(tmp_path: Path) -> None:
    config = DataConfig(source="huggingface", dataset=str(tmp_path / "missing"))
    with pytest.raises(RuntimeError, match=r"could not be opened.*needs the network"):
        texts(config)


def test_source_digest_sees_what_the_path_does_not(tmp_path):
    config = DataConfig(source="files", paths=(str(tmp_path / "*.txt"),))
    with pytest.raises(ValueError, match="matches no file"):
        source_digest(config)
    (tmp_path / "a.txt").write_text("one")
    first = source_digest(config)
    assert source_digest(config) == first
    (tmp_path / "a.txt").write_text("other")
    second = source_digest(config)
    (tmp_path / "b.txt").write_text("more")
    assert len({first, second, source_digest(config)}) == 3
    assert source_digest(DataConfig()) == source_digest(DataConfig(max_bytes=5))


@pytest.mark.parametrize("field", ["tokenizer", "dataset"])
def test_source_digest_sees_a_local_directory_where_an_id_may_be(tmp_path: Path, field: str) -> None:
    tree = tmp_path / "tree"
    (tree / "inside").mkdir(parents=True)
    config = DataConfig(source="huggingface", dataset="org/data").model_copy(update={field: str(tree)})
    found = {source_digest(config)}
    (tree / "tokenizer.json").write_text("{}")
    found.add(source_digest(config))
    (tree / "inside" / "a.jsonl").write_text("1")
    found.add(source_digest(config))
    stat = (tree / "tokenizer.json").stat()
    (tree / "tokenizer.json").write_text("[]")
    os.utime(tree / "tokenizer.json", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the clock says nothing
    found.add(source_digest(config))
    assert len(found) == 4


def test_ids_of_the_hub_get_the_commit_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def repo_info(_self: Any, name: str, **options: Any) -> SimpleNamespace:
        asked.append((name, options["repo_type"], options["revision"]))
        return SimpleNamespace(sha=f"{name}@1")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", repo_info)
    config = DataConfig(source="huggingface", dataset="o/d", dataset_revision="v2", tokenizer="o/t")
    pinned = with_revisions(config)
    assert (pinned.dataset_revision, pinned.tokenizer_revision) == ("o/d@1", "o/t@1")
    assert asked == [("o/d", "dataset", "v2"), ("o/t", "model", None)]
    assert describe_source(pinned).endswith("o/d@1")
    assert with_revisions(DataConfig()) == DataConfig()


def test_without_the_hub_a_revision_stays_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", unreachable)
    config = DataConfig(source="huggingface", dataset="o/d", dataset_revision="v2")
    assert with_revisions(config) == config


def test_the_description_of_many_paths_has_a_bound() -> None:
    paths = [f"/数据/{'長い' * 20}-{i}.jsonl" for i in range(400)]
    first, second = describe_source(files(*paths)), describe_source(files(*paths[:-1], "other.jsonl"))
    assert "400 paths, the first /数据/" in first
    assert len(first) < 2000 and first != second
    assert describe_source(files("a.txt", "b.txt")) == "files (a.txt, b.txt)"
