"""Training batches of new text with some rows of old text among them, against forgetting."""

from pathlib import Path

import torch

from flashslm.data.loader import Batch, TokenLoader


class ReplayLoader(TokenLoader):
    """The train split of `new`, where `replayed_rows` of every batch's rows come from that of `old`.

    Replay of a small share keeps the loss on old data (Ibrahim et al. 2024, arXiv 2403.08763). Both have
    the same tokenizer. Raises ValueError as TokenLoader does, and unless 0 < replayed_rows < batch_size.
    """

    def __init__(self, new: Path, old: Path, sequence_length: int, batch_size: int, seed: int, replayed_rows: int):
        super().__init__(new, "train", sequence_length, batch_size, seed)
        if not 0 < replayed_rows < batch_size:
            raise ValueError(f"replayed_rows is {replayed_rows}: allowed are 1 to {batch_size - 1}")
        self._parts = (
            TokenLoader(new, "train", sequence_length, batch_size - replayed_rows, seed),
            TokenLoader(old, "train", sequence_length, replayed_rows, seed),
        )

    def batch(self, step: int) -> Batch:
        """int64 [B, T] each: the new rows, then the replayed ones."""
        new, old = (part.batch(step) for part in self._parts)
        return Batch(*(torch.cat(pair) for pair in zip(new, old, strict=True)))
