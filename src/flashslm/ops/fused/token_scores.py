"""Tokens' log-probabilities under a linear head in one kernel: a logit lives in registers and is never written.

A program holds the logits of a block of rows for one tile of the vocabulary after another, as a matrix product makes
them, and keeps of them each row's maximum and its place, the sum of exponentials below it, and the token's own logit
(online softmax, Milakov and Gimelshein 2018). Several programs share the vocabulary of a row: their parts are put
together at the end. Libraries' forms (fla, liger) write the logits of a chunk, since they want a gradient too.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashslm.ops.token_scores import HeadInputs, TokenScores

BLOCK_M, BLOCK_N, BLOCK_K, STAGES = 128, 256, 64, 3  # tokens, entries of the vocabulary, width
SHARED_BYTES = 2 * STAGES * (BLOCK_M + BLOCK_N) * BLOCK_K  # of a block, in half precision
SPAN = 8192  # entries of the vocabulary that a program goes through
LOWEST = tl.constexpr(-1e30)  # of a lane that has seen nothing; the difference of two infinities is not a number


@triton.jit
def _parts_of_scores(
    hidden_ptr,
    weight_ptr,
    token_ptr,
    maximum_ptr,
    total_ptr,
    score_ptr,
    likeliest_ptr,
    rows,
    vocabulary,
    width: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Programs beside each other on the device read the same tile of the weight, for other rows."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(1)
    hidden_ptr += row.to(tl.int64)[:, None] * width
    token = tl.load(token_ptr + row, mask=row < rows, other=-1)
    maximum, total = tl.full((BLOCK_M,), LOWEST, tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    score, likeliest = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.int32)
    for offset in range(0, SPAN, BLOCK_N):
        first = part * SPAN + offset
        entry = first + tl.arange(0, BLOCK_N)
        entry_ptr = weight_ptr + entry.to(tl.int64)[None, :] * width
        logits = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, width, BLOCK_K):
            at = start + tl.arange(0, BLOCK_K)
            h = tl.load(hidden_ptr + at[None, :], mask=(row < rows)[:, None] & (at < width)[None, :], other=0.0)
            w = tl.load(entry_ptr + at[:, None], mask=(entry < vocabulary)[None, :] & (at < width)[:, None], other=0.0)
            logits = tl.dot(h, w, logits, input_precision="ieee")
        logits = tl.where((entry < vocabulary)[None, :], logits, LOWEST)
        best, place = tl.max(logits, axis=1, return_indices=True)
        likeliest = tl.where(best > maximum, first + place, likeliest)
        larger = tl.maximum(maximum, best)
        total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(logits - larger[:, None]), axis=1)
        maximum = larger
        score += tl.sum(tl.where(entry[None, :] == token[:, None], logits, 0.0), axis=1)
    at = part.to(tl.int64) * rows + row
    tl.store(maximum_ptr + at, maximum, mask=row < rows)
    tl.store(total_ptr + at, total, mask=row < rows)
    tl.store(score_ptr + at, score, mask=row < rows)
    tl.store(likeliest_ptr + at, likeliest, mask=row < rows)


def token_scores_triton(inputs: HeadInputs) -> TokenScores:
    """Returns what `token_scores_naive` does in fp32; products take hidden's dtype."""
    hidden_ND, weight_VD, tokens_N = inputs
    hidden, weight = hidden_ND.contiguous(), weight_VD.to(hidden_ND.dtype).contiguous()
    (rows, width), vocabulary = hidden.shape, len(weight)
    span = min(SPAN, triton.cdiv(vocabulary, BLOCK_N) * BLOCK_N)
    parts = triton.cdiv(vocabulary, span)
    maxima, totals, scores = (hidden.new_empty(parts, rows, dtype=torch.float32) for _ in range(3))
    likeliest = tokens_N.new_empty(parts, rows, dtype=torch.int32)
    if rows:
        outputs, blocks = (maxima, totals, scores, likeliest), (span, BLOCK_M, BLOCK_N, BLOCK_K)
        grid, sizes = (triton.cdiv(rows, BLOCK_M), parts), (rows, vocabulary, width)
        tensors = (hidden, weight, tokens_N.contiguous())
        _parts_of_scores[grid](*tensors, *outputs, *sizes, *blocks, num_warps=8, num_stages=STAGES)
    return _together(maxima, totals, scores, likeliest, tokens_N)


def _together(
    maxima_PN: Tensor, totals_PN: Tensor, scores_PN: Tensor, likeliest_PN: Tensor, tokens_N: Tensor
) -> TokenScores:
    """The parts of each row; a token's logit is in one of them, the others hold zero."""
    maximum_N, part_N = maxima_PN.max(dim=0)
    total_N = (totals_PN * (maxima_PN - maximum_N).exp()).sum(dim=0)
    likeliest_N = likeliest_PN.gather(0, part_N[None])[0]
    return TokenScores(scores_PN.sum(dim=0) - maximum_N - total_N.log(), likeliest_N == tokens_N)
