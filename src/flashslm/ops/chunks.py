"""Sequences cut into chunks, for recurrences on a matrix state [B, H, K, V]: the delta rules, gated linear attention.

A chunked sequence is [chunks, B, H, C, K]. Chunks come first: a scan then reads contiguous slices, and the gradient of
unbind is one stack.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.documents import chunk_documents
from flashslm.ops.precision import compute_dtype


def initial_state(k_BTHK: Tensor, v_BTHV: Tensor, given_BHKV: Tensor | None) -> Tensor:
    """The state before the first token, in the dtype of the computation: the given one, else zeros."""
    batch, _, heads, key_size = k_BTHK.shape
    if given_BHKV is None:
        shape = (batch, heads, key_size, v_BTHV.shape[-1])
        return torch.zeros(shape, dtype=compute_dtype(k_BTHK), device=k_BTHK.device)
    return given_BHKV.to(compute_dtype(k_BTHK))


def chunk(x_BTHK: Tensor, chunk_size: int) -> Tensor:
    """[B, T, H, K] to [chunks, B, H, C, K], padded with zeros: no key is written, nothing is forgotten."""
    batch, length, heads, size = x_BTHK.shape
    padding = -length % chunk_size
    if padding:
        x_BTHK = F.pad(x_BTHK, (0, 0, 0, 0, 0, padding))
    return x_BTHK.reshape(batch, -1, chunk_size, heads, size).permute(1, 0, 3, 2, 4).contiguous()


def unchunk(x: Tensor, length: int) -> Tensor:
    """The inverse of `chunk`, without the padding."""
    chunks, batch, heads, chunk_size, size = x.shape
    return x.permute(1, 0, 3, 2, 4).reshape(batch, chunks * chunk_size, heads, size)[:, :length]


class ChunkMasks(NamedTuple):
    """Document masks that broadcast over a chunked sequence (see ops.documents.ChunkedDocuments)."""

    same: Tensor  # [chunks, B, 1, C, C]
    first: Tensor  # [chunks, B, 1, C, 1]
    carried: Tensor  # [chunks, B, 1, C, 1]
    last: Tensor  # [chunks, B, 1, C, 1]
    kept: Tensor  # [chunks, B, 1, 1, 1]


def chunk_masks(documents_BT: Tensor, chunk_size: int) -> ChunkMasks:
    documents = chunk_documents(documents_BT, chunk_size)
    first, carried, last = (
        mask.transpose(0, 1)[:, :, None, :, None] for mask in (documents.first, documents.carried, documents.last)
    )
    same, kept = documents.same.transpose(0, 1)[:, :, None], documents.kept.T[..., None, None, None]
    return ChunkMasks(same, first, carried, last, kept)


def read_states(q: Tensor, states: Tensor, start: Tensor, masks: ChunkMasks | None) -> Tensor:
    """S^T q of the state that a token's document entered its chunk with, or began with inside it."""
    if masks is None:
        return q @ states
    return (q * masks.carried) @ states + (q * ~masks.carried) @ start


class ChunkDecays(NamedTuple):
    """Cumulative decays of a chunk. Only differences of logarithms that are at most 0 are exponentiated."""

    total: Tensor  # [chunks, B, H, C, K]: the logarithm's cumulative sum, across documents
    read: Tensor  # what is left at a token of the state its document entered the chunk with, or began with in it
    write: Tensor  # what is left at the chunk's end of what a token wrote
    state: Tensor  # [chunks, B, H, K, 1]: what is left at the chunk's end of the state that its last document had


def chunk_decays(log_decay: Tensor, masks: ChunkMasks | None) -> ChunkDecays:
    """From chunked log decays (<= 0) of each key channel, or of the head (K = 1)."""
    total = log_decay.cumsum(dim=-2)
    since = total
    if masks is not None:
        since = total - (total - log_decay).gather(-2, masks.first.expand_as(total))
    read = since.exp()
    return ChunkDecays(total, read, (total[..., -1:, :] - total).exp(), read[..., -1:, :].mT)
