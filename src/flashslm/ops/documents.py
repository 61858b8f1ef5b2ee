"""Packed documents: several sequences in one row, distinguished by ids that do not decrease along T."""

from typing import NamedTuple

import torch
from torch import Tensor


def document_starts(documents_BT: Tensor) -> Tensor:
    """Whether a token is its document's first, bool [B, T]; the row's first token always is."""
    first = torch.ones_like(documents_BT[:, :1], dtype=torch.bool)
    return torch.cat([first, documents_BT[:, 1:] != documents_BT[:, :-1]], dim=1)


def state_before(t: int, state: Tensor, initial: Tensor, documents_BT: Tensor | None) -> Tensor:
    """The state [B, H, ., .] that token t of a recurrence meets: the initial one where it is its document's first."""
    if documents_BT is None or t == 0:
        return state
    starts_B = documents_BT[:, t] != documents_BT[:, t - 1]
    return torch.where(starts_B[:, None, None, None], initial, state)


def positions_in_document(documents_BT: Tensor) -> Tensor:
    """Each token's distance from its document's first token, int64 [B, T]."""
    index_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    start_BT = torch.where(document_starts(documents_BT), index_T, 0).cummax(dim=1).values
    return index_T - start_BT


class ChunkedDocuments(NamedTuple):
    """Masks that let a chunked recurrence start again inside a chunk."""

    same: Tensor  # bool [B, chunks, C, C]: both tokens in one document
    first: Tensor  # int64 [B, chunks, C]: index in the chunk of the first token of the token's document
    carried: Tensor  # bool [B, chunks, C]: the token's document entered the chunk from the one before
    last: Tensor  # bool [B, chunks, C]: the token belongs to the document that the chunk ends in

    @property
    def kept(self) -> Tensor:
        """Whether the chunk ends in the document that entered it, bool [B, chunks]."""
        return self.carried[..., -1]


def chunk_documents(documents_BT: Tensor, chunk_size: int) -> ChunkedDocuments:
    """Cut documents into chunks; the padding of the last chunk continues the last document."""
    batch, length = documents_BT.shape
    padding = documents_BT[:, -1:].expand(batch, -length % chunk_size)
    ids = torch.cat([documents_BT, padding], dim=1).view(batch, -1, chunk_size)
    same = ids[..., :, None] == ids[..., None, :]
    # The first chunk is entered by the initial state, where every document starts anyway.
    entering = torch.cat([ids[:, :1, 0], ids[:, :-1, -1]], dim=1)
    return ChunkedDocuments(
        same=same,
        first=same.to(torch.uint8).argmax(dim=-1),
        carried=ids == entering[..., None],
        last=ids == ids[..., -1:],
    )
