"""Packed documents as the libraries want them: one row of all tokens and the cumulative lengths of its documents."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from flashslm.ops.documents import document_starts


class Packing(NamedTuple):
    """N documents over all rows of a batch."""

    offsets_N1: Tensor  # int64: first token of each document in the flattened batch, and the end
    row_N: Tensor  # int64: the batch row each document stands in
    last_B: Tensor  # int64: index of each row's last document
    lengths_N: Tensor  # int64
    longest: int


_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def pack(documents_BT: Tensor) -> Packing:
    """Find the documents. Waits for the device, once for a tensor and its content, however many layers ask."""
    now = 0 if documents_BT.is_inference() else documents_BT._version  # inference tensors do not count changes
    known: tuple[int, Packing] | None = _known.get(documents_BT)
    if known is None or known[0] != now:
        starts_BT = document_starts(documents_BT)
        first_N = starts_BT.flatten().nonzero()[:, 0]
        offsets_N1 = torch.cat([first_N, first_N.new_tensor([documents_BT.numel()])])
        lengths_N = offsets_N1.diff()
        row_N, last_B = first_N // documents_BT.shape[1], starts_BT.sum(1).cumsum(0) - 1
        packing = Packing(offsets_N1, row_N, last_B, lengths_N, int(lengths_N.max()))
        known = _known[documents_BT] = (now, packing)
    return known[1]


def one_row(x_BT: Tensor) -> Tensor:
    """[B, T, ...] to [1, B·T, ...]."""
    return x_BT.flatten(0, 1)[None]
