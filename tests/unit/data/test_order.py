"""The order in which training reads the windows of a split."""

from itertools import pairwise

import numpy as np
import pytest

from flashslm.data import order
from flashslm.data.order import WindowOrder, permute

LENGTH = 10
BORDERS = [0, 95, 140, 300, 330, 505, 600, 705, 800, 915, 1000, 1101]  # two shards are shorter than a block


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "BLOCK_TOKENS", 90)
    monkeypatch.setattr(order, "HEADS", 4)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000, 4097])
def test_permutation_is_a_bijection(size: int) -> None:
    keys = (5, 2**63, 7, 11, 13, 17)
    image = [permute(i, size, keys) for i in range(size)]
    assert sorted(image) == list(range(size))
    if size >= 1000:  # close to the 1 fixed point and zero correlation of a random permutation
        assert sum(i == j for i, j in enumerate(image)) < 8
        assert abs(np.corrcoef(np.arange(size), image)[0, 1]) < 0.1


def starts(made: WindowOrder, epoch: int) -> list[int]:
    first = epoch * made.num_windows
    return [made.window(number).start for number in range(first, first + made.num_windows)]


def test_a_split_that_the_heads_hold_is_shuffled_as_a_whole() -> None:
    made = WindowOrder([0, 95, 200, 300, 360], LENGTH, seed=3)
    assert made.num_windows == 35
    for epoch in range(3):
        found = starts(made, epoch)
        assert sorted(found) == list(range(min(found), min(found) + 350, LENGTH))
    assert {made.window(number).block for number in range(99)} == {(0, 360)}
    assert all(made.window(number).following is None for number in range(99))


def test_a_large_one_shows_each_window_of_each_block_once_in_an_epoch() -> None:
    made = WindowOrder(BORDERS, LENGTH, seed=3)
    windows = [made.window(number) for number in range(made.num_windows)]
    blocks = sorted({window.block for window in windows})
    assert [block.start for block in blocks] == [0, 95, 300, 505, 600, 705, 800, 915]
    assert all(left.stop == right.start for left, right in pairwise(blocks)) and blocks[-1].stop == 1101
    for block in blocks:
        own = sorted(window.start for window in windows if window.block == block)
        assert own == list(range(own[0], own[0] + len(own) * LENGTH, LENGTH))
        assert len(own) == (block.stop - block.start - 1) // LENGTH
        assert block.start <= own[0] and own[-1] + LENGTH < block.stop, "no window needs another block"


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    made, again, other = (WindowOrder(BORDERS, LENGTH, seed=seed) for seed in (3, 3, 4))
    orders = [starts(made, epoch) for epoch in range(4)]
    assert len({tuple(found) for found in orders}) == 4 and starts(other, 0) != orders[0]
    assert [starts(again, epoch) for epoch in (3, 0)] == [orders[3], orders[0]], "it has no state"
    in_blocks = {tuple(dict.fromkeys(made.window(e * made.num_windows + i).block for i in range(100))) for e in (0, 1)}
    assert len(in_blocks) == 2


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_read_blocks_of_their_own(ranks: int) -> None:
    """Two heads may meet in the block where one begins and the other ends."""
    made = WindowOrder(BORDERS, LENGTH, seed=0)
    rows = [range(rank, made.num_windows, ranks) for rank in range(ranks)]
    read = [{made.window(number).block for number in own} for own in rows]
    assert sum(map(len, read)) <= 8 + made._heads - 1
    assert sorted(set.union(*read)) == sorted({made.window(n).block for n in range(made.num_windows)})


def test_few_blocks_are_needed_at_a_time_and_the_next_is_known_before() -> None:
    made = WindowOrder(BORDERS, LENGTH, seed=0)
    windows = [made.window(number) for number in range(made.num_windows)]
    assert all(len({window.block for window in windows[n : n + 4]}) <= 4 for n in range(0, len(windows), 4))
    for head in range(4):
        own = windows[head::4]
        for before, after in pairwise(own):
            if before.block != after.block:
                assert before.following == after.block
        assert own[-1].following is None


def test_window_numbers_spread_over_the_whole_split_at_any_time() -> None:
    made = WindowOrder(BORDERS, LENGTH, seed=0)
    assert np.std([made.window(number).start for number in range(12)]) > 200
