"""Batches from token shards. A batch is a pure function of (seed, step), so a resumed run needs no loader state."""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from flashslm.data.files import Files
from flashslm.data.order import HEADS, Stretch, WindowOrder, epoch_keys, permute
from flashslm.data.shards import SplitReader

IGNORE_INDEX = -100  # targets with this value are excluded from the loss
SAMPLE_SEED = 0


class Batch(NamedTuple):
    """int64 [B, T] each. `targets_BT[b, t]` follows `tokens_BT[b, t]`; documents never decrease along T."""

    tokens_BT: torch.Tensor
    targets_BT: torch.Tensor
    documents_BT: torch.Tensor

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class TokenLoader:
    """One split of a prepared data set as training batches in seeded order or as the whole split in stream order.

    `batch_size` is that of all ranks together; of the batch of a single rank each of N ranks gets every N-th row, so
    that they read different shards of a large split. Raises ValueError when the split is shorter than one window or the
    ranks do not divide the batch.
    """

    def __init__(
        self,
        dataset: Path | Files,
        split: str,
        sequence_length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self._reader = SplitReader(dataset, split)
        self.num_tokens = self._reader.index.tokens
        self.end_of_document_id = self._reader.index.end_of_document_id
        share = "" if split == "train" else f", data.{split}_fraction"
        if self.num_tokens < sequence_length + 1:
            raise ValueError(
                f"the {split} split has {self.num_tokens} tokens, one window needs {sequence_length + 1}: shorten "
                f"sequence_length, or prepare more text (data.max_bytes{share})"
            )
        if batch_size % world_size:
            raise ValueError(f"batch_size {batch_size} is not a multiple of world_size {world_size}")
        self.sequence_length, self.batch_size, self.seed = sequence_length, batch_size, seed
        self.rows = range(rank, batch_size, world_size)
        self._order = WindowOrder(self._reader.segments.borders(), sequence_length, seed)
        self.num_windows = self._order.num_windows
        self._announced: deque[Stretch] = deque(maxlen=4 * HEADS)

    @property
    def batches_per_epoch(self) -> int:
        """Batches that show every window about once, at least 1; an epoch may end inside a batch."""
        return max(1, self.num_windows // self.batch_size)

    def batch(self, step: int) -> Batch:
        """This rank's rows of training batch `step` (0, 1, …): each epoch shows every window once, in its own order."""
        return self.windows([step * self.batch_size + row for row in self.rows])

    def windows(self, numbers: list[int]) -> Batch:
        """The training windows of these numbers, counted through all epochs."""
        windows = [self._order.window(number) for number in numbers]
        for window in windows:
            self._fetch_ahead(window.block)
            self._fetch_ahead(window.following)
        return self._assemble([window.start for window in windows])

    def sample(self, tokens: int) -> Iterator[Batch]:
        """At least `tokens` targets of the split in whole windows, or all of them: spread over it at random.

        They are the same for every batch size, number of ranks and seed, so that losses over them compare. Every batch
        has the full shape, as those of `sequential`.
        """
        windows = -(-(self.num_tokens - 1) // self.sequence_length)
        keys = epoch_keys(SAMPLE_SEED, 0)
        chosen = [permute(i, windows, keys) for i in range(min(windows, -(-tokens // self.sequence_length)))]
        starts = [window * self.sequence_length for window in sorted(chosen)]
        for first in range(0, len(starts), self.batch_size):
            batch = starts[first : first + self.batch_size]
            batch += [self.num_tokens] * (self.batch_size - len(batch))
            yield self._assemble([batch[row] for row in self.rows])

    def sequential(self, max_batches: int = 0) -> Iterator[Batch]:
        """The split in stream order, each token predicted once; `max_batches` stops early (0 = all).

        Every batch has the full shape: places past the end have targets of IGNORE_INDEX.
        """
        starts = range(0, self.num_tokens - 1, self.sequence_length)
        count = -(-len(starts) // self.batch_size)
        for first in islice(range(0, count * self.batch_size, self.batch_size), max_batches or None):
            rows = [(first + row) * self.sequence_length for row in self.rows]
            yield self._assemble(rows)

    def tokens(self, start: int, stop: int) -> torch.Tensor:
        """Tokens [start, stop) of the split's stream, int64."""
        return torch.from_numpy(self._reader.read(start, min(stop, self.num_tokens)))

    def _fetch_ahead(self, stretch: Stretch | None) -> None:
        if stretch and stretch not in self._announced:
            self._announced.append(stretch)
            self._reader.fetch_ahead(*stretch)

    def _assemble(self, starts: list[int]) -> Batch:
        length = self.sequence_length
        windows = np.full((len(starts), length + 1), IGNORE_INDEX, dtype=np.int64)
        documents = np.zeros((len(starts), length), dtype=np.int64)
        for row, start in enumerate(starts):
            stop = min(start + length + 1, self.num_tokens)
            if start < stop:
                windows[row, : stop - start] = self._reader.read(start, stop)
                ids = self._reader.document_ids(start, min(start + length, stop))
                documents[row] = np.pad(ids, (0, length - len(ids)), mode="edge")
        tokens = np.where(windows == IGNORE_INDEX, self.end_of_document_id, windows)[:, :-1]
        return Batch(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (tokens, windows[:, 1:], documents)))
