"""The two ends of a decode step: a token's embedding, and the greedy choice of the next one."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from flashslm.inference.fused.projection import Best


@triton.jit
def _embed(token_ptr, embedding_ptr, x_ptr, size, PADDED: tl.constexpr):
    b, column = tl.program_id(0), tl.arange(0, PADDED)
    gdc_launch_dependents()
    gdc_wait()
    row = tl.load(token_ptr + b).to(tl.int64) * size
    tl.store(x_ptr + b * size + column, tl.load(embedding_ptr + row + column, mask=column < size), mask=column < size)


def embed(tokens_B: Tensor, embedding_VD: Tensor, x_BD: Tensor) -> None:
    """x = embedding[tokens], into the fp32 residual stream."""
    size = x_BD.shape[1]
    padded = triton.next_power_of_2(size)
    _embed[(x_BD.shape[0],)](tokens_B, embedding_VD, x_BD, size, PADDED=padded, launch_pdl=True)


@triton.jit
def _choose(score_ptr, row_ptr, token_ptr, programs, PADDED: tl.constexpr):
    b, at = tl.program_id(0), tl.arange(0, PADDED)
    gdc_launch_dependents()
    gdc_wait()
    scores = tl.load(score_ptr + b * programs + at, mask=at < programs, other=-float("inf"))
    tl.store(token_ptr + b, tl.load(row_ptr + b * programs + tl.argmax(scores, axis=0)).to(tl.int64))


def choose(best: Best, tokens_B: Tensor) -> None:
    """The row with the highest score becomes the next token; among equals the first."""
    batch, programs = best.score_BP.shape
    padded = triton.next_power_of_2(programs)
    _choose[(batch,)](best.score_BP, best.row_BP, tokens_B, programs, PADDED=padded, num_warps=8, launch_pdl=True)
