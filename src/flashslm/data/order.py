"""The order in which training reads the windows of a split: a pure function of seed and the row's number."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

FEISTEL_ROUNDS = 6
BLOCK_TOKENS = 1 << 24  # of the smallest block
HEADS = 64  # places at which a large split is read at once
_EPOCHS_KEPT = 2


class Stretch(NamedTuple):
    """Tokens [start, stop) of the stream."""

    start: int
    stop: int


class TrainingWindow(NamedTuple):
    """Where a window starts, in which block, and which block is read behind it, from the middle of this one on."""

    start: int
    block: Stretch
    following: Stretch | None


class WindowOrder:
    """Each epoch shows every window once, in its own order.

    A split of up to HEADS x BLOCK_TOKENS tokens is one block, whose windows are shuffled. A larger one has a block
    for every shard (or for several small ones): the blocks are shuffled, so are the windows in each, and HEADS places
    of this order are read in turn, so that only so many blocks are needed at a time. Row n of the run is read at place
    n mod HEADS (shifted from epoch to epoch): of N ranks that take every N-th row each reads blocks of its own,
    as far as N divides HEADS, a power of two.
    """

    def __init__(
        self,
        shard_borders: Sequence[int],
        sequence_length: int,
        seed: int,
    ):
        """`shard_borders` are the places in the stream where each shard begins, and the stream's end."""
        self._sequence_length, self._seed = sequence_length, seed
        self._blocks = _blocks(shard_borders)
        self._windows = [(stop - start - 1) // sequence_length for start, stop in self._blocks]
        self.num_windows = sum(self._windows)
        self._heads = 1 << (min(HEADS, len(self._blocks)).bit_length() - 1)
        self._shuffled_blocks = lru_cache(maxsize=_EPOCHS_KEPT)(self._shuffle_blocks)

    def window(self, number: int) -> TrainingWindow:
        """The window of a row, counted through all epochs."""
        epoch, position = divmod(number, self.num_windows)
        order, ends = self._shuffled_blocks(epoch)
        place, last = self._place(position)
        turn = bisect_right(ends, place)
        block, size = self._blocks[order[turn]], self._windows[order[turn]]
        inside = place - (ends[turn] - size)
        keys = epoch_keys(f"{self._seed}:block {order[turn]}" if len(order) > 1 else self._seed, epoch)
        slack = (block.stop - block.start - 1) % self._sequence_length  # so that no epoch leaves out the same tail
        start = block.start + keys[0] % (slack + 1) + permute(inside, size, keys[1:]) * self._sequence_length
        goes_on = 2 * inside >= size and ends[turn] <= last
        return TrainingWindow(start, block, self._blocks[order[turn + 1]] if goes_on else None)

    def _place(self, position: int) -> tuple[int, int]:
        """Of a position in the epoch, the place in the shuffled order, and the last one of its head."""
        head, turn = position % self._heads, position // self._heads
        size, longer = divmod(self.num_windows, self._heads)
        first = head * size + min(head, longer)
        return first + turn, first + size + (head < longer) - 1

    def _shuffle_blocks(self, epoch: int) -> tuple[list[int], list[int]]:
        """The blocks' numbers in the order of an epoch, and the number of windows up to the end of each."""
        count = len(self._blocks)
        keys = epoch_keys(f"{self._seed}:blocks", epoch)
        order = [permute(index, count, keys) for index in range(count)]
        return order, list(accumulate(self._windows[block] for block in order))


def _blocks(shard_borders: Sequence[int]) -> list[Stretch]:
    """Stretches of whole shards, of BLOCK_TOKENS at least; all in one up to HEADS * BLOCK_TOKENS tokens."""
    end, starts = shard_borders[-1], [0]
    if end > HEADS * BLOCK_TOKENS:
        for border in shard_borders[1:-1]:
            if min(border - starts[-1], end - border) >= BLOCK_TOKENS:
                starts.append(border)
    return [Stretch(*pair) for pair in zip(starts, [*starts[1:], end], strict=True)]


@lru_cache(maxsize=4 * HEADS)
def epoch_keys(seed: int | str, epoch: int) -> tuple[int, ...]:
    """Random 64-bit numbers of an epoch: the keys of its permutation and one more."""
    digest = hashlib.sha512(f"{seed}:{epoch}".encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 8], "big") for i in range(0, 8 * (FEISTEL_ROUNDS + 1), 8))


def permute(index: int, size: int, keys: tuple[int, ...]) -> int:
    """A pseudo-random bijection of range(size) in O(1) memory: a Feistel network over the next even power of two,
    walked until it falls inside the range (Black and Rogaway 2002, "cycle walking").
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        index = left << half_bits | right
        if index < size:
            return index


def _mix(value: int) -> int:
    """The splitmix64 finaliser (Steele, Lea, Flood 2014): 64 bits in, 64 well-mixed bits out."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)
