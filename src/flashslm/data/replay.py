"""Training batches of new text with some rows of old text among them, against forgetting."""

import math

import torch

from flashslm.data.loader import Batch, TokenLoader


class ReplayLoader:
    """The rows of `new` with rows of `old` behind them in each batch, `fraction` of all rows.

    The share is exact over any number of batches, also where one batch has too few rows for it. Replay of a small share
    keeps the loss on old data (Ibrahim et al. 2024, arXiv 2403.08763). Both have the same tokenizer, shape, seed and
    ranks. Raises ValueError unless 0 < fraction < 1.
    """

    def __init__(self, new: TokenLoader, old: TokenLoader, fraction: float):
        if not 0 < fraction < 1:
            raise ValueError(f"replay_fraction is {fraction:g}: allowed are values between 0 and 1")
        self._new, self._old, self._fraction = new, old, fraction

    def batch(self, step: int) -> Batch:
        """int64 [B, T] each, this rank's rows of batch `step`: of the new rows, then the replayed ones."""
        size, rows = self._new.batch_size, self._new.rows
        replayed = self._replayed_before(step)
        first_new = step * size - replayed
        num_new = size - (self._replayed_before(step + 1) - replayed)
        parts = (
            self._new.windows([first_new + row for row in rows if row < num_new]),
            self._old.windows([replayed + row - num_new for row in rows if row >= num_new]),
        )
        return Batch(*(torch.cat(pair) for pair in zip(*parts, strict=True)))

    def _replayed_before(self, step: int) -> int:
        """Replayed rows of all batches before `step`."""
        return math.floor(step * self._new.batch_size * self._fraction)
