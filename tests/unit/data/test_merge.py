"""A data set that several pieces make is the one that a single piece makes."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashslm.config import DataConfig
from flashslm.data import buckets
from flashslm.data.documents import DIGEST_BYTES, SPLITS, document_digest
from flashslm.data.duplicates import DIGESTS_FILE, drop_duplicates
from flashslm.data.pieces import RECORD
from flashslm.data.prepare import prepare_dataset
from flashslm.data.shards import SplitReader
from flashslm.data.summary import DatasetSummary, UnusableText
from tests.unit.data.corpora import make_texts, write_jsonl

RECIPE = {"validation_fraction": 0.2, "test_fraction": 0.2, "vocab_size": 300, "shard_tokens": 1024}


def prepared(directory: Path, files: list[list[str]], piece_bytes: int, **fields: Any) -> DatasetSummary:
    texts = directory.parent / f"{directory.name}-text"
    texts.mkdir(parents=True)
    for number, of_file in enumerate(files):
        write_jsonl(texts / f"{number:02d}.jsonl", of_file)
    recipe = RECIPE | fields | {"piece_bytes": piece_bytes}
    return prepare_dataset(DataConfig(source="files", paths=(f"{texts}/*.jsonl",), **recipe), 0, directory)


def contents(directory: Path) -> dict[str, Any]:
    """What does not depend on how the token files are cut."""
    found: dict[str, Any] = {"digests": (directory / DIGESTS_FILE).read_bytes()}
    for split in SPLITS:
        reader = SplitReader(directory, split)
        found[f"{split} tokens"] = reader.read(0, reader.index.tokens).tolist()
        found[f"{split} documents"] = (directory / split / "documents.bin").read_bytes()
    tokenizer = {path.name: path.read_bytes() for path in (directory / "tokenizer").iterdir()}
    return found | tokenizer


def summaries(*found: DatasetSummary) -> list[dict[str, Any]]:
    return [summary.model_dump(exclude={"source"}) for summary in found]


def test_pieces_make_the_data_set_of_one(tmp_path: Path) -> None:
    rng, texts = random.Random(0), make_texts(240)
    texts += [texts[rng.randrange(240)].replace(" ", rng.choice((" ", "\n"))) for _ in range(80)]
    rng.shuffle(texts)
    files = [texts[start : start + 40] for start in range(0, 320, 40)]
    made = [prepared(tmp_path / str(size), files, size) for size in (10**9, 40_000, 1)]
    assert made[0].duplicates_dropped == 80
    first, *others = summaries(*made)
    assert all(other == first for other in others)
    one = contents(tmp_path / str(10**9))
    assert "segments" not in (tmp_path / str(10**9) / "train/index.json").read_text(), "written as by a single writer"
    assert all(contents(tmp_path / str(size)) == one for size in (40_000, 1))


@pytest.mark.parametrize("piece_bytes", [1, 10**9])
def test_a_piece_whose_documents_are_all_known_leaves_no_file(tmp_path: Path, piece_bytes: int) -> None:
    texts = make_texts(60)
    prepared(tmp_path / "d", [texts, texts, [" "], texts[::-1]], piece_bytes)
    prepared(tmp_path / "once", [texts], piece_bytes)
    assert contents(tmp_path / "d") == contents(tmp_path / "once")
    files = sorted((tmp_path / "d/train").glob("shard-*.bin"))
    assert sum(file.stat().st_size for file in files) == 2 * SplitReader(tmp_path / "d", "train").index.tokens


@pytest.mark.parametrize("piece_bytes", [1, 10**9])
def test_of_few_documents_some_are_moved_out_of_their_piece(tmp_path: Path, piece_bytes: int) -> None:
    texts = make_texts(9)
    fractions = {"validation_fraction": 0.001, "test_fraction": 0.001}
    summary = prepared(tmp_path / "d", [texts[:3], texts[3:6], texts[6:]], piece_bytes, **fractions)
    assert (summary.train_documents, summary.validation_documents, summary.test_documents) == (7, 1, 1)
    nearest = sorted(document_digest(text) for text in texts)
    digests = (tmp_path / "d" / DIGESTS_FILE).read_bytes()
    assert digests == b"".join(digest[:DIGEST_BYTES] for digest in nearest)
    prepared(tmp_path / "other", [texts], 10**9, **fractions)
    assert contents(tmp_path / "d") == contents(tmp_path / "other")


def test_pieces_without_text_are_too_little(tmp_path: Path) -> None:
    with pytest.raises(UnusableText, match="gave no document with text"):
        prepared(tmp_path / "d", [[" "], ["\n"]], 1)


@pytest.mark.parametrize("bucket_rows", [10**6, 1000, 7])
def test_digests_are_sorted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket_rows: int) -> None:
    monkeypatch.setattr(buckets, "BUCKET_ROWS", bucket_rows)
    rng = random.Random(1)
    digests = [rng.randbytes(DIGEST_BYTES) for _ in range(900)]
    digests += [bytes(DIGEST_BYTES), b"\xff" * DIGEST_BYTES, *rng.choices(digests, k=300)]
    digests += [digest[:8] + bytes(8) for digest in digests[:20]]  # equal in the first half alone
    rng.shuffle(digests)
    records = np.frombuffer(b"".join(digest + b"\0" for digest in digests), dtype=RECORD)
    kept = drop_duplicates(np.split(records, [100, 100, 700]), len(digests), tmp_path, tmp_path)
    assert kept.tolist() == [digest not in digests[:number] for number, digest in enumerate(digests)]
    assert (tmp_path / DIGESTS_FILE).read_bytes() == b"".join(sorted(set(digests)))
    assert [path.name for path in tmp_path.iterdir()] == [DIGESTS_FILE], "nothing else is left"


def test_no_document_has_no_digest(tmp_path: Path) -> None:
    assert drop_duplicates([], 0, tmp_path, tmp_path).tolist() == []
    assert (tmp_path / DIGESTS_FILE).read_bytes() == b""
