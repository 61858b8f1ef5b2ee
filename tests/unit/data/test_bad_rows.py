"""Rows that cannot be read are counted and sampled, up to a share of all."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flashslm.config import DataConfig
from flashslm.data import bad_rows, file_formats
from flashslm.data.bad_rows import SAMPLES, BadRows, together
from flashslm.data.prepare import prepare_dataset
from flashslm.data.sources import read_documents
from flashslm.data.summary import DatasetSummary
from tests.unit.data.corpora import make_texts

GOOD = json.dumps({"text": "good"}).encode()
BAD = {
    "not JSON": b'{"text": ',
    "not UTF-8": b'{"text": "\xe9"}',
    "of another type": b'{"text": 7}',
    "without the field": b'{"body": "x"}',
    "no object": b"[1]",
    "nested": b"[" * 100_000,
}


def read(path: Path, fraction: float, **fields: Any) -> tuple[list[str], BadRows]:
    config = DataConfig(source="files", paths=(str(path),), max_bad_rows_fraction=fraction, **fields)
    found = BadRows(fraction)
    return [document.text for document in read_documents(config, 0, bad_rows=found)], found


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_a_bad_line_is_skipped_and_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([GOOD, b"", line, GOOD, b'{"text": null}']))
    texts, found = read(path, 0.5)
    assert texts == ["good", "good"] and (found.count, found.rows) == (1, 4)
    assert found.samples[0].place == f"{path}:3" and found.samples[0].reason.startswith(f"'{path}:3'")
    with pytest.raises(ValueError, match=r"a.jsonl:3'"):
        read(path, 0.0)


def test_the_rest_of_a_line_that_is_too_long_is_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_formats, "MAX_DOCUMENT_BYTES", 100)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([GOOD, b'{"text": "' + b"x" * 1000 + b'"}', GOOD]))
    texts, found = read(tmp_path / "a.jsonl", 0.5)
    assert texts == ["good", "good"] and (found.count, found.rows) == (1, 3)
    assert "a line of more than 100 bytes" in found.samples[0].reason


def test_cells_and_text_files_are_rows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_formats, "MAX_DOCUMENT_BYTES", 100)
    pq.write_table(pa.table({"text": ["good", "x" * 101, None]}), tmp_path / "a.parquet")
    (tmp_path / "b.txt").write_bytes(b"\xe9")
    (tmp_path / "c.txt").write_text("good")
    texts, found = read(tmp_path / "*", 0.5)
    assert texts == ["good", "good"] and (found.count, found.rows) == (2, 5)
    assert [sample.place for sample in found.samples] == [f"{tmp_path}/a.parquet:2", f"{tmp_path}/b.txt:1"]


def test_rows_of_a_hub_data_set_count_as_well(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "good"}\n{"text": null}\n')
    config = DataConfig(source="huggingface", dataset=str(tmp_path), text_field="body", max_bad_rows_fraction=0.9)
    found = BadRows(0.9)
    assert list(read_documents(config, 0, bad_rows=found)) == []
    assert (found.count, found.rows) == (2, 2) and found.samples[0].place == f"{tmp_path}:1"


@pytest.mark.parametrize("piece_bytes", [1, 10**9])
def test_they_are_in_the_summary_and_bounded_over_all_pieces(tmp_path: Path, piece_bytes: int) -> None:
    for number in range(4):
        lines = [json.dumps({"text": text}) for text in make_texts(30, seed=number)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(["broken"] * (5 * (number == 1)) + lines))
    recipe: dict[str, Any] = {"validation_fraction": 0.2, "test_fraction": 0.2, "vocab_size": 300}

    def prepare(fraction: float) -> DatasetSummary:
        bounds = {"max_bad_rows_fraction": fraction, "piece_bytes": piece_bytes}
        config = DataConfig(source="files", paths=(f"{tmp_path}/*.jsonl",), **recipe, **bounds)
        return prepare_dataset(config, 0, tmp_path / "d")

    summary = prepare(0.05)
    assert (summary.documents, summary.bad_rows) == (120, 5)
    assert [sample.place for sample in summary.bad_row_samples] == [f"{tmp_path}/1.jsonl:{n}" for n in range(1, 6)]
    assert DatasetSummary.model_validate_json((tmp_path / "d/dataset.json").read_text()) == summary
    message = r"5 of 125 rows cannot be read, more than data.max_bad_rows_fraction \(0.03\). The first: .*1.jsonl:1'"
    with pytest.raises(ValueError, match=message):
        prepare(0.03)


def test_a_source_of_bad_rows_is_given_up_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_rows, "_ENOUGH", 50)
    (tmp_path / "a.jsonl").write_text("broken\n" * 10_000)
    with pytest.raises(ValueError, match="51 of 51 rows cannot be read"):
        read(tmp_path / "a.jsonl", 0.1)


def test_samples_are_bounded_and_short(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(('{"' + "k" * 5000 + '": 1}\n') * 100)
    _, found = read(tmp_path / "a.jsonl", 0.99)
    assert found.count == 100 and len(found.samples) == SAMPLES
    assert max(len(sample.reason) for sample in found.samples) <= 300
    assert len(together([found, found], 0.99).samples) == SAMPLES and together([found, found], 0.99).count == 200
