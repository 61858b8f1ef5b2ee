"""Causal attention by cuDNN or FlashAttention; packed documents and windows by FlashAttention over variable lengths.

Shapes and semantics are those of `ops.attention`. Half precision only.
"""

from inspect import signature
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.varlen import varlen_attn

from flashslm.ops.attention import AttentionInputs
from flashslm.ops.fused.packing import pack

# In torch's own order, which has cuDNN first on Hopper. (An order set here, `set_priority`, would not be undone: torch
# decides on its own only when it is first used, and that would be inside.)
FAST = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
GROUPED = "enable_gqa" in signature(varlen_attn).parameters  # from torch 2.12 on


def attention_flash(inputs: AttentionInputs) -> Tensor:
    """Returns what `attention_naive` does."""
    q_BTHK, k_BSGK, v_BSGK, documents_BT, window = inputs
    if documents_BT is None and (window is None or k_BSGK.shape[1] <= window):
        return _unmasked(q_BTHK, k_BSGK, v_BSGK)
    if documents_BT is None:
        documents_BT = torch.zeros(q_BTHK.shape[:2], dtype=torch.int64, device=q_BTHK.device)
    return _by_documents(q_BTHK, k_BSGK, v_BSGK, documents_BT, window)


def _unmasked(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor) -> Tensor:
    """Causal attention behind a prefix of keys. A short prefix costs less as padded queries than aligned by a mask."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
    length, prefix, grouped = q.shape[2], k.shape[2] - q.shape[2], q.shape[1] != k.shape[1]
    with sdpa_kernel(FAST):
        if length == 1:
            o = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
        elif not prefix:
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        elif prefix <= length:
            padded = F.pad(q, (0, 0, prefix, 0))
            o = F.scaled_dot_product_attention(padded, k, v, is_causal=True, enable_gqa=grouped)[:, :, prefix:]
        else:
            aligned = causal_lower_right(length, k.shape[2])
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=aligned, enable_gqa=grouped)
    return o.transpose(1, 2)


def _by_documents(q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, documents_BT: Tensor, window: int | None) -> Tensor:
    """Every document is a sequence of its own: the prefix's keys and its own."""
    layout = _layout(documents_BT, k_BSGK.shape[1])
    k, v = (x.flatten(0, 1).index_select(0, layout.key_source) for x in (k_BSGK, v_BSGK))
    options: dict[str, Any] = {"enable_gqa": True} if GROUPED else {}
    if not GROUPED and q_BTHK.shape[2] != k.shape[1]:
        k, v = (x.repeat_interleave(q_BTHK.shape[2] // k.shape[1], dim=1) for x in (k, v))
    o = varlen_attn(
        q_BTHK.flatten(0, 1),
        k,
        v,
        layout.query_offsets,
        layout.key_offsets,
        layout.longest,
        layout.longest + layout.prefix,
        window_size=(-1 if window is None else window - 1, 0),
        **options,
    )
    return cast(Tensor, o).view_as(q_BTHK)


class _Layout(NamedTuple):
    """Sequences for variable-length attention; offsets are int32."""

    query_offsets: Tensor
    key_offsets: Tensor
    key_source: Tensor  # of each key, its index among the [B·S] keys
    longest: int  # tokens of the longest document
    prefix: int


def _layout(documents_BT: Tensor, keys: int) -> _Layout:
    packing = pack(documents_BT)
    batch, length = documents_BT.shape
    prefix, device = keys - length, documents_BT.device
    offsets, documents = packing.offsets_N1, len(packing.row_N)
    key_offsets = offsets + prefix * torch.arange(documents + 1, device=device)
    document_of = torch.repeat_interleave(torch.arange(documents, device=device), packing.lengths_N)
    token = torch.arange(batch * length, device=device)
    source = torch.empty(batch * length + documents * prefix, dtype=torch.int64, device=device)
    source[token + (document_of + 1) * prefix] = token // length * keys + prefix + token % length
    place = torch.arange(prefix, device=device)
    source[key_offsets[:-1, None] + place] = packing.row_N[:, None] * keys + place
    return _Layout(offsets.int(), key_offsets.int(), source, packing.longest, prefix)
