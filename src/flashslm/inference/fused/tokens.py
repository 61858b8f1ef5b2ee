"""The two ends of a decode step: a token's embedding, and the greedy choice of the next one."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from flashslm.inference.fused.projection import Best
from flashslm.inference.fused.stream import Stream


@triton.jit
def _embed(token_ptr, embedding_ptr, exact_ptr, rounded_ptr, size, PADDED: tl.constexpr):
    b, column = tl.program_id(0), tl.arange(0, PADDED)
    real = column < size
    gdc_launch_dependents()
    gdc_wait()
    x = tl.load(embedding_ptr + tl.load(token_ptr + b).to(tl.int64) * size + column, mask=real)
    tl.store(exact_ptr + b * size + column, x, mask=real)
    tl.store(rounded_ptr + b * size + column, x, mask=real)


def embed(tokens_B: Tensor, embedding_VD: Tensor, stream: Stream) -> None:
    """The residual stream begins as embedding[tokens]."""
    batch, size = stream.exact.shape
    padded = triton.next_power_of_2(size)
    _embed[(batch,)](tokens_B, embedding_VD, *stream, size, PADDED=padded, launch_pdl=True)


@triton.jit
def _choose(score_ptr, row_ptr, token_ptr, programs, PADDED: tl.constexpr):
    b, at = tl.program_id(0), tl.arange(0, PADDED)
    gdc_launch_dependents()
    gdc_wait()
    scores = tl.load(score_ptr + b * programs + at, mask=at < programs, other=-float("inf"))
    rows = tl.load(row_ptr + b * programs + at, mask=at < programs, other=2147483647)
    first = tl.min(tl.where(scores == tl.max(scores, axis=0), rows, 2147483647), axis=0)
    tl.store(token_ptr + b, first.to(tl.int64))


def choose(best: Best, tokens_B: Tensor) -> None:
    """The row with the highest score becomes the next token; among equals the first."""
    batch, programs = best.score_BP.shape
    padded = triton.next_power_of_2(programs)
    _choose[(batch,)](best.score_BP, best.row_BP, tokens_B, programs, PADDED=padded, num_warps=32, launch_pdl=True)
