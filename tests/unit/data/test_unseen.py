"""Text that was not seen before, and batches that replay some that was."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flashslm.config import DataConfig
from flashslm.data.documents import DIGEST_BYTES, document_digest
from flashslm.data.duplicates import DIGESTS_FILE
from flashslm.data.loader import TokenLoader
from flashslm.data.prepare import prepare_dataset
from flashslm.data.replay import ReplayLoader
from flashslm.data.summary import UnusableText
from flashslm.data.unseen import UnseenText, seen_digests
from tests.unit.data.corpora import in_turn, make_texts, prepare, write_jsonl

OLD, NEW = make_texts(40), make_texts(30, seed=1)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data") / "old"
    prepare(directory, [*OLD, OLD[0]])
    return directory


def unseen(path: Path, texts: list[str], old: Path, **fields: Any) -> UnseenText:
    file = write_jsonl(path / "text.jsonl", texts)
    config = DataConfig(source="files", paths=(str(file),), tokenizer=str(old / "tokenizer"), **fields)
    return UnseenText(config, 0, seen_digests(old))


def test_a_data_set_holds_its_documents_digests_once_and_sorted(old: Path) -> None:
    content = (old / DIGESTS_FILE).read_bytes()
    digests = [content[i : i + DIGEST_BYTES] for i in range(0, len(content), DIGEST_BYTES)]
    assert digests == sorted(document_digest(text)[:DIGEST_BYTES] for text in OLD)


def test_only_unseen_documents_come_whatever_their_white_space(tmp_path: Path, old: Path) -> None:
    text = unseen(tmp_path, [*OLD[:7], NEW[0], OLD[8].replace(" ", "  \n"), "  ", *NEW[1:]], old)
    assert [document.text for document in text] == NEW
    assert (text.documents, text.seen_documents) == (38, 8)


def test_the_limit_counts_new_text_alone(tmp_path: Path, old: Path) -> None:
    size = len(NEW[0]) + len(NEW[1])
    assert [document.text for document in unseen(tmp_path, [*OLD, *NEW], old, max_bytes=size)] == NEW[:2]


def test_new_data_has_the_old_tokens(tmp_path: Path, old: Path) -> None:
    text = unseen(tmp_path, [*OLD, *NEW], old, validation_fraction=0.2)
    summary = prepare_dataset(text.config, 0, tmp_path / "new", documents=text)
    assert summary.documents == len(NEW) and summary.vocab_size == 300
    assert not seen_digests(tmp_path / "new") & seen_digests(old)
    same = unseen(tmp_path, [*OLD, *NEW], tmp_path / "new", validation_fraction=0.2)
    again = prepare_dataset(same.config, 0, tmp_path / "again", documents=same)
    assert again.documents == len(OLD), "each data set lacks what the other holds"


def test_nothing_new_is_too_little(tmp_path: Path, old: Path) -> None:
    text = unseen(tmp_path, OLD, old)
    with pytest.raises(UnusableText):
        prepare_dataset(text.config, 0, tmp_path / "new", documents=text)
    assert text.documents == text.seen_documents == len(OLD)


def test_a_data_set_without_digests_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prepared by an older version; train a new champion"):
        seen_digests(tmp_path)


@pytest.fixture
def new(tmp_path: Path, old: Path) -> Path:
    text = unseen(tmp_path, NEW, old, validation_fraction=0.2)
    prepare_dataset(text.config, 0, tmp_path / "new", documents=text)
    return tmp_path / "new"


def replayed(new: Path, old: Path, batch_size: int, fraction: float, **ranks: int) -> ReplayLoader:
    loaders = [TokenLoader(directory, "train", 16, batch_size, 3, **ranks) for directory in (new, old)]
    return ReplayLoader(*loaders, fraction)


def test_replayed_rows_stand_behind_the_new_ones_and_each_part_keeps_its_order(new: Path, old: Path) -> None:
    mixed = replayed(new, old, 8, 0.375)
    parts = TokenLoader(new, "train", 16, 5, 3), TokenLoader(old, "train", 16, 3, 3)
    for step in (0, 1, 9):
        for whole, first, second in zip(mixed.batch(step), *(part.batch(step) for part in parts), strict=True):
            assert torch.equal(whole[:5], first) and torch.equal(whole[5:], second)
    for fraction in (-0.1, 0.0, 1.0):
        with pytest.raises(ValueError, match=r"replay_fraction is .* allowed are values between 0 and 1"):
            replayed(new, old, 8, fraction)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_the_replayed_share_is_exact_whatever_a_batch_holds(new: Path, old: Path, batch_size: int) -> None:
    mixed = replayed(new, old, batch_size, 0.3)
    rows = torch.cat([mixed.batch(step).tokens_BT for step in range(24 // batch_size)])
    expected = {
        part: TokenLoader(directory, "train", 16, count, 3).batch(0).tokens_BT
        for part, directory, count in (("new", new, 17), ("old", old, 7))
    }
    found = {part: [row for row in rows if any(torch.equal(row, e) for e in of)] for part, of in expected.items()}
    assert [len(found[part]) for part in ("new", "old")] == [17, 7]
    assert all(torch.equal(torch.stack(found[part]), expected[part]) for part in expected), "each in its own order"


def test_ranks_share_a_replayed_batch(new: Path, old: Path) -> None:
    whole = replayed(new, old, 8, 0.3)
    ranks = [replayed(new, old, 8, 0.3, rank=rank, world_size=4) for rank in range(4)]
    for step in range(4):
        for tensor, *parts in zip(whole.batch(step), *(loader.batch(step) for loader in ranks), strict=True):
            assert torch.equal(tensor, in_turn(parts))
