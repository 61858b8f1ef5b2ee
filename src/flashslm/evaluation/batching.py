"""Rows for an engine of fixed batch size."""

from torch import Tensor, cat


def pad_rows(tokens_BT: Tensor, batch_size: int) -> Tensor:
    """Repeat the last row until there are `batch_size`."""
    return cat([tokens_BT, tokens_BT[-1:].expand(batch_size - len(tokens_BT), -1)])
