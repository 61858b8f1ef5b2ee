from collections import Counter
from pathlib import Path

import pytest
import torch

from flashslm.config import TrainingConfig
from flashslm.data.loader import TokenLoader
from flashslm.data.mixture import ROWS_PER_PERIOD, MixtureLoader, rows_of_period
from flashslm.data.shards import ShardWriter
from tests.unit.data.corpora import in_turn

WEIGHTS = (5.0, 1.5, 3.5)
SIZES = {"web": 4000, "code": 1001, "books": 333}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data sets whose tokens name them: those of the n-th lie between 10,000 n and 10,000 n + its size."""
    made = {}
    for number, (name, size) in enumerate(SIZES.items()):
        made[name] = tmp_path_factory.mktemp(name)
        writer = ShardWriter(made[name] / "train", 40_000, end_of_document_id=10_000 * number, shard_tokens=1024)
        writer.add(list(range(10_000 * number + 1, 10_000 * number + size)), num_bytes=size)
        writer.close()
    return made


def mixture(directories: dict[str, Path], batch_size: int = 6, seed: int = 3, **ranks: int) -> MixtureLoader:
    loaders = {name: TokenLoader(d, "train", 16, batch_size, seed, **ranks) for name, d in directories.items()}
    return MixtureLoader(loaders, WEIGHTS)


def sources(tokens_BT: torch.Tensor) -> list[int]:
    return (tokens_BT[:, -1] // 10_000).tolist()


def test_a_period_has_exact_shares_and_every_window_of_a_source_once_per_epoch(directories: dict[str, Path]) -> None:
    loader = mixture(directories, batch_size=1)
    picked = [loader._pick(row) for row in range(2 * ROWS_PER_PERIOD)]
    for period in (picked[:ROWS_PER_PERIOD], picked[ROWS_PER_PERIOD:]):
        assert Counter(source for source, _ in period) == {0: 5000, 1: 1500, 2: 3500}
    for source, rows in enumerate((5000, 1500, 3500)):
        assert sorted(number for chosen, number in picked if chosen == source) == list(range(2 * rows))
    assert picked[:50] != picked[ROWS_PER_PERIOD : ROWS_PER_PERIOD + 50]


def test_rows_are_windows_of_the_source_they_were_counted_for(directories: dict[str, Path]) -> None:
    loader, seen = mixture(directories), Counter()
    for step in range(20):
        assert loader.rows_before(step) == {name: seen[i] for i, name in enumerate(SIZES)}
        batch = loader.batch(step)
        assert torch.equal(batch.targets_BT[:, :-1], batch.tokens_BT[:, 1:])
        seen.update(sources(batch.tokens_BT))
    assert min(seen.values()) > 5
    assert {name: loader.windows_of(name) for name in SIZES} == {"web": 250, "code": 62, "books": 20}


def test_a_batch_depends_on_seed_and_step_alone(directories: dict[str, Path]) -> None:
    straight = [mixture(directories).batch(step) for step in range(9)]
    later = mixture(directories).batch(8)
    assert all(torch.equal(a, b) for a, b in zip(straight[8], later, strict=True))
    other = [mixture(directories, seed=4).batch(step) for step in range(9)]
    assert any(not torch.equal(a.tokens_BT, b.tokens_BT) for a, b in zip(straight, other, strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_have_the_batch_of_one(directories: dict[str, Path], world_size: int) -> None:
    ranks = [mixture(directories, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in (0, 7):
        parts = zip(*(loader.batch(step) for loader in ranks), strict=True)
        assert all(torch.equal(in_turn(p), w) for p, w in zip(parts, mixture(directories).batch(step), strict=True))
    assert ranks[0].rows_before(9) == mixture(directories).rows_before(9), "counts are those of all ranks"


def test_counts_jump_over_periods_and_go_back(directories: dict[str, Path]) -> None:
    loader, other = mixture(directories, batch_size=7), mixture(directories, batch_size=7)
    steps = 25_000 // 7
    whole = Counter(loader.names[loader._pick(row)[0]] for row in range(steps * 7))
    assert loader.rows_before(steps) == whole
    for step in (1, 700, steps, 12):
        assert other.rows_before(step) == mixture(directories, batch_size=7).rows_before(step)


@pytest.mark.parametrize(
    "weights, rows",
    [
        ((1,), [10_000]),
        ((1, 1, 1), [3334, 3333, 3333]),
        ((7, 3), [7000, 3000]),
        ((1e9, 1e-9, 1), [9998, 1, 1]),
        ((0.3, 0.7), [3000, 7000]),
    ],
)
def test_every_source_has_a_row_and_the_period_is_full(weights: tuple[float, ...], rows: list[int]) -> None:
    assert rows_of_period(weights) == rows


def test_tiny_sources_take_their_rows_from_all_large_ones_alike() -> None:
    many = rows_of_period([1e-9] * 4001 + [1.0, 2.0])
    assert sum(many) == ROWS_PER_PERIOD and min(many) == 1 and abs(many[-1] - 2 * many[-2]) <= 2


def test_what_cannot_be_mixed_is_refused(directories: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="0 sources and 0 weights"):
        MixtureLoader({}, ())
    with pytest.raises(ValueError, match="too many: at most 10,000"):
        rows_of_period([1.0] * 10_001)


ADDRESS = "s3://lab/cas/ab/ab" + "0" * 62


@pytest.mark.parametrize(
    "sources, message",
    [
        ([{"name": "a", "weight": 0}], "greater than 0"),
        ([{"name": "a", "weight": -1.5}], "greater than 0"),
        ([{"name": "a", "weight": float("nan")}], "finite"),
        ([{"name": "a"}], "weight"),
        ([{"name": "A b", "weight": 1}], "name"),
        (
            [{"name": "a", "weight": 1}, {"name": "a", "weight": 1, "dataset": ADDRESS}],
            "name 'a' is there more than once",
        ),
        ([{"name": "a", "weight": 1}, {"name": "b", "weight": 1}], "dataset '' is there more than once"),
        ([{"name": "a", "weight": 1, "dataset": "s3://lab/data"}], "dataset"),
    ],
)
def test_a_recipes_mixture_is_checked_when_it_is_read(sources: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig.model_validate({"mixture": sources})
    fine = TrainingConfig.model_validate({"mixture": [{"name": "a", "weight": 2, "dataset": ADDRESS}]})
    assert fine.mixture[0].dataset == ADDRESS
