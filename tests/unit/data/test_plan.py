"""The source in pieces."""

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from flashslm.config import DataConfig
from flashslm.data.bad_rows import BadRows
from flashslm.data.plan import DataPlan, Piece, plan_pieces, read_piece
from flashslm.data.sources import read_documents
from tests.unit.data.corpora import make_texts, write_jsonl


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """Seven files of about 4 kB."""
    for number in range(7):
        write_jsonl(tmp_path / f"{number}.jsonl", make_texts(10, seed=number))
    return DataConfig(source="files", paths=(str(tmp_path / "*.jsonl"),), piece_bytes=10_000)


def texts(config: DataConfig) -> list[str]:
    return [document.text for piece in plan_pieces(config) for document in read_piece(config, piece, 0, BadRows(0))]


def test_pieces_hold_every_file_in_order_and_no_more_bytes_than_asked_for(config: DataConfig) -> None:
    pieces = plan_pieces(config)
    assert [piece.number for piece in pieces] == list(range(len(pieces))) and len(pieces) == 4
    assert all(sum(file.bytes for file in piece.files) <= 10_000 for piece in pieces)
    names = [file.name for piece in pieces for file in piece.files]
    assert names == sorted(names) and len(names) == 7
    assert texts(config) == [document.text for document in read_documents(config, 0)]
    alone = plan_pieces(config.model_copy(update={"piece_bytes": 1}))
    assert [len(piece.files) for piece in alone] == [1] * 7, "a file is never parted"


def test_one_piece_reads_what_the_limit_allows_from_the_beginning(config: DataConfig) -> None:
    one = config.model_copy(update={"piece_bytes": 10**9, "max_bytes": 9_000})
    assert texts(one) == [document.text for document in read_documents(one, 0)]


@pytest.mark.parametrize("max_bytes", [1, 999, 9_000, 20_001])
def test_pieces_share_the_limit_to_the_byte(config: DataConfig, max_bytes: int) -> None:
    limited = config.model_copy(update={"max_bytes": max_bytes})
    pieces = plan_pieces(limited)
    assert sum(piece.max_bytes or 0 for piece in pieces) == max_bytes
    assert sum(len(text.encode()) for text in texts(limited)) == max_bytes


def test_files_far_beyond_the_limit_are_not_planned(config: DataConfig) -> None:
    limited = config.model_copy(update={"max_bytes": 2_000})
    files = [file for piece in plan_pieces(limited) for file in piece.files]
    assert 8_000 <= sum(file.bytes for file in files) < 13_000


def test_a_file_that_changed_after_the_plan_is_refused(config: DataConfig, tmp_path: Path) -> None:
    pieces = plan_pieces(config)
    file = tmp_path / "3.jsonl"
    os.utime(file, ns=(0, 1))
    with pytest.raises(ValueError, match=r"3.jsonl' has changed since the data were planned: run again"):
        for piece in pieces:
            list(read_piece(config, piece, 0, BadRows(0)))


def test_the_standard_library_is_one_piece() -> None:
    config = DataConfig(max_bytes=50_000)
    assert texts(config) == [document.text for document in read_documents(config, 0)]
    assert plan_pieces(config) == (Piece(max_bytes=50_000),)


def test_a_hub_data_set_is_read_in_consecutive_pieces_of_its_files(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"train-{number}.jsonl").write_text(json.dumps({"text": f"text {number}"}) + "\n")
    config = DataConfig(source="huggingface", dataset=str(tmp_path))
    assert len(plan_pieces(config)) == 5
    assert texts(config) == [document.text for document in read_documents(config, 0)] == [f"text {n}" for n in range(5)]
    assert len(plan_pieces(config.model_copy(update={"max_bytes": 30, "piece_bytes": 20}))) == 2


def test_the_plan_and_every_piece_read_the_pinned_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a data set that has moved on since: its files now are others than those of the revision."""
    for revision, number in (("old", 3), ("new", 5)):
        (tmp_path / revision).mkdir()
        for part in range(number):
            row = json.dumps({"text": f"{revision} {part}"})
            (tmp_path / revision / f"train-{part}.jsonl").write_text(row + "\n")
    load = datasets.load_dataset

    def hub(name: str, part: str | None, revision: str = "new", **options: Any) -> Any:
        assert name == "o/d"
        return load(str(tmp_path / revision), part, **options)

    monkeypatch.setattr(datasets, "load_dataset", hub)
    config = DataConfig(source="huggingface", dataset="o/d", dataset_revision="old")
    assert texts(config) == ["old 0", "old 1", "old 2"]
    assert len(texts(config.model_copy(update={"dataset_revision": ""}))) == 5
    keys = [
        plan_pieces(config.model_copy(update={"dataset_revision": r}))[0].key(
            config.model_copy(update={"dataset_revision": r}), 0, "tokenizer", "code"
        )
        for r in ("old", "new")
    ]
    assert keys[0] != keys[1], "a piece of another revision is other work"


def test_workers_share_all_pieces() -> None:
    plan = DataPlan(pieces=tuple(Piece(number=n, pieces=7) for n in range(7)), end_of_document_id=0, shared_sha256="")
    for workers in (1, 2, 3, 9):
        shares = [plan.of_worker(worker, workers) for worker in range(workers)]
        assert sorted(piece.number for share in shares for piece in share) == list(range(7))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"workers": 8}, True),
        ({"tokenizer_bytes": 20_000}, True),
        ({"shard_tokens": 2048}, False),
        ({"validation_fraction": 0.3}, False),
        ({"text_field": "body"}, False),
    ],
)
def test_a_pieces_identity_is_what_its_bytes_depend_on(
    config: DataConfig, changes: dict[str, Any], is_same: bool
) -> None:
    pieces = plan_pieces(config)
    keys = {piece.key(config, 0, "tokenizer", "code") for piece in pieces}
    assert len(keys) == len(pieces)
    changed = config.model_copy(update=changes)
    assert (pieces[0].key(changed, 0, "tokenizer", "code") in keys) is is_same
    assert pieces[0].key(config, 5, "tokenizer", "code") in keys, "the order of files has no seed"
    for tokenizer, code in (("other", "code"), ("tokenizer", "other")):
        assert pieces[0].key(config, 0, tokenizer, code) not in keys
