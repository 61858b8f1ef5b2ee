import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flashslm.data.loader import IGNORE_INDEX, TokenLoader
from flashslm.data.shards import ShardWriter, SplitReader
from tests.unit.data.corpora import in_turn, make_texts, prepare


@pytest.fixture
def counting(tmp_path: Path) -> Path:
    """A split whose token at place p is p itself (documents of 7 tokens begin with id 0), in shards of 10 tokens."""
    writer = ShardWriter(tmp_path / "train", vocab_size=1000, end_of_document_id=0, shard_tokens=10)
    for start in range(0, 98, 7):
        writer.add(list(range(start + 1, start + 7)), num_bytes=12)
    writer.close()
    return tmp_path


def places(start: int, stop: int) -> list[int]:
    return [p if p % 7 else 0 for p in range(start, stop)]


def test_windows_cross_shards_and_targets_follow_tokens(counting: Path) -> None:
    loader = TokenLoader(counting, "train", sequence_length=16, batch_size=3, seed=0)
    assert loader.num_tokens == 99
    for step in range(4):
        batch = loader.batch(step)
        assert all(t.dtype == torch.int64 and t.shape == (3, 16) for t in batch)
        for row in range(3):
            tokens = batch.tokens_BT[row].tolist()
            start = next(t - i for i, t in enumerate(tokens) if t)
            assert tokens == places(start, start + 16)
            assert batch.targets_BT[row].tolist() == places(start + 1, start + 17)
            assert batch.documents_BT[row].tolist() == [p // 7 for p in range(start, start + 16)]


def test_a_batch_depends_on_seed_and_step_alone(counting: Path) -> None:
    straight = TokenLoader(counting, "train", 8, 4, seed=3)
    history = [straight.batch(step) for step in range(12)]
    resumed = TokenLoader(counting, "train", 8, 4, seed=3)
    for step in (7, 11, 0):
        assert all(map(torch.equal, resumed.batch(step), history[step]))
    other = TokenLoader(counting, "train", 8, 4, seed=4)
    assert not torch.equal(other.batch(0).tokens_BT, history[0].tokens_BT)


def test_ranks_share_out_the_batch_of_one(counting: Path) -> None:
    whole = TokenLoader(counting, "train", 8, 6, seed=0)
    for world_size in (2, 3, 6):
        ranks = [TokenLoader(counting, "train", 8, 6, 0, rank, world_size) for rank in range(world_size)]
        for step in (0, 5):
            union = [in_turn(parts) for parts in zip(*(r.batch(step) for r in ranks), strict=True)]
            assert all(map(torch.equal, union, whole.batch(step)))
    with pytest.raises(ValueError, match="batch_size 6 is not a multiple of world_size 4"):
        TokenLoader(counting, "train", 8, 6, 0, 0, 4)


def test_an_epoch_shows_every_window_once_in_its_own_order(counting: Path) -> None:
    loader = TokenLoader(counting, "train", sequence_length=9, batch_size=1, seed=0)
    assert loader.num_windows == loader.batches_per_epoch == 10  # 98 predictions, 8 left over
    orders, offsets = [], set()
    for epoch in range(8):
        rows = [loader.batch(epoch * 10 + i).tokens_BT[0].tolist() for i in range(10)]
        starts = [next(t - i for i, t in enumerate(row) if t) for row in rows]
        offsets.add(min(starts))
        assert sorted(starts) == list(range(min(starts), min(starts) + 90, 9))
        orders.append(tuple(s - min(starts) for s in starts))
    assert len(set(orders)) == 8
    assert len(offsets) > 2 and offsets <= set(range(9))  # the left-over tokens are not always the same


def test_micro_batches_in_a_row_are_one_large_batch(counting: Path) -> None:
    large = TokenLoader(counting, "train", 8, 6, seed=0).batch(3).tokens_BT
    small = TokenLoader(counting, "train", 8, 2, seed=0)
    assert torch.equal(torch.cat([small.batch(9 + i).tokens_BT for i in range(3)]), large)


@pytest.mark.parametrize(("sequence_length", "batch_size"), [(16, 3), (7, 2), (98, 4), (1, 5)])
def test_sequential_predicts_each_token_exactly_once(counting: Path, sequence_length: int, batch_size: int) -> None:
    loader = TokenLoader(counting, "train", sequence_length, batch_size, seed=0)
    batches = list(loader.sequential())
    assert all(b.tokens_BT.shape == (batch_size, sequence_length) for b in batches)
    targets = torch.cat([b.targets_BT.flatten() for b in batches])
    tokens = torch.cat([b.tokens_BT.flatten() for b in batches])
    documents = torch.cat([b.documents_BT.flatten() for b in batches])
    real = targets != IGNORE_INDEX
    assert targets[real].tolist() == places(1, 99)
    assert tokens[real].tolist() == places(0, 98)
    assert documents[real].tolist() == [p // 7 for p in range(98)]
    assert bool((documents.view(-1, sequence_length).diff() >= 0).all())
    assert tokens.min() >= 0
    few = list(loader.sequential(max_batches=1))
    assert len(few) == 1 and torch.equal(few[0].tokens_BT, batches[0].tokens_BT)


def test_documents_have_a_start_and_sizes(counting: Path) -> None:
    reader = SplitReader(counting, "train")
    tokens, sizes = reader.document_sizes()
    assert tokens.sum() == reader.index.tokens - 1 and sizes.sum() == reader.index.bytes
    for document in (0, 5, len(tokens) - 1):
        start = reader.document_start(document)
        text = reader.read(start, start + int(tokens[document]) + 1)
        assert (
            text[0] == text[-1] == reader.index.end_of_document_id and reader.index.end_of_document_id not in text[1:-1]
        )


def test_a_split_shorter_than_a_window_is_refused(counting: Path) -> None:
    assert TokenLoader(counting, "train", 98, 1, seed=0).batch(0).targets_BT[0, -1] == 0
    with pytest.raises(ValueError, match="train split has 99 tokens, one window needs 100: shorten"):
        TokenLoader(counting, "train", 99, 1, seed=0)


def test_damaged_shards_are_refused(counting: Path) -> None:
    shard = counting / "train/shard-00003.bin"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shard-00003.bin' has 19 bytes, index.json says 20"):
        SplitReader(counting, "train")
    shard.unlink()
    with pytest.raises(ValueError, match="is missing"):
        SplitReader(counting, "train")
    with pytest.raises(ValueError, match="holds no token shards"):
        SplitReader(counting, "validation")


def test_loader_reads_what_prepare_wrote(tmp_path: Path) -> None:
    summary = prepare(tmp_path / "d", make_texts(150))
    loader = TokenLoader(tmp_path / "d", "validation", 32, 4, seed=0)
    assert loader.num_tokens == summary.validation_tokens
    index = json.loads((tmp_path / "d/validation/index.json").read_text())
    raw = np.concatenate([np.fromfile(tmp_path / "d/validation" / s["file"], dtype="<u2") for s in index["shards"]])
    assert loader.tokens(0, 10**9).tolist() == raw.tolist()
    ids = torch.cat([b.documents_BT[b.targets_BT != IGNORE_INDEX] for b in loader.sequential()])
    assert ids.tolist() == (np.cumsum(raw == 0) - 1)[:-1].tolist()


def sampled(directory: Path, tokens: int, batch_size: int, **changes: int) -> list[tuple[int, ...]]:
    """The rows of `sample` that have targets, as (tokens, targets), in order."""
    loader = TokenLoader(directory, "train", 16, batch_size, **({"seed": 0} | changes))
    rows = []
    for batch in loader.sample(tokens):
        assert batch.targets_BT.shape[1] == 16
        rows += [
            (*t.tolist(), *y.tolist())
            for t, y in zip(batch.tokens_BT, batch.targets_BT, strict=True)
            if (y != IGNORE_INDEX).any()
        ]
    return rows


def test_a_sample_counts_tokens_and_is_the_same_for_every_batch_size_seed_and_rank(tmp_path: Path) -> None:
    prepare(tmp_path / "d", make_texts(60))
    expected = sampled(tmp_path / "d", 16 * 9 + 1, batch_size=1)
    assert len(expected) == len(set(expected)) == 10, "rounded up to whole windows"
    for batch_size in (2, 7, 64):
        assert sampled(tmp_path / "d", 16 * 9 + 1, batch_size) == expected
    assert sampled(tmp_path / "d", 16 * 9 + 1, 4, seed=5) == expected
    halves = [sampled(tmp_path / "d", 16 * 9 + 1, 4, rank=rank, world_size=2) for rank in (0, 1)]
    assert sorted(halves[0] + halves[1]) == sorted(expected)
    loader = TokenLoader(tmp_path / "d", "train", 16, 1, seed=0)
    beginning = [batch.tokens_BT[0].tolist() for batch in loader.sequential(10)]
    assert [list(row[:16]) for row in expected] != beginning, "it is spread over the split"


def test_a_sample_of_more_than_the_split_is_the_split(tmp_path: Path) -> None:
    prepare(tmp_path / "d", make_texts(60))
    loader = TokenLoader(tmp_path / "d", "train", 16, 4, seed=0)
    whole, every = (list(made) for made in (loader.sequential(), loader.sample(10**9)))
    assert len(whole) == len(every)
    assert all(torch.equal(a, b) for pair in zip(whole, every, strict=True) for a, b in zip(*pair, strict=True))
