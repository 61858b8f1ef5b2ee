"""Near duplicates and text of evaluation sets, against definitions that are written down without numpy."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flashslm.config import DataConfig, RunConfig
from flashslm.config.recipe import from_step_json
from flashslm.data import buckets, ngrams
from flashslm.data.contamination import WORDS, ForbiddenRuns, forbidden_ngrams
from flashslm.data.near_duplicates import BANDS, band_hashes, drop_near_duplicates
from flashslm.data.ngrams import ngram_hashes, ngram_hashes_of_each, word_hashes
from flashslm.data.prepare import prepare_dataset
from flashslm.data.sources import source_digest
from flashslm.data.summary import DatasetSummary
from tests.unit.data.corpora import write_jsonl

VOCABULARY = [f"w{number}" for number in range(5000)]


def text_of(rng: random.Random, words: int = 120) -> list[str]:
    return rng.choices(VOCABULARY, k=words)


def changed(rng: random.Random, words: list[str], count: int) -> list[str]:
    places = set(rng.sample(range(len(words)), count))
    return [rng.choice(VOCABULARY) if place in places else word for place, word in enumerate(words)]


def shingles(words: list[str], n: int = 5) -> set[tuple[str, ...]]:
    return {tuple(words[place : place + n]) for place in range(len(words) - n + 1)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat, the CAT!", ["the", "cat", "the", "cat"]),
        ("naïve  Straße_9\n\tx", ["naïve", "straße", "9", "x"]),
        ("我们 是2個", ["我", "们", "是", "2", "個"]),
        ("abc漢字def", ["abc", "漢", "字", "def"]),
        (" ,;\n", []),
        ("", []),
        ("a" * 300 + " " + "a" * 44, ["a" * 300, "a" * 44]),
    ],
)
def test_words_are_runs_of_letters_and_single_characters_of_scripts_without_blanks(text: str, words: list[str]) -> None:
    alone = [int(word_hashes(word)[0]) for word in words]
    assert word_hashes(text).tolist() == alone
    assert len(set(alone)) == len(set(words))


def test_ngrams_are_equal_where_their_words_are() -> None:
    rng = random.Random(0)
    words = rng.choices(VOCABULARY[:6], k=400)
    hashes = ngram_hashes(word_hashes(" ".join(words)), 3).tolist()
    runs = [tuple(words[place : place + 3]) for place in range(398)]
    assert len(hashes) == 398 and len(set(hashes)) == len(set(runs)) == len(set(zip(hashes, runs, strict=True)))
    assert ngram_hashes(word_hashes("one two"), 3).tolist() == []


@pytest.mark.parametrize("together", [1, 60, 1 << 20])
def test_ngrams_of_many_texts_are_those_of_each(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr(ngrams, "_TOGETHER", together)
    rng = random.Random(1)
    texts = [" ".join(rng.choices(VOCABULARY, k=rng.randrange(12))) for _ in range(40)]
    texts += ["", "İ İ İ ΑΣ Σ ΟΔΟΣ", "漢字かな", " .. ", "one two", "three\nfour, five"]
    expected = [number for text in texts for number in ngram_hashes(word_hashes(text), 3).tolist()]
    assert len(expected) > 100
    assert [number for part in ngram_hashes_of_each(texts, 3) for number in part.tolist()] == expected
    assert list(ngram_hashes_of_each([], 3)) == []


def test_bands_agree_as_often_as_similarity_says() -> None:
    rng, agreed, expected = random.Random(1), 0, 0.0
    for _ in range(400):
        one = text_of(rng)
        other = changed(rng, one, rng.randrange(1, 12))
        a, b = shingles(one), shingles(other)
        similarity = len(a & b) / len(a | b)
        expected += 1 - (1 - similarity**8) ** BANDS
        agreed += bool((band_hashes(word_hashes(" ".join(one))) == band_hashes(word_hashes(" ".join(other)))).any())
    assert 0.2 < expected / 400 < 0.8 and abs(agreed - expected) < 4 * 10  # four deviations of 400 throws at most
    far = [band_hashes(word_hashes(" ".join(text_of(rng)))) for _ in range(200)]
    assert len({int(value) for bands in far for value in bands}) == 200 * BANDS


@pytest.mark.parametrize("text", ["one", "one two three four five", "one two three four five six"])
def test_short_texts_have_bands_of_their_own(text: str) -> None:
    assert band_hashes(word_hashes(text)).tolist() == band_hashes(word_hashes(text.upper() + " .")).tolist()
    assert not (band_hashes(word_hashes(text)) == band_hashes(word_hashes("seven " + text))).any()


@pytest.mark.parametrize("bucket_rows", [10**6, 50])
def test_of_documents_that_bands_join_the_first_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket_rows: int
) -> None:
    monkeypatch.setattr(buckets, "BUCKET_ROWS", bucket_rows)
    rng = np.random.default_rng(0)
    bands = rng.integers(0, 2**63, (600, BANDS), dtype=np.uint64)
    groups = [{5, 17}, {3, 599, 200, 201}, {300, 301}]
    bands[17, 2], bands[599, 0] = bands[5, 2], bands[3, 0]
    bands[200, 7], bands[201, 13] = bands[599, 7], bands[200, 13]  # a chain
    bands[301, 4] = bands[300, 4]
    kept = np.ones(600, dtype=np.bool)
    kept[300] = False  # an exact duplicate of an earlier one keeps nothing out
    parts = np.split(bands, [100, 100, 400])
    found = drop_near_duplicates(lambda piece: parts[piece], [len(part) for part in parts], kept, tmp_path)
    dropped = {document for group in groups[:2] for document in group - {min(group)}}
    assert set(np.flatnonzero(~found).tolist()) == dropped | {300}
    assert list(tmp_path.iterdir()) == []


def prepare(directory: Path, texts: list[str], **fields: Any) -> DatasetSummary:
    directory.mkdir()
    for number in range(4):
        write_jsonl(directory / f"{number}.jsonl", texts[number::4])
    recipe = {"validation_fraction": 0.2, "test_fraction": 0.2, "vocab_size": 300} | fields
    config = DataConfig(source="files", paths=(f"{directory}/*.jsonl",), **recipe)
    return prepare_dataset(config, 0, directory / "made")


@pytest.mark.parametrize("piece_bytes", [1, 10**9])
def test_near_duplicates_are_dropped_across_pieces_where_the_recipe_says_so(tmp_path: Path, piece_bytes: int) -> None:
    rng = random.Random(2)
    texts = [text_of(rng) for _ in range(60)]
    near = [changed(rng, words, 1) for words in texts[:20]]
    lines = [" ".join(words) for words in texts + near]
    kept = prepare(tmp_path / "kept", lines, piece_bytes=piece_bytes)
    assert (kept.documents, kept.near_duplicates_dropped) == (80, 0)
    assert "near_duplicates_dropped" not in (tmp_path / "kept/made/dataset.json").read_text()
    dropped = prepare(tmp_path / "dropped", lines, piece_bytes=piece_bytes, near_duplicates="drop")
    assert 18 <= dropped.near_duplicates_dropped <= 20
    assert dropped.documents + dropped.near_duplicates_dropped == 80 and dropped.duplicates_dropped == 0


def test_text_of_evaluation_sets_is_found_in_every_format_and_depth(tmp_path: Path) -> None:
    rng = random.Random(3)
    asked = [text_of(rng, 40) for _ in range(4)]
    (tmp_path / "a.txt").write_text(" ".join(asked[0]))
    rows = [{"doc": {"question": " ".join(asked[1]), "n": 3}, "choices": ["short", " ".join(asked[2])]}]
    (tmp_path / "b.jsonl").write_text(json.dumps(rows[0]) + "\n\n")
    pq.write_table(pa.table({"text": [" ".join(asked[3])], "id": [1]}), tmp_path / "c.parquet")
    forbidden = ForbiddenRuns(forbidden_ngrams([f"{tmp_path}/*"]))
    assert len(forbidden) == 4 * (40 - WORDS + 1)
    for words in asked:
        held, too_short = words[10 : 10 + WORDS], words[10 : 10 + WORDS - 1]
        for part, expected in ((held, True), (too_short, False)):
            text = ", ".join([*text_of(rng, 30), *(word.upper() for word in part), *text_of(rng, 30)])
            assert forbidden.is_in(word_hashes(text)) is expected
    (tmp_path / "d.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"decontaminate_against: '.*d.jsonl:1' is not JSON"):
        forbidden_ngrams([f"{tmp_path}/d.jsonl"])
    with pytest.raises(ValueError, match="allowed endings are"):
        (tmp_path / "e.csv").touch()
        forbidden_ngrams([f"{tmp_path}/e.csv"])


@pytest.mark.parametrize("piece_bytes", [1, 10**9])
def test_contaminated_documents_are_dropped_and_counted(tmp_path: Path, piece_bytes: int) -> None:
    rng = random.Random(4)
    question = " ".join(text_of(rng, 20))
    write_jsonl(tmp_path / "set.jsonl", [question])
    clean = [" ".join(text_of(rng)) for _ in range(60)]
    dirty = [" ".join([*text_of(rng, 50), question, *text_of(rng, 50)]) for _ in range(7)]
    against = (str(tmp_path / "set.jsonl"),)
    summary = prepare(tmp_path / "d", clean + dirty, piece_bytes=piece_bytes, decontaminate_against=against)
    assert (summary.documents, summary.contaminated_dropped) == (60, 7)
    config = DataConfig(decontaminate_against=against)
    before = source_digest(config)
    write_jsonl(tmp_path / "set.jsonl", [question, "more"])
    assert source_digest(config) != before


def test_documents_without_words_are_near_duplicates_of_none(tmp_path: Path) -> None:
    rng = random.Random(6)
    lines = ["!!!", "???", "--- ---", ", . ;"]
    summary = prepare(tmp_path / "d", lines + [" ".join(text_of(rng)) for _ in range(20)], near_duplicates="drop")
    assert (summary.documents, summary.near_duplicates_dropped) == (24, 0)


def test_a_directory_of_evaluation_sets_counts_without_what_they_have_to_train_on(tmp_path: Path) -> None:
    rng, sets = random.Random(7), tmp_path / "sets"
    sets.mkdir()
    texts = {name: " ".join(text_of(rng, 20)) for name in ("piqa_validation", "piqa_train", "gsm8k_train_fewshot")}
    for name, text in texts.items():
        write_jsonl(sets / f"{name}.jsonl", [text])
    (sets / "LICENSE").write_text(texts["piqa_train"])
    forbidden = ForbiddenRuns(forbidden_ngrams([str(sets)]))
    found = {name: forbidden.is_in(word_hashes(text)) for name, text in texts.items()}
    assert found == {"piqa_validation": True, "piqa_train": False, "gsm8k_train_fewshot": False}
    (sets / "piqa_validation.jsonl").unlink()
    with pytest.raises(ValueError, match=r"data.decontaminate_against: '.*sets' has no evaluation set"):
        forbidden_ngrams([str(sets)])


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"evaluation": {"lm_eval_tasks": ["piqa"], "task_data": "sets"}}, ("sets",)),
        (
            {
                "data": {"decontaminate_against": ["a.jsonl"]},
                "evaluation": {"lm_eval_tasks": ["piqa"], "task_data": "sets"},
            },
            ("a.jsonl", "sets"),
        ),
        ({"evaluation": {"task_data": "sets"}}, ()),
        ({"evaluation": {"lm_eval_tasks": ["piqa"]}}, ()),
    ],
)
def test_the_recipes_own_tasks_are_kept_out_of_its_text(sections: dict[str, Any], expected: tuple[str, ...]) -> None:
    recipe = RunConfig.model_validate({"name": "x", **sections})
    assert recipe.data.decontaminate_against == expected
    assert RunConfig.model_validate(recipe.model_dump(mode="json")) == recipe
    assert from_step_json("plan_data", recipe.for_step("plan_data")).data.decontaminate_against == expected
    assert from_step_json("evaluate", recipe.for_step("evaluate")).evaluation == recipe.evaluation
