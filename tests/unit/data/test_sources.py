import json
import sysconfig
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flashslm.config import DataConfig
from flashslm.data.sources import Document, describe_source, limit_bytes, read_documents, source_digest


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
    assert [d.name for d in named] == [f"{tmp_path}/b.jsonl:0", f"{tmp_path}/b.jsonl:2"]


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
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": 3}\n', "field 'text' is int"),
        ("a.txt", "né".encode("latin-1"), "is not UTF-8"),
        ("a.csv", b"x", "allowed endings are .parquet .jsonl"),
    ],
)
def test_unreadable_files_say_what_to_change(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        texts(files(tmp_path / name))


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
