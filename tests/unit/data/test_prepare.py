import hashlib
import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashslm.config import DataConfig
from flashslm.data.documents import HELD_OUT, SPLITS, document_digest, split_of
from flashslm.data.prepare import prepare_dataset, prepare_once
from flashslm.data.sample import FairSample
from flashslm.data.summary import DatasetSummary, entropy_nats
from flashslm.data.tokenizer import load_tokenizer
from tests.unit.data.corpora import make_texts, prepare, write_jsonl


def stream(directory: Path, split: str) -> np.ndarray:
    """The split's tokens, read from its files with nothing of the package."""
    index = json.loads((directory / split / "index.json").read_text())
    return np.concatenate([np.fromfile(directory / split / s["file"], dtype=index["dtype"]) for s in index["shards"]])


def documents(directory: Path, split: str) -> list[str]:
    tokenizer = load_tokenizer(directory / "tokenizer")
    tokens = stream(directory, split)
    ends = np.flatnonzero(tokens == 0)
    return [tokenizer.decode(tokens[a + 1 : b]) for a, b in itertools.pairwise(ends)]


def tree_bytes(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_stream_holds_every_document_once_between_end_tokens(tmp_path: Path) -> None:
    texts = make_texts(150)
    summary = prepare(tmp_path / "d", texts)
    train, validation, test = (documents(tmp_path / "d", split) for split in SPLITS)
    assert sorted(train + validation + test) == sorted(texts)
    assert train == [t for t in texts if t in set(train)]  # in the order they came
    for split in SPLITS:
        tokens = stream(tmp_path / "d", split)
        assert tokens[0] == tokens[-1] == 0
    assert (summary.train_documents, summary.validation_documents) == (len(train), len(validation))
    assert summary.test_documents == len(test)
    assert summary.bytes == sum(len(t.encode()) for t in texts)
    assert summary.train_tokens == len(stream(tmp_path / "d", "train"))
    assert 10 < len(validation) < 60 and 10 < len(test) < 60  # 20 % of 150 each


def test_text_that_changed_after_it_was_prepared_is_said_and_not_read(tmp_path: Path) -> None:
    source = tmp_path / "t.jsonl"
    write_jsonl(source, make_texts(150))
    config, said = DataConfig(source="files", paths=(str(source),), vocab_size=300), list[str]()
    prepared = prepare_once(config, 0, tmp_path / "made", said.append)
    before, said[:] = tree_bytes(prepared), []
    assert prepare_once(config, 0, tmp_path / "made", said.append) == prepared and said == []
    write_jsonl(source, make_texts(200))
    for change in (lambda: None, source.unlink):
        change()
        assert prepare_once(config, 0, tmp_path / "made", said.append) == prepared
        assert said and all(str(source) in line and "has changed since" in line for line in said)
        assert tree_bytes(prepared) == before
        said.clear()


def test_index_records_what_the_files_hold(tmp_path: Path) -> None:
    prepare(tmp_path / "d", make_texts(150))
    folder = tmp_path / "d/train"
    index = json.loads((folder / "index.json").read_text())
    sizes = [s["tokens"] for s in index["shards"]]
    assert len(sizes) > 2
    assert set(sizes[:-1]) == {1024}
    assert sum(sizes) == index["tokens"]
    for shard in index["shards"]:
        assert hashlib.sha256((folder / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
    first_token, first_byte = np.fromfile(folder / "documents.bin", dtype="<i8").reshape(2, -1)
    tokens = stream(tmp_path / "d", "train")
    assert first_token.tolist() == np.flatnonzero(tokens == 0)[:-1].tolist()
    sizes = [len(t.encode()) for t in documents(tmp_path / "d", "train")]
    assert first_byte.tolist() == [0, *np.cumsum(sizes)[:-1].tolist()]


def test_duplicates_are_dropped_by_normalised_text(tmp_path: Path) -> None:
    texts = make_texts(100)
    composed, decomposed = "café crème " * 5, "cafe\u0301 cre\u0300me " * 5
    noisy = [*texts, texts[3], texts[4].replace(" ", "\n\t "), composed, decomposed, "  ", ""]
    summary = prepare(tmp_path / "d", noisy)
    assert summary.duplicates_dropped == 3
    assert summary.documents == 101
    assert document_digest(composed) == document_digest(decomposed) != document_digest(composed.upper())


def test_split_of_a_document_does_not_depend_on_the_others(tmp_path: Path) -> None:
    texts = make_texts(120)
    more = make_texts(120, seed=1) + texts[::-1]
    prepare(tmp_path / "few", texts)
    prepare(tmp_path / "many", more)
    for split in SPLITS:
        few, many = (set(documents(tmp_path / name, split)) for name in ("few", "many"))
        assert few == many & set(texts)
        assert many - few


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_jsonl(tmp_path / "same.jsonl", make_texts(100))
        config = DataConfig(source="files", paths=(str(tmp_path / "same.jsonl"),), vocab_size=300)
        prepare_dataset(config, 0, tmp_path / name)
    assert tree_bytes(tmp_path / "a") == tree_bytes(tmp_path / "b")
    assert "dataset.json" in tree_bytes(tmp_path / "a")


def test_preparing_again_leaves_nothing_of_the_first_time(tmp_path: Path) -> None:
    prepare(tmp_path / "d", make_texts(150))
    prepare(tmp_path / "d", make_texts(60))
    prepare(tmp_path / "fresh" / "d", make_texts(60))
    assert set(tree_bytes(tmp_path / "d")) == set(tree_bytes(tmp_path / "fresh" / "d"))


def test_a_document_that_spells_the_end_token_cannot_end_itself(tmp_path: Path) -> None:
    texts = [*make_texts(100), *(f"{i} before <|endoftext|> after" for i in range(40))]
    summary = prepare(tmp_path / "d", texts)
    ends = sum(int((stream(tmp_path / "d", s) == 0).sum()) for s in SPLITS)
    assert ends == summary.documents + 3
    assert any("0 before <|endoftext|> after" in documents(tmp_path / "d", split) for split in SPLITS)


def test_summary_matches_its_definitions(tmp_path: Path) -> None:
    summary = prepare(tmp_path / "d", make_texts(150))
    predicted = stream(tmp_path / "d", "test")[1:]
    p = np.unique_counts(predicted).counts / len(predicted)
    assert math.isclose(summary.unigram_entropy_nats, -sum(x * math.log(x) for x in p), rel_tol=1e-12)
    text_bytes = sum(len(t.encode()) for t in documents(tmp_path / "d", "validation"))
    assert summary.bytes_per_token == text_bytes / (len(stream(tmp_path / "d", "validation")) - 1)
    assert DatasetSummary.model_validate_json((tmp_path / "d/dataset.json").read_text()) == summary
    assert math.isclose(entropy_nats(np.array([4, 0, 4, 4, 4])), math.log(4))


def test_large_vocabulary_is_stored_in_four_bytes(tmp_path: Path) -> None:
    from flashslm.data.shards import ShardWriter, SplitReader

    writer = ShardWriter(tmp_path / "s", vocab_size=70_000, end_of_document_id=69_999, shard_tokens=1024)
    writer.add([1, 65_536, 2], num_bytes=9)
    assert writer.close().dtype == "<u4"
    assert (tmp_path / "s/shard-00000.bin").stat().st_size == 20
    assert SplitReader(tmp_path / "s").read(0, 5).tolist() == [69_999, 1, 65_536, 2, 69_999]


def test_existing_tokenizer_is_used_as_it_is(tmp_path: Path) -> None:
    first = prepare(tmp_path / "first", make_texts(150))
    again = prepare(tmp_path / "again", make_texts(150), tokenizer=str(tmp_path / "first/tokenizer"))
    assert again.vocab_size == first.vocab_size == 300
    assert np.array_equal(stream(tmp_path / "first", "train"), stream(tmp_path / "again", "train"))


def test_fair_sample_does_not_depend_on_order() -> None:
    rng = random.Random(0)
    texts = [chr(97 + rng.randrange(26)) * rng.randrange(1, 400) for _ in range(200)]
    digests = {t: document_digest(t) for t in texts}
    kept = []
    for _ in range(5):
        rng.shuffle(texts)
        sample = FairSample(5_000)
        for text in texts:
            sample.offer(digests[text], text)
        kept.append(sample.texts())
        assert sum(map(len, sample.texts())) == 5_000
    assert all(other == kept[0] for other in kept)


def test_a_sample_of_long_documents_is_full() -> None:
    small, book, other = sorted(("ä" * 20, "ö" * 9_000, "ü" * 9_000), key=lambda t: document_digest(t)[8:16])
    for order in ((small, book, other), (other, book, small), (book, other, small)):
        sample = FairSample(501)
        for text in order:
            sample.offer(document_digest(text), text)
        assert len("".join(sample.texts()).encode()) == 500, "the last character has two bytes"
        assert sample.texts()[0] == small[:250]


@pytest.mark.parametrize(
    ("texts", "fields", "message"),
    [
        ([" ", "\n"], {}, "gave no document with text"),
        (["one " * 100], {}, r"all 1 documents fell outside the .* split: give more documents"),
        (["one " * 100, "two " * 100], {}, r"all 2 documents fell outside the .* split: give more documents"),
        (make_texts(40), {"vocab_size": 30_000}, r"lower data.vocab_size to at most \d+"),
    ],
)
def test_unusable_text_says_what_to_change(
    tmp_path: Path, texts: list[str], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "d", texts, **fields)
    assert not (tmp_path / "d/dataset.json").exists()


def test_progress_is_reported_and_stdout_stays_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "t.jsonl", make_texts(100))
    lines: list[str] = []
    config = DataConfig(source="files", paths=(str(tmp_path / "t.jsonl"),), vocab_size=300)
    summary = prepare_dataset(config, 0, tmp_path / "d", on_progress=lines.append)
    assert lines[-3:] == [
        f"train: {summary.train_tokens:,} tokens",
        f"validation: {summary.validation_tokens:,} tokens",
        f"test: {summary.test_tokens:,} tokens",
    ]
    assert capsys.readouterr().out == ""


def test_of_few_documents_those_nearest_to_validation_and_test_are_taken(tmp_path: Path) -> None:
    texts = make_texts(12)
    ranks = sorted(document_digest(text) for text in texts)
    few = DataConfig(validation_fraction=0.001, test_fraction=0.001)
    assert split_of(ranks[0], few) == "train"
    for name, order in (("a", texts), ("b", texts[::-1])):
        summary = prepare(tmp_path / name, order, validation_fraction=0.001, test_fraction=0.001)
        assert (summary.train_documents, summary.validation_documents, summary.test_documents) == (10, 1, 1)
    nearest, next_nearest = (next(t for t in texts if document_digest(t) == rank) for rank in ranks[:2])
    assert documents(tmp_path / "a", "validation") == [nearest] and documents(tmp_path / "a", "test") == [next_nearest]
    for split in HELD_OUT:
        first, second = (tmp_path / name / split / "index.json" for name in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()


def test_validation_keeps_its_documents_however_large_test_is(tmp_path: Path) -> None:
    texts = make_texts(120)
    for name, fraction in (("small", 0.05), ("large", 0.4)):
        prepare(tmp_path / name, texts, test_fraction=fraction)
    assert documents(tmp_path / "small", "validation") == documents(tmp_path / "large", "validation")
    assert set(documents(tmp_path / "small", "test")) < set(documents(tmp_path / "large", "test"))
