"""Training batches of new text with some rows of old text among them, against forgetting."""

import math
from pathlib import Path

import torch

from flashslm.data.loader import Batch, TokenLoader


class ReplayLoader(TokenLoader):
    """The train split of `new` with rows of that of `old` behind it in each batch, `replay_fraction` of all rows.

    The share is exact over any number of batches, also where one batch has too few rows for it. Replay of a small share
    keeps the loss on old data (Ibrahim et al. 2024, arXiv 2403.08763). Both have the same tokenizer. Raises ValueError
    as TokenLoader does, and unless 0 <= replay_fraction < 1.
    """

    def __init__(
        self,
        new: Path,
        old: Path,
        sequence_length: int,
        batch_size: int,
        seed: int,
        replay_fraction: float,
        *,
        rank: int = 0,
        world_size: int = 1,
    ):
        super().__init__(new, "train", sequence_length, batch_size, seed, rank, world_size)
        if not 0 <= replay_fraction < 1:
            raise ValueError(f"replay_fraction is {replay_fraction:g}: allowed are 0 up to, not including, 1")
        self.replay_fraction = replay_fraction
        self._old = TokenLoader(old, "train", sequence_length, batch_size, seed) if replay_fraction else None

    def batch(self, step: int) -> Batch:
        """int64 [B, T] each, this rank's rows of batch `step`: of the new rows, then the replayed ones."""
        if self._old is None:
            return super().batch(step)
        replayed = self._replayed_before(step)
        first_new = step * self.batch_size - replayed
        num_new = self.batch_size - (self._replayed_before(step + 1) - replayed)
        new = [self._training_start(first_new + row) for row in self._rows if row < num_new]
        old = [self._old._training_start(replayed + row - num_new) for row in self._rows if row >= num_new]
        parts = (self._assemble(new), self._old._assemble(old))
        return Batch(*(torch.cat(pair) for pair in zip(*parts, strict=True)))

    def _replayed_before(self, step: int) -> int:
        """Replayed rows of all batches before `step`."""
        return math.floor(step * self.batch_size * self.replay_fraction)
