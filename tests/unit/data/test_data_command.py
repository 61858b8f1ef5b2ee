"""`flashslm data`: what a data set holds, as the text that it was prepared from says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.data.loader import TokenLoader
from flashslm.data.prepare import DatasetSummary
from tests.unit.data.corpora import make_texts, prepare

TEXTS = [*make_texts(60, words=17), "naïve 日本語 <|endoftext|> 🙂\r\n  x", "short", "word " * 900]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DatasetSummary]:
    directory = tmp_path_factory.mktemp("data") / "set"
    return directory, prepare(directory, [*TEXTS, *TEXTS[:5]])


def command(*arguments: object, columns: int = 80) -> str:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)], env={"COLUMNS": str(columns)})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*arguments: object) -> Any:
    return json.loads(command(*arguments, "--json"))


def test_stats_are_those_of_the_splits(prepared: tuple[Path, DatasetSummary]) -> None:
    directory, summary = prepared
    (found,) = as_json("stats", directory)["datasets"]
    assert found["duplicates_dropped"] == 5 and found["documents"] == len(TEXTS) == summary.documents
    assert list(found["splits"]) == ["train", "validation", "test"]
    for split, numbers in found["splits"].items():
        for what in ("documents", "bytes", "tokens"):
            assert numbers[what] == getattr(summary, f"{split}_{what}"), (split, what)
    assert sum(numbers["bytes"] for numbers in found["splits"].values()) == sum(len(t.encode()) for t in TEXTS)
    assert found["splits"]["validation"]["bytes_per_token"] == pytest.approx(summary.bytes_per_token)
    longest = max(found["splits"].values(), key=lambda numbers: numbers["longest_document_tokens"])
    assert longest["longest_document_tokens"] > 5 * longest["median_document_tokens"] > 0
    assert len(as_json("stats", directory, directory)["datasets"]) == 2
    shown = command("stats", directory)
    assert all(len(line) <= 80 for line in shown.splitlines() if not line.startswith("source"))
    numbers = found["splits"]["train"]
    assert re.search(rf"longest_document_tokens +{numbers['longest_document_tokens']:,} ", shown), "nothing is cut"
    assert command("stats", directory, columns=30).split() == shown.split()
    assert "duplicates_dropped" in shown and f"{summary.train_tokens:,}" in shown


def test_sampled_documents_are_whole_and_drawn_by_the_seed(prepared: tuple[Path, DatasetSummary]) -> None:
    directory, summary = prepared
    sizes: list[str] = []
    for split in ("train", "validation", "test"):
        found = as_json("sample", directory, "--split", split, "--count", 1000, "--characters", 10_000)["documents"]
        numbers = getattr(summary, f"{split}_documents")
        assert sorted(document["number"] for document in found) == list(range(numbers))
        assert all(document["bytes"] == len(document["text"].encode()) for document in found)
        sizes += [document["text"] for document in found]
    assert sorted(sizes) == sorted(TEXTS)
    first, again, other = (as_json("sample", directory, "--seed", seed, "--count", 7) for seed in (0, 0, 1))
    assert first == again != other
    cut = as_json("sample", directory, "--characters", 3)["documents"]
    assert [len(document["text"]) for document in cut] == [3, 3, 3]
    assert "── document" in command("sample", directory)


@pytest.mark.parametrize("sequence_length", [9, 50, 333])
def test_windows_are_those_of_the_loader_with_borders(
    prepared: tuple[Path, DatasetSummary], sequence_length: int
) -> None:
    directory, _ = prepared
    options = ("--sequence-length", sequence_length, "--batch-size", 3, "--step", 2, "--seed", 5)
    rows = as_json("tokens", directory, *options)["rows"]
    batch = TokenLoader(directory, "train", sequence_length, 3, 5).batch(2)
    assert len(rows) == 3
    for row, tokens, documents in zip(rows, batch.tokens_BT, batch.documents_BT, strict=True):
        assert sum(piece["tokens"] for piece in row) == sequence_length
        assert [piece["document"] for piece in row] == sorted(set(documents.tolist()))
        assert [piece["begins"] for piece in row[1:]] == [True] * (len(row) - 1)
        assert row[0]["begins"] == (int(tokens[0]) == 0)
        assert sum(piece["begins"] for piece in row) == int((tokens == 0).sum())
        for piece in row[1:-1]:
            assert piece["text"] in TEXTS
    shown = command("tokens", directory, *options)
    assert "── row 2, document" in shown and ("begins" in shown or "continues" in shown)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["stats", "nowhere"], "'nowhere' is not a data set: give a directory"),
        (["stats", "{empty}"], "is not a prepared data set"),
        (["sample", "{set}", "--split", "tset"], "no split 'tset': it has train, validation, test"),
        (["tokens", "{set}", "--sequence-length", "90000"], "one window needs 90001"),
    ],
)
def test_what_cannot_be_shown_is_said(
    prepared: tuple[Path, DatasetSummary], tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        command(*(text.format(empty=tmp_path, set=prepared[0]) for text in arguments))
